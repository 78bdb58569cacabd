"""cnnext.functional against torch.nn.functional: names, signatures, results, gradients, what goes to torch."""

from __future__ import annotations

import doctest
import inspect
import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from calls import CALLS, Call, evaluate
from kernels import layout
from torch import Tensor
from torch.overrides import TorchFunctionMode

import cnnext
from cnnext import functional

FAMILIES = (
    "conv",
    "conv_transpose",
    "max_pool",
    "avg_pool",
    "adaptive_max_pool",
    "adaptive_avg_pool",
    "max_unpool",
    "lp_pool",
)
NAMES = [f"{family}{dims}d" for family in FAMILIES for dims in (1, 2, 3)]
NAMES += ["batch_norm", "linear"]
NAMES += [f"{family}{dims}d_with_indices" for family in ("max_pool", "adaptive_max_pool") for dims in (1, 2, 3)]


def torch_parameters(name: str) -> dict[str, Any]:
    """torch's parameters and defaults: from the signature, or the docstring of a builtin or dispatched function."""
    function = getattr(F, name)
    try:
        parameters = inspect.signature(function).parameters
        if "args" not in parameters:
            return {key: each.default for key, each in parameters.items()}
    except ValueError:
        pass
    line = re.search(rf"{name}\((.*?)\)", function.__doc__).group(1)
    return {
        key: eval(default) if default else inspect.Parameter.empty
        for key, _, default in (each.strip().partition("=") for each in line.split(","))
    }


def test_exports() -> None:
    assert sorted(functional._FUNCTIONS) == sorted(NAMES)
    assert functional.relu is F.relu  # the rest of torch.nn.functional is passed on


@pytest.mark.parametrize("name", NAMES)
def test_signature(name: str) -> None:
    function = getattr(functional, name)
    ours = {key: each.default for key, each in inspect.signature(function).parameters.items()}
    assert ours == torch_parameters(name)
    assert (function.__name__, function.__module__) == (name, "cnnext.functional")
    assert pickle.loads(pickle.dumps(function)) is function


@pytest.mark.parametrize("name", NAMES)
def test_docstring_example(name: str) -> None:
    function = getattr(functional, name)
    assert function.__doc__.startswith(f"Drop-in for `torch.nn.functional.{name}`.")
    [test] = doctest.DocTestFinder(recurse=False).find(function, name, globs={"torch": torch})
    assert doctest.DocTestRunner().run(test) == (0, 2)


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_equals_torch(call: Call) -> None:
    cnnext.reset_fallbacks()
    tensors = call.tensors()
    expected = evaluate(lambda: call.run(F, tensors), tensors)
    actual = evaluate(lambda: call.run(functional, tensors), tensors)
    torch.testing.assert_close(actual, expected)
    reasons = {key.partition(": ")[2] for key in cnnext.fallbacks()}
    assert reasons == ({"empty tensor"} if 0 in call.shapes[0] else set())


@pytest.mark.parametrize(
    "name", [f"{family}{dims}d" for family in ("conv", "max_pool") for dims in (1, 2, 3)] + ["avg_pool2d", "lp_pool2d"]
)
def test_channels_last_is_kept(name: str) -> None:
    call = next(call for call in CALLS if call.name == name and call.shapes[0][0] == 2)
    tensors = [each.detach() for each in call.tensors(torch.float32)]
    tensors[0] = layout(tensors[0], True)
    expected, actual = call.run(F, tensors), call.run(functional, tensors)
    torch.testing.assert_close(actual, expected)
    assert actual.stride() == expected.stride()


def test_numpy_integers(no_fallback: None) -> None:
    x, w = torch.randn(1, 2, 8, 8), torch.randn(3, 2, 3, 3)
    stride = (np.int64(2), np.int64(1))
    torch.testing.assert_close(functional.conv2d(x, w, stride=stride), F.conv2d(x, w, stride=stride))
    torch.testing.assert_close(functional.max_pool2d(x, np.int64(2)), F.max_pool2d(x, 2))
    torch.testing.assert_close(functional.adaptive_avg_pool2d(x, (np.int32(2), 3)), F.adaptive_avg_pool2d(x, (2, 3)))


def test_a_size_of_torch_goes_the_short_way() -> None:
    class Sizes(list[int]):
        pass

    x = torch.randn(1, 2, 4, 6)
    for sizes in (x.shape[2:], Sizes(x.shape[2:]), (4, 6)):
        assert cnnext._C.avg_pool(2, x, sizes, None, 0, False, True, None) is not None
        assert torch.equal(functional.avg_pool2d(x, sizes), functional.avg_pool2d(x, [4, 6]))
    assert cnnext._C.avg_pool(2, x, (4, True), None, 0, False, True, None) is None


