# Types of the compiled library (csrc/ops/library.cpp), beside which the operators are in torch.ops.cnnext.
from collections.abc import Sequence
from typing import Any

import torch

def build_info() -> dict[str, Any]: ...
def cpu_capability() -> str: ...
def candidates(op: str) -> list[str]: ...
def force_kernel(op: str, name: str | None) -> None: ...
def explain_conv(
    op: str,
    input_size: Sequence[int],
    weight_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    dtype: torch.dtype,
    channels_last: bool,
) -> dict[str, Any]: ...
def explain_pool(
    op: str,
    input_size: Sequence[int],
    output_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    dtype: torch.dtype,
    channels_last: bool,
) -> dict[str, Any]: ...
def fallbacks() -> dict[str, int]: ...
def reset_fallbacks() -> None: ...
