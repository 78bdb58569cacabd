"""What the tests of convolution and of pooling share: element types, memory formats, and one kernel at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from cnnext import backends

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # one spatial axis has no such format

Ints = int | Sequence[int]
Result = TypeVar("Result")


def layout(tensor: Tensor, last: bool) -> Tensor:
    """The tensor in the memory format channels_last or contiguous."""
    return tensor.contiguous(
        memory_format=LAST.get(tensor.dim(), torch.contiguous_format) if last else torch.contiguous_format
    )


def is_last(tensor: Tensor) -> bool:
    return tensor.dim() in LAST and tensor.is_contiguous(memory_format=LAST[tensor.dim()])


def bits(tensor: Tensor) -> Tensor:
    """As integers, of which NaN and both zeros are told apart too."""
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def forced(op: str, kernel: str, run: Callable[[], Result], device: str = "cpu") -> Result | None:
    """run() with the kernel forced, or None where it does not take the problem."""
    with backends.force_kernel(op, kernel, device):
        try:
            return run()
        except RuntimeError as error:
            if "does not take this problem" not in str(error):
                raise
            return None
