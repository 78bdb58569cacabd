"""The CUDA kernels' own sources, run by the emulator on small integers: they must compute exactly what torch does."""

from __future__ import annotations

import contextlib
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from convolutions import OPS, Conv, Operands, by_torch, integers, normals, problem
from emulation import Emulator, Refused, build, unwritten
from kernels import DTYPES, Ints, layout
from pooling import TABLE as POOLS
from pooling import Pool
from test_conv_exact import CASES
from torch import Tensor

from cnnext import backends

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = [conv for conv in CASES if conv.products <= 12_000]
# Off every tile's size, in each direction; odd images, wider outputs than inputs; strides, dilations, groups.
TILES = [
    problem((2, 40, 9, 11), (72, 40, 3, 2), stride=(2, 1), padding=(2, 3), dilation=(1, 2)),
    problem((1, 72, 5, 7), (136, 72, 1, 1), padding=1),
    problem((3, 24, 7, 5), (40, 12, 3, 3), stride=2, padding=2, dilation=2, groups=2),
    problem((1, 3, 12, 13), (24, 3, 5, 5), stride=2, padding=2),
    problem((1, 17, 6, 5), (33, 17, 2, 2)),
    problem((3, 16, 2, 3), (24, 16, 2, 3)),  # of one pixel each, channels first look like channels last
    problem((2, 20, 5, 4), (20, 4, 3, 3), padding=1, groups=5),
]
# Square depthwise kernels, of which columns are computed in strips, and pairs of channels slid over.
STRIPS = [
    problem((2, 6, 19, 21), (6, 1, 3, 3), padding=1, groups=6),
    problem((1, 70, 6, 5), (70, 1, 3, 3), padding=1, groups=70),
    problem((1, 4, 14, 18), (4, 1, 3, 3), stride=2, padding=1, groups=4),
    problem((2, 4, 37, 10), (4, 1, 3, 3), stride=2, padding=(0, 2), groups=4),
    problem((2, 2, 9, 11), (2, 1, 5, 5), stride=2, padding=(1, 3), groups=2),
    problem((1, 4, 23, 17), (4, 1, 3, 3), padding=4, dilation=(4, 3), groups=4),
    problem((1, 4, 8, 9), (4, 1, 3, 3), padding=5, dilation=6, groups=4),
    problem((2, 4, 10, 9), (4, 1, 5, 5), padding=(2, 3), groups=4),
    problem((1, 4, 15, 9), (4, 1, 5, 5), stride=2, padding=2, groups=4),
    problem((1, 4, 21, 12), (4, 1, 7, 7), padding=3, dilation=(1, 2), groups=4),
    problem((2, 5, 19, 21), (5, 1, 3, 3), padding=1, groups=5),
    problem((1, 3, 13, 18), (3, 1, 3, 3), stride=2, padding=(1, 0), groups=3),
    problem((1, 3, 23, 17), (3, 1, 3, 3), padding=4, dilation=(4, 3), groups=3),
    problem((1, 2, 21, 9), (2, 1, 3, 3), padding=2, dilation=2, groups=2),
    problem((2, 3, 10, 9), (3, 1, 5, 5), padding=(2, 3), groups=3),
    problem((1, 3, 15, 9), (3, 1, 5, 5), stride=2, padding=2, dilation=(1, 2), groups=3),
    problem((1, 3, 11, 12), (3, 1, 7, 7), padding=3, groups=3),
    problem((1, 3, 4, 9, 8), (3, 1, 2, 3, 3), stride=(2, 1, 1), padding=1, groups=3),
    # A plane that no window reads.
    problem((1, 8, 1, 7, 8), (8, 1, 1, 3, 3), stride=(3, 1, 1), padding=1, groups=8),
    problem((1, 8, 1, 7, 8), (8, 1, 1, 3, 3), stride=(3, 2, 2), padding=1, groups=8),
]
# What is packed: planes by four pixels at once, in several blocks; one chunk a pixel; odd planes, groups that end in
# part of a chunk; taps that share a step of the product, and one that crosses it.
PACKED = [
    problem((2, 72, 12, 16), (40, 72, 2, 2)),
    problem((3, 3, 9, 20), (72, 3, 5, 5), stride=2, padding=2),
    problem((9, 24, 3, 7), (40, 12, 2, 2), padding=1, groups=2),
    problem((1, 40, 6, 5), (17, 40, 3, 3), padding=1),
    problem((1, 8, 5, 6), (9, 8, 3, 3), padding=1, dilation=2),
]


