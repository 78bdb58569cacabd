"""Rounding errors of convolution on random numbers, beside torch's own at the same element type."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from accuracy import capped
from convolutions import AMX, INEXACT, KERNELS, OPS, Conv, Operands, by_cnnext, by_kernel, by_torch, normals, problem
from torch import Tensor

from cnnext import backends

pytestmark = pytest.mark.usefixtures("one_thread", "no_fallback")

# An error may be twice torch's; Winograd computes with rounded transforms of the numbers, the most seen was 3.7 times.
MOST = {"winograd": 5.0}
# Where torch sums in short chains, these are still fine: multiples of the type's epsilon.
FLOOR_RMS, FLOOR = 3, 24

CASES = [
    problem((2, 1024, 8, 7), (16, 1024, 3, 3), padding=1),
    problem((2, 8, 8, 7), (1024, 8, 3, 3), padding=1),
    problem((1, 320, 40, 36), (40, 320, 3, 3), padding=1),
    problem((1, 128, 40, 36), (64, 128, 5, 5), padding=2),
    problem((1, 4096, 5, 6), (9, 4096, 1, 1)),
    problem((1, 9, 5, 6), (4096, 9, 1, 1)),
    problem((1, 8, 40, 40), (9, 8, 31, 31)),
    problem((4, 8, 57, 57), (9, 8, 3, 3), padding=1),
    problem((2, 3, 151, 150), (8, 3, 7, 7), stride=2, padding=3),
    problem((2, 3, 61, 60), (16, 3, 5, 5), stride=2, padding=2),
    problem((1, 128, 21, 20), (64, 32, 3, 3), padding=2, dilation=2, groups=4),
    problem((2, 8, 113, 112), (8, 1, 3, 3), padding=1, groups=8),
    problem((2, 16, 113, 112), (16, 1, 3, 3), padding=1, groups=16),
    problem((1, 16, 60, 60), (16, 1, 31, 31), padding=15, groups=16),
    problem((2, 128, 57, 56), (128, 8, 3, 3), padding=1, groups=16),
    problem((2, 128, 29, 28), (128, 128, 3, 3), stride=2, padding=1),
    problem((2, 48, 57, 56), (96, 48, 3, 3), stride=2, padding=1),
    problem((2, 16, 20001), (16, 1, 9), groups=16),
    problem((2, 4, 20001), (5, 4, 9)),
    problem((1, 32, 8, 15, 14), (8, 32, 3, 3, 3), padding=1),
]


@functools.lru_cache(maxsize=1)
def numbers(conv: Conv, dtype: torch.dtype) -> tuple[Operands, dict[str, Tensor], dict[str, Tensor]]:
    """Operands of that type, the results in float64, and torch's results in that type."""
    t = normals(conv, dtype)
    t.bias = t.shift = None
    return t, by_torch(conv, t.to(torch.float64)), by_torch(conv, t)


def errors(result: Tensor, exact: Tensor) -> tuple[float, float]:
    """Root mean square and maximum of the error, relative to the root mean square of the exact result."""
    difference, scale = (result.double() - exact).abs(), exact.square().mean().sqrt()
    return (difference.square().mean().sqrt() / scale).item(), (difference.max() / scale).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("conv", CASES, ids=str)
def test_error_is_at_most_twice_torchs(conv: Conv, dtype: torch.dtype) -> None:
    t, exact, torchs = numbers(conv, dtype)
    for op, kernel in KERNELS:
        if kernel == "reference" and conv.products > 3_000_000:
            continue
        factor, epsilon = MOST.get(kernel, 2.0), torch.finfo(dtype).eps
        depth = conv.products // exact[op].numel()
        torchs_rms, torchs_worst = (capped(e, 1.0, dtype, depth) for e in errors(torchs[op], exact[op]))
        most_rms, most = max(factor * torchs_rms, FLOOR_RMS * epsilon), max(factor * torchs_worst, FLOOR * epsilon)
        for last in (False, True):
            result = by_kernel(op, kernel, conv, t.to(dtype, last, last))
            if result is not None:
                rms, worst = errors(result, exact[op])
                where = f"{op} by {kernel}, last={last}: {rms:.1e} of {most_rms:.1e}, {worst:.1e} of {most:.1e}"
                assert rms <= most_rms, where
                assert worst <= most, where


