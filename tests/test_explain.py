"""explain: the kernels that really run, shapes, work, fallbacks; and what it leaves untouched."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune as prune
from calls import CALLS, Call
from kernels import forced, layout
from torch.profiler import profile

import cnnext
from cnnext import functional, nn
from cnnext._explain import Direction, Explanation, Layer


@pytest.mark.parametrize(("given", "came"), [(None, "NoneType"), ("conv2d", "str"), (torch.ones(1), "Tensor")])
def test_what_cannot_be_called_is_refused(given: Any, came: str) -> None:
    with pytest.raises(ValueError, match=f"explain: expected a layer, a model or a function, but got {came}$"):
        cnnext.explain(given, torch.ones(1, 3, 8, 8))


def test_convolution_layer() -> None:
    layer = torch.nn.Conv2d(6, 8, (3, 5), stride=(1, 2), padding=1, dilation=(2, 1), groups=2)
    x = torch.randn(4, 6, 16, 20)
    [found] = cnnext.explain(layer, x).layers
    output = layer(x)
    assert (found.op, found.dtype, found.layout, found.fallback) == ("conv", "float32", "channels first", None)
    expected = "N=4 C=6 H=16 W=20 → K=8 P=14 Q=9, R=3 S=5 stride 1x2 padding 1 dilation 2x1 groups 2"
    assert found.shape == expected
    assert [each.name for each in found.directions] == ["forward", "grad_input", "grad_weight"]
    assert [each.op for each in found.directions] == ["conv", "conv_grad_input", "conv_grad_weight"]
    for each in found.directions:
        assert each.kernel in cnnext.backends.kernels(each.op)
        assert each.flops == 2 * output.numel() * 3 * 3 * 5
        assert each.bytes == 4 * (x.numel() + layer.weight.numel() + output.numel())
        assert each.workspace_bytes >= 0


def test_transposed_convolution() -> None:
    layer = nn.ConvTranspose2d(3, 4, 2, stride=2)
    x = torch.randn(1, 3, 5, 5)
    [found] = cnnext.explain(layer, x).layers
    assert found.shape == "N=1 C=3 H=5 W=5 → K=4 P=10 Q=10, R=2 S=2 stride 2 padding 0"
    ops = {each.name: each.op for each in found.directions}
    assert ops == {"forward": "conv_grad_input", "grad_input": "conv", "grad_weight": "conv_grad_weight"}
    assert {each.flops for each in found.directions} == {2 * 25 * 3 * 4 * 4}


def test_pooling() -> None:
    x = torch.randn(2, 3, 9, 9)
    [found] = cnnext.explain(F.max_pool2d, x, 3, stride=2, padding=1).layers
    assert found.shape == "N=2 C=3 H=9 W=9 → P=5 Q=5, R=3 S=3 stride 2 padding 1"
    assert found.op == "max_pool"
    assert found.directions[0].name == "forward"
    assert found.directions[0].flops == 2 * 3 * 25 * 9
    assert found.directions[0].kernel in cnnext.backends.kernels("max_pool")
    [adaptive] = cnnext.explain(nn.AdaptiveAvgPool2d(3), x).layers
    assert (adaptive.op, adaptive.shape) == ("adaptive_avg_pool", "N=2 C=3 H=9 W=9 → P=3 Q=3")


@pytest.mark.parametrize(("arch", "kernels"), [(None, ["planes", "planes"]), ((8, 0), ["planes", "gather"])])
def test_unpooling(arch: tuple[int, int] | None, kernels: list[str]) -> None:
    pooled, indices = F.max_pool2d(torch.randn(2, 3, 8, 6), 2, return_indices=True)
    [found] = cnnext.explain(torch.nn.MaxUnpool2d(2), pooled, indices, arch=arch).layers
    assert (found.op, found.shape) == ("max_unpool", "N=2 C=3 H=4 W=3 → P=8 Q=6")
    assert [each.op for each in found.directions] == ["max_unpool", "max_unpool_grad_input"]
    assert [each.kernel for each in found.directions] == kernels
    assert {each.bytes for each in found.directions} == {2 * 3 * (12 * (4 + 8) + 48 * 4)}
    assert found.directions[0].workspace_bytes == (0 if arch is None else 2 * 3 * 48 * 4)  # an owner for each pixel
    [smaller] = cnnext.explain(F.max_unpool1d, pooled[0], indices[0], 1, 1, 1, arch=arch).layers
    assert smaller.shape == "N=3 C=4 W=3 → Q=1"


@pytest.mark.parametrize("library", [F, functional], ids=["torch", "cnnext"])
@pytest.mark.parametrize("call", [call for call in CALLS if call.name != "batch_norm"], ids=str)
def test_every_call(call: Call, library: Any) -> None:
    found = cnnext.explain(getattr(library, call.name), *call.tensors(), **call.kwargs)
    [layer] = found.layers
    if 0 in call.shapes[0] and "conv" in call.name:
        assert layer.fallback == "conv: empty tensor"
        return
    assert layer.fallback is None
    assert layer.directions[0].name == "forward"
    assert layer.directions[0].kernel in str(found)


def test_layout_and_type() -> None:
    layer = nn.Conv2d(8, 8, 3).to(torch.bfloat16)
    x = torch.randn(1, 8, 9, 9, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    [found] = cnnext.explain(layer, x).layers
    assert (found.dtype, found.layout) == ("bfloat16", "channels last")


def test_gradients_of_the_function_itself() -> None:
    def second(x: torch.Tensor, w: torch.Tensor) -> Any:
        y = functional.max_pool2d(functional.conv2d(x, w), 2).square().sum()
        [grad] = torch.autograd.grad(y, w, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), w)

    x, w = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3, requires_grad=True)
    assert [layer.op for layer in cnnext.explain(second, x, w).layers][:2] == ["conv", "max_pool"]


@pytest.mark.parametrize(
    ("function", "args", "reason"),
    [
        (functional.max_pool2d, (torch.ones(0, 3, 8, 8), 2), None),
        (functional.adaptive_avg_pool2d, (torch.ones(0, 3, 8, 8), 2), None),
        (functional.max_unpool1d, (torch.ones(0, 3, 8), torch.ones(0, 3, 8).long(), 2), None),
        (functional.adaptive_avg_pool2d, (torch.ones(2, 0, 8, 8), 2), "adaptive_avg_pool: invalid or empty size"),
        (functional.conv1d, (torch.ones(0, 3, 8), torch.ones(4, 3, 2)), "conv: empty tensor"),
    ],
)
def test_empty_tensors(function: Callable[..., Any], args: Any, reason: str | None) -> None:
    cnnext.reset_fallbacks()
    function(*args)
    assert list(cnnext.fallbacks()) == ([] if reason is None else [reason])
    [layer] = cnnext.explain(function, *args).layers
    assert layer.fallback == reason


def half_of_the_channels(*shape: int) -> torch.Tensor:
    """Channels last by its strides, but not contiguous."""
    return layout(torch.randn(*shape).repeat(1, 2, *[1] * (len(shape) - 2)), True)[:, : shape[1]]


@pytest.mark.parametrize(
    ("function", "tensors", "args"),
    [
        (functional.max_pool2d, [half_of_the_channels(2, 16, 20, 20)], (2,)),
        (functional.max_pool2d, [torch.randn(2, 1, 20, 20)], (2,)),  # laid out both ways
        (functional.avg_pool3d, [half_of_the_channels(2, 16, 6, 6, 6)], (2,)),
        (functional.adaptive_avg_pool2d, [half_of_the_channels(2, 16, 20, 20)], (3,)),
        (functional.conv2d, [half_of_the_channels(2, 16, 20, 20), half_of_the_channels(16, 16, 3, 3)], ()),
        (functional.conv2d, [torch.randn(2, 16, 20, 20), half_of_the_channels(16, 16, 3, 3)], ()),
        (functional.conv2d, [torch.randn(2, 3, 1, 1)[..., :1], torch.randn(8, 3, 1, 1)], ()),
        (functional.conv_transpose2d, [half_of_the_channels(2, 3, 3, 3), half_of_the_channels(3, 8, 3, 3)], ()),
        # The weight in another layout.
        (
            functional.conv3d,
            [half_of_the_channels(1, 24, 7, 7, 7).bfloat16(), torch.randn(8, 24, 2, 2, 2).bfloat16()],
            (None, 2),
        ),
        (functional.conv2d, [torch.randn(1, 32, 14, 14).bfloat16(), half_of_the_channels(16, 32, 3, 3).bfloat16()], ()),
        (functional.conv2d, [half_of_the_channels(2, 1, 14, 14), torch.randn(64, 1, 3, 3)], ()),
    ],
)
def test_kernels_that_run(function: Callable[..., Any], tensors: list[torch.Tensor], args: Any) -> None:
    tensors = [each.requires_grad_() for each in tensors]

    def run() -> None:
        output = function(*tensors, *args)
        torch.autograd.grad(output, tensors, torch.ones_like(output))

    [layer] = cnnext.explain(function, *tensors, *args).layers
    assert layer.directions
    for each in layer.directions:
        assert each.kernel == first_that_runs(each.op.removeprefix("adaptive_"), run)


def first_that_runs(op: str, run: Callable[[], Any]) -> str | None:
    """The first kernel that takes the problem, which is the one that runs where none is forced."""
    taking = (kernel for kernel in cnnext.backends.kernels(op) if forced(op, kernel, lambda: [run()]))
    return next(taking, None)


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize(
    ("op", "function"), [("conv", functional.conv2d), ("conv_grad_input", functional.conv_transpose2d)]
)
def test_kernels_that_run_with_kept_weights(op: str, function: Callable[..., Any], trains: bool) -> None:
    for channels, size in ((32, 28), (64, 14), (128, 14), (256, 14), (256, 7), (512, 7)):
        x, w = torch.randn(1, channels, size, size), torch.randn(channels, channels, 3, 3, requires_grad=trains)
        with cnnext.backends.packed_weights(True):
            [layer] = cnnext.explain(function, x, w, padding=1).layers
            ran = first_that_runs(op, partial(function, x, w, padding=1))
        assert layer.directions[0].kernel == ran


def test_forced_kernel() -> None:
    x, w = torch.randn(1, 8, 9, 9), torch.randn(8, 8, 3, 3)
    refused = cnnext.explain(F.conv2d, x, w).layers[0].directions[0].refused
    for name in cnnext.backends.kernels("conv"):
        with cnnext.backends.force_kernel("conv", name):
            if name in refused:
                with pytest.raises(RuntimeError, match=f"the forced kernel '{name}' does not take this problem"):
                    cnnext.explain(F.conv2d, x, w)
            else:
                assert cnnext.explain(F.conv2d, x, w).layers[0].directions[0].kernel == name


def test_fallback_is_named() -> None:
    x, w = torch.ones(1, 1, 5, 5, dtype=torch.int64), torch.ones(1, 1, 3, 3, dtype=torch.int64)
    found = cnnext.explain(F.conv2d, x, w)
    [layer] = found.layers
    assert layer.fallback == "conv: element type"
    assert layer.directions == []
    [unpool] = cnnext.explain(F.max_unpool1d, *2 * [torch.ones(1, 1, 2, dtype=torch.int64)], 2).layers
    assert unpool.fallback == "max_unpool: element type"
    assert "left to torch: conv: element type" in str(found)
    assert "conv: element type" in found._repr_html_()


def test_fallback_of_several_calls_is_named() -> None:
    """torch pools rows as images: the next call that is seen does not end the layer."""
    x = torch.ones(1, 1, 4, dtype=torch.int64)
    found = cnnext.explain(lambda x: F.fractional_max_pool2d(F.max_pool1d(x, 2)[None], 1, 1), x)
    reasons = [layer.fallback for layer in found.layers]
    assert reasons == ["max_pool: element type", "not an operator of ours"]


def test_fallbacks_are_those_of_the_user() -> None:
    def disabled(*args: torch.Tensor) -> torch.Tensor:
        with cnnext.backends.flags(enabled=False):
            return functional.conv2d(*args)

    def invalid(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(functional.conv2d(x, w), w, stride=-1)

    numbers = torch.ones(1, 1, 5, 5).long(), torch.ones(1, 1, 3, 3).long()
    cnnext.reset_fallbacks()
    for calls in range(1, 3):
        functional.conv2d(*numbers)  # counted by the operator
        disabled(*numbers)  # counted in Python
        cnnext.explain(functional.conv2d, *numbers)
        cnnext.explain(disabled, *numbers)
        with pytest.raises(RuntimeError, match="stride"):
            cnnext.explain(invalid, *numbers)
        assert cnnext.fallbacks() == {"conv: element type": calls, "conv: cnnext is disabled": calls}
    cnnext.reset_fallbacks()
    cnnext.explain(functional.conv2d, *numbers)
    assert cnnext.fallbacks() == {}


def test_fallbacks_of_other_threads_are_counted() -> None:
    numbers = torch.ones(1, 1, 5, 5).long(), torch.ones(1, 1, 3, 3).long()
    complex = torch.ones(1, 1, 3, dtype=torch.complex64)

    def beside(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        with ThreadPoolExecutor(1) as other:
            other.submit(functional.conv2d, *numbers).result()  # counted by the operator
            other.submit(functional.conv1d, complex, complex).result()  # counted in Python
        return functional.conv2d(x, w)

    cnnext.reset_fallbacks()
    for calls in range(1, 3):
        [layer] = cnnext.explain(beside, *numbers).layers
        assert layer.fallback == "conv: element type"
        counts = {"conv: element type": calls, "conv: arguments that only torch takes": calls}
        assert cnnext.fallbacks() == counts
    with cnnext.backends.uncounted_fallbacks():
        functional.conv2d(*numbers)
        with cnnext.backends.uncounted_fallbacks():
            assert cnnext.fallbacks() == {}
            functional.conv1d(complex, complex)
        assert cnnext.fallbacks() == {"conv: element type": 1}
    assert cnnext.fallbacks() == counts


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return F.adaptive_avg_pool2d(self.pool(self.stem(x)), 1) * scale


def test_model_and_its_output() -> None:
    model = Net()
    state = {name: each.clone() for name, each in model.state_dict().items()}
    found = cnnext.explain(model, torch.randn(2, 3, 10, 10), scale=2.0)
    assert [layer.name for layer in found.layers] == ["stem.0", "pool", ""]
    assert [layer.op for layer in found.layers] == ["conv", "max_pool", "adaptive_avg_pool"]
    # nothing was computed, changed or left behind
    assert all(torch.equal(each, state[name]) for name, each in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert type(model.stem[0]) is torch.nn.Conv2d
    text = str(found)
    assert text.startswith(f"cnnext on {cnnext.backends.cpu_capability()}")
    assert all(word in text for word in ("stem.0 conv, float32, channels first: N=2 C=3", "grad_weight", "GFLOP"))
    assert found._repr_html_().count("<tr>") == 1 + sum(len(layer.directions) for layer in found.layers)
    assert json.loads(json.dumps(found.to_dict()))["layers"][1]["name"] == "pool"
    flops = sum(layer.directions[0].flops for layer in found.layers)
    assert text.endswith(" MB forward; 0 left to torch")
    assert f"3 layers: {flops / 1e9:.3f} GFLOP" in text
    assert max(map(len, text.splitlines())) <= 100


def test_refusals_contradict_no_choice() -> None:
    directions = [
        Direction("forward", "conv", "rows", "", {"lanes": "few", "col2im": "strided", "tiles": "odd"}, 0, 0, 0),
        Direction("grad_input", "conv_grad_input", "col2im", "", {"lanes": "few", "tiles": "large"}, 0, 0, 0),
        Direction("grad_weight", "conv_grad_weight", "gemm", "", {"rows": "wide", "tiles": "large"}, 0, 0, 0),
    ]
    text = str(Explanation([Layer("", "conv", "N=1", "float32", "channels first", None, directions)]))
    assert " ".join(text.partition("not used: ")[2].split()) == (
        "lanes: few; col2im in forward: strided; tiles in forward: odd; "
        "tiles in grad_input and grad_weight: large; rows in grad_weight: wide"
    )


def test_hooks_are_removed_after_an_error() -> None:
    model = Net()
    with pytest.raises(RuntimeError, match="channel"):
        cnnext.explain(model, torch.randn(1, 4, 8, 8))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("library", [nn, torch.nn])
def test_wrong_shapes_have_torchs_words_alone(library: Any, capfd: pytest.CaptureFixture[str]) -> None:
    for layer, shape in (
        (library.Conv2d(3, 8, 3), (1, 4, 8, 8)),
        (library.Conv1d(3, 8, 3), (4, 8)),
        (library.ConvTranspose2d(3, 8, 3), (1, 4, 8, 8)),
        (library.MaxPool2d(20), (1, 3, 8, 8)),
    ):
        with pytest.raises(RuntimeError, match=r"Given|Calculated") as torchs:
            layer(torch.ones(shape))
        with pytest.raises(RuntimeError, match=r"Given|Calculated") as ours:
            cnnext.explain(layer, torch.ones(shape))
        assert str(ours.value) == str(torchs.value)
    assert capfd.readouterr().err == ""


class Recurrent(torch.nn.Module):
    """Keeps its last outputs in an attribute, a buffer, a list and a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.register_buffer("buffer", None)
        self.state: torch.Tensor | None = None
        self.outputs: list[torch.Tensor] = []
        self.named: dict[str, torch.Tensor] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x if self.state is None else x + self.state)
        self.state = self.buffer = self.named["last"] = x
        self.outputs.append(x)
        return x