@pytest.fixture(scope="module")
def emulator() -> Emulator:
    return Emulator(build())


def kernels(op: str) -> list[str]:
    return backends.kernels(op, device="cuda")


def run(
    emulator: Emulator, op: str, kernel: str, conv: Conv, t: Operands, expected: Tensor,
    dtype: torch.dtype, last: bool, weight_last: bool, shift: Ints, blocks: int, arch: int = 90,
) -> bool:  # fmt: skip
    """Whether the kernel takes the problem; then its result is exact. TF32 is exact for small integers too.

    `shift`: elements by which tensors (input, weight, bias, output) are off the alignment that memory has.
    """
    ways = (dtype, last, weight_last)
    shifts = [each * dtype.itemsize for each in ((shift,) * 4 if isinstance(shift, int) else shift)]
    tf32 = "3xtf32" not in kernel
    try:
        result = emulator.conv(op, kernel, conv, t, *ways, arch, tf32, shifts, blocks)
    except Refused:
        return False
    assert torch.equal(result, expected.to(dtype)), (op, kernel, str(conv), *ways, shift, blocks, arch)
    return True


@pytest.mark.parametrize(("op", "kernel"), [(op, kernel) for op in OPS for kernel in kernels(op)])
def test_convolution(emulator: Emulator, op: str, kernel: str) -> None:
    """Every kernel, all its types, layouts and tiles in turn, aligned memory and not, on several GPUs."""
    ways = itertools.cycle(itertools.product(DTYPES, (False, True), (False, True), (0, 1), (1, 264)))
    archs = itertools.cycle([90] if "sm90" in kernel else [90, 86, 80, 120, 75])
    taken = 0
    for conv in [*SMALL, *TILES]:
        operands = integers(conv)
        expected = by_torch(conv, operands)[op]
        tries = (run(emulator, op, kernel, conv, operands, expected, *next(ways), next(archs)) for _ in range(64))
        taken += sum(itertools.islice((taken for taken in tries if taken), 1 if conv in SMALL else 4))
    assert taken > 5


@pytest.mark.parametrize("op", OPS[:3])
@pytest.mark.parametrize("conv", PACKED, ids=str)
def test_packing(emulator: Emulator, op: str, conv: Conv) -> None:
    """Every layout, aligned and not, of 16 and of 32 bits."""
    operands = integers(conv)
    expected = by_torch(conv, operands)[op]
    for last, weight_last, shift in itertools.product((False, True), (False, True), (0, 1)):
        for dtype, name in ((torch.bfloat16, "gemm_sm80"), (torch.float32, "gemm_tf32_sm80")):
            kernel = f"{name}_packed"
            assert run(emulator, op, kernel, conv, operands, expected, dtype, last, weight_last, shift, 264)
        if conv.groups == 1:
            ways = (torch.float32, last, weight_last, shift, 264)
            assert run(emulator, op, "gemm_tf32_sm90_packed", conv, operands, expected, *ways)


@pytest.mark.parametrize("op", OPS[:3])
def test_images_of_one_pixel_are_not_packed(emulator: Emulator, op: str) -> None:
    """They lie in memory as in channels last; so does a weight of one tap."""
    conv = problem((5, 16, 1, 1), (24, 16, 1, 1))
    operands = integers(conv)
    expected = by_torch(conv, operands)[op]
    for dtype, kernel in ((torch.bfloat16, "gemm_sm90"), (torch.float32, "gemm_tf32_sm80")):
        assert run(emulator, op, kernel, conv, operands, expected, dtype, False, False, 0, 264)


# Sums of many pixels in many parts: images in whole vectors and not, weights that are.
SUMS = [
    problem((5, 3, 33, 40), (16, 3, 2, 1)),
    problem((4, 8, 37, 41), (9, 8, 1, 1)),
    problem((2500, 5, 1, 3), (9, 5, 1, 2)),
]


