"""convert, revert and the report: what is exchanged, what survives, what is left alone."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import cnnext
from cnnext import nn


class Net(torch.nn.Module):
    """Layers of several kinds, one nested, one of them used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
        self.pool = torch.nn.MaxPool2d(2)
        self.again = self.stem[0]
        self.up = torch.nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.head = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(self.pool(self.stem(x))))


class Doubled(torch.nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Halved(nn.MaxPool2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) / 2


class Sized(torch.nn.Conv2d):
    """A subclass that only makes a layer."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)
        self.channels = channels

    def described(self) -> str:
        return f"{self.channels} channels"


def classes(model: torch.nn.Module) -> dict[str, str]:
    return {name: type(module).__module__ for name, module in model.named_modules()}


def test_exchanges_every_layer_in_place() -> None:
    model = Net()
    before = copy.deepcopy(model)
    modules, state, text = list(model.modules()), {k: v.data_ptr() for k, v in model.state_dict().items()}, repr(model)
    assert cnnext.convert(model) is model
    assert list(model.modules()) == modules
    assert {k: v.data_ptr() for k, v in model.state_dict().items()} == state
    assert repr(model) == text
    ours = {name for name, module in classes(model).items() if module == "cnnext.nn"}
    assert ours == {"stem.0", "stem.1", "pool", "up", "head.0", "head.2"}
    assert cnnext.conversion_report(model) == dict.fromkeys(ours, "cnnext")
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model(x), before(x))
    assert cnnext.revert(model) is model
    assert classes(model) == classes(before)
    torch.testing.assert_close(model(x), before(x), rtol=0, atol=1e-6)


def test_trains_as_before_with_optimizer_and_hooks_from_before() -> None:
    ours, torchs = Net().double(), Net().double()
    torchs.load_state_dict(ours.state_dict())
    seen: list[str] = []
    ours.stem[0].register_forward_hook(lambda *_: seen.append("forward"))
    ours.stem[0].weight.register_hook(lambda grad: seen.append("gradient"))
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in (ours, torchs)]
    cnnext.convert(ours)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    for _ in range(3):
        for model, optimizer in zip((ours, torchs), optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    assert seen == ["forward", "gradient"] * 3
    torch.testing.assert_close(dict(ours.named_parameters()), dict(torchs.named_parameters()))


@pytest.mark.parametrize("name", nn._LAYERS)
def test_every_layer_type(name: str) -> None:
    arguments: dict[str, tuple[Any, ...]] = {"Lazy": (4, 3), "Conv": (2, 4, 3), "LPPo": (2, 3), "Line": (2, 3)}
    layer = getattr(torch.nn, name)(*((4,) if name == "LazyLinear" else arguments.get(name[:4], (2,))))
    assert cnnext.conversion_report(layer) == {"": "torch: convert exchanges it"}
    assert type(cnnext.convert(layer)) is getattr(nn, name)  # the model itself may be a layer
    assert type(cnnext.convert(layer)) is getattr(nn, name)
    assert type(cnnext.revert(layer)) is getattr(torch.nn, name)


def test_lazy_layer_becomes_ours() -> None:
    layer = cnnext.convert(torch.nn.LazyConv2d(4, 3))
    assert layer(torch.ones(1, 2, 5, 5)).shape == (1, 4, 3, 3)
    assert type(layer) is nn.Conv2d


@pytest.mark.usefixtures("no_fallback")
def test_a_subclass_that_leaves_computing_to_torchs() -> None:
    class Named(torch.nn.MaxPool2d):  # of a function: it can not be pickled, but copied
        pass

    model = torch.nn.Sequential(Sized(3), Named(2))
    expected, x = copy.deepcopy(model), torch.randn(1, 3, 4, 4)
    assert set(cnnext.conversion_report(model).values()) == {"torch: convert exchanges it"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        conv, pool = cnnext.convert(model)
    assert isinstance(conv, nn.Conv2d) and isinstance(conv, Sized) and conv.described() == "3 channels"
    assert set(cnnext.conversion_report(model).values()) == {"cnnext"}
    assert type(cnnext.convert(Sized(2))) is type(conv) and repr(model) == repr(expected)
    copies = [model, copy.deepcopy(model), torch.nn.Sequential(pickle.loads(pickle.dumps(conv)), copy.copy(pool))]
    for each in copies:
        assert [layer["op"] for layer in cnnext.explain(each, x).to_dict()["layers"]] == ["conv", "max_pool"]
        assert [type(layer) for layer in each] == [type(conv), type(pool)]
        torch.testing.assert_close(each(x), expected(x))
    torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), expected(x))
    torch.nn.utils.parametrizations.weight_norm(conv)
    torch.testing.assert_close(model(x), expected(x))
    torch.nn.utils.parametrize.remove_parametrizations(conv, "weight")
    assert [type(layer) for layer in cnnext.revert(model)] == [Sized, Named]
    torch.testing.assert_close(model(x), expected(x))


@pytest.mark.parametrize(
    "name", ["forward", "_conv_forward", "_function", "__call__", "__reduce__", "__init_subclass__"]
)
def test_a_subclass_with_code_of_its_own(name: str) -> None:
    kind = type("Own", (torch.nn.Conv2d,), {name: getattr(torch.nn.Conv2d, name, None)})
    layer = kind(2, 2, 1)
    with pytest.warns(UserWarning, match="left alone the model .Own, a subclass of Conv2d"):
        assert type(cnnext.convert(layer)) is kind


def test_others_are_left_alone_and_reported() -> None:
    parametrized = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Conv2d(2, 2, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(torch.nn.MaxPool2d(2))
        quantised = torch.ao.nn.quantized.Conv2d(2, 2, 3)
    model = torch.nn.ModuleList([Doubled(2, 2, 3), parametrized, scripted, quantised, torch.nn.Conv2d(2, 2, 3)])
    before = [type(module) for module in model]
    with pytest.warns(
        UserWarning, match="left alone 0 .*Doubled, a subclass of Conv2d.*, 1 .*parametrized.*, 2 .*, 3 "
    ) as w:
        cnnext.convert(model)
    assert w[0].filename == __file__
    assert [type(module) for module in model] == [*before[:4], nn.Conv2d]
    assert cnnext.conversion_report(model) == {
        "0": "left alone: Doubled, a subclass of Conv2d",
        "1": "left alone: parametrized Conv2d",
        "2": "left alone: MaxPool2d compiled by torch.jit",
        "3": "left alone: quantised Conv2d",
        "4": "cnnext",
    }
    cnnext.revert(model)
    assert [type(module) for module in model] == [*before[:4], torch.nn.Conv2d]


def test_revert_names_what_it_leaves_alone() -> None:
    weight_norm = torch.nn.utils.parametrizations.weight_norm
    model = torch.nn.Sequential(weight_norm(nn.Conv2d(2, 2, 3)), Halved(2), nn.Conv2d(2, 2, 3), Doubled(2, 2, 3))
    assert list(cnnext.conversion_report(model).values())[:3] == ["cnnext"] * 3
    expected = r"revert left alone 0 \(parametrized Conv2d\), 1 \(Halved, a subclass of MaxPool2d\)$"
    with pytest.warns(UserWarning, match=expected) as w:
        cnnext.revert(model)
    assert [each.filename for each in w] == [__file__]
    assert type(model[2]) is torch.nn.Conv2d
    torch.nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    assert type(cnnext.revert(model[0])) is torch.nn.Conv2d


@pytest.mark.parametrize("dims", [2, 3])
def test_missing_layers_are_reported(dims: int) -> None:
    name = f"FractionalMaxPool{dims}d"
    layer = getattr(torch.nn, name)(2, output_size=2)
    assert cnnext.conversion_report(layer) == {"": f"left alone: cnnext has no {name}"}
    with pytest.warns(UserWarning, match=f"left alone the model .cnnext has no {name}"):
        cnnext.convert(layer)


def test_no_warning_when_all_is_exchanged() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 2, 3), nn.MaxPool2d(2), torch.nn.Linear(2, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cnnext.convert(model)
        cnnext.convert(torch.nn.ModuleList([Doubled(1, 1, 1)]), exclude=Doubled)
        cnnext.revert(model)
        cnnext.revert(torch.nn.ModuleList([Halved(2)]), exclude=Halved)


def test_parametrizing_after_conversion() -> None:
    layer = cnnext.convert(torch.nn.Conv2d(2, 2, 3))
    torch.nn.utils.parametrizations.weight_norm(layer)
    assert cnnext.conversion_report(layer) == {"": "cnnext"}
    x = torch.randn(1, 2, 5, 5)
    torch.testing.assert_close(layer(x), torch.nn.functional.conv2d(x, layer.weight, layer.bias))
    torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is nn.Conv2d


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ("stem.*", None, {"stem.0", "stem.1"}),
        (None, "stem.*", {"pool", "up", "head.0", "head.2"}),
        (torch.nn.MaxPool2d, None, {"pool"}),
        (["pool", torch.nn.ConvTranspose2d], None, {"pool", "up"}),
        (None, [torch.nn.AdaptiveAvgPool2d, "p*"], {"stem.0", "stem.1", "up", "head.2"}),
        (lambda name, module: isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3), None, {"stem.0"}),
        ("*", lambda name, module: name.startswith("head"), {"stem.0", "stem.1", "pool", "up"}),
        ([], None, set()),
    ],
)
def test_include_exclude(include: Any, exclude: Any, expected: set[str]) -> None:
    model = cnnext.convert(Net(), include=include, exclude=exclude)
    assert {name for name, module in classes(model).items() if module == "cnnext.nn"} == expected
    everything = cnnext.convert(Net())
    cnnext.revert(everything, include=include, exclude=exclude)
    reverted = {name for name, state in cnnext.conversion_report(everything).items() if state.startswith("torch")}
    assert reverted == expected


def test_choices_are_read_once() -> None:
    model = cnnext.convert(Net(), include=(kind for kind in (torch.nn.MaxPool2d, torch.nn.ConvTranspose2d)))
    assert {name for name, state in cnnext.conversion_report(model).items() if state == "cnnext"} == {"pool", "up"}


@pytest.mark.parametrize("wrong", [torch.nn.Conv2d(1, 1, 1), torch.nn.Sequential(torch.nn.ReLU()), 3, ["*", 3]])
def test_choices_of_another_type(wrong: Any) -> None:
    for exchange in (cnnext.convert, cnnext.revert):
        for name in ("include", "exclude"):
            with pytest.raises(TypeError, match="include and exclude are patterns for names, types of module and func"):
                exchange(Net(), **{name: wrong})


def test_pattern_that_matches_nothing() -> None:
    for exchange, name in ((cnnext.convert, "convert"), (cnnext.revert, "revert")):
        with pytest.warns(UserWarning, match=rf"cnnext.{name}: no module has a name like 'body\.\*'$") as w:
            exchange(Net(), include="*", exclude=["body.*", "again", torch.nn.Conv1d])
        assert [each.filename for each in w] == [__file__]


def test_shared_layer_by_each_of_its_names() -> None:
    for include, exclude in (("again", None), ("stem.0", None), (None, "stem.*"), (None, "again")):
        model = cnnext.convert(Net(), include, exclude)
        assert (type(model.again) is nn.Conv2d) == (include is not None)
    scaled = torch.nn.ModuleDict({"first": Doubled(1, 1, 1)})
    scaled["second"] = scaled["first"]
    with pytest.warns(UserWarning, match=r"left alone first \(Doubled, a subclass of Conv2d\)$"):
        cnnext.convert(scaled, include="second")


def test_subclass_of_the_same_name() -> None:
    layer = torch.ao.nn.qat.Conv2d(1, 1, 1, qconfig=torch.ao.quantization.get_default_qat_qconfig("x86"))
    [state] = cnnext.conversion_report(layer).values()
    assert state == "left alone: torch.ao.nn.qat.modules.conv.Conv2d, a subclass of Conv2d"


def test_replaced_forward() -> None:
    def wrap(layer: Any) -> Any:
        old = layer.forward
        layer.forward = lambda x: old(x)  # as tools do that move weights before each call
        return layer

    for exchange, caller, layer in (
        (cnnext.convert, "convert", torch.nn.MaxPool2d(2)),
        (cnnext.revert, "revert", nn.MaxPool2d(2)),
    ):
        before = type(wrap(layer))
        with pytest.warns(UserWarning, match=rf"{caller} left alone 0 \(MaxPool2d whose forward was replaced\)$"):
            exchange(torch.nn.Sequential(layer))
        assert type(layer) is before
    assert cnnext.conversion_report(layer) == {"": "cnnext"}  # it was ours when its forward was replaced
    report = cnnext.conversion_report(wrap(torch.nn.MaxPool2d(2)))
    assert report == {"": "left alone: MaxPool2d whose forward was replaced"}


@pytest.mark.parametrize("name", ["convert", "revert", "conversion_report"])
def test_no_module(name: str) -> None:
    with pytest.raises(TypeError, match=rf"cnnext.{name}: expected a torch.nn.Module, got NoneType$"):
        getattr(cnnext, name)(None)
