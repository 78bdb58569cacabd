"""Batch normalisation on numbers for which every order of summation gives the same result."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from kernels import DTYPES, layout
from torch import Tensor

from cnnext import backends

ops = torch.ops.cnnext
pytestmark = pytest.mark.usefixtures("no_fallback")

SLOPE = 0.5
ACTIVATIONS = {
    "none": lambda y: y,
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": lambda y: F.leaky_relu(y, SLOPE),
}
# One element to several parts, channels and planes that fill vectors and that do not.
SHAPES = [
    (1, 1),
    (7, 3),
    (70, 40),
    (2, 5, 9),
    (1, 16, 1, 1),
    (2, 3, 5, 7),
    (3, 16, 8, 8),
    (2, 33, 7, 7),
    (5, 70, 4, 3),
    (2, 6, 70, 65),
    (1, 64, 33, 34),
    (2, 3, 3, 4, 5),
]


def whole(shape: tuple[int, ...], seed: int, least: int = -3, most: int = 3) -> Tensor:
    return torch.randint(least, most + 1, shape, generator=torch.Generator().manual_seed(seed)).double()


def numbers_of(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_given_moments(shape: tuple[int, ...]) -> None:
    """Deviations of 1/2, 1 and 2, so that no result is rounded, in 16 bits neither."""
    channels = shape[1]
    x, residual, grad = whole(shape, 1), whole(shape, 2), whole(shape, 3)
    weight, bias, mean = whole((channels,), 4), whole((channels,), 5), whole((channels,), 6)
    variance = torch.tensor([0.25, 1, 4]).repeat(channels)[:channels].double()
    view = (1, channels, *[1] * (len(shape) - 2))
    for activation, adds in itertools.product(ACTIVATIONS, (False, True)):
        leaves = [each.clone().requires_grad_() for each in (x, weight, bias, residual)]
        normal = (leaves[0] - mean.view(view)) / variance.sqrt().view(view) * leaves[1].view(view)
        y = ACTIVATIONS[activation](normal + leaves[2].view(view) + (leaves[3] if adds else 0))
        expected = torch.autograd.grad(y, leaves if adds else leaves[:3], grad)
        for dtype, last in itertools.product(DTYPES, (False, True)):
            numbers = [each.to(numbers_of(dtype)) for each in (weight, bias, mean, variance)]
            given = [layout(each.to(dtype), last) for each in (x, residual, grad)]
            output, *moments = ops.batch_norm(given[0], *numbers, 0.0, given[1] if adds else None, activation, SLOPE)
            where = f"{dtype}, last={last}, adds={adds}, {activation}"
            assert output.dtype == dtype and output.stride() == given[0].stride(), where
            assert torch.equal(output.double(), y.detach()), where
            assert [each.numel() for each in moments] == [0, 0]
            kept = output if adds and activation != "none" else None
            gated = adds and activation != "none"
            found = ops.batch_norm_grad(given[2], given[0], kept, *numbers, False, 0.0, activation, SLOPE, True, gated)
            assert torch.equal(found[0].double(), expected[0]), where
            if dtype not in (torch.float16, torch.bfloat16) or activation != "leaky_relu":
                assert torch.equal(found[1].double(), expected[1]), where
                assert torch.equal(found[2].double(), expected[2]), where
            assert not gated or torch.equal(found[3].double(), expected[3]), where


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != (1, 1) and shape != (1, 16, 1, 1)], ids=str)
def test_moments_of_the_batch(shape: tuple[int, ...]) -> None:
    """Half of the elements of a channel are its mean + 2, half its mean - 2, and one that is left over the mean."""
    channels, count = shape[1], torch.Size(shape).numel() // shape[1]
    mean = whole((channels,), 7)
    distances = torch.tensor([2.0, -2.0]).repeat(count)[: count // 2 * 2].double()
    distances = torch.cat([distances, torch.zeros(count % 2).double()])
    order = torch.randperm(count, generator=torch.Generator().manual_seed(8))
    x = (mean[:, None] + distances[order]).view(channels, shape[0], *shape[2:]).transpose(0, 1)
    for dtype, last in itertools.product(DTYPES, (False, True)):
        y, found, variance = ops.batch_norm(layout(x.to(dtype), last), None, None, None, None, 0.0)
        assert found.dtype == variance.dtype == numbers_of(dtype)
        digits = torch.finfo(numbers_of(dtype)).eps
        torch.testing.assert_close(found.double(), mean, rtol=2 * digits, atol=2 * digits)
        exact = torch.full((channels,), 4 * (count // 2 * 2) / count, dtype=torch.float64)
        torch.testing.assert_close(variance.double(), exact, rtol=4 * digits, atol=0)
        if count % 2 == 0 and count & (count - 1) == 0:  # every mean of a part is exact
            assert torch.equal(y.double(), (x - mean.view(1, channels, *[1] * (len(shape) - 2))) / 2)


def test_kernels_are_listed() -> None:
    assert backends.kernels("batch_norm") == backends.kernels("batch_norm_grad") == ["parts"]