def integer(*shape: int) -> Tensor:
    return torch.randint(-3, 4, shape)


@pytest.mark.parametrize(
    ("name", "tensors", "kwargs"),
    [
        ("conv2d", lambda: (integer(1, 2, 5, 5), integer(3, 2, 3, 3)), {}),
        (
            "conv1d",
            lambda: (torch.randn(1, 2, 5, dtype=torch.complex64), torch.randn(3, 2, 3, dtype=torch.complex64)),
            {},
        ),
        ("conv_transpose2d", lambda: (integer(1, 2, 5, 5), integer(2, 3, 3, 3)), {"stride": 2}),
        ("conv2d", lambda: (torch.randn(1, 2, 5, 5).to_mkldnn(), torch.randn(3, 2, 3, 3).to_mkldnn()), {}),
        ("max_pool2d", lambda: (torch.randn(1, 2, 5, 5).to_mkldnn(),), {"kernel_size": 2}),
        ("avg_pool2d", lambda: (integer(1, 2, 5, 5),), {"kernel_size": 2, "divisor_override": 1}),
        (
            "max_pool2d",
            lambda: (torch.quantize_per_tensor(torch.randn(1, 2, 5, 5), 0.1, 0, torch.quint8),),
            {"kernel_size": 2},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_left_to_torch_and_recorded(name: str, tensors: Any, kwargs: dict[str, Any]) -> None:
    args = tensors()
    cnnext.reset_fallbacks()
    actual = getattr(functional, name)(*args, **kwargs)
    assert sum(cnnext.fallbacks().values()) == 1
    expected = getattr(F, name)(*args, **kwargs)
    if actual.is_mkldnn:
        actual, expected = actual.to_dense(), expected.to_dense()
    elif actual.is_quantized:
        actual, expected = actual.dequantize(), expected.dequantize()
    assert torch.equal(actual, expected)


def test_disabled() -> None:
    x, w = torch.randn(1, 2, 8, 8), torch.randn(3, 2, 3, 3)
    cnnext.reset_fallbacks()
    with cnnext.backends.flags(enabled=False):
        assert torch.equal(functional.conv2d(x, w), F.conv2d(x, w))
        functional.max_pool2d(x, 2)
    assert cnnext.fallbacks() == {"conv: cnnext is disabled": 1, "max_pool: cnnext is disabled": 1}
    functional.conv2d(x, w)
    assert sum(cnnext.fallbacks().values()) == 2


def test_assignment_to_a_switch() -> None:
    x, w = torch.randn(1, 2, 8, 8), torch.randn(3, 2, 3, 3)
    cnnext.reset_fallbacks()
    cnnext.backends.enabled = False
    with cnnext.backends.flags(enabled=True):
        functional.conv2d(x, w)
    functional.conv2d(x, w)
    cnnext.backends.enabled = True
    assert cnnext.fallbacks() == {"conv: cnnext is disabled": 1}
    with pytest.raises(AttributeError, match=r"winograd is a switch: set cnnext.backends.winograd.enabled$"):
        cnnext.backends.winograd = False
    for wrong in ("no", None, 1):
        message = f"expected a bool, got {type(wrong).__name__}$"
        with pytest.raises(TypeError, match=message):
            cnnext.backends.winograd.enabled = wrong
        with pytest.raises(TypeError, match=message):
            cnnext.backends.enabled = wrong
        with pytest.raises(TypeError, match=message), cnnext.backends.flags(wrong):
            pass
    assert cnnext.backends.winograd.enabled is cnnext.backends.enabled is True


@pytest.mark.parametrize("call", [call for call in CALLS if call.name.endswith("2d")], ids=str)
def test_modes_and_subclasses_see_our_function(call: Call) -> None:
    seen = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    class Subclass(Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return super().__torch_function__(func, types, args, kwargs)

    function = getattr(functional, call.name)
    if call.kwargs.get("return_indices"):
        function = getattr(functional, f"{call.name}_with_indices")
    tensors = [each.detach() for each in call.tensors(torch.float32)]
    expected = call.run(functional, tensors)
    with Mode():
        call.run(functional, tensors)
    assert seen[0] is function
    seen.clear()
    actual = call.run(functional, [tensors[0].as_subclass(Subclass), *tensors[1:]])
    assert seen[0] is function
    results = [actual] if isinstance(actual, Tensor) else actual
    assert all(isinstance(each, Subclass) for each in results)
    expected = [expected] if isinstance(expected, Tensor) else list(expected)
    torch.testing.assert_close([each.as_subclass(Tensor) for each in results], expected)
