# Types of the compiled library (csrc/ops/python.cpp), beside which the operators are in torch.ops.cnnext.
from collections.abc import Sequence
from typing import Any

import torch

def cpu_capability() -> str: ...
def candidates(op: str, cuda: bool = False) -> list[str]: ...
def force_kernel(op: str, name: str | None, cuda: bool = False) -> None: ...
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
    arch: int = 0,
    weight_channels_last: bool | None = None,
    keeps_weight: bool = False,
) -> dict[str, Any]: ...
def is_channels_last(tensor: torch.Tensor) -> bool: ...
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
    arch: int = 0,
) -> dict[str, Any]: ...
def fallbacks() -> dict[str, int]: ...
def reset_fallbacks() -> None: ...
def record_fallback(op: str, reason: str) -> None: ...
def begin_counting_apart() -> None: ...
def end_counting_apart() -> None: ...

# The operators, for eager calls that need no thought; None where the long way through torch.ops must be taken.
Sizes = int | Sequence[int]

def conv(
    dims: int,
    input: Any,
    weight: Any,
    bias: Any,
    stride: Sizes,
    padding: Sizes | str,
    dilation: Sizes,
    groups: int,
) -> torch.Tensor | None: ...
def linear(input: Any, weight: Any, bias: Any) -> torch.Tensor | None: ...
def fused_conv(
    dims: int,
    input: Any,
    weight: Any,
    bias: Any,
    stride: Sizes,
    padding: Sizes | str,
    dilation: Sizes,
    groups: int,
    residual: Any,
    activation: str,
    negative_slope: float,
) -> torch.Tensor | None: ...
def batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any,
    bias: Any,
    eps: float,
    residual: Any,
    activation: str,
    negative_slope: float,
) -> torch.Tensor | None: ...
def conv_transpose(
    dims: int,
    input: Any,
    weight: Any,
    bias: Any,
    stride: Sizes,
    padding: Sizes,
    output_padding: Sizes,
    groups: int,
    dilation: Sizes,
) -> torch.Tensor | None: ...
def max_pool(
    dims: int, input: Any, kernel_size: Sizes, stride: Sizes | None, padding: Sizes, dilation: Sizes, ceil_mode: bool
) -> torch.Tensor | None: ...
def max_pool_with_indices(
    dims: int, input: Any, kernel_size: Sizes, stride: Sizes | None, padding: Sizes, dilation: Sizes, ceil_mode: bool
) -> tuple[torch.Tensor, torch.Tensor] | None: ...
def avg_pool(
    dims: int,
    input: Any,
    kernel_size: Sizes,
    stride: Sizes | None,
    padding: Sizes,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> torch.Tensor | None: ...
def adaptive_avg_pool(dims: int, input: Any, output_size: Any) -> torch.Tensor | None: ...
def adaptive_max_pool(dims: int, input: Any, output_size: Any) -> torch.Tensor | None: ...
def adaptive_max_pool_with_indices(
    dims: int, input: Any, output_size: Any
) -> tuple[torch.Tensor, torch.Tensor] | None: ...
def winograd_enabled() -> bool: ...
def set_winograd(enabled: bool) -> None: ...
def memory_pool_enabled() -> bool: ...
def set_memory_pool(enabled: bool) -> None: ...
def torch_memory_pooled() -> bool: ...
def set_torch_memory_pooled(pooled: bool) -> None: ...
def packed_weights_enabled() -> bool: ...
def set_packed_weights(enabled: bool) -> None: ...
def drop_packed_weights() -> None: ...
def memory_stats() -> dict[str, int]: ...
def empty_cache() -> None: ...
