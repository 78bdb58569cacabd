"""Drop-in replacements for convolution, linear layers, pooling and batch norms of `torch.nn.functional`.

Names, arguments and results are torch's; every other name of `torch.nn.functional` is passed on, so that
`from cnnext import functional as F` can replace torch's import. One body serves one, two and three dimensions. Most
eager calls go to the operator by the short way, `_C`. What the operators do not take (an invalid call, a sparse tensor,
...) goes to torch's function, which raises its own error or computes the result; the latter is recorded, see
`cnnext.fallbacks`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.overrides import handle_torch_function, has_torch_function_unary, has_torch_function_variadic

from . import _C, backends
from ._arguments import (
    Size,
    TorchFunction,
    all_names,
    are_ours,
    attribute_of,
    integer,
    integers,
    kernel_size,
    per_axis,
    takes_batch_norm,
    takes_linear,
)
from ._docs import document

_ops = torch.ops.cnnext
_Function = Callable[..., Tensor]
_Pair = Callable[..., tuple[Tensor, Tensor]]


def __getattr__(name: str) -> Any:
    return attribute_of(F, __name__, name)


def _make_conv(dims: int) -> _Function:
    def conv(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
    ) -> Tensor:
        if has_torch_function_variadic(input, weight, bias):
            args = (input, weight, bias, stride, padding, dilation, groups)
            return handle_torch_function(conv, args[:3], *args)
        if not is_dynamo_compiling() and backends.enabled:
            output = _C.conv(dims, input, weight, bias, stride, padding, dilation, groups)
            if output is not None:
                return output
        args = (input, weight, bias, stride, padding, dilation, groups)
        sizes = [integers(stride), integers(0 if isinstance(padding, str) else padding), integers(dilation)]
        group = integer(groups)
        ours = are_ours(dims, input, weight, *([] if bias is None else [bias])) and weight.dim() == dims + 2
        if not ours or group is None or any(each is None for each in sizes):
            return torchs.fall_back(*args)
        source = input
        if padding == "same":
            stride_is_one, dilations = set(sizes[0] or ()) == {1}, sizes[2] or []
            if not stride_is_one or len(dilations) not in (1, dims):
                return torchs.fall_back(*args)
            # Where the total is odd, torch puts one zero more on the right.
            totals = [d * (k - 1) for d, k in zip(per_axis(dilations, dims), kernel_size(weight), strict=True)]
            if any(total % 2 for total in totals):
                source = F.pad(input, [extra for total in reversed(totals) for extra in (0, total % 2)])
            sizes[1] = [total // 2 for total in totals]
        elif isinstance(padding, str) and padding != "valid":
            return torchs.fall_back(*args)
        return torchs.run(dims, _ops.conv.default, source, (weight, bias, *sizes, group), args)

    torchs = TorchFunction(conv, "conv", f"conv{dims}d")
    return document(conv, f"conv{dims}d")


def check_activation(activation: Any) -> None:
    if activation not in ("none", "relu", "relu6", "leaky_relu"):
        raise ValueError(f"expected the activation none, relu, relu6 or leaky_relu, but got {activation!r}")


def activate(activation: str, negative_slope: float, y: Tensor) -> Tensor:
    match activation:
        case "relu":
            return F.relu(y)
        case "relu6":
            return F.relu6(y)
        case "leaky_relu":
            return F.leaky_relu(y, negative_slope)
    return y


def _make_fused_conv(dims: int, conv: _Function) -> _Function:
    def fused_conv(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        residual: Tensor | None = None,
        activation: str = "none",
        negative_slope: float = 0.01,
    ) -> Tensor:
        args = (input, weight, bias, stride, padding, dilation, groups, residual, activation, negative_slope)
        if has_torch_function_variadic(input, weight, bias, residual):
            return handle_torch_function(fused_conv, (input, weight, bias, residual), *args)
        negative_slope = float(negative_slope)
        if not is_dynamo_compiling() and backends.enabled:
            output = _C.fused_conv(dims, *args[:-1], negative_slope)
            if output is not None:
                return output
        check_activation(activation)
        sizes = [integers(stride), integers(None if isinstance(padding, str) else padding), integers(dilation)]
        group, tensors = integer(groups), [weight, *(each for each in (bias, residual) if each is not None)]
        typed = group is not None and all(each is not None for each in sizes)
        if typed and are_ours(dims, input, *tensors) and input.dim() == weight.dim() == dims + 2:
            return _ops.fused_conv.default(input, weight, bias, residual, *sizes, group, activation, negative_slope)
        return _finish(conv(*args[:7]), residual, activation, negative_slope)

    return document(fused_conv, f"fused_conv{dims}d")


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if has_torch_function_variadic(input, weight, bias):
        return handle_torch_function(linear, (input, weight, bias), input, weight, bias)
    if not is_dynamo_compiling() and backends.enabled:
        output = _C.linear(input, weight, bias)
        if output is not None:
            return output
    if not takes_linear(input, weight, bias):
        return _torchs_linear.fall_back_from_cpu(input, weight, bias)
    return _ops.linear.default(input, weight, bias)


_torchs_linear = TorchFunction(linear, "linear", "linear")
document(linear, "linear")


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if has_torch_function_variadic(input, running_mean, running_var, weight, bias):
        args = (input, running_mean, running_var, weight, bias, training, momentum, eps)
        return handle_torch_function(batch_norm, args[:5], *args)
    if training is False and not is_dynamo_compiling() and backends.enabled:
        output = _C.batch_norm(input, running_mean, running_var, weight, bias, eps, None, "none", 0.0)
        if output is not None:
            return output
    args = (input, running_mean, running_var, weight, bias, training, momentum, eps)
    return _normalise(args)


def fused_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    activation: str = "none",
    negative_slope: float = 0.01,
) -> Tensor:
    args = (input, running_mean, running_var, weight, bias, training, momentum, eps)
    if has_torch_function_variadic(*args[:5], residual):
        tensors = (*args[:5], residual)
        return handle_torch_function(fused_batch_norm, tensors, *args, residual, activation, negative_slope)
    epilogue = (residual, activation, float(negative_slope))
    if training is False and not is_dynamo_compiling() and backends.enabled:
        output = _C.batch_norm(input, running_mean, running_var, weight, bias, eps, *epilogue)
        if output is not None:
            return output
    return _normalise(args, *epilogue)


def _normalise(
    args: tuple[Any, ...], residual: Tensor | None = None, activation: str = "none", negative_slope: float = 0.0
) -> Tensor:
    input, running_mean, running_var, weight, bias, training, momentum, eps = args
    epilogue = (residual, activation, negative_slope)
    check_activation(activation)
    if not takes_batch_norm(*args):
        return _finish(_torchs_batch_norm.fall_back_from_cpu(*args), *epilogue)
    given = (None, None) if training else (running_mean, running_var)
    if residual is not None and (residual.shape != input.shape or residual.dtype != input.dtype):
        output, mean, variance = _ops.batch_norm.default(input, weight, bias, *given, eps)
        output = _finish(output, *epilogue)
    else:
        output, mean, variance = _ops.batch_norm.default(input, weight, bias, *given, eps, *epilogue)
    if training and running_mean is not None and running_var is not None:
        count = input.numel() // input.shape[1]
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_((variance * (count / (count - 1))).to(running_var.dtype), momentum)
    return output


def _finish(output: Tensor, residual: Tensor | None, activation: str, negative_slope: float) -> Tensor:
    return activate(activation, negative_slope, output if residual is None else output + residual)


_torchs_batch_norm = TorchFunction(batch_norm, "batch_norm", "batch_norm")
document(batch_norm, "batch_norm")
document(fused_batch_norm, "fused_batch_norm")


def _make_conv_transpose(dims: int) -> _Function:
    def conv_transpose(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        dilation: Size = 1,
    ) -> Tensor:
        args = (input, weight, bias, stride, padding, output_padding, groups, dilation)
        if has_torch_function_variadic(input, weight, bias):
            return handle_torch_function(conv_transpose, args[:3], *args)
        if not is_dynamo_compiling() and backends.enabled:
            output = _C.conv_transpose(dims, *args)
            if output is not None:
                return output
        sizes = [integers(stride), integers(padding), integers(output_padding)]
        group, dilations = integer(groups), integers(dilation)
        ours = are_ours(dims, input, weight, *([] if bias is None else [bias])) and weight.dim() == dims + 2
        if not ours or group is None or dilations is None or any(each is None for each in sizes):
            return torchs.fall_back(*args)
        return torchs.run(dims, _ops.conv_transpose.default, input, (weight, bias, *sizes, group, dilations), args)

    torchs = TorchFunction(conv_transpose, "conv_transpose", f"conv_transpose{dims}d")
    return document(conv_transpose, f"conv_transpose{dims}d")


def _pool(
    dims: int, run: Callable[..., Any], torchs: TorchFunction, args: Sequence[Any], sizes: Iterable[Any], *flags: bool
) -> Any:
    """A pooling operator: `sizes` are numbers or sequences of them. `args` are what torch's function would get."""
    numbers = [integers(size) for size in sizes]
    typed = all(each is not None for each in numbers) and all(isinstance(flag, bool) for flag in flags)
    # Without a batch axis the first may be empty: for torch that is the batch, for our operators the channels.
    if not typed or not are_ours(dims, args[0]) or (args[0].dim() == dims + 1 and args[0].shape[0] == 0):
        return torchs.fall_back(*args)
    return torchs.run(dims, run, args[0], (*numbers, *flags), args)


