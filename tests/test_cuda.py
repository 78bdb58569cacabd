"""The operators on a GPU: every kernel against torch in float64 on the CPU, exactly; and what a GPU adds."""

from __future__ import annotations

import itertools
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accuracy import capped
from convolutions import OPS, Conv, Operands, by_cnnext, by_kernel, by_torch, integers, normals, problem
from kernels import DTYPES, is_last, layout
from pooling import TABLE, Pool
from test_conv_exact import CASES
from torch import Tensor

import cnnext
from cnnext import backends, nn

GPU = torch.cuda.is_available() and bool(cnnext._build_info["cuda"])
if not GPU and os.environ.get("CNNEXT_REQUIRE_GPU") == "1":
    raise RuntimeError("CNNEXT_REQUIRE_GPU=1, but there is no GPU or cnnext was built without CUDA")
pytestmark = [
    pytest.mark.skipif(not GPU, reason="needs a GPU and a build with CUDA"),
    pytest.mark.usefixtures("no_fallback"),
]


@pytest.fixture(autouse=True)
def healthy() -> Iterator[None]:
    """Ends the process after an error that would fail every further test too; pytest -n starts another one."""
    yield
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        print(f"the GPU can not be used any more: {error}", file=sys.stderr, flush=True)
        os._exit(3)


def each_tensor(t: Operands, change: Callable[[Tensor], Tensor]) -> Operands:
    given = (t.input, t.weight, t.grad_output, t.bias, t.shift)
    return Operands(*(None if each is None else change(each) for each in given))  # type: ignore[arg-type]


def on_gpu(t: Operands) -> Operands:
    return each_tensor(t, torch.Tensor.cuda)


def shifted(tensor: Tensor) -> Tensor:
    """The same, one element off the alignment that memory has."""
    memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
    return memory.as_strided(tensor.size(), tensor.stride(), 1).copy_(tensor)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def by_gpu(op: str, kernel: str, conv: Conv, t: Operands, weight_last: bool) -> Tensor | None:
    """The operator's result by one kernel of the GPU, or None if it does not take the problem."""
    with tf32("_tf32" in kernel):
        return by_kernel(op, kernel, conv, t, weight_last, device="cuda")


LARGE = [
    problem((8, 64, 28, 28), (128, 64, 3, 3), padding=1),
    problem((8, 64, 56, 56), (128, 64, 3, 3), padding=1),  # tiles of 128 x 128 on 132 multiprocessors
    problem((8, 128, 56, 56), (128, 128, 3, 3), padding=1),
    problem((4, 256, 14, 14), (264, 256, 1, 1)),
    problem((8, 128, 28, 27), (136, 128, 3, 3), stride=2, padding=1),
    problem((8, 3, 64, 64), (64, 3, 7, 7), stride=2, padding=3),
    problem((4, 96, 20, 20), (96, 96, 3, 3), padding=4, dilation=4),
    problem((4, 64, 33, 31), (64, 1, 5, 5), padding=2, groups=64),
    problem((4, 48, 28, 30), (48, 1, 3, 3), stride=2, padding=1, groups=48),
    problem((3, 40, 27, 28), (40, 1, 3, 3), padding=4, dilation=4, groups=40),
    problem((3, 24, 20, 21), (24, 1, 7, 7), padding=3, groups=24),
    problem((4, 144, 56, 56), (144, 1, 3, 3), padding=1, groups=144),
    problem((2, 72, 31, 30), (72, 1, 5, 5), stride=2, padding=1, groups=72),
    problem((2, 66, 40, 41), (66, 1, 3, 3), padding=9, dilation=9, groups=66),
    problem((2, 32, 9, 10, 11), (48, 32, 3, 3, 3), padding=1),
]


