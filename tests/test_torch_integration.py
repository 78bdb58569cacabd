"""The operators in the rest of torch: autocast, meta, compile, export, trace, checkpoint, counters."""

from __future__ import annotations

import copy
import functools
import os
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from calls import BY_NAME, CALLS, SPATIAL, Call
from torch import Tensor, library
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import (
    checkpoint,
)
from torch.utils.flop_counter import FlopCounterMode

import cnnext
from cnnext import backends, functional, nn

ops = torch.ops.cnnext


def r(*shape: int, grad: bool = False) -> Tensor:
    return torch.randn(shape, requires_grad=grad)


def samples(d: int) -> dict[str, tuple[Any, ...]]:
    """Arguments for each public operator in d dimensions."""
    size, k, ones = SPATIAL[d], [3, 2, 1][:d], [1] * d
    x, w, b = r(2, 4, *size, grad=True), r(6, 2, *k, grad=True), r(6, grad=True)
    geometry = ([2, 1, 2][:d], [1] * d, [1, 2, 1][:d], 2)
    grad = torch.randn_like(ops.conv(x, w, None, *geometry)).requires_grad_()
    pooled, indices = getattr(F, f"max_pool{d}d")(x.detach(), 2, return_indices=True)
    return {
        "conv": (x, w, b, *geometry),
        "fused_conv": (x, w, b, torch.randn_like(grad), *geometry, "leaky_relu", 0.5),
        "linear": (x, r(3, size[-1], grad=True), r(3, grad=True)),
        "batch_norm": (x, r(4, grad=True), r(4), None, None, 1e-3, r(2, 4, *size), "leaky_relu", 0.5),
        "conv_grad_input": (grad, w, r(4, grad=True), list(size), *geometry),
        "conv_grad_weight": (grad, x, k, *geometry),
        "conv_grad_bias": (grad,),
        "conv_transpose": (grad, w, r(4, grad=True), [2], [1], [1], 2, [1, 2, 1][:d]),
        "max_pool": (x, [3], [2], [1], [1], True),
        "max_pool_with_indices": (x, [2] * d, [], [0], [2]),
        "avg_pool": (x, [3], [2] * d, ones, True, False),
        "adaptive_max_pool": (x, [3, 2, 1][:d]),
        "adaptive_max_pool_with_indices": (x, [2]),
        "adaptive_avg_pool": (x, [3, 2, 4][:d]),
        "max_unpool": (pooled.requires_grad_(), indices, list(size)),
    }


PUBLIC = (
    "conv",
    "fused_conv",
    "linear",
    "batch_norm",
    "conv_grad_input",
    "conv_grad_weight",
    "conv_grad_bias",
    "max_pool",
    "max_pool_with_indices",
)
PUBLIC += (
    "conv_transpose",
    "avg_pool",
    "adaptive_max_pool",
    "adaptive_max_pool_with_indices",
    "adaptive_avg_pool",
    "max_unpool",
)


@pytest.mark.parametrize("d", SPATIAL)
@pytest.mark.parametrize("name", PUBLIC)
def test_opcheck(name: str, d: int) -> None:
    args = samples(d)[name]
    library.opcheck(getattr(ops, name).default, args)
    detached = tuple(arg.detach() if isinstance(arg, Tensor) else arg for arg in args)
    library.opcheck(getattr(ops, name).default, detached)


def test_every_public_operator_is_checked() -> None:
    names = {name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names() if "cnnext::" in name}
    internal = names - set(PUBLIC)  # of the backward passes
    assert names >= set(PUBLIC)
    assert all(name.endswith(("_grad_input", "_grad", "_with_offsets", "_select", "_indices")) for name in internal), (
        internal
    )


