"""Our operators in terms of ATen's, for what knows only those: ONNX, other runtimes, core ATen graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ._arguments import per_axis
from .functional import activate

_ops = torch.ops.cnnext
IN_ATEN: dict[Any, Callable[..., Any]] = {}


def _decomposes(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    # Not in torch's own table: where the environment has `CI` set, inductor refuses operators that it finds there.
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        IN_ATEN[getattr(_ops, name).default] = function
        return function

    return register


def _are_symbols(args: Any) -> bool:
    """Whether a number is only known in a run: most of ATen's pooling would bind the graph to the example's."""
    return any(isinstance(each, torch.SymInt) and each.node.is_symbolic() for each in tree_leaves(args))


def _is_plane(input: Tensor, kernel_size: Any, padding: Any, dilation: Any = (1,)) -> bool:
    """Whether one window is each whole plane, whatever its size in a run."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # imports sympy

    axes = zip(per_axis(kernel_size, input.dim() - 2), input.shape[2:], strict=True)
    known = not _are_symbols((padding, dilation)) and not any(padding) and all(each == 1 for each in dilation)
    return known and all(statically_known_true(kernel == size) for kernel, size in axes)


def _pool(name: str, input: Tensor, *args: Any) -> Any:
    """torch's function for input's number of dimensions. Sizes are lists, and none stands for the default."""
    dims = input.dim() - 2
    if _are_symbols(args) and (name != "adaptive_avg_pool" or dims == 1):
        given = ", ".join(str(list(arg)) for arg in args if isinstance(arg, (tuple, list)))
        raise RuntimeError(f"{name}{dims}d can not be decomposed for sizes that only a run knows: {given}")
    sizes = [(per_axis(arg, dims) or None) if isinstance(arg, (tuple, list)) else arg for arg in args]
    return getattr(F, f"{name}{dims}d")(input, *sizes)


@_decomposes("conv")
def _conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = (1,),
    padding: Any = (0,),
    dilation: Any = (1,),
    groups: int = 1,
) -> Tensor:
    dims = weight.dim() - 2
    geometry = [per_axis(each, dims) for each in (stride, padding, dilation)]
    return torch.ops.aten.convolution(input, weight, bias, *geometry, False, [0] * dims, groups)


@_decomposes("fused_conv")
def _fused_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    stride: Any = (1,),
    padding: Any = (0,),
    dilation: Any = (1,),
    groups: int = 1,
    activation: str = "none",
    negative_slope: float = 0.01,
) -> Tensor:
    output = _conv(input, weight, bias, stride, padding, dilation, groups)
    return activate(activation, negative_slope, output if residual is None else output + residual)


@_decomposes("linear")
def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(input, weight, bias)


@_decomposes("batch_norm")
def _batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    activation: str = "none",
    negative_slope: float = 0.01,
) -> tuple[Tensor, Tensor, Tensor]:
    output = F.batch_norm(input, mean, variance, weight, bias, mean is None, 0.0, eps)
    output = activate(activation, negative_slope, output if residual is None else output + residual)
    numbers = input if input.dtype == torch.float64 else input.float()
    if mean is not None:
        return output, numbers.new_empty(0), numbers.new_empty(0)
    variance, mean = torch.var_mean(numbers, [0, *range(2, input.dim())], correction=0)
    return output, mean, variance


@_decomposes("conv_grad_input")
def _conv_grad_input(
    grad_output: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_size: Any,
    stride: Any = (1,),
    padding: Any = (0,),
    dilation: Any = (1,),
    groups: int = 1,
) -> Tensor:
    dims = weight.dim() - 2
    geometry = [per_axis(each, dims) for each in (stride, padding, dilation)]
    axes = zip(input_size, grad_output.shape[2:], weight.shape[2:], *geometry, strict=True)
    extra = [size - ((out - 1) * s - 2 * p + d * (k - 1) + 1) for size, out, k, s, p, d in axes]
    return torch.ops.aten.convolution(grad_output, weight, bias, *geometry, True, extra, groups)