@pytest.mark.parametrize("op", OPS[2:])
@pytest.mark.parametrize("conv", SUMS, ids=str)
def test_sums_of_many_parts(emulator: Emulator, op: str, conv: Conv) -> None:
    operands = integers(conv)
    expected = by_torch(conv, operands)[op]
    kernel = "direct" if op == "conv_grad_weight" else "sum"
    for way in itertools.product(DTYPES, (False, True), (False, True), (0, 1), (1, 264)):
        assert run(emulator, op, kernel, conv, operands, expected, *way)


def test_the_sum_of_a_bias_is_accurate(emulator: Emulator) -> None:
    conv = problem((8, 1, 28, 28), (32, 1, 1, 1))
    single = normals(conv).to(torch.float32)
    right = single.grad_output.double().sum((0, 2, 3))
    for last in (False, True):
        found = emulator.conv("conv_grad_bias", "sum", conv, single, torch.float32, last, last)
        assert error(found, right) < 1.2e-7


@pytest.mark.parametrize("op", OPS[:3])
@pytest.mark.parametrize("conv", STRIPS, ids=str)
def test_depthwise(emulator: Emulator, op: str, conv: Conv) -> None:
    """Every type and layout; the sum in one part and in many; each tensor with an alignment of its own."""
    operands = integers(conv)
    expected = by_torch(conv, operands)[op]
    shifts = itertools.cycle([0, 2, (1, 0, 0, 0), (0, 0, 0, 1), (0, 1, 1, 0)])
    for dtype, last, weight_last, blocks in itertools.product(DTYPES, (False, True), (False, True), (1, 264)):
        ways = (dtype, last, weight_last, next(shifts), blocks)
        assert run(emulator, op, "depthwise", conv, operands, expected, *ways)


def test_sum_of_many_parts(emulator: Emulator) -> None:
    """More than two threads add the parts of a weight."""
    conv = problem((1, 2, 130, 130), (2, 1, 3, 3), padding=1, groups=2)
    operands = integers(conv, most=1)
    expected = by_torch(conv, operands)["conv_grad_weight"]
    for blocks in (1, 264):
        ways = (torch.float32, True, False, 0, blocks)
        assert run(emulator, "conv_grad_weight", "depthwise", conv, operands, expected, *ways)


@pytest.mark.parametrize(
    ("op", "kernel"), [(op, kernel) for op in OPS[:3] for kernel in kernels(op) if kernel.startswith("gemm")]
)
def test_no_bank_is_met_twice(emulator: Emulator, op: str, kernel: str) -> None:
    dtype = torch.float32 if "tf32" in kernel else torch.bfloat16
    conv = problem((1, 64, 6, 6), (128, 64, 3, 3), padding=1)
    for blocks in (1, 264):
        emulator.conv(
            op, kernel, conv, integers(conv), dtype, "packed" not in kernel, True,
            tf32="3xtf32" not in kernel, blocks=blocks,
        )  # fmt: skip
        assert emulator.bank_conflicts == 0


def corners(tensor: Tensor) -> list[Tensor]:
    """The first eight rows of the first image, and the last of the last."""
    return [tensor[:1, :, :8], tensor[-1:, :, -8:]]


HUGE = [
    problem((65, 32, 1024, 1024), (8, 32, 1, 1)),
    problem((65, 8, 1024, 1024), (32, 8, 1, 1)),
    problem((65, 32, 1024, 1024), (32, 1, 3, 3), padding=1, groups=32),
]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("conv", HUGE, ids=str)
@pytest.mark.parametrize("op", OPS[:2])
def test_tensors_of_more_than_2_to_the_31_elements(emulator: Emulator, op: str, conv: Conv, last: bool) -> None:
    """Of the first and of the last blocks, which need more than 32 bits to find their elements."""
    sizes = [conv.input, conv.output]
    assert max(map(math.prod, sizes)) > 2**31
    weight = torch.randint(-2, 3, conv.weight).bfloat16()
    taken = []
    for kernel in kernels(op):
        tensors = [unwritten(size, last) for size in sizes]
        source, result = tensors if op == "conv" else tensors[::-1]
        for corner in corners(source):
            corner.copy_(torch.randint(-2, 3, corner.shape))
        t = Operands(tensors[0], weight, tensors[1])
        with contextlib.suppress(Refused):
            emulator.conv(op, kernel, conv, t, torch.bfloat16, last, False, most_blocks=8)
            function = F.conv2d if op == "conv" else F.conv_transpose2d
            first, end = (
                function(corner.float(), weight.float(), padding=conv.padding, groups=conv.groups).bfloat16()
                for corner in corners(source)
            )
            check_corners(result, first, end)
            taken.append(kernel)
    forms = ("", "_packed") if last else ("_packed",)
    products = [f"gemm_{arch}{form}" for arch in ("sm90", "sm80") for form in forms]
    assert taken == [*(["depthwise"] if conv.groups > 1 else products), "direct"]


