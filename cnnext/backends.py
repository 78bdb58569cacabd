"""Which kernels run: names, forcing one, turning ours off, and the record of calls that were left to torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import RLock
from types import ModuleType
from typing import Any, Generic, TypeVar

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from . import _C

__all__ = [
    "cpu_capability",
    "empty_cache",
    "enabled",
    "fallbacks",
    "flags",
    "force_kernel",
    "kernels",
    "memory_pool",
    "memory_stats",
    "packed_weights",
    "reset_fallbacks",
    "torch_memory",
    "winograd",
]

enabled: bool = True
"""False sends every function and layer of cnnext to torch, to compare the two in one program (see `flags`)."""


def cpu_capability() -> str:
    """The instruction set in use: 'baseline', 'avx2' or 'avx512'. ATEN_CPU_CAPABILITY overrides it, as for torch."""
    return _C.cpu_capability()


def kernels(op: str, device: str = "cpu") -> list[str]:
    """The candidate kernels of an operator on a device, "cpu" or "cuda", in the order in which they are tried.

    Example:
        >>> import cnnext
        >>> cnnext.backends.kernels("conv")[-1]  # the one that takes everything
        'reference'
    """
    return list(_C.candidates(op, _is_cuda(device)))


def _is_cuda(device: str) -> bool:
    if device not in ("cpu", "cuda"):
        raise ValueError(f"expected device 'cpu' or 'cuda', but got {device!r}")
    return device == "cuda"


_Value = TypeVar("_Value")


class _Setting(Generic[_Value]):
    """One value for the whole process. Blocks may set another, also in several threads at once and in whatever order
    they end: of those that have not ended, the one that began last decides."""

    def __init__(self, value: _Value, write: Callable[[_Value], None]) -> None:
        self._write = write
        self._values = [[value]]  # without a block, then each block's own
        self._lock = RLock()  # a block that waits for the garbage collector may end inside of another's change

    def set(self, value: _Value) -> None:
        """Inside a block the value lasts until its end."""
        with self._changing():
            self._write(value)
            self._values[-1][0] = value

    @contextmanager
    def block(self, value: _Value) -> Iterator[None]:
        own = [value]
        with self._changing():
            self._write(value)
            self._values.append(own)
        try:
            yield
        finally:
            with self._changing():
                self._values = [each for each in self._values if each is not own]
                self._write(self._values[-1][0])

    def _changing(self) -> AbstractContextManager[Any]:
        return nullcontext() if torch.compiler.is_compiling() else self._lock  # Dynamo takes no locks


_forced: dict[tuple[str, bool], _Setting[str | None]] = {}


@contextmanager
def force_kernel(op: str, name: str, device: str = "cpu") -> Iterator[None]:
    """Makes one operator use the kernel of that name; a problem that this kernel does not take raises RuntimeError.

    It holds for every thread, as `flags` does.

    Args:
        op: an operator's name: conv, conv_grad_input, conv_grad_weight, max_pool, ...
        name: one of `kernels(op, device)`.
        device: "cpu" or "cuda".

    Raises:
        ValueError: if the operator has no kernel of that name.

    Example:
        >>> import cnnext
        >>> with cnnext.backends.force_kernel("conv", "reference"):
        ...     output = cnnext.functional.conv2d(torch.ones(1, 3, 8, 8), torch.ones(4, 3, 3, 3))
    """
    names, cuda = kernels(op, device), _is_cuda(device)
    if name not in names:
        raise ValueError(f"{op} has no kernel {name!r} for device {device!r}; there are {', '.join(names)}")
    forced = _Setting[str | None](None, lambda name: _C.force_kernel(op, name, cuda))
    with _forced.setdefault((op, cuda), forced).block(name):
        yield


class _Switch(_Setting[bool]):
    """A setting of the library: `switch.enabled` reads and sets it, `with switch(False):` sets it for a block. It holds
    for all threads; where blocks of several overlap, the one that began last decides."""

    def __init__(self, value: bool, write: Callable[[bool], None], doc: str = "") -> None:
        def write_bool(value: bool) -> None:
            if not isinstance(value, bool):
                raise TypeError(f"expected a bool, got {type(value).__name__}")
            write(value)

        super().__init__(value, write_bool)
        self.__doc__ = doc

    @property
    def enabled(self) -> bool:
        return self._values[-1][0]

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self.set(value)

    @contextmanager
    def __call__(self, enabled: bool) -> Iterator[None]:
        with self.block(enabled):
            yield


def _set_enabled(value: bool) -> None:
    global enabled
    enabled = value


_enabled = _Switch(enabled, _set_enabled)


@contextmanager
def flags(enabled: bool = True) -> Iterator[None]:
    """Turns our kernels on or off inside the block, as `torch.backends.mkldnn.flags` does for oneDNN's.

    Like all settings here it holds for every thread of the process. Where blocks of several threads overlap, the one
    that began last decides; when all have ended, all is as before.

    Example:
        >>> import cnnext
        >>> with cnnext.backends.flags(enabled=False):  # torch's kernels, in a converted model too
        ...     output = cnnext.functional.max_pool2d(torch.ones(1, 3, 8, 8), 2)
    """
    with _enabled(enabled):
        yield


winograd = _Switch(
    _C.winograd_enabled(),
    _C.set_winograd,
    """Whether convolutions may be computed by Winograd's minimal filtering where it pays; on by default.

    It takes a quarter of the multiplications for 3x3 kernels and about half for 1x7 or 3x1. Its errors are relative to
    the largest number of a tile, a few pixels more than the window: beside sentinel or fill values such as 1e20,
    infinities and NaN, and for numbers above about 5e36, results are wrong without a warning ("Winograd's rounding" in
    the drop-in guide). Turned off, every convolution is a direct sum.

    Example:
        >>> import cnnext
        >>> with cnnext.backends.winograd(False):
        ...     output = cnnext.functional.conv2d(torch.ones(1, 64, 56, 56), torch.ones(64, 64, 3, 3))
        >>> cnnext.backends.winograd.enabled
        True
    """,
)

memory_pool = _Switch(
    _C.memory_pool_enabled(),
    _C.set_memory_pool,
    """Whether the memory of outputs and workspaces is kept for the next call; on by default.

    Fresh pages cost more than many convolutions. The pool holds at most an eighth and 8 MiB more than was in use at
    once. Turning it off gives back what waits in it; so does `cnnext.empty_cache()`. CNNEXT_MEMORY_POOL=0 in the
    environment turns it off from the start.

    Example:
        >>> import cnnext
        >>> with cnnext.backends.memory_pool(False):
        ...     output = cnnext.functional.conv2d(torch.ones(1, 64, 56, 56), torch.ones(64, 64, 3, 3))
    """,
)


torch_memory = _Switch(
    _C.torch_memory_pooled(),
    _C.set_torch_memory_pooled,
    """Whether torch's own tensors on the CPU come from the memory pool too; off by default.

    Batch norms, activations and sums that stay torch's write as many bytes as convolutions do, and glibc gives theirs
    back to the system and asks for them again with every step. It replaces torch's allocator in the whole process;
    tensors that were made before keep their memory.

    Example:
        >>> import cnnext
        >>> with cnnext.backends.torch_memory(True):
        ...     y = torch.relu(torch.ones(1, 64, 56, 56))
    """,
)

_step_hook: RemovableHandle | None = None


def _set_packed_weights(enabled: bool) -> None:
    """A fused optimizer changes weights without a new version: each step drops what is kept."""
    global _step_hook
    _C.set_packed_weights(enabled)
    if enabled and _step_hook is None:
        _step_hook = register_optimizer_step_post_hook(lambda *_: _C.drop_packed_weights())
    elif not enabled and _step_hook is not None:
        _step_hook.remove()
        _step_hook = None


packed_weights = _Switch(
    _C.packed_weights_enabled(),
    _set_packed_weights,
    """Whether convolutions on the CPU keep weights as they have packed them; off by default.

    With few images in a batch a large part of a convolution's time is to bring its weight into the order, and the type,
    in which it is multiplied. Turned on, calls that compute no gradient for the weight do that once for each size of
    the input, and the choice of the kernel takes that into account. A packed weight is 1 to 1.5 times as large as the
    weight; Winograd's algorithm, whose weights would be four times as large, keeps none. 1 GiB are kept at most, and
    none whose weight is gone. Turning it off, or `cnnext.empty_cache()`, drops them. Measure both: in channels first a
    network may become slower.

    A weight that changes is packed anew: by in-place operators, the step of an optimizer of `torch.optim`,
    load_state_dict or a new tensor in `.data`. A write that torch does not count can not be seen: through `weight.data`
    (`weight.data.mul_(2)`, as some moving averages do), through its storage (`weight.untyped_storage().copy_(other)`),
    through NumPy, by another process, as FSDP gathers its shards, or in a block of
    `torch.autograd._unsafe_preserve_version_counter`. Call `cnnext.empty_cache()` after one, and before
    `torch.utils.swap_tensors` of a weight, which refuses tensors that something has a weak reference to.

    Example:
        >>> import cnnext
        >>> model = cnnext.nn.Conv2d(3, 8, 3).eval()
        >>> with cnnext.backends.packed_weights(True), torch.inference_mode():
        ...     output = model(torch.ones(1, 3, 32, 32))
    """,
)


def empty_cache() -> None:
    """Gives the memory that waits in the pool back to the system, as `torch.cuda.empty_cache` does on a GPU.

    Weights that `backends.packed_weights` keeps are dropped too.
    """
    _C.empty_cache()


def memory_stats() -> dict[str, int]:
    """The state of the memory pool: bytes in use, waiting and at most in use, and how many blocks were made and reused.

    `packed_weights_bytes`, a part of those in use, are what `backends.packed_weights` keeps.

    Example:
        >>> import cnnext
        >>> sorted(cnnext.memory_stats())
        ['allocated', 'cached_bytes', 'in_use_bytes', 'packed_weights_bytes', 'peak_in_use_bytes', 'reused']
    """
    return dict(_C.memory_stats())


def fallbacks() -> dict[str, int]:
    """How many calls went to torch instead of our kernels, under "operator: reason", since the start or the reset.

    Example:
        >>> import cnnext
        >>> cnnext.reset_fallbacks()
        >>> output = cnnext.functional.conv2d(torch.ones(1, 1, 4, 4).long(), torch.ones(1, 1, 3, 3).long())
        >>> cnnext.fallbacks()
        {'conv: element type': 1}
    """
    return dict(_C.fallbacks())


def reset_fallbacks() -> None:
    """Forgets all recorded fallbacks."""
    _C.reset_fallbacks()


def record_fallback(op: str, reason: str) -> None:
    """Counts one call that the Python layer left to torch. Calls inside a compiled graph are counted by no one."""
    if not torch.compiler.is_compiling():
        _C.record_fallback(op, reason)


@contextmanager
def uncounted_fallbacks() -> Iterator[None]:
    """Keeps this thread's calls inside the block off the record; there `fallbacks` tells of them alone."""
    _C.begin_counting_apart()
    try:
        yield
    finally:
        _C.end_counting_apart()


class _Module(ModuleType):
    """Assigning to `enabled` sets it; a switch is not replaced by what was meant for its own `enabled`."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "enabled":
            _enabled.enabled = value
        elif isinstance(globals().get(name), _Switch):
            raise AttributeError(f"cnnext.backends.{name} is a switch: set cnnext.backends.{name}.enabled")
        else:
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Module