@pytest.mark.parametrize("conv", [*CASES, *LARGE], ids=str)
def test_convolution(conv: Conv) -> None:
    """Every kernel, type and layout; the same bits the second time."""
    operands = integers(conv, most=2 if conv in LARGE else 3)
    expected = by_torch(conv, operands)
    for dtype, last, weight_last in itertools.product(DTYPES, (False, True), (False, True)):
        given = on_gpu(operands.to(dtype, last, weight_last))
        for op in OPS:
            for kernel in backends.kernels(op, device="cuda"):
                result = by_gpu(op, kernel, conv, given, weight_last)
                if result is None:
                    continue
                where = f"{op} by {kernel}: {conv}, {dtype}, last={last}, weight_last={weight_last}"
                assert torch.equal(result.cpu(), expected[op].to(dtype)), where
                source = {"conv": given.input, "conv_grad_input": given.grad_output}.get(op)
                if source is not None and is_last(source) and not source.is_contiguous():  # of 1x1 it can be both
                    assert is_last(result), where


VIEWS = [
    problem((2, 64, 9, 10), (72, 64, 3, 3), padding=1),
    problem((2, 64, 9, 10), (72, 64, 1, 1)),
    problem((2, 3, 20, 21), (64, 3, 7, 7), stride=2, padding=3),
    problem((2, 64, 9, 10), (64, 1, 3, 3), padding=1, groups=64),
]


@pytest.mark.parametrize("conv", VIEWS, ids=str)
def test_views(conv: Conv) -> None:
    """Tensors one element off their memory's alignment, which vectors do not find."""
    operands = integers(conv)
    expected = by_torch(conv, operands)
    for dtype, last in itertools.product(DTYPES, (False, True)):
        given = each_tensor(on_gpu(operands.to(dtype, last, last)), shifted)
        assert given.input.data_ptr() % 16 == dtype.itemsize
        for op in OPS:
            for kernel in backends.kernels(op, device="cuda"):
                result = by_gpu(op, kernel, conv, given, last)
                assert result is None or torch.equal(result.cpu(), expected[op].to(dtype)), (op, kernel, dtype, last)
        x = given.input.detach().requires_grad_()
        for pool in (F.max_pool2d, F.avg_pool2d):
            ours = getattr(cnnext.functional, pool.__name__)(x, 2)
            assert torch.equal(ours, pool(x, 2))
            grads = [torch.autograd.grad(y, x, shifted(torch.ones_like(y)))[0] for y in (ours, pool(x, 2))]
            assert torch.equal(*grads)


def test_infinities() -> None:
    """They come through as they do in float32, also through three products of TF32."""
    conv = problem((1, 8, 4, 4), (8, 8, 3, 3), padding=1)
    operands = integers(conv, bias=False).to(torch.float32)
    operands.weight[operands.weight == 0] = 1
    operands.input[0, 1, 0, 2], operands.input[0, 3, 3, 3], operands.input[0, 5, 3, 0] = math.inf, math.nan, 3e38
    expected = by_torch(conv, operands)["conv"]
    for last in (False, True):
        given = on_gpu(operands.to(torch.float32, last, last))
        taken = set()
        for kernel in backends.kernels("conv", device="cuda"):
            result = by_gpu("conv", kernel, conv, given, last)
            if result is not None:
                taken.add(kernel)
                torch.testing.assert_close(result.cpu(), expected, rtol=1e-3, atol=0, equal_nan=True)
        gemms = {"gemm_3xtf32_sm80", "gemm_tf32_sm80"}
        if torch.cuda.get_device_capability() == (9, 0):
            gemms.add("gemm_tf32_sm90")
        packed = {f"{kernel}_packed" for kernel in gemms}  # as channels first always is
        assert taken == {"direct"} | packed | (gemms if last else set())