def check_corners(result: Tensor, first: Tensor, end: Tensor) -> None:
    """Of the first and the last row: `first` and `end` are what the corners should be."""
    assert torch.equal(result[0, 0, 0, :64], first[0, 0, 0, :64])
    assert torch.equal(result[-1, -1, -1, -64:], end[-1, -1, -1, -64:])
    assert end[-1, -1, -1, -64:].any()


@pytest.mark.parametrize("last", [False, True])
def test_gradient_for_the_weight_from_more_than_2_to_the_31_elements(emulator: Emulator, last: bool) -> None:
    """A large stride, so that there are few products."""
    conv = problem((65, 32, 1024, 1024), (8, 32, 1, 1), stride=256)
    x, grad = unwritten(conv.input, last), layout(torch.randint(-2, 3, conv.output).bfloat16(), last)
    x[:, :, ::256, ::256] = torch.randint(-2, 3, (65, 32, 4, 4)).bfloat16()
    right = torch.einsum("nkpq,ncpq->kc", grad.float(), x[:, :, ::256, ::256].float()).view(8, 32, 1, 1)
    for kernel in ("gemm_sm80", "direct") if last else ("direct",):  # packing is not what is tested
        t = Operands(x, torch.zeros(conv.weight).bfloat16(), grad)
        found = emulator.conv("conv_grad_weight", kernel, conv, t, torch.bfloat16, last, False, most_blocks=999)
        assert torch.equal(found, right.bfloat16()), kernel


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [((65, 32, 1024, 1024), 2, 2), ((1, 2, 131101, 16411), 4, 1)], ids=str
)
def test_pooling_of_more_than_2_to_the_31_elements(
    emulator: Emulator, size: tuple[int, ...], kernel: int, stride: int, last: bool
) -> None:
    """In all, and in one image."""
    output_size = (*size[:2], *((extent - kernel) // stride + 1 for extent in size[2:]))
    axes = [[size[i], output_size[i], kernel, stride, 0, 1, 0] for i in (2, 3)]
    x, output = unwritten(size, last), unwritten(output_size, last)
    offsets, grad_input = unwritten(output_size, last, torch.uint8), unwritten(size, last)
    for corner in corners(x):
        corner.copy_(torch.randint(-9, 10, corner.shape))

    def run(op: str, *tensors: Tensor | None) -> None:
        given = [*tensors, *[None] * (4 - len(tensors))]
        emulator.pool(op, size[:2], axes, given, torch.bfloat16, last, most_blocks=8)

    for op in ("max", "avg"):
        sources = [corner.float().requires_grad_() for corner in corners(x)]
        function = F.max_pool2d if op == "max" else F.avg_pool2d
        outputs = [function(source, kernel, stride) for source in sources]
        with_offsets = (offsets,) if op == "max" else ()
        run(f"{op}_pool" + "_with_offsets" * len(with_offsets), x, output, *with_offsets)
        check_corners(output, *(each.bfloat16() for each in outputs))
        grads = torch.autograd.grad(outputs, sources, [each.detach().bfloat16().float() for each in outputs])
        run(f"{op}_pool_grad_input", grad_input, output, *with_offsets)
        check_corners(grad_input, *(each.bfloat16() for each in grads))


@pytest.mark.parametrize("last", [False, True])
def test_more_images_than_a_grid_has_rows(emulator: Emulator, last: bool) -> None:
    """The last of them, which a second launch pools."""
    images = 2**16 + 1
    x = layout(torch.randint(-2, 3, (images, 8, 2, 2)).bfloat16(), last)
    pooled = layout(torch.zeros(images, 8, 1, 1).bfloat16(), last)
    axes = [[2, 1, 2, 2, 0, 1, 0]] * 2
    emulator.pool("avg_pool", (images, 8), axes, [x, pooled, None, None], torch.bfloat16, last, most_blocks=8)
    assert torch.equal(pooled[-2:], F.avg_pool2d(x[-2:].float(), 2).bfloat16())
    conv = problem(x.shape, (8, 8, 1, 1))
    t = Operands(x, torch.randint(-2, 3, conv.weight).bfloat16(), layout(torch.zeros(conv.output).bfloat16(), last))
    kernel = "gemm_sm80" if last else "gemm_sm80_packed"
    found = emulator.conv("conv", kernel, conv, t, torch.bfloat16, last, False, most_blocks=64)
    assert torch.equal(found[-32:], F.conv2d(x[-32:].float(), t.weight.float()).bfloat16())


# Of each depthwise body, by its window and stride; and direct ones, of one tile in a group and of several.
MANY_GROUPS = [
    ("depthwise", 2**16 + 2, (1, 1), 3, 1),
    ("depthwise", 2**16 + 2, (1, 1), 3, 2),
    ("depthwise", 2**16 + 2, (1, 1), 2, 1),
    ("direct", 2**16 + 2, (1, 1), 2, 1),
    ("direct", 2**14 + 2, (2, 65), 1, 1),
]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("kernel", "groups", "channels", "window", "stride"), MANY_GROUPS)
@pytest.mark.parametrize("op", OPS[:3])
def test_more_groups_than_a_grid_has_rows(
    emulator: Emulator, op: str, kernel: str, groups: int, channels: tuple[int, int], window: int, stride: int,
    last: bool,
) -> None:  # fmt: skip
    """The first and the last of them, which a later launch computes."""
    C, K = channels
    conv, few = (
        problem((1, n * C, 2, 3), (n * K, C, window, window), stride, window // 2, groups=n) for n in (groups, 3)
    )
    whole = integers(conv).to(torch.bfloat16)
    t = whole.to(torch.bfloat16, last)
    {"conv": t.grad_output, "conv_grad_input": t.input, "conv_grad_weight": t.weight}[op].fill_(math.nan)
    found = emulator.conv(op, kernel, conv, t, torch.bfloat16, last, False, most_blocks=64)
    for c, k in ((slice(3 * C), slice(3 * K)), (slice(-3 * C, None), slice(-3 * K, None))):
        ends = Operands(whole.input[:, c], whole.weight[k], whole.grad_output[:, k], whole.bias[k], whole.shift[c])
        result = {"conv": found[:, k], "conv_grad_input": found[:, c], "conv_grad_weight": found[k]}[op]
        assert torch.equal(result, by_torch(few, ends.to(torch.float64))[op].bfloat16())


def error(result: Tensor, right: Tensor) -> float:
    return float((result.double() - right).norm() / right.norm())


@pytest.mark.parametrize("op", OPS[:3])
def test_three_products_are_as_accurate_as_float32(emulator: Emulator, op: str) -> None:
    conv = problem((1, 96, 6, 6), (64, 96, 3, 3), padding=1)
    operands = normals(conv)
    single = operands.to(torch.float32)
    right = by_torch(conv, single.to(torch.float64))[op]
    direct = emulator.conv(op, "direct", conv, single, torch.float32, True, True)
    products = emulator.conv(op, "gemm_3xtf32_sm80", conv, single, torch.float32, True, True)
    assert error(products, right) < 2 * error(direct, right)


@pytest.mark.parametrize(("op", "kernel"), [(op, name) for op in OPS[:3] for name in kernels(op) if "_tf32" in name])
def test_tf32_is_rounded(emulator: Emulator, op: str, kernel: str) -> None:
    """To nearest: the emulator drops what TF32 has no bits for, which makes the error more than twice as large."""
    conv = problem((1, 96, 6, 6), (64, 96, 3, 3), padding=1)
    single = normals(conv).to(torch.float32)
    right = by_torch(conv, single.to(torch.float64))[op]
    last = "packed" not in kernel
    assert 2e-4 < error(emulator.conv(op, kernel, conv, single, torch.float32, last, last, tf32=True), right) < 3.5e-4


def test_three_products_keep_infinities(emulator: Emulator) -> None:
    conv = problem((1, 8, 4, 4), (8, 8, 3, 3), padding=1)
    operands = integers(conv, bias=False).to(torch.float32)
    operands.weight[operands.weight == 0] = 1
    operands.input[0, 1, 0, 2], operands.input[0, 3, 3, 3], operands.input[0, 5, 3, 0] = math.inf, math.nan, 3e38
    expected = by_torch(conv, operands)["conv"]
    result = emulator.conv("conv", "gemm_3xtf32_sm80", conv, operands, torch.float32, True, True)
    assert expected.isfinite().any()
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=0, equal_nan=True)


def test_infinities_stay_in_their_windows(emulator: Emulator) -> None:
    """What a step reads beyond the last tap, to fill it up, is not multiplied by zeros."""
    conv = problem((1, 8, 4, 2, 3), (8, 8, 2, 1, 1))
    operands = integers(conv)
    operands.input[:, :, 3] = math.inf
    result = emulator.conv("conv", "gemm_sm80", conv, operands, torch.bfloat16, True, True)
    expected = by_torch(conv, operands)["conv"].bfloat16()
    assert torch.equal(result[:, :, :2], expected[:, :, :2])


def windows(pool: Pool, output: Tensor) -> list[list[int]]:
    """(input, output, kernel, stride, padding, dilation, adaptive) of each axis, as csrc/ops/pool.cpp makes them."""
    axes = []
    for i in range(pool.dims):
        size, out = pool.input[i + 2], output.shape[i + 2]
        if "adaptive" in pool.op:
            kernel = size // out + 2 * min(size % out, 1)
            axes.append([size, out, kernel, kernel if size % out == 0 else 1, 0, 1, int(size % out != 0)])
            continue
        given = [values[i % len(values)] for values in (pool.args[0], pool.args[1] or pool.args[0], pool.args[2])]
        axes.append([size, out, *given, pool.args[3][i % len(pool.args[3])] if pool.is_max else 1, 0])
    return axes


@pytest.mark.parametrize("part", range(4))
def test_pooling(emulator: Emulator, part: int) -> None:
    ways = itertools.cycle(itertools.product(DTYPES, (False, True), (0, 1)))
    for pool in POOLS[part::4]:
        dtype, last, shift = next(ways)
        last = last and pool.dims > 1
        check_pool(emulator, pool, dtype, last, shift * max(dtype.itemsize, torch.int32.itemsize))


def check_pool(emulator: Emulator, pool: Pool, dtype: torch.dtype, last: bool, shift: int) -> None:
    def empty(like: Tensor, type: torch.dtype) -> Tensor:
        return layout(torch.full(like.shape, 77).to(type), last)

    x = layout(torch.randint(-4, 5, pool.input).to(dtype), last)
    source = x.double().requires_grad_()
    expected, indices = pool.by_torch(source)
    grad = layout(torch.randint(-3, 4, expected.shape).to(dtype), last)
    expected_grad = torch.autograd.grad(expected, source, grad.double())[0]
    axes = windows(pool, expected)
    taps = math.prod(axis[2] for axis in axes)
    sizes, output, grad_input = pool.input[:2], empty(expected, dtype), empty(x, dtype)

    def run(op: str, *tensors: Tensor | None, **more: int) -> None:
        given = [*tensors, *[None] * (4 - len(tensors))]
        emulator.pool(op, sizes, axes, given, dtype, last, shift=shift, **more)  # type: ignore[arg-type]

    if pool.is_max:
        offsets, found = empty(expected, torch.int32 if taps > 256 else torch.uint8), empty(expected, torch.int64)
        run("max_pool", x, output)
        assert torch.equal(output.double(), expected), str(pool)
        run("max_pool_with_offsets", x, output, offsets)
        run("max_pool_indices", None, None, offsets, found)
        assert torch.equal(output.double(), expected), str(pool)
        assert torch.equal(found, indices), str(pool)
        run("max_pool_grad_input", grad_input, grad, offsets)
        assert torch.equal(grad_input.double(), expected_grad), str(pool)
        run("max_pool_select", x, output.fill_(77), offsets)
        assert torch.equal(output.double(), expected), str(pool)
        return
    adaptive = "adaptive" in pool.op
    average = {} if adaptive else {"count_padding": pool.args[4], "divisor": pool.args[5] or 0}
    run("avg_pool", x, output, **average)
    run("avg_pool_grad_input", grad_input, grad, **average)
    eps = torch.finfo(dtype).eps
    for result, right in ((output, expected), (grad_input, expected_grad)):
        assert ((result.double() - right).abs() <= eps * (right.abs() + 8)).all(), str(pool)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (3, 1), (2, 2), (4, 3)])
