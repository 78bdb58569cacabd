"""Pooling problems and what torch and cnnext compute for them, for the tests of the operators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import assume
from hypothesis import strategies as st
from kernels import Ints
from torch import Tensor


@dataclass(frozen=True)
class Pool:
    """An operator of cnnext, the size of its input and its other arguments."""

    op: str
    input: tuple[int, ...]
    args: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.op}-{'x'.join(map(str, self.input))}-{self.args}".replace(" ", "")

    @property
    def dims(self) -> int:
        return len(self.input) - 2

    @property
    def is_max(self) -> bool:
        return "max" in self.op

    @property
    def lists(self) -> tuple[str, str]:
        """The lists of kernels that the forward pass and the gradient choose from."""
        family = "max_pool" if self.is_max else "avg_pool"
        return family, f"{family}_grad_input"

    def by_cnnext(self, x: Tensor) -> Tensor:
        return getattr(torch.ops.cnnext, self.op)(x, *self.args)

    def with_indices(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return getattr(torch.ops.cnnext, f"{self.op}_with_indices")(x, *self.args)

    def by_torch(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The result, and the indices of maxima."""
        function = getattr(F, f"{self.op}{self.dims}d")
        if self.is_max:
            return function(x, *self.args, return_indices=True)
        args = self.args[:-1] if self.op == "avg_pool" and self.dims == 1 else self.args  # there is no divisor_override
        return function(x, *args), None


def max_pool(size: Sequence[int], k: Ints, s: Ints = (), p: Ints = 0, d: Ints = 1, ceil: bool = False) -> Pool:
    return Pool("max_pool", tuple(size), (_list(k), _list(s), _list(p), _list(d), ceil))


def avg_pool(
    size: Sequence[int], k: Ints, s: Ints = (), p: Ints = 0, ceil: bool = False, pad: bool = True, by: int | None = None
) -> Pool:
    return Pool("avg_pool", tuple(size), (_list(k), _list(s), _list(p), ceil, pad, by))


def adaptive(op: str, size: Sequence[int], output: Ints) -> Pool:
    return Pool(f"adaptive_{op}", tuple(size), (_list(output) * (len(size) - 2 if isinstance(output, int) else 1),))


def _list(value: Ints) -> list[int]:
    return [value] if isinstance(value, int) else list(value)


