"""override: every name under which torch keeps a function is redirected, counted, and gives torch's results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from calls import CALLS, SPATIAL, Call, evaluate
from torch import Tensor

import cnnext
from cnnext import functional, nn


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_functional_calls(call: Call) -> None:
    tensors = call.tensors()
    expected = evaluate(lambda: call.run(F, tensors), tensors)
    with cnnext.override() as o:
        actual = evaluate(lambda: call.run(F, tensors), tensors)
    with_indices = "_with_indices" if call.kwargs.get("return_indices") else ""
    assert o.redirected == {call.name + with_indices: 1}
    torch.testing.assert_close(actual, expected)


def below(d: int) -> dict[str, tuple[str, Callable[[Tensor, Tensor], Any]]]:
    """torch's functions below torch.nn.functional, and the name that counts each."""
    builtins = torch._C._nn
    home = torch if d == 1 else builtins
    calls = {
        "torch.conv": (f"conv{d}d", lambda x, w: getattr(torch, f"conv{d}d")(x, w, None, 2)),
        "torch.conv_transpose": (f"conv_transpose{d}d", lambda x, w: getattr(torch, f"conv_transpose{d}d")(x, w)),
        "torch.max_pool": (f"max_pool{d}d", lambda x, w: getattr(torch, f"max_pool{d}d")(x, 2, [], 0, 1, True)),
        "max_pool_with_indices": (
            f"max_pool{d}d_with_indices",
            lambda x, w: getattr(home, f"max_pool{d}d_with_indices")(x, [2] * d),
        ),
        "avg_pool": (f"avg_pool{d}d", lambda x, w: getattr(home, f"avg_pool{d}d")(x, 2)),
        "adaptive_avg_pool": (
            f"adaptive_avg_pool{d}d",
            lambda x, w: getattr(home, f"adaptive_avg_pool{d}d")(x, [2] * d),
        ),
        "adaptive_max_pool": (
            f"adaptive_max_pool{d}d_with_indices",
            lambda x, w: getattr(home, f"adaptive_max_pool{d}d")(x, [2] * d),
        ),
    }
    return {f"{name}{d}d": call for name, call in calls.items()}


BELOW = {name: (d, *call) for d in SPATIAL for name, call in below(d).items()}


@pytest.mark.parametrize("name", BELOW)
def test_names_below_functional(name: str) -> None:
    d, counted, call = BELOW[name]
    x, w = torch.randn(2, 3, *SPATIAL[d]), torch.randn(3, 3, *[2] * d)
    expected = call(x, w)
    with cnnext.override() as o:
        actual = call(x, w)
    assert o.redirected == {counted: 1}
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", [name for name in nn._LAYERS if "Unpool" not in name])
def test_modules(name: str) -> None:
    arguments: dict[str, tuple[Any, ...]] = {"Lazy": (4, 3), "Conv": (3, 4, 3), "LPPo": (2, 3), "Batc": (3,)}
    arguments |= {"Line": (SPATIAL[1][0], 4)}
    layer = getattr(torch.nn, name)(*((4,) if name == "LazyLinear" else arguments.get(name[:4], (2,))))
    x = torch.randn(2, 3, *SPATIAL[int(name[-2]) if name.endswith("d") else 1])
    expected = layer(x)
    with cnnext.override() as o:
        actual = layer(x)
    assert list(o.redirected.values()) == [1]
    torch.testing.assert_close(actual, expected)
    assert type(layer).__module__ != "cnnext.nn"


@pytest.mark.parametrize(
    ("name", "op", "outputs"),
    [
        ("avg_pool2d", "avg_pool", 1),
        ("adaptive_avg_pool3d", "adaptive_avg_pool", 1),
        ("max_pool2d_with_indices", "max_pool", 2),
        ("adaptive_max_pool2d", "adaptive_max_pool", 2),
    ],
)
def test_out_is_torchs(name: str, op: str, outputs: int) -> None:
    function, x = getattr(torch._C._nn, name), torch.randn(2, 3, 4, 4)
    expected = function(x, 2)
    out = [torch.empty(0, dtype=dtype) for dtype in (torch.float32, torch.int64)][:outputs]
    cnnext.reset_fallbacks()
    with cnnext.override() as o:
        function(x, 2, out=out[0] if outputs == 1 else out)
    assert o.redirected == {}
    assert cnnext.fallbacks() == {f"{op}: arguments that only torch takes": 1}
    torch.testing.assert_close(out, [expected] if outputs == 1 else list(expected))


def test_user_subclasses_are_redirected_and_our_layers_not_counted() -> None:
    class Doubled(torch.nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    x = torch.randn(1, 2, 6, 6)
    with cnnext.override() as o:
        Doubled(2, 2, 3)(x)
        Doubled(2, 2, 3)(x)
        nn.Conv2d(2, 2, 3)(x)
        torch.relu(x)
    assert o.redirected == {"conv2d": 2}


def test_ends_with_the_block_even_by_an_error_and_nests() -> None:
    x, w = torch.randn(1, 2, 6, 6), torch.randn(2, 2, 3, 3)
    with cnnext.override() as outer:
        F.conv2d(x, w)
        with cnnext.override() as inner:
            F.conv2d(x, w)
    with pytest.raises(RuntimeError, match="to have 1 channels"), outer:
        F.conv2d(x, w[:, :1])
    F.conv2d(x, w)
    assert (outer.redirected, inner.redirected) == ({"conv2d": 2}, {"conv2d": 1})


def graph_of(function: Callable[..., Any], *args: Any, inside: bool) -> tuple[set[str], Any]:
    """Names of the operators that torch.compile sees, and the result. `inside`: the block is within the function."""
    names: set[str] = set()

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        from torch._functorch.aot_autograd import aot_module_simplified

        def note(aten: torch.fx.GraphModule, inputs: Any) -> Any:
            names.update(str(node.target) for node in aten.graph.nodes if node.op == "call_function")
            return aten

        return aot_module_simplified(graph, inputs, fw_compiler=note)

    torch.compiler.reset()
    compiled = torch.compile(function, backend=backend, fullgraph=True)
    if inside:
        return names, compiled(*args)
    with cnnext.override():
        return names, compiled(*args)


def test_under_compile() -> None:
    x, w = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    pool = torch.nn.MaxPool2d(2)

    def plain(x: Tensor, w: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(pool(F.conv2d(x, w)), 2)

    def with_block(x: Tensor, w: Tensor) -> Tensor:
        with cnnext.override():
            return plain(x, w)

    for function, inside in ((plain, False), (with_block, True)):
        names, result = graph_of(function, x, w, inside=inside)
        assert {"cnnext.conv.default", "cnnext.max_pool.default", "cnnext.adaptive_avg_pool.default"} <= names
        torch.testing.assert_close(result, plain(x, w))
    names, _ = graph_of(plain, x, w, inside=True)
    assert not any(name.startswith("cnnext") for name in names)


def test_table_is_ours() -> None:
    from cnnext._override import _REDIRECTIONS

    functions = {getattr(functional, name) for name in functional._FUNCTIONS}
    assert {function for _, function in _REDIRECTIONS.values()} == functions