def test_what_a_model_keeps_is_not_fake() -> None:
    model, x = Recurrent(), torch.randn(1, 3, 8, 8)
    cnnext.explain(model, x)
    assert (model.state, model.buffer, model.outputs, model.named) == (None, None, [], {})
    output = model(x)
    cnnext.explain(model, x)
    assert model.state is model.buffer is model.named["last"] is model.outputs[-1] is output
    assert len(model.outputs) == 1


class Logging(torch.nn.Module):
    """Keeps outputs in containers of containers, one of which holds itself."""

    def __init__(self) -> None:
        super().__init__()
        self.log: dict[str, Any] = {"list": [], "named": {"deep": []}, "pair": ([], set())}
        self.log["self"] = self.log

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.max_pool2d(x, 2)
        self.log["list"].append(y)
        self.log["named"]["deep"].append([y])
        self.log["named"]["new"] = y
        self.log["pair"][0].append(y)
        self.log["pair"][1].add(y)
        return y


def test_what_nested_containers_keep_is_not_fake() -> None:
    model, x = Logging(), torch.randn(1, 3, 8, 8)
    cnnext.explain(model, x)
    assert model.log.pop("self") is model.log
    assert model.log == {"list": [], "named": {"deep": []}, "pair": ([], set())}
    output = model(x)
    cnnext.explain(model, x)
    assert [*model.log["list"], *model.log["pair"][0], *model.log["pair"][1]] == [output] * 3
    assert model.log["named"] == {"deep": [[output]], "new": output}


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "change",
    [
        torch.nn.utils.weight_norm,
        torch.nn.utils.spectral_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    ],
    ids=["weight_norm", "spectral_norm", "prune"],
)
def test_recomputed_weights_are_not_fake(change: Callable[[Any], Any]) -> None:
    layer = torch.nn.Conv2d(3, 4, 3)
    change(layer)
    weight, x = layer.weight, torch.randn(1, 3, 8, 8)
    expected = copy.deepcopy(layer.state_dict())
    assert len(cnnext.explain(layer, x).layers) == 1
    assert layer.weight is weight
    layer.weight.sum().tolist()  # needs numbers
    torch.testing.assert_close(layer.state_dict(), expected, rtol=0, atol=0)