def test_more_images_than_a_grid_has_rows() -> None:
    x = torch.randint(-2, 3, (70_000, 8, 2, 2), device="cuda", dtype=torch.bfloat16)
    w = torch.randint(-2, 3, (8, 8, 1, 1), device="cuda", dtype=torch.bfloat16)
    for last in (False, True):
        given = layout(x, last)
        assert torch.equal(cnnext.functional.conv2d(given, w), F.conv2d(given, w))
        assert torch.equal(cnnext.functional.max_pool2d(given, 2), F.max_pool2d(given, 2))
        assert torch.equal(cnnext.functional.avg_pool2d(given, 2), F.avg_pool2d(given, 2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("conv", LARGE, ids=str)
def test_accuracy(conv: Conv, dtype: torch.dtype) -> None:
    """At most twice torch's own error, at the same type and setting of TF32; every result twice the same.

    Where TF32 is allowed torch may still compute in float32: then TF32's own rounding is right too.
    """
    operands = on_gpu(normals(conv, dtype))
    right = by_torch(conv, operands.to(torch.float64))
    for last in (False, True):
        given = operands.to(dtype, last, last)
        for allowed in (False, True):
            with tf32(allowed):
                theirs = by_torch(conv, given)
                rounding = 5e-4 if allowed and dtype == torch.float32 else 1e-7
                for op in OPS:
                    ours = by_cnnext(op, conv, given, last)
                    error, torchs = ((x.double() - right[op]).norm().item() for x in (ours, theirs[op]))
                    scale, depth = right[op].norm().item(), conv.products // right[op].numel()
                    torchs = capped(torchs, scale, dtype, depth, "cuda")
                    assert error <= 2 * torchs + rounding * scale, (op, last, allowed)
                    assert torch.equal(ours, by_cnnext(op, conv, given, last))


@pytest.mark.parametrize("pool", TABLE, ids=str)
def test_pooling(pool: Pool) -> None:
    for dtype in DTYPES:
        for last in (False, True)[: 1 + (pool.dims > 1)]:
            x = layout(torch.randint(-4, 5, pool.input).to(dtype), last)
            source = x.double().requires_grad_()
            expected, indices = pool.by_torch(source)
            grad = torch.randint(-3, 4, expected.shape).to(dtype)
            expected_grad = torch.autograd.grad(expected, source, grad.double())[0]
            given = x.cuda().requires_grad_()
            output = pool.by_cnnext(given)
            result = torch.autograd.grad(output, given, grad.cuda())[0]
            eps = torch.finfo(dtype).eps * (not pool.is_max)
            for ours, right in ((output, expected), (result, expected_grad)):
                assert ((ours.cpu().double() - right).abs() <= eps * (right.abs() + 8)).all(), (dtype, last)
            if pool.is_max:
                assert torch.equal(pool.with_indices(x.cuda())[1].cpu(), indices), (dtype, last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (3, 1), (2, 2), (4, 3)])
def test_maxima_of_no_numbers(dtype: torch.dtype, last: bool, kernel: int, stride: int) -> None:
    x = torch.randint(-2, 3, (1, 8, 9, 11)).to(dtype)
    for value in (math.nan, -math.inf, math.inf):
        x[torch.rand(x.shape) < 0.15] = value
    expected, indices = F.max_pool2d(x.double(), kernel, stride, 1, return_indices=True)
    x = layout(x, last).cuda()
    output, found = cnnext.functional.max_pool2d(x, kernel, stride, 1, return_indices=True)
    torch.testing.assert_close(output.cpu().double(), expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found.cpu(), indices)


def test_unpooling() -> None:
    x = torch.randn(2, 3, 8, 10, device="cuda")
    pooled, indices = cnnext.functional.max_pool2d(x, 2, return_indices=True)
    expected = F.max_unpool2d(pooled.cpu(), indices.cpu(), 2)
    assert torch.equal(cnnext.functional.max_unpool2d(pooled, indices, 2).cpu(), expected)


def test_gradients_of_gradients() -> None:
    x = torch.randn(1, 2, 5, 4, device="cuda", dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 2, 3, 2, device="cuda", dtype=torch.float64, requires_grad=True)
    b = torch.randn(2, device="cuda", dtype=torch.float64, requires_grad=True)

    def conv(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return cnnext.functional.conv2d(x, w, b, stride=2, padding=1)

    assert torch.autograd.gradcheck(conv, (x, w, b))
    assert torch.autograd.gradgradcheck(conv, (x, w, b))
    assert torch.autograd.gradcheck(lambda x: cnnext.functional.avg_pool2d(x, 2), (x,))


def test_autocast_and_converted_model() -> None:
    layers = [torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2), nn.Conv2d(8, 4, 3)]
    converted = cnnext.convert(torch.nn.Sequential(*layers, torch.nn.ConvTranspose2d(4, 2, 2, 2))).cuda()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        output = converted(torch.randn(2, 3, 12, 12, device="cuda"))
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert all(parameter.grad is not None for parameter in converted.parameters())


def test_current_stream_and_graph() -> None:
    """Work goes to the current stream, and can be captured: nothing waits, nothing is allocated beside torch."""
    x = torch.randn(4, 32, 16, 16, device="cuda").bfloat16().to(memory_format=torch.channels_last)
    w = torch.randn(32, 32, 3, 3, device="cuda").bfloat16()

    def step() -> tuple[Tensor, ...]:
        y = cnnext.functional.max_pool2d(cnnext.functional.conv2d(x, w, padding=1), 2)
        transposed = cnnext.functional.conv2d(x.contiguous(), w, padding=1)
        return y, transposed, torch.ops.cnnext.conv_grad_weight(x, x, [3, 3], [1], [1], [1], 1, False)

    expected = step()
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
        torch.cuda.current_stream().synchronize()
        with torch.cuda.graph(graph, stream=side):
            results = step()
    for result in results:
        result.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(result, right) for result, right in zip(results, expected, strict=True))