# autocast


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("call", BY_NAME.values(), ids=str)
def test_autocast(call: Call, dtype: torch.dtype) -> None:
    tensors = [each.to(dtype) if each.is_floating_point() else each for each in call.tensors(torch.float32)]
    tensors = [each.detach().requires_grad_(each.is_floating_point()) for each in tensors]
    outputs, gradients = [], []
    for namespace in (functional, F):
        with torch.autocast("cpu", torch.bfloat16):
            output = call.run(namespace, tensors)
        first = output if isinstance(output, Tensor) else output[0]
        outputs.append(first)
        gradients.append(torch.autograd.grad(first.float().sum(), [each for each in tensors if each.requires_grad]))
    assert outputs[0].dtype == outputs[1].dtype
    # torch adds up transposed convolutions in bfloat16 on some processors
    rounded = [each.detach().to(outputs[0].dtype).double() if each.requires_grad else each for each in tensors]
    exact = call.run(F, rounded)
    exact = exact if isinstance(exact, Tensor) else exact[0]
    torch.testing.assert_close(outputs[0].double(), exact, rtol=2e-2, atol=2e-2)
    assert [each.dtype for each in gradients[0]] == [each.dtype for each in gradients[1]]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=5e-2, atol=0.2)


def test_autocast_types() -> None:
    x, w = r(1, 2, 6, 6), r(3, 2, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert functional.conv2d(x, w).dtype == torch.bfloat16
        assert functional.max_pool2d(x, 2).dtype == torch.float32
        assert functional.avg_pool2d(x.bfloat16(), 2).dtype == torch.bfloat16
        assert functional.avg_pool3d(x.bfloat16()[None], 2).dtype == torch.float32


@pytest.mark.usefixtures("no_fallback")
def test_autocast_of_the_layers_of_a_network() -> None:
    """From the second layer on, inputs have the lower precision already and weights have not."""
    model = torch.nn.Sequential(nn.Conv2d(2, 4, 3), nn.ConvTranspose2d(4, 3, 2, 2), nn.ConvTranspose2d(3, 2, 3))
    with torch.autocast("cpu", torch.bfloat16):
        output = model(r(1, 2, 6, 6).float())
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


# meta, compile, export, trace


@pytest.mark.parametrize("call", [call for call in CALLS if "unpool" not in call.name], ids=str)
def test_meta(call: Call) -> None:
    tensors = [each.detach() for each in call.tensors(torch.float32)]
    real = call.run(functional, tensors)
    meta = call.run(functional, [each.to("meta") for each in tensors])
    for a, b in zip(
        (real,) if isinstance(real, Tensor) else real, (meta,) if isinstance(meta, Tensor) else meta, strict=True
    ):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
        assert b.device.type == "meta"


class Net(torch.nn.Module):
    """Every kind of layer in two dimensions."""

    def __init__(self, library: Any = nn) -> None:
        super().__init__()
        self.conv = library.Conv2d(3, 8, 3, stride=2, padding=1)
        self.same = library.Conv2d(8, 8, 2, padding="same", groups=2)
        self.pool = library.MaxPool2d(3, 2, 1)
        self.up = library.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1)
        self.avg = library.AvgPool2d(2, ceil_mode=True)
        self.lp = library.LPPool2d(2, 2, stride=1)
        self.head = library.AdaptiveAvgPool2d((2, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.same(torch.relu(self.conv(x)))
        x = self.up(self.pool(x))
        return self.head(self.lp(self.avg(x)))


class Flat(torch.nn.Module):
    """One and three dimensions, adaptive maxima, unpooling."""

    def __init__(self, library: Any = nn) -> None:
        super().__init__()
        self.one = library.Conv1d(2, 3, 3, padding="same", dilation=2)
        self.pool = library.MaxPool1d(2, return_indices=True)
        self.unpools = True
        self.unpool = library.MaxUnpool1d(2)
        self.three = library.Conv3d(1, 2, (1, 2, 1))
        self.up = library.ConvTranspose3d(2, 1, 2, stride=2)
        self.peak = library.AdaptiveMaxPool3d((2, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        x, indices = self.pool(self.one(x))
        x = self.unpool(x, indices) if self.unpools else x
        return self.peak(self.up(self.three(x[:, None, :, :, None])))


MODELS = {"net": (Net, (2, 3, 17, 15), (3, 3, 21, 18)), "flat": (Flat, (2, 2, 8), (3, 2, 12))}


def pair(name: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """One model in ours and in torch's layers, with the same parameters."""
    build = MODELS[name][0]
    ours, torchs = build(nn), build(torch.nn)
    torchs.load_state_dict(ours.state_dict())
    return ours, torchs


def gradients(model: Callable[..., Tensor], parameters: Any, x: Tensor) -> list[Tensor]:
    output = model(x)
    return [output, *torch.autograd.grad(output.square().sum(), list(parameters))]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_compile(name: str, dynamic: bool) -> None:
    torch.compiler.reset()
    ours, torchs = pair(name)
    compiled = torch.compile(ours, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for shape in MODELS[name][1:]:
        x = r(*shape)
        actual = gradients(compiled, ours.parameters(), x)
        torch.testing.assert_close(actual, gradients(torchs, torchs.parameters(), x), rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), torchs(x), rtol=1e-4, atol=1e-4)


def test_compile_dynamic_does_not_recompile() -> None:
    torch.compiler.reset()
    ours, _ = pair("net")
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend=counter)
    for n, h, w in ((2, 17, 15), (3, 21, 18), (5, 30, 33)):
        compiled(r(n, 3, h, w))
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
def test_compile_dynamic_trains_ceil_mode_once(name: str) -> None:
    def pooled(x: Tensor) -> Tensor:
        for _ in range(3):
            x = getattr(functional, name)(x, 3, 2, ceil_mode=True)
        return x

    def gradient(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return torch.autograd.grad(run(x).sum(), x)[0]

    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(pooled, fullgraph=True, dynamic=True, backend=counter)
    for size in range(33, 49):  # each of the three sees even and odd planes
        x = r(2, 3, size, 81 - size).requires_grad_()
        assert torch.equal(gradient(compiled, x), gradient(pooled, x))
    assert counter.frame_count == 1


def test_compile_with_inductor() -> None:
    torch.compiler.reset()
    ours, torchs = pair("net")
    x = r(2, 3, 17, 15)
    actual = gradients(torch.compile(ours, fullgraph=True), ours.parameters(), x)
    torch.testing.assert_close(actual, gradients(torchs, torchs.parameters(), x), rtol=1e-4, atol=1e-4)


def test_compile_of_what_is_left_to_torch() -> None:
    x, w = torch.randint(-3, 4, (1, 2, 6, 6)), torch.randint(-3, 4, (3, 2, 3, 3))
    compiled = torch.compile(lambda x, w: functional.conv2d(x, w), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, w), F.conv2d(x, w))

    def disabled(x: Tensor) -> Tensor:
        with cnnext.backends.flags(enabled=False):
            return functional.avg_pool2d(x, 2)

    names: list[str] = []
    inner = torch.compile(disabled, fullgraph=True, backend=lambda graph, _: names.append(graph.code) or graph.forward)
    torch.testing.assert_close(inner(x.float()), F.avg_pool2d(x.float(), 2))
    assert "cnnext" not in names[0]


@pytest.mark.skipif("CNNEXT_SLOW_TESTS" not in os.environ, reason="takes a minute; set CNNEXT_SLOW_TESTS=1")
def test_ahead_of_time_inductor(tmp_path: Any) -> None:
    ours, torchs = pair("net")
    batch = torch.export.Dim("batch", min=2, max=64)
    with torch.no_grad():
        program = torch.export.export(ours, (r(2, 3, 17, 15),), dynamic_shapes=({0: batch},))
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "net.pt2"))
        x = r(5, 3, 17, 15)
        torch.testing.assert_close(torch._inductor.aoti_load_package(package)(x), torchs(x), rtol=1e-4, atol=1e-4)


def operators(program: Any) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize("name", MODELS)
def test_export_and_decompositions(name: str) -> None:
    ours, torchs = pair(name)
    shapes = MODELS[name][1:]
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(ours, (r(*shapes[0]),), dynamic_shapes=({0: batch},))
    core = program.run_decompositions(cnnext.decompositions())
    assert any(op.startswith("cnnext.conv.") for op in operators(program))
    assert not any(op.startswith("cnnext") for op in operators(core)), operators(core)
    for n in (2, 5):
        x = r(n, *shapes[0][1:])
        for each in (program, core):
            torch.testing.assert_close(each.module()(x), torchs(x), rtol=1e-4, atol=1e-4)


class Planes(torch.nn.Module):
    """One window over each plane, whatever its size."""

    def forward(self, x: Tensor) -> list[Tensor]:
        size = x.shape[2:]
        pools = functional.max_pool2d(x, size), functional.avg_pool2d(x, size), functional.avg_pool2d(x, size, 1)
        return [*pools, functional.max_pool1d(x[:, :, 0], size[1]), functional.adaptive_avg_pool2d(x, (size[0], 1))]


def exported(model: torch.nn.Module) -> Any:
    """For planes of any size."""
    sizes = {2: torch.export.Dim("h", min=4, max=512), 3: torch.export.Dim("w", min=4, max=512)}
    return torch.export.export(model, (r(1, 3, 16, 18),), dynamic_shapes=(sizes,))


def test_decompositions_of_windows_over_planes_of_any_size() -> None:
    core = exported(Planes()).run_decompositions(cnnext.decompositions())
    assert not any(op.startswith("cnnext") for op in operators(core)), operators(core)
    for height, width in ((16, 18), (7, 30), (64, 9)):
        x = r(1, 3, height, width)
        torch.testing.assert_close(core.module()(x), Planes()(x))


@pytest.mark.parametrize("pool", [
    lambda x: functional.max_pool2d(x, (x.shape[2], 2)),
    lambda x: functional.max_pool2d(x, x.shape[2:], return_indices=True),
    lambda x: functional.avg_pool2d(x, x.shape[2:], divisor_override=3),
    lambda x: functional.adaptive_max_pool2d(x, (None, 1)),
])  # fmt: skip
def test_decompositions_that_would_fix_a_size_are_refused(pool: Callable[[Tensor], Any]) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor) -> Any:
            return pool(x)

    program = exported(Model())
    assert program.module()(r(1, 3, 9, 12)) is not None
    with pytest.raises(RuntimeError, match=r"2d can not be decomposed for sizes that only a run knows: \["):
        program.run_decompositions(cnnext.decompositions())


@pytest.mark.parametrize("name", MODELS)
def test_trace(name: str) -> None:
    ours, torchs = pair(name)
    ours.unpools = torchs.unpools = False  # torch's own can not be traced either
    shapes = MODELS[name][1:]
    traced = torch.jit.trace(ours, r(*shapes[0]))
    assert "cnnext::conv" in str(traced.inlined_graph)
    for shape in shapes:
        x = r(*shape)
        torch.testing.assert_close(traced(x), torchs(x), rtol=1e-4, atol=1e-4)


def test_onnx_export(tmp_path: Any) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    ours, _ = pair("net")
    program = torch.export.export(ours, (r(2, 3, 17, 15),)).run_decompositions(cnnext.decompositions())
    torch.onnx.export(program, (), tmp_path / "net.onnx")
    nodes = onnx.load(tmp_path / "net.onnx").graph.node
    assert {"Conv", "MaxPool"} <= {node.op_type for node in nodes}
    assert not any("cnnext" in node.domain for node in nodes)


@pytest.mark.parametrize(("dynamo", "words"), [(True, "Failed to convert the exp"), (False, "namespace cnnext::conv")])
def test_onnx_export_needs_torchs_layers(dynamo: bool, words: str, tmp_path: Any) -> None:
    onnx, _ = pytest.importorskip("onnx"), pytest.importorskip("onnxscript")
    model, file = cnnext.convert(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)).eval()), tmp_path / "net.onnx"
    export = functools.partial(torch.onnx.export, model, (r(1, 3, 8, 8),), file, dynamo=dynamo, verbose=False)
    with pytest.raises(torch.onnx.errors.OnnxExporterError, match=words):
        export()
    with backends.flags(enabled=False):
        export()
    assert [node.op_type for node in onnx.load(file).graph.node] == ["Conv"]
    cnnext.revert(model)
    export()


