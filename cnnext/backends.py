"""Which kernels run: names, forcing one, turning ours off, and the record of calls that were left to torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from . import _C

__all__ = ["cpu_capability", "enabled", "fallbacks", "flags", "force_kernel", "kernels", "reset_fallbacks"]

enabled: bool = True
"""False sends every function and layer of cnnext to torch, to compare the two in one program (see `flags`)."""

_forced: dict[str, str] = {}
_left_to_torch: Counter[str] = Counter()


def cpu_capability() -> str:
    """The instruction set in use: 'baseline', 'avx2' or 'avx512'. ATEN_CPU_CAPABILITY overrides it, as for torch."""
    return _C.cpu_capability()


def kernels(op: str) -> list[str]:
    """The candidate kernels of an operator, in the order in which they are tried.

    Example:
        >>> import cnnext
        >>> cnnext.backends.kernels("conv")[-1]  # the one that takes everything
        'reference'
    """
    return list(_C.candidates(op))


@contextmanager
def force_kernel(op: str, name: str) -> Iterator[None]:
    """Makes one operator use the kernel of that name; a problem that this kernel does not take raises RuntimeError.

    Args:
        op: an operator's name: conv, conv_grad_input, conv_grad_weight, max_pool, ...
        name: one of `kernels(op)`.

    Raises:
        ValueError: if the operator has no kernel of that name.

    Example:
        >>> import cnnext
        >>> with cnnext.backends.force_kernel("conv", "reference"):
        ...     output = cnnext.functional.conv2d(torch.ones(1, 3, 8, 8), torch.ones(4, 3, 3, 3))
    """
    _C.force_kernel(op, name)
    before = _forced.get(op)
    _forced[op] = name
    try:
        yield
    finally:
        _C.force_kernel(op, before)
        if before is None:
            del _forced[op]
        else:
            _forced[op] = before


def _set_enabled(value: bool) -> bool:
    global enabled
    before, enabled = enabled, value
    return before


@contextmanager
def flags(enabled: bool = True) -> Iterator[None]:
    """Turns our kernels on or off inside the block, as `torch.backends.mkldnn.flags` does for oneDNN's.

    Example:
        >>> import cnnext
        >>> with cnnext.backends.flags(enabled=False):  # torch's kernels, in a converted model too
        ...     output = cnnext.functional.max_pool2d(torch.ones(1, 3, 8, 8), 2)
    """
    before = _set_enabled(enabled)
    try:
        yield
    finally:
        _set_enabled(before)


def fallbacks() -> dict[str, int]:
    """How many calls went to torch instead of our kernels, under "operator: reason", since the start or the reset.

    Example:
        >>> import cnnext
        >>> cnnext.reset_fallbacks()
        >>> output = cnnext.functional.conv2d(torch.ones(1, 1, 4, 4).long(), torch.ones(1, 1, 3, 3).long())
        >>> cnnext.fallbacks()
        {'conv: element type': 1}
    """
    return dict(Counter(_C.fallbacks()) + _left_to_torch)


def reset_fallbacks() -> None:
    """Forgets all recorded fallbacks."""
    _C.reset_fallbacks()
    _left_to_torch.clear()


def record_fallback(op: str, reason: str) -> None:
    """Counts one call that the Python layer left to torch. Calls inside a compiled graph are counted by no one."""
    if not torch.compiler.is_compiling():
        _left_to_torch[f"{op}: {reason}"] += 1