def test_maxima_of_no_numbers(emulator: Emulator, dtype: torch.dtype, last: bool, kernel: int, stride: int) -> None:
    check_maxima(emulator, dtype, last, kernel, stride)


def test_maxima_of_bfloat16_before_compute_capability_9() -> None:
    """One by one: there are no comparisons of pairs."""
    older = Emulator(build(("pool_strip.cuh", "|| CNNEXT_SM90", "|| false"), "pool.cu"))
    for kernel, stride in ((3, 2), (3, 1), (2, 2)):
        check_maxima(older, torch.bfloat16, True, kernel, stride)


def check_maxima(emulator: Emulator, dtype: torch.dtype, last: bool, kernel: int, stride: int) -> None:
    x = torch.randint(-2, 3, (1, 8, 9, 11)).to(dtype)
    for value in (math.nan, -math.inf, math.inf):
        x[torch.rand(x.shape) < 0.15] = value
    x[:, 3] = -math.inf
    x = layout(x, last)
    expected, indices = F.max_pool2d(x.double(), kernel, stride, 1, return_indices=True)
    axes = [[size, out, kernel, stride, 1, 1, 0] for size, out in zip((9, 11), expected.shape[2:], strict=True)]
    output, offsets = layout(expected.to(dtype), last).fill_(77), layout(expected.to(torch.uint8), last).fill_(77)
    found = torch.empty_like(offsets, dtype=torch.int64)
    emulator.pool("max_pool_with_offsets", (1, 8), axes, [x, output, offsets, None], dtype, last)
    emulator.pool("max_pool_indices", (1, 8), axes, [None, None, offsets, found], dtype, last)
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found, indices)