def _make_max_pool(dims: int) -> tuple[_Function, _Pair]:
    def max_pool_with_indices(
        input: Tensor,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> tuple[Tensor, Tensor]:
        args = (input, kernel_size, stride, padding, dilation, ceil_mode)
        if has_torch_function_unary(input):
            return handle_torch_function(max_pool_with_indices, (input,), *args, return_indices)
        if not is_dynamo_compiling() and backends.enabled:
            outputs = _C.max_pool_with_indices(dims, *args)
            if outputs is not None:
                return outputs
        sizes = (kernel_size, () if stride is None else stride, padding, dilation)
        return _pool(dims, _ops.max_pool_with_indices.default, torchs, (*args, True), sizes, ceil_mode)

    def max_pool(
        input: Tensor,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Any:
        args = (input, kernel_size, stride, padding, dilation, ceil_mode)
        if has_torch_function_unary(input):
            if return_indices:
                return with_indices(*args, return_indices)
            return handle_torch_function(max_pool, (input,), *args, return_indices)
        if not is_dynamo_compiling() and backends.enabled:
            output = (_C.max_pool_with_indices if return_indices else _C.max_pool)(dims, *args)
            if output is not None:
                return output
        if return_indices:
            return with_indices(*args)
        sizes = (kernel_size, () if stride is None else stride, padding, dilation)
        return _pool(dims, _ops.max_pool.default, torchs, (*args, False), sizes, ceil_mode)

    torchs = TorchFunction(max_pool, "max_pool", f"max_pool{dims}d")
    with_indices = document(max_pool_with_indices, f"max_pool{dims}d_with_indices")
    return document(max_pool, f"max_pool{dims}d"), with_indices


def _make_avg_pool(dims: int) -> _Function:
    def avg_pool(
        input: Tensor,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Tensor:
        args = (input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
        if has_torch_function_unary(input):
            given: tuple[Any, ...] = args if dims > 1 else args[:-1]
            return handle_torch_function(public, (input,), *given)
        if not is_dynamo_compiling() and backends.enabled:
            output = _C.avg_pool(dims, *args)
            if output is not None:
                return output
        divisor = None if divisor_override is None else integer(divisor_override)
        if divisor_override is not None and divisor is None:
            return torchs.fall_back(*args)

        def run(source: Tensor, *rest: Any) -> Tensor:
            return _ops.avg_pool.default(source, *rest, divisor)

        sizes = (kernel_size, () if stride is None else stride, padding)
        return _pool(dims, run, torchs, args, sizes, ceil_mode, count_include_pad)

    def avg_pool1d(
        input: Tensor,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> Tensor:
        return avg_pool(input, kernel_size, stride, padding, ceil_mode, count_include_pad)

    torchs = TorchFunction(avg_pool, "avg_pool", f"avg_pool{dims}d")
    public = document(avg_pool1d if dims == 1 else avg_pool, f"avg_pool{dims}d")
    return public


def _filled(dims: int, output_size: Any, input: Any) -> Any:
    """An adaptive pool's sizes, with the input's in place of None (allowed in two and three dimensions); None if there
    are too few or too many."""
    if isinstance(output_size, (tuple, list)):
        if len(output_size) != dims or not isinstance(input, Tensor) or input.dim() < dims:
            return None
        if dims > 1:
            pairs = zip(output_size, input.shape[-dims:], strict=True)
            return [in_size if size is None else size for size, in_size in pairs]
    return output_size


def _make_adaptive_max_pool(dims: int) -> tuple[_Function, _Pair]:
    def adaptive_max_pool_with_indices(
        input: Tensor, output_size: Size, return_indices: bool = False
    ) -> tuple[Tensor, Tensor]:
        if has_torch_function_unary(input):
            return handle_torch_function(with_indices, (input,), input, output_size, return_indices)
        if not is_dynamo_compiling() and backends.enabled:
            outputs = _C.adaptive_max_pool_with_indices(dims, input, output_size)
            if outputs is not None:
                return outputs
        run, sizes = _ops.adaptive_max_pool_with_indices.default, (_filled(dims, output_size, input),)
        return _pool(dims, run, torchs, (input, output_size, True), sizes)

    def adaptive_max_pool(input: Tensor, output_size: Size, return_indices: bool = False) -> Any:
        if return_indices:
            return with_indices(input, output_size, return_indices)
        if has_torch_function_unary(input):
            return handle_torch_function(adaptive_max_pool, (input,), input, output_size, return_indices)
        if not is_dynamo_compiling() and backends.enabled:
            output = _C.adaptive_max_pool(dims, input, output_size)
            if output is not None:
                return output
        sizes = (_filled(dims, output_size, input),)
        return _pool(dims, _ops.adaptive_max_pool.default, torchs, (input, output_size, False), sizes)

    torchs = TorchFunction(adaptive_max_pool, "adaptive_max_pool", f"adaptive_max_pool{dims}d")
    with_indices = document(adaptive_max_pool_with_indices, f"adaptive_max_pool{dims}d_with_indices")
    return document(adaptive_max_pool, f"adaptive_max_pool{dims}d"), with_indices


def _make_adaptive_avg_pool(dims: int) -> _Function:
    def adaptive_avg_pool(input: Tensor, output_size: Size) -> Tensor:
        if has_torch_function_unary(input):
            return handle_torch_function(adaptive_avg_pool, (input,), input, output_size)
        if not is_dynamo_compiling() and backends.enabled:
            output = _C.adaptive_avg_pool(dims, input, output_size)
            if output is not None:
                return output
        sizes = (_filled(dims, output_size, input),)
        return _pool(dims, _ops.adaptive_avg_pool.default, torchs, (input, output_size), sizes)

    torchs = TorchFunction(adaptive_avg_pool, "adaptive_avg_pool", f"adaptive_avg_pool{dims}d")
    return document(adaptive_avg_pool, f"adaptive_avg_pool{dims}d")


def _make_max_unpool(dims: int) -> _Function:
    def max_unpool(
        input: Tensor,
        indices: Tensor,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        output_size: Size | None = None,
    ) -> Tensor:
        args = (input, indices, kernel_size, stride, padding, output_size)
        if has_torch_function_variadic(input, indices):
            return handle_torch_function(max_unpool, (input, indices), *args)
        given = (kernel_size, kernel_size if stride is None else stride, padding)
        numbers = [integers(size) for size in given]
        wanted = [] if output_size is None else list(output_size) if isinstance(output_size, Iterable) else None
        if not are_ours(dims, input, indices) or wanted is None or any(each is None for each in numbers):
            return torchs.fall_back(*args)
        if any(isinstance(size, (tuple, list)) and len(size) != dims for size in given) or indices.shape != input.shape:
            return torchs.fall_back(*args)
        axes = [per_axis(each, dims) for each in numbers]
        natural = [(n - 1) * s + k - 2 * p for n, k, s, p in zip(input.shape[-dims:], *axes, strict=True)]
        sizes = natural if output_size is None else wanted[-dims:]
        if any(isinstance(size, Tensor) for size in sizes):  # in torch.jit.trace
            return torchs.fall_back(*args)
        off = any(abs(size - middle) >= s for size, middle, s in zip(sizes, natural, axes[1], strict=False))
        fits = output_size is None or len(wanted) in (dims, dims + 2)
        if off or not fits or any(size < 0 for size in sizes):
            return torchs.fall_back(*args)
        if input.dim() == dims + 1:
            indices = indices.unsqueeze(0)
        return torchs.run(dims, _ops.max_unpool.default, input, (indices, sizes), args)

    torchs = TorchFunction(max_unpool, "max_unpool", f"max_unpool{dims}d")
    return document(max_unpool, f"max_unpool{dims}d")


def _make_lp_pool(dims: int, avg_pool: _Function, max_pool: _Function) -> _Function:
    def lp_pool(
        input: Tensor, norm_type: float, kernel_size: Size, stride: Size | None = None, ceil_mode: bool = False
    ) -> Tensor:
        args = (input, norm_type, kernel_size, stride, ceil_mode)
        if has_torch_function_unary(input):
            return handle_torch_function(lp_pool, (input,), *args)
        sizes = integers(kernel_size)
        as_torch = isinstance(kernel_size, int) or (dims > 1 and sizes is not None and len(sizes) == dims)
        if not as_torch or sizes is None or not isinstance(norm_type, (int, float)) or not isinstance(input, Tensor):
            return torchs.fall_back(*args)
        if norm_type == float("inf"):
            return max_pool(input.abs(), kernel_size, stride, 0, 1, ceil_mode)
        if norm_type == -float("inf"):
            return -max_pool(-input.abs(), kernel_size, stride, 0, 1, ceil_mode)
        mean = avg_pool(input.pow(norm_type), kernel_size, stride, 0, ceil_mode)
        taps = math.prod(per_axis(sizes, dims))
        return (torch.sign(mean) * F.relu(torch.abs(mean))).mul(taps).pow(1.0 / norm_type)

    torchs = TorchFunction(lp_pool, "avg_pool", f"lp_pool{dims}d")
    return document(lp_pool, f"lp_pool{dims}d")


conv1d, conv2d, conv3d = _make_conv(1), _make_conv(2), _make_conv(3)
fused_conv1d, fused_conv2d, fused_conv3d = (
    _make_fused_conv(dims, conv) for dims, conv in ((1, conv1d), (2, conv2d), (3, conv3d))
)
conv_transpose1d, conv_transpose2d, conv_transpose3d = (_make_conv_transpose(dims) for dims in (1, 2, 3))
max_pool1d, max_pool1d_with_indices = _make_max_pool(1)
max_pool2d, max_pool2d_with_indices = _make_max_pool(2)
max_pool3d, max_pool3d_with_indices = _make_max_pool(3)
avg_pool1d, avg_pool2d, avg_pool3d = _make_avg_pool(1), _make_avg_pool(2), _make_avg_pool(3)
adaptive_max_pool1d, adaptive_max_pool1d_with_indices = _make_adaptive_max_pool(1)
adaptive_max_pool2d, adaptive_max_pool2d_with_indices = _make_adaptive_max_pool(2)
adaptive_max_pool3d, adaptive_max_pool3d_with_indices = _make_adaptive_max_pool(3)
adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = (_make_adaptive_avg_pool(dims) for dims in (1, 2, 3))
max_unpool1d, max_unpool2d, max_unpool3d = (_make_max_unpool(dims) for dims in (1, 2, 3))
lp_pool1d = _make_lp_pool(1, avg_pool1d, max_pool1d)
lp_pool2d = _make_lp_pool(2, avg_pool2d, max_pool2d)
lp_pool3d = _make_lp_pool(3, avg_pool3d, max_pool3d)

_OURS = ("conv", "max_pool", "avg_pool", "adaptive_", "max_unpool", "lp_pool", "batch_norm", "linear")
_FUNCTIONS = [name for name in globals() if name.startswith(_OURS)]
__all__ = all_names(F, [*_FUNCTIONS, *(name for name in globals() if name.startswith("fused_"))])


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
