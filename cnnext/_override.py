"""Redirection of torch's convolution, linear layers, pooling and batch normalisation to ours."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from . import backends, functional


def _redirections() -> dict[Any, tuple[str, Callable[..., Any]]]:
    """Every name under which torch keeps such a function. Which of them a mode sees differs from one to the next:
    `F.conv2d` is `torch.conv2d`, `F.avg_pool2d` is a builtin of `torch._C._nn`, `F.max_pool2d` is Python."""
    table: dict[Any, tuple[str, Callable[..., Any]]] = {}
    builtins = torch._C._nn
    for name in functional._FUNCTIONS:
        ours = getattr(functional, name)
        table[getattr(F, name)] = (name, ours)
        # Below the Python functions, adaptive max pooling always returns indices, and these have other arguments.
        if name.startswith(("max_unpool", "adaptive_max_pool", "batch_norm")):
            continue
        for module in (torch, builtins):
            if hasattr(module, name):
                table[getattr(module, name)] = (name, ours)
    for dims, module in ((1, torch), (2, builtins), (3, builtins)):
        ours = getattr(functional, f"adaptive_max_pool{dims}d_with_indices")
        table[getattr(module, f"adaptive_max_pool{dims}d")] = (ours.__name__, ours)
    return table


_REDIRECTIONS = _redirections()
_NAMES = {getattr(functional, name): name for name in functional._FUNCTIONS}


def function_name(function: Any) -> str | None:
    """The name in `torch.nn.functional` of a function that a mode sees, torch's or ours; None for any other."""
    redirection = _REDIRECTIONS.get(function)
    return _NAMES.get(function) if redirection is None else redirection[0]


class override(TorchFunctionMode):
    """Inside the block, torch's functions are ours, for code that knows nothing of cnnext.

    Functional calls of convolution, linear layers, pooling and batch normalisation (`torch.nn.functional.conv2d`,
    `torch.conv2d`, ...) and the layers of torch.nn, user subclasses included, are redirected in this thread, but for
    calls with `out=`; layers that are already ours stay so.
    `redirected` counts the calls by name, but not the ones inside a graph of torch.compile.

    Example:
        >>> import cnnext
        >>> with cnnext.override() as o:
        ...     output = torch.nn.Conv2d(1, 1, 3)(torch.ones(1, 1, 8, 8))
        >>> o.redirected
        {'conv2d': 1}
    """

    def __init__(self) -> None:
        super().__init__()
        self._counts: Counter[str] = Counter()

    @property
    def redirected(self) -> dict[str, int]:
        """How many calls of each function went to ours."""
        return dict(self._counts)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        redirection = _REDIRECTIONS.get(func)
        if redirection is None:
            return func(*args, **kwargs)
        name, ours = redirection
        if "out" in kwargs:
            output = func(*args, **kwargs)
            backends.record_fallback(re.split(r"\dd", name)[0], "arguments that only torch takes")
            return output
        if not torch.compiler.is_compiling():
            self._counts[name] += 1
        return ours(*args, **kwargs)