@pytest.mark.parametrize("wrong", [1e30, 1.0, float("nan"), float("inf")])
def test_wrong_results_of_torch_allow_nothing(wrong: float) -> None:
    assert capped(wrong, 2.0, torch.bfloat16, 10**9) == 0.25
    assert capped(1e-3, 2.0, torch.bfloat16, 10**9) == 1e-3


def test_bounds_are_for_kernels_that_reorder_arithmetic() -> None:
    assert set(MOST) == set(INEXACT)
    assert {op for op, _ in KERNELS} == set(OPS)


# Winograd's tiles hold pixels this far from the middle of a window, and numbers there are its errors' measure, of which
# 25 epsilons were seen.
TILES = [
    (problem((1, 64, 28, 28), (64, 64, 3, 3), padding=1), (4, 4)),
    (problem((1, 64, 40, 30), (64, 64, 5, 5), padding=2), (6, 6)),
    (problem((1, 64, 40, 30), (64, 64, 7, 7), padding=3), (6, 6)),
    (problem((1, 128, 20, 30), (128, 128, 1, 7), padding=(0, 3)), (0, 6)),
    (problem((1, 64, 21, 20), (64, 16, 3, 3), padding=1, groups=4), (4, 4)),
    (problem((1, 64, 28, 30), (64, 64, 3, 3), padding=2, dilation=2), (8, 8)),
    (problem((1, 128, 57, 56), (128, 128, 3, 3), stride=2, padding=1), (7, 7)),
]
EPSILONS = 50


def largest_nearby(source: Tensor, reach: tuple[int, int], stride: tuple[int, ...] = (1, 1)) -> Tensor:
    """The largest absolute number around each pixel, in float64."""
    return F.max_pool2d(source.double().abs(), [2 * r + 1 for r in reach], stride, reach)


def test_winograd_takes_some_of_these_beside_amx_too() -> None:
    given = ((conv, normals(conv).to(torch.float32, last, last)) for conv, _ in TILES for last in (False, True))
    assert any(by_kernel("conv", "winograd", conv, t) is not None for conv, t in given)


@pytest.mark.parametrize("value", [1e4, 1e20])
@pytest.mark.parametrize(("conv", "reach"), TILES, ids=[str(conv) for conv, _ in TILES])
def test_winograds_error_is_relative_to_the_largest_number_of_a_tile(
    conv: Conv, reach: tuple[int, int], value: float
) -> None:
    t, epsilon = normals(conv, torch.float32), torch.finfo(torch.float32).eps
    t.bias = t.shift = None
    large = torch.rand(t.input.shape) < 2e-4
    t.input[large] = value
    t.grad_output[torch.rand(t.grad_output.shape) < 2e-4] = value
    exact, torchs = by_torch(conv, t.to(torch.float64)), by_torch(conv, t)["conv"]
    weight = t.weight.double().abs().amax((2, 3), keepdim=True)  # the largest tap
    most = {"conv": F.conv2d(largest_nearby(t.input, reach, conv.stride), weight, groups=conv.groups)}
    if conv.stride == (1, 1):
        most["conv_grad_input"] = F.conv_transpose2d(largest_nearby(t.grad_output, reach), weight, groups=conv.groups)
    ran = set()
    for last in (False, True):
        for op, bound in most.items():
            result = by_kernel(op, "winograd", conv, t.to(torch.float32, last, last))
            if result is not None:
                ran.add(op)
                assert ((result - exact[op]).abs() <= EPSILONS * epsilon * bound).all(), f"{op}, last={last}"
    assert AMX or ran == set(most)  # in one layout at least; beside AMX some are left to it

    # Direct sums are off by what torch's are wherever the window itself holds no large number.
    windows = F.conv2d(large.double(), torch.ones_like(t.weight).double(), None, *conv.parameters)
    small = windows == 0
    assert small.any()
    assert (most["conv"][small] > 0.1 * value).any()  # though the tile does
    allowed = max(2 * errors(torchs[small], exact["conv"][small])[1], FLOOR * epsilon)
    for last in (False, True):
        with backends.winograd(False):
            result = by_cnnext("conv", conv, t.to(torch.float32, last, last))
        assert errors(result[small], exact["conv"][small])[1] <= allowed