def _table() -> Iterator[Pool]:
    # Widths and channels off every vector's length and on it, in one to three dimensions.
    for size in [
        (2, 3, 1),
        (1, 2, 33),
        (3, 5, 8, 7),
        (2, 33, 17, 18),
        (1, 70, 9, 35),
        (2, 16, 16, 16),
        (1, 5, 6, 7, 9),
    ]:
        for kernel, stride, padding in [(1, 1, 0), (2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 1), (5, 1, 2), (4, 5, 2)]:
            smallest = min(size[2:])
            if smallest + 2 * padding < kernel:
                continue
            for ceil in (False, True):
                yield max_pool(size, kernel, stride, padding, 1, ceil)
                yield avg_pool(size, kernel, stride, padding, ceil, ceil)
            yield avg_pool(size, kernel, stride, padding, True, False)
        for op in ("max_pool", "avg_pool"):
            for output in (1, 2, 3, 5):
                yield adaptive(op, size, output)
    yield max_pool((2, 5, 19, 23), 3, 2, 1, 2)
    yield max_pool((2, 5, 19, 40), (2, 5), (3, 1), (1, 2), (2, 3), True)
    yield max_pool((1, 17, 30), 4, 3, 2, 3)
    yield max_pool((1, 3, 9, 10, 11), (2, 3, 1), (1, 2, 3), (1, 0, 0), (3, 2, 1), True)
    yield max_pool((1, 3, 21, 40), 17, 1, 8)  # 289 taps: offsets need more than a byte
    yield max_pool((2, 20, 18, 18), 17, 1, 8)
    yield max_pool((1, 2, 9, 9, 9), 7, 1, 3)
    yield max_pool((2, 3, 7, 9), (7, 9))
    yield max_pool((2, 3, 7, 9), (9, 11), 1, (1, 1))
    yield max_pool((2, 3, 40, 50), (40, 50))  # as one plane, more taps than a byte counts
    yield avg_pool((2, 3, 40, 50), (40, 50))
    yield avg_pool((2, 5, 9, 20), (2, 3), (3, 1), (1, 0), True, False, -4)
    yield avg_pool((2, 5, 6, 9, 20), 3, 2, 1, True, True, 8)
    yield max_pool((2, 3, 9, 50), (2, 5), (2, 7))
    yield avg_pool((2, 3, 9, 50), (2, 5), (2, 7))
    yield avg_pool((2, 3, 9, 50), (2, 8), (2, 8))
    yield adaptive("max_pool", (2, 5, 9, 8), (9, 3))
    yield adaptive("avg_pool", (2, 20, 9, 8, 10), (4, 8, 3))
    yield adaptive("max_pool", (2, 3, 4, 5), (7, 11))
    yield adaptive("avg_pool", (2, 3, 4, 5), (7, 11))
    yield adaptive("avg_pool", (1, 3, 9, 40), (2, 40))
    yield adaptive("max_pool", (1, 1, 65541), 40000)  # an index times an extent exceeds 31 bits
    # Windows wide apart along a row, wider than a vector and narrower, overlapping, dilated, adaptive; one channel.
    yield max_pool((2, 3, 5, 90), (1, 45))
    yield max_pool((2, 3, 6, 200), (3, 2), (2, 40), (1, 1), (1, 20))
    yield max_pool((2, 3, 7, 300), (2, 70), (2, 33), (1, 35), 1, True)
    yield max_pool((1, 2, 500), 200, 10**9, 100)
    yield avg_pool((2, 3, 7, 300), (2, 70), (2, 33), (1, 35), True, False)
    yield avg_pool((2, 3, 7, 100), (2, 3), (2, 4), (0, 1), True)
    yield avg_pool((2, 3, 6, 150), (1, 20), (1, 21))
    for op in ("max_pool", "avg_pool"):
        yield adaptive(op, (2, 3, 7, 112), (7, 1))
        yield adaptive(op, (2, 3, 7, 112), (1, 112))
        yield adaptive(op, (2, 3, 6, 200), (2, 3))
        yield adaptive(op, (1, 3, 700), 2)
        yield adaptive(op, (2, 1, 9, 50), (4, 7))
    yield max_pool((2, 1, 9, 50), 3, 1, 1)
    yield avg_pool((2, 1, 9, 50), 3, 2, 1)
    # Several planes at a time: signals, dilation, many taps, windows that do not tile, that overlap, of all.
    for size in [(2, 16, 67), (1, 8, 13, 19)]:
        for op in (max_pool, avg_pool):
            yield op(size, 3, 2, 1)
            yield op(size, 5, 3)
            yield op(size, size[2:])
    yield max_pool((2, 8, 13, 21), 3, 2, 1, 2)
    yield max_pool((1, 16, 13, 13), 13, 1, 6)
    yield max_pool((1, 8, 19, 20), 17, 1, 8)
    yield avg_pool((1, 8, 13, 21), (3, 5), (2, 3), (1, 2), True, False, 7)
    for op in ("max_pool", "avg_pool"):
        yield adaptive(op, (2, 8, 33, 14), (7, 4))
        yield adaptive(op, (1, 8, 6, 12), (3, 4))
        yield adaptive(op, (1, 24, 70), 9)


TABLE = list(_table())


def _dead(size: int, k: int, s: int, p: int, d: int) -> bool:
    """Whether some window of the axis may have no tap inside the input: torch writes out of bounds there."""
    starts = range(-p, size, s)
    return any(all(not 0 <= start + tap * d < size for tap in range(k)) for start in starts)


@st.composite
def pools(draw: st.DrawFn) -> Pool:
    """Any pooling that torch takes, of moderate size."""
    dims = draw(st.integers(1, 3))
    size = [draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 5, 16, 21]))]
    size += draw(st.lists(st.integers(1, (70, 21, 8)[dims - 1]), min_size=dims, max_size=dims))
    op = draw(st.sampled_from(["max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool"]))
    if op.startswith("adaptive"):
        return adaptive(op.removeprefix("adaptive_"), size, [draw(st.integers(1, 9)) for _ in range(dims)])
    kernel = [draw(st.integers(1, 6)) for _ in range(dims)]
    stride = [draw(st.integers(1, 5)) for _ in range(dims)]
    dilation = [draw(st.integers(1, 3)) if op == "max_pool" else 1 for _ in range(dims)]
    padding = [draw(st.integers(0, k // 2)) for k in kernel]
    ceil = draw(st.booleans())
    windows = list(zip(size[2:], kernel, stride, padding, dilation, strict=True))
    assume(all(n + 2 * p + (s - 1) * ceil >= d * (k - 1) + 1 for n, k, s, p, d in windows))
    assume(not any(_dead(*window) for window in windows))
    if op == "max_pool":
        return max_pool(size, kernel, stride, padding, dilation, ceil)
    assume(dims < 3 or all(n >= k for n, k in zip(size[2:], kernel, strict=True)))  # torch's own condition
    by = draw(st.sampled_from([None, None, 4, -2])) if dims > 1 else None
    return avg_pool(size, kernel, stride, padding, ceil, draw(st.booleans()), by)
