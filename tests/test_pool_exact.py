"""Pooling of small integers must equal torch's, bit for bit: outputs, indices and gradients, by every kernel."""

from __future__ import annotations

import pytest
import torch
from convolutions import examples
from hypothesis import given
from hypothesis import strategies as st
from kernels import DTYPES, forced, layout
from pooling import TABLE, Pool, adaptive, avg_pool, max_pool, pools
from torch import Tensor

from cnnext import backends

pytestmark = pytest.mark.usefixtures("one_thread", "no_fallback")


def integers(pool: Pool, dtype: torch.dtype, last: bool, most: int = 4) -> Tensor:
    return layout(torch.randint(-most, most + 1, pool.input).to(dtype), last)


def check(pool: Pool, dtype: torch.dtype, last: bool) -> None:
    """Every kernel of the forward pass and of the gradient against torch, in float64 for averages."""
    x = integers(pool, dtype, last)
    wide = x if pool.is_max else x.double()  # an average of small integers rounds once from the exact quotient
    source = wide.clone().requires_grad_()
    expected, indices = pool.by_torch(source)
    grad = torch.randint(-3, 4, expected.shape).to(dtype)
    expected_grad = torch.autograd.grad(expected, source, grad.to(wide.dtype))[0]
    forward, backward = pool.lists

    def same(result: Tensor | None, right: Tensor) -> bool:
        if result is None:
            return True
        assert result.dtype == dtype
        assert result.shape == right.shape
        if pool.is_max:
            return torch.equal(result, right)
        eps = {torch.float64: 2e-15, torch.float32: 1.2e-7, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
        return bool(((result.double() - right).abs() <= eps * (right.abs() + 8)).all())

    for kernel in backends.kernels(forward):
        assert same(forced(forward, kernel, lambda: pool.by_cnnext(x)), expected.detach()), (forward, kernel)
    if pool.is_max:
        for kernel in backends.kernels("max_pool_with_offsets"):
            found = forced("max_pool_with_offsets", kernel, lambda: pool.with_indices(x))
            if found is not None:
                assert torch.equal(found[0], expected.detach()), kernel
                assert torch.equal(found[1], indices), kernel
    for kernel in backends.kernels(backward):
        source = x.clone().requires_grad_()
        output = pool.by_cnnext(source)
        result = forced(backward, kernel, lambda o=output, s=source: torch.autograd.grad(o, s, grad)[0])
        assert same(result, expected_grad), (backward, kernel)


@pytest.mark.parametrize("pool", TABLE, ids=str)
def test_table(pool: Pool) -> None:
    for dtype in DTYPES:
        for last in (False, True)[: 1 + (pool.dims > 1)]:
            check(pool, dtype, last)


LISTS = ("max_pool", "max_pool_with_offsets", "max_pool_grad_input", "avg_pool", "avg_pool_grad_input")


@pytest.mark.parametrize(("op", "kernel"), [(op, kernel) for op in LISTS for kernel in backends.kernels(op)])
def test_the_table_reaches_every_kernel(op: str, kernel: str) -> None:
    def taken(pool: Pool, last: bool) -> bool:
        x = integers(pool, torch.float32, last).requires_grad_(op not in ("max_pool", "avg_pool"))

        def run() -> Tensor:
            output = pool.by_cnnext(x)
            return torch.autograd.grad(output.sum(), x)[0] if x.requires_grad else output

        return forced(op, kernel, run) is not None

    assert any(taken(pool, last) for pool in TABLE if pool.is_max == op.startswith("max") for last in (False, True))


SQUARES = [(2, 2, 0), (3, 2, 0), (3, 2, 1), (3, 1, 1), (5, 1, 2), (9, 1, 4)]
MANY_PLANES = [
    *(
        max_pool((2, 35, *size), *windows, 1, ceil)
        for windows in SQUARES
        for size in ((7, 7), (28, 30), (37, 41))
        for ceil in ((False, True) if windows[1] > 1 else (False,))
    ),
    max_pool((5, 3, 1300), 3, 2, 1),
    *(max_pool((5, 3, 1300 + odd), kernel, 2) for odd in (0, 1) for kernel in (2, 3)),
    *(max_pool((2, 35, height, 76), kernel, 2) for height in (7, 8) for kernel in (2, 3)),
    max_pool((2, 3, 6, 9, 81), (1, 2, 2), (1, 2, 2)),
    max_pool((2, 40, 5, 8, 12), 2),
    max_pool((2, 40, 5, 8, 12), 3, 2, 1),
    max_pool((2, 40, 5, 8, 12), 3, 1, 1),
    max_pool((1, 70, 3, 600), 3, 2, 1),  # a task of channels last has 64 channels here, the last one 6
    adaptive("max_pool", (3, 90, 33, 33), 7),
    adaptive("avg_pool", (3, 90, 33, 33), 7),
    adaptive("avg_pool", (2, 300, 4, 4), 4),
    avg_pool((2, 135, 14, 14), 5, 3),
]


@pytest.mark.parametrize("pool", MANY_PLANES, ids=str)
def test_many_planes(pool: Pool) -> None:
    """Kernels work on several planes and on long runs of rows at once: here are many, and some that are left over."""
    for dtype in (torch.float32, torch.bfloat16):
        for last in (False, True)[: 1 + (pool.dims > 1)]:
            check(pool, dtype, last)


# Input and output take more than 16 MiB, also in bfloat16, but for the last: its rows of channels end within a line.
BEYOND_CACHES = [
    max_pool((2, 64, 232, 228), 3, 2, 1),
    max_pool((2, 64, 233, 231), 2, 2),
    max_pool((2, 64, 183, 181), 3, 1, 1),
    avg_pool((2, 64, 233, 231), 2, 2),
    max_pool((2, 40, 232, 228), 3, 2, 1),
]


@pytest.mark.parametrize("pool", BEYOND_CACHES, ids=str)
def test_beyond_the_caches(pool: Pool) -> None:
    """Large results are streamed to memory, line by line, past what lies unaligned before and behind."""
    for dtype in (torch.float32, torch.bfloat16):
        for last in (False, True):
            check(pool, dtype, last)


@examples(150)
@given(pools(), st.sampled_from(DTYPES), st.booleans(), st.integers(0, 1 << 30))
def test_any_parameters(pool: Pool, dtype: torch.dtype, last: bool, seed: int) -> None:
    torch.manual_seed(seed)
    check(pool, dtype, last)


@pytest.mark.parametrize("pool", [pool for pool in TABLE if pool.is_max][::4], ids=str)
def test_transposes(pool: Pool) -> None:
    """<grad_input(g), x> = <g, select(x)> exactly, for integers."""
    x = integers(pool, torch.float64, False)
    args = pool.args if "adaptive" in pool.op else pool.args[:4]
    output, offsets = getattr(torch.ops.cnnext, f"{pool.op}_with_offsets")(x, *pool.args)
    windows = ([], [], [], []) if "adaptive" in pool.op else args
    g = torch.randint(-4, 5, output.shape).double()
    grad = torch.ops.cnnext.max_pool_grad_input(g, offsets, pool.input[2:], *windows)
    assert torch.equal(torch.ops.cnnext.max_pool_select(x, offsets, *windows), output)
    y = integers(pool, torch.float64, False)
    picked = torch.ops.cnnext.max_pool_select(y, offsets, *windows)
    assert (grad * y).sum() == (g * picked).sum()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("pool", [pool for pool in TABLE if pool.is_max], ids=str)
def test_ties_nan_and_infinities(pool: Pool, last: bool) -> None:
    """The first of equals, zeros of either sign too, the last NaN, and the first of nothing but -inf."""
    if last and pool.dims == 1:
        pytest.skip("one dimension has no channels_last")
    x = torch.randint(-1, 2, pool.input).float()
    for share, value in ((0.3, float("-inf")), (0.05, float("inf")), (0.1, float("nan"))):
        x[torch.rand(pool.input) < share] = value
    zeros = torch.tensor([-1.0, -0.0, 0.0])[torch.randint(0, 3, pool.input)]
    for data in (x, zeros, torch.full(pool.input, float("-inf")), torch.full(pool.input, float("nan"))):
        expected, indices = pool.by_torch(data)
        source = layout(data, last)
        for kernel in backends.kernels("max_pool_with_offsets"):
            found = forced("max_pool_with_offsets", kernel, lambda s=source: pool.with_indices(s))
            if found is not None:
                assert_same(found[0], expected)
                assert torch.equal(found[1], indices), kernel
        for kernel in backends.kernels("max_pool"):
            output = forced("max_pool", kernel, lambda s=source: pool.by_cnnext(s))
            if output is not None:
                assert_same(output, expected)


def assert_same(result: Tensor, expected: Tensor) -> None:
    """Also in the signs of zeros; NaN as any other."""
    torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(result[expected == 0].signbit(), expected[expected == 0].signbit())


@pytest.mark.parametrize("size", [(2, 3, 9), (2, 3, 5, 6), (2, 17, 6, 5), (1, 3, 4, 3, 5)])
def test_unpool(size: tuple[int, ...]) -> None:
    """Values at their indices, the last of equal indices in the order of the plane, zeros elsewhere."""
    pixels = torch.Size(size[2:]).numel()
    for dtype in DTYPES:
        for last in (False, True)[: 1 + (len(size) > 3)]:
            pooled = torch.randint(-9, 10, (*size[:2], *(2,) * (len(size) - 2))).to(dtype)
            indices = torch.randint(0, pixels, pooled.shape)
            expected = torch.zeros(*size[:2], pixels, dtype=dtype)
            for i in range(pooled[0, 0].numel()):
                expected.scatter_(2, indices.flatten(2)[..., i : i + 1], pooled.flatten(2)[..., i : i + 1])
            result = torch.ops.cnnext.max_unpool(layout(pooled, last), layout(indices, last), size[2:])
            assert torch.equal(result, expected.view(size))
            grad = torch.randint(-9, 10, size).to(dtype)
            gathered = torch.ops.cnnext.max_unpool_grad_input(layout(grad, last), layout(indices, last), last)
            assert torch.equal(gathered, grad.flatten(2).gather(2, indices.flatten(2)).view_as(indices))
