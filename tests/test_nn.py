"""cnnext.nn against torch.nn: same constructor, repr, state and results; copies and pickles."""

from __future__ import annotations

import copy
import importlib.util
import io
import pickle
import re
from typing import Any

import pytest
import torch
import torch.nn.utils.prune as prune
from calls import SPATIAL, evaluate
from torch import Tensor
from torch.nn.utils import parametrize

import cnnext
from cnnext import nn


def layers(library: Any, d: int) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Layers of `library` in d dimensions and the arguments of a call of each."""
    x = torch.randn(2, 4, *SPATIAL[d], dtype=torch.float64)
    made = {}

    def add(name: str, *args: Any, call: tuple[Any, ...] = (x,), **kwargs: Any) -> None:
        torch.manual_seed(1)  # the same initial parameters in both libraries
        made[f"{name} {args} {kwargs}"] = getattr(library, f"{name}{d}d")(*args, **kwargs).double(), call

    add("Conv", 4, 6, 3)
    add("Conv", 4, 6, (3, 2, 1)[:d], stride=2, padding=1, dilation=2, groups=2, bias=False)
    add("Conv", 4, 6, 2, padding="same")
    for mode in ("reflect", "replicate", "circular"):
        add("Conv", 4, 6, 3, padding=(2, 1, 1)[:d], padding_mode=mode)
        add("Conv", 4, 6, 2, padding="same", padding_mode=mode)
    add("ConvTranspose", 4, 6, 3)
    add("ConvTranspose", 4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
    add("ConvTranspose", 4, 6, 3, stride=3, call=(x, [3 * n + 1 for n in SPATIAL[d]]))
    add("MaxPool", 3, 2, 1)
    add("MaxPool", 2, dilation=2, ceil_mode=True, return_indices=True)
    add("AvgPool", 3, 2, 1, ceil_mode=True, count_include_pad=False)
    if d > 1:
        add("AvgPool", 2, divisor_override=3)
        add("AdaptiveAvgPool", (None, 3, 2)[:d])
    add("AdaptiveAvgPool", 2)
    add("AdaptiveMaxPool", 3)
    add("AdaptiveMaxPool", (3, 2, 1)[:d], return_indices=True)
    pooled = getattr(torch.nn.functional, f"max_pool{d}d")(x, 2, return_indices=True)
    add("MaxUnpool", 2, call=pooled)
    add("MaxUnpool", 2, call=(*pooled, SPATIAL[d]))
    add("LPPool", 2, 3, stride=2)
    add("LazyConv", 6, 3)
    add("LazyConvTranspose", 6, 3)
    return made


OURS = {d: layers(nn, d) for d in SPATIAL}
TORCHS = {d: layers(torch.nn, d) for d in SPATIAL}
CASES = [(d, name) for d in SPATIAL for name in OURS[d]]


def with_gradients(layer: Any, call: tuple[Any, ...]) -> list[Tensor]:
    """Outputs and all gradients of a call."""
    inputs = [each.detach().requires_grad_(each.is_floating_point()) for each in call if isinstance(each, Tensor)]
    rest = [each for each in call if not isinstance(each, Tensor)]
    if "Lazy" in type(layer).__name__:
        torch.manual_seed(2)
        layer(*call)
    return evaluate(lambda: layer(*inputs, *rest), [*inputs, *layer.parameters()])


@pytest.mark.parametrize(("d", "name"), CASES)
def test_layer_equals_torchs(d: int, name: str, no_fallback: None) -> None:
    (ours, _), (torchs, call) = copy.deepcopy(OURS[d][name]), copy.deepcopy(TORCHS[d][name])
    assert isinstance(ours, type(torchs))
    assert type(ours).__name__ == type(torchs).__name__
    assert repr(ours) == repr(torchs)
    torch.testing.assert_close(with_gradients(ours, call), with_gradients(torchs, call))
    assert type(ours).__module__ == "cnnext.nn"  # a lazy layer has become ours too
    assert ours.state_dict().keys() == torchs.state_dict().keys()
    assert repr(ours) == repr(torchs)


@pytest.mark.parametrize(("d", "name"), [case for case in CASES if "Lazy" not in case[1]])
def test_copies_and_files(d: int, name: str) -> None:
    layer, call = OURS[d][name]
    expected = layer(*call)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)]
    for each in copies:
        assert type(each) is type(layer)
        torch.testing.assert_close(each(*call), expected, rtol=0, atol=0)
    torchs = TORCHS[d][name][0]
    assert torchs.load_state_dict(layer.state_dict()) == layer.load_state_dict(torchs.state_dict())


def test_constructor_errors_are_torchs() -> None:
    for kwargs in ({"groups": 3}, {"padding": "full"}, {"padding_mode": "mirror"}, {"padding": "same", "stride": 2}):
        with pytest.raises(ValueError, match=r"padding|groups") as torchs:
            torch.nn.Conv2d(4, 4, 3, **kwargs)
        with pytest.raises(ValueError, match=re.escape(str(torchs.value))):
            nn.Conv2d(4, 4, 3, **kwargs)
    with pytest.raises(ValueError, match="requested an output size"):
        nn.ConvTranspose2d(1, 1, 3, stride=2)(torch.ones(1, 1, 4, 4), [20, 20])


def test_other_names_are_torchs() -> None:
    assert nn.ReLU is torch.nn.ReLU
    assert nn.init is torch.nn.init
    with pytest.raises(AttributeError, match=r"module 'cnnext\.nn' has no attribute 'Conv4d'"):
        nn.Conv4d  # noqa: B018
    with pytest.raises(AttributeError, match=r"module 'cnnext\.functional' has no attribute 'conv4d'"):
        cnnext.functional.conv4d  # noqa: B018
    with pytest.raises(ModuleNotFoundError, match="not a package"):  # not a second torch.nn.parameter
        importlib.import_module("cnnext.nn.parameter")


def test_names_are_listed() -> None:
    for ours, torchs in ((nn, torch.nn), (cnnext.functional, torch.nn.functional)):
        names: dict[str, Any] = {}
        exec(f"from {ours.__name__} import *", names)
        public = {name for name in dir(torchs) if not name.startswith("_")}
        assert public <= names.keys() - {"__builtins__"} <= set(dir(ours))
    exec("from cnnext.nn import *", names)
    assert (names["Conv2d"], names["ReLU"], names["functional"]) == (nn.Conv2d, torch.nn.ReLU, cnnext.functional)
    assert {"models", "nn", "viz"} <= set(dir(cnnext))
    assert ("profile" in dir(cnnext)) == (importlib.util.find_spec("rich") is not None)


def test_functional_is_ours() -> None:
    assert nn.functional is cnnext.functional
    assert importlib.import_module("cnnext.nn.functional") is cnnext.functional


def test_user_subclass_and_old_weight_norm() -> None:
    class Scaled(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    x = torch.randn(1, 2, 5, 5)
    layer = Scaled(2, 3, 3)
    torch.testing.assert_close(layer(x), 2 * torch.nn.functional.conv2d(x, layer.weight, layer.bias))
    layer = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 3))
    torch.testing.assert_close(layer(x), torch.nn.functional.conv2d(x, layer.weight, layer.bias))


def _tensor_instead_of_parameter(layer: torch.nn.Module, name: str) -> None:
    """As FSDP and hyper-networks do."""
    tensor = getattr(layer, name).detach() * 2
    delattr(layer, name)
    setattr(layer, name, tensor)


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize(
    "change",
    [
        lambda layer, name: parametrize.register_parametrization(layer, name, torch.nn.Softplus()),
        lambda layer, name: prune.l1_unstructured(layer, name, 0.5),
        lambda layer, _: torch.nn.utils.weight_norm(layer, "weight"),  # a bias of zeros has no direction
        _tensor_instead_of_parameter,
        lambda layer, name: setattr(layer, name, torch.nn.Parameter(getattr(layer, name).detach() + 1)),
    ],
    ids=["parametrised", "pruned", "weight_norm", "tensor", "replaced"],
)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_changed_weights_and_biases(change: Any, name: str, training: bool, no_fallback: None) -> None:
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    results = []
    for library in (torch.nn, nn):
        torch.manual_seed(0)
        model = torch.nn.Sequential(library.Conv2d(3, 4, 3), library.BatchNorm2d(4)).double().train(training)
        for layer in model:
            change(layer, name)
        results.append([model(x), model[1].running_mean])
    torch.testing.assert_close(results[1], results[0])


def test_a_statistic_is_replaced_by_a_tensor() -> None:
    layer, x = nn.BatchNorm2d(3).eval(), torch.randn(2, 3, 4, 4)
    mean = torch.randn(3)
    del layer.running_mean
    layer.running_mean = mean
    expected = torch.nn.functional.batch_norm(x, mean, layer.running_var, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected)