@pytest.mark.parametrize("last", [False, True])
def test_unpooling(emulator: Emulator, last: bool) -> None:
    """Of equal indices the last one stays, whichever thread comes first; a block may have several planes."""
    sizes, pixels = (2, 9, 6, 7), 42
    for dtype in DTYPES:
        pooled = layout(torch.randint(-9, 10, (2, 9, 5, 4)).to(dtype), last)
        indices = layout(torch.randint(0, pixels, pooled.shape), last)
        expected = torch.zeros(2, 9, pixels, dtype=dtype)
        for i in range(20):
            expected.scatter_(2, indices.flatten(2)[..., i : i + 1], pooled.flatten(2)[..., i : i + 1])
        axes = [[pixels, 20, 1, 1, 0, 1, 0]]
        output, back = layout(torch.empty(sizes, dtype=dtype), last), torch.empty_like(pooled)
        blocks = 1 if dtype == torch.float32 else 264
        emulator.pool("max_unpool", sizes[:2], axes, [output, pooled, None, indices], dtype, last, blocks=blocks)
        assert torch.equal(output, expected.view(sizes))
        emulator.pool("max_unpool_grad_input", sizes[:2], axes, [output, back, None, indices], dtype, last)
        assert torch.equal(back, output.flatten(2).gather(2, indices.flatten(2)).view_as(indices))
    indices[0, 0, 0, 0] = pixels
    with pytest.raises(RuntimeError, match="an assertion of the kernel failed"):
        emulator.pool("max_unpool", sizes[:2], axes, [output, pooled, None, indices], dtype, last)