def test_every_operator_has_a_decomposition() -> None:
    assert {getattr(ops, name).default for name in PUBLIC} <= cnnext.decompositions().keys()


def test_compile_where_ci_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor is stricter there: it refuses operators that have a decomposition in torch's own table."""
    monkeypatch.setenv("CI", "1")
    torch.compiler.reset()
    x, weight = r(1, 3, 9, 9), r(4, 3, 3, 3)
    actual = torch.compile(lambda x: cnnext.functional.conv2d(x, weight).relu(), fullgraph=True)(x)
    torch.testing.assert_close(actual, F.conv2d(x, weight).relu(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("d", SPATIAL)
@pytest.mark.parametrize("name", PUBLIC)
def test_decomposition_equals_operator(name: str, d: int) -> None:
    op = getattr(ops, name).default
    args = tuple(arg.detach() if isinstance(arg, Tensor) else arg for arg in samples(d)[name])
    torch.testing.assert_close(cnnext.decompositions()[op](*args), op(*args), rtol=1e-4, atol=1e-4)


# memory, counters, parallel training


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant: bool) -> None:
    x, grads = r(2, 3, 17, 15), []
    for model, run in zip(
        pair("net"), (lambda m, x: checkpoint(m, x, use_reentrant=reentrant), lambda m, x: m(x)), strict=True
    ):
        source = x.clone().requires_grad_()
        run(model, source).square().sum().backward()
        grads.append([source.grad, *(each.grad for each in model.parameters())])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_flop_counter(name: str) -> None:
    ours, torchs = pair(name)
    if name == "net":
        ours.same, torchs.same = nn.Conv2d(8, 8, 3, padding=1), torch.nn.Conv2d(8, 8, 3, padding=1)
    x = r(*MODELS[name][1], grad=True)
    counts = []
    for model in (ours, torchs):
        with FlopCounterMode(display=False) as counter:
            output = model(x)
        forward = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            output.sum().backward()
        counts.append((forward, counter.get_total_flops()))
    assert counts[0] == counts[1]
    assert counts[0][0] > 0


def test_flops_of_grouped_convolution() -> None:
    x, w = r(2, 4, 9, 9, grad=True), r(6, 2, 3, 3, grad=True)
    with FlopCounterMode(display=False) as counter:
        functional.conv2d(x, w, groups=2).sum().backward()
    assert counter.get_total_flops() == 3 * (2 * 2 * 6 * 49 * 2 * 9)  # each direction: 2 per tap, channel and output


def test_functional_call() -> None:
    ours, torchs = pair("net")
    clone = copy.deepcopy(ours)
    for parameter in clone.parameters():
        torch.nn.init.zeros_(parameter)
    x = r(2, 3, 17, 15)
    torch.testing.assert_close(torch.func.functional_call(clone, ours.state_dict(), x), torchs(x), rtol=1e-4, atol=1e-4)


def test_distributed_data_parallel(tmp_path: Any) -> None:
    """Gradients have their parameters' strides: else DDP copies each, and warns."""
    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        ours, torchs = pair("net")
        parallel = torch.nn.parallel.DistributedDataParallel(ours.to(memory_format=torch.channels_last))
        x = r(2, 3, 17, 15).to(memory_format=torch.channels_last)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            parallel(x).square().sum().backward()
        torchs(x).square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    for actual, expected in zip(ours.parameters(), torchs.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-4, atol=1e-4)
        assert actual.grad.stride() == actual.stride()