def test_models_by_jit() -> None:
    """A scripted or traced part of a model is torch's."""
    x = torch.randn(1, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(torch.nn.Conv2d(4, 4, 3))
        traced = torch.jit.trace(torch.nn.Sequential(nn.MaxPool2d(2)), torch.ones(1, 4, 4, 4))
    for part, reasons in ((scripted, [None, "not an operator of ours"]), (traced, [None, None])):
        with pytest.raises(TypeError, match="expected a model in Python, but got one that torch"):
            cnnext.explain(part, x)
        found = cnnext.explain(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), part), x)
        assert [layer.fallback for layer in found.layers] == reasons


def test_model_in_data_parallel() -> None:
    with pytest.raises(TypeError, match="expected the model inside of DataParallel"):
        cnnext.explain(torch.nn.DataParallel(torch.nn.Conv2d(3, 4, 3)), torch.randn(1, 3, 8, 8))


def test_lazy_layers_must_have_run() -> None:
    model, x = torch.nn.Sequential(torch.nn.LazyConv2d(4, 3)), torch.randn(1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"the size of 0\.weight is not known yet: run the model once first"):
        cnnext.explain(model, x)
    model(x)
    assert len(cnnext.explain(model, x).layers) == 1


@pytest.mark.parametrize("read", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: 1 if x.sum() > 0 else 0])
def test_models_that_read_numbers(read: Callable[[torch.Tensor], Any]) -> None:
    with pytest.raises(RuntimeError, match="explain computes no numbers, but what it was given needs them"):
        cnnext.explain(lambda x: read(F.max_pool2d(x, 2)), torch.randn(1, 3, 8, 8))