@pytest.mark.skipif(GPU and torch.cuda.get_device_properties(0).total_memory < 40e9, reason="needs 40 GB")
def test_tensors_of_more_than_2_to_the_31_elements() -> None:
    x = torch.zeros(34, 64, 1024, 1024, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    x[-1] = torch.randint(-2, 3, (64, 1024, 1024), device="cuda")
    w = torch.randint(-1, 2, (8, 64, 1, 1), device="cuda", dtype=torch.bfloat16)
    assert x.numel() > 2**31
    output = cnnext.functional.conv2d(x, w)
    assert torch.equal(output[-1:], F.conv2d(x[-1:], w))
    assert torch.equal(cnnext.functional.max_pool2d(x, 2)[-1:], F.max_pool2d(x[-1:], 2))


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_code_that_the_driver_compiles_is_known_by_its_age(tmp_path: Path) -> None:
    """From PTX for 7.5: kernels that need more have no bodies there, whatever GPU runs it."""
    source, program = tmp_path / "age.cu", str(tmp_path / "age")
    source.write_text("""
        #include <cstdio>
        #include "cuda/device.cuh"
        __global__ void kernel(int) {}
        int main() { std::printf("%d", cnnext::cuda::compiled_arch(kernel)); }
    """)
    folder = Path(__file__).resolve().parent.parent / "csrc"
    only_ptx = ["-gencode", "arch=compute_75,code=compute_75"]
    subprocess.run(["nvcc", "-std=c++17", *only_ptx, f"-I{folder}", str(source), "-o", program], check=True)
    assert subprocess.run([program], check=True, capture_output=True, text=True).stdout == "75"


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_tensors_gpu_is_used() -> None:
    x, w = torch.randn(2, 64, 9, 9, device="cuda:1"), torch.randn(128, 64, 3, 3, device="cuda:1")
    assert torch.cuda.current_device() == 0
    torch.testing.assert_close(cnnext.functional.conv2d(x, w), F.conv2d(x, w), rtol=1e-2, atol=1e-1)
    assert torch.equal(cnnext.functional.max_pool2d(x, 2), F.max_pool2d(x, 2))


def test_batch_norms_are_torchs() -> None:
    layer, x = nn.FusedBatchNorm2d(4, activation="relu").cuda(), torch.randn(2, 4, 5, 6, device="cuda")
    expected = F.relu(F.batch_norm(x, None, None, layer.weight, layer.bias, training=True) + x)
    torch.testing.assert_close(layer(x, x), expected)
    assert cnnext.fallbacks() == {"batch_norm: on a GPU": 1}
    backends.reset_fallbacks()


def test_several_devices_are_torchs_error() -> None:
    backends.reset_fallbacks()
    with pytest.raises(RuntimeError, match=r"should be the same|same device"):
        cnnext.functional.conv2d(torch.ones(1, 1, 3, 3, device="cuda"), torch.ones(1, 1, 3, 3))
    backends.reset_fallbacks()