@_decomposes("conv_transpose")
def _conv_transpose(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = (1,),
    padding: Any = (0,),
    output_padding: Any = (0,),
    groups: int = 1,
    dilation: Any = (1,),
) -> Tensor:
    dims = weight.dim() - 2
    strides, pads, extra, dilations = (per_axis(each, dims) for each in (stride, padding, output_padding, dilation))
    return torch.ops.aten.convolution(input, weight, bias, strides, pads, dilations, True, extra, groups)


@_decomposes("conv_grad_weight")
def _conv_grad_weight(
    grad_output: Tensor,
    input: Tensor,
    kernel_size: Any,
    stride: Any = (1,),
    padding: Any = (0,),
    dilation: Any = (1,),
    groups: int = 1,
    channels_last: bool = False,
) -> Tensor:
    dims = input.dim() - 2
    weight = input.new_empty([grad_output.shape[1], input.shape[1] // groups, *kernel_size])
    if channels_last and dims > 1:
        weight = weight.to(memory_format=torch.channels_last if dims == 2 else torch.channels_last_3d)
    geometry = [per_axis(each, dims) for each in (stride, padding, dilation)]
    rest = (False, [0] * dims, groups, [False, True, False])
    return torch.ops.aten.convolution_backward(grad_output, input, weight, None, *geometry, *rest)[1]


@_decomposes("conv_grad_bias")
def _conv_grad_bias(grad_output: Tensor) -> Tensor:
    return grad_output.sum([0, *range(2, grad_output.dim())])


@_decomposes("max_pool")
def _max_pool(
    input: Tensor,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = (0,),
    dilation: Any = (1,),
    ceil_mode: bool = False,
) -> Tensor:
    if _are_symbols(kernel_size) and _is_plane(input, kernel_size, padding, dilation):
        return input.amax([*range(2, input.dim())], keepdim=True)
    return _pool("max_pool", input, kernel_size, stride, padding, dilation, ceil_mode)


@_decomposes("max_pool_with_indices")
def _max_pool_with_indices(
    input: Tensor,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = (0,),
    dilation: Any = (1,),
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:
    return _pool("max_pool", input, kernel_size, stride, padding, dilation, ceil_mode, True)


@_decomposes("avg_pool")
def _avg_pool(
    input: Tensor,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    if _are_symbols(kernel_size) and _is_plane(input, kernel_size, padding) and divisor_override is None:
        return input.mean([*range(2, input.dim())], keepdim=True)
    rest = () if input.dim() == 3 else (divisor_override,)
    return _pool("avg_pool", input, kernel_size, stride, padding, ceil_mode, count_include_pad, *rest)


@_decomposes("adaptive_max_pool")
def _adaptive_max_pool(input: Tensor, output_size: Any) -> Tensor:
    return _pool("adaptive_max_pool", input, output_size)


@_decomposes("adaptive_max_pool_with_indices")
def _adaptive_max_pool_with_indices(input: Tensor, output_size: Any) -> tuple[Tensor, Tensor]:
    return _pool("adaptive_max_pool", input, output_size, True)


@_decomposes("adaptive_avg_pool")
def _adaptive_avg_pool(input: Tensor, output_size: Any) -> Tensor:
    return _pool("adaptive_avg_pool", input, output_size)


@_decomposes("max_unpool")
def _max_unpool(input: Tensor, indices: Tensor, output_size: Any) -> Tensor:
    if input.dim() == 3:
        planes = (each.unsqueeze(-1) for each in (input, indices))
        return torch.ops.aten.max_unpool2d(*planes, [*output_size, 1]).squeeze(-1)
    if input.dim() == 4:
        return torch.ops.aten.max_unpool2d(input, indices, output_size)
    return torch.ops.aten.max_unpool3d(input, indices, output_size, [1, 1, 1], [0, 0, 0])


def decompositions() -> dict[Any, Callable[..., Any]]:
    """torch.export's default decompositions and ours, for `ExportedProgram.run_decompositions`.

    What comes of it holds none of our operators, so that `torch.onnx.export` and other runtimes take it.

    Example:
        >>> import cnnext
        >>> program = torch.export.export(cnnext.nn.Conv2d(1, 1, 1), (torch.ones(1, 1, 4, 4),))
        >>> core = program.run_decompositions(cnnext.decompositions())
        >>> "aten.convolution" in str(core.graph)
        True
    """
    table = torch.export.default_decompositions()
    table.update(IN_ATEN)
    return table