def test_compiled_model_stays_compiled() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model, x = torch.compile(Net(), backend=backend, fullgraph=True), torch.randn(2, 3, 10, 10)
    assert [layer.op for layer in cnnext.explain(model, x).layers] == ["conv", "max_pool", "adaptive_avg_pool"]
    assert graphs == []
    model(x)
    assert len(graphs) == 1


def test_nothing_called() -> None:
    assert str(cnnext.explain(torch.nn.ReLU(), torch.ones(1, 2))) == "no convolution or pooling was called"


def test_profiler_shows_operators() -> None:
    x, w = torch.randn(1, 3, 8, 8, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    with profile() as p:
        functional.max_pool2d(functional.conv2d(x, w), 2).sum().backward()
    names = {event.key for event in p.key_averages()}
    assert {"cnnext::conv", "cnnext::conv_grad_input", "cnnext::conv_grad_weight"} <= names
    assert any(name.startswith("cnnext::max_pool") for name in names)


def test_problems_that_no_operator_has() -> None:
    size, one, none = ([1, 3, 8, 8], [4, 3, 3, 3]), [1, 1], [0, 0]
    for op, sizes, stride, dtype, cause in (
        ("conv", size, one, torch.int64, "conv: there are no kernels for Long"),
        ("conv", ([0, 3, 8, 8], size[1]), one, torch.float32, "conv: expected input and weight that are not empty"),
        ("conv", size, none, torch.float32, r"conv: expected a stride of 1 to .* stride \[0, 0\]"),
        ("max_pool", size, one, torch.float32, "expected one of conv, conv_grad_input, .*, but got 'max_pool'"),
    ):
        with pytest.raises(ValueError, match=cause):
            cnnext._C.explain_conv(op, *sizes, stride, none, one, 1, dtype, False)
    window = ([3, 3], [2, 2], [0, 0], [1, 1])
    with pytest.raises(RuntimeError, match=r"max_pool: windows of kernel_size \[3, 3\], stride \[2, 2\], padding .*"):
        cnnext._C.explain_pool("max_pool", [1, 3, 9, 9], [1, 3, 5, 5], *window, torch.float32, False)
