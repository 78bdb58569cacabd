"""Drop-in replacements for the convolution and pooling functions of `torch.nn.functional`.

Names, arguments and results are torch's; every other name of `torch.nn.functional` is passed on, so that
`from cnnext import functional as F` can replace torch's import. One body serves one, two and three dimensions. What the
operators do not take (an invalid call, a sparse tensor, ...) goes to torch's function, which raises its own error or
computes the result; the latter is recorded, see `cnnext.fallbacks`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary, has_torch_function_variadic

from . import backends
from ._docs import document

_ops = torch.ops.cnnext
_conv, _conv_grad_input = _ops.conv.default, _ops.conv_grad_input.default
_max_pool, _max_pool_with_indices = _ops.max_pool.default, _ops.max_pool_with_indices.default
_avg_pool, _max_unpool = _ops.avg_pool.default, _ops.max_unpool.default
_adaptive_max_pool = _ops.adaptive_max_pool.default
_adaptive_max_pool_with_indices = _ops.adaptive_max_pool_with_indices.default
_adaptive_avg_pool = _ops.adaptive_avg_pool.default

_Size = int | Sequence[int]
_Function = Callable[..., Tensor]
_Pair = Callable[..., tuple[Tensor, Tensor]]


def __getattr__(name: str) -> Any:
    return getattr(F, name)


def _left_to_torch(op: str, reference: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """torch's function raises its own error, or computes what our operators do not take; only that is recorded."""
    output = reference(*args, **kwargs)
    backends.record_fallback(op, "arguments that only torch takes" if backends.enabled else "cnnext is disabled")
    return output


def _is_ours(dims: int, *tensors: Any) -> bool:
    """Whether the operators take the first tensor as [N, C, *spatial] or [C, *spatial] and the others at all."""
    if not backends.enabled:
        return False
    for tensor in tensors:
        if tensor is not None and not (
            isinstance(tensor, Tensor)
            and tensor.layout is torch.strided
            and not tensor.is_quantized
            and not tensor.is_nested
        ):
            return False
    return tensors[0] is not None and tensors[0].dim() - dims in (1, 2)


def _integer(value: Any) -> Any:
    """A number as torch's functions accept it (NumPy's too, no bool, no float), or None. Symbolic numbers pass."""
    if type(value) is int or isinstance(value, (torch.SymInt, Tensor)):
        return value
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def _integers(value: Any) -> list[Any] | None:
    """A number or sequence of numbers as a list, one entry standing for all axes; None if only torch can judge it."""
    entries = [_integer(entry) for entry in (value if isinstance(value, (tuple, list)) else (value,))]
    return None if any(entry is None for entry in entries) else entries


def _per_axis(values: list[Any], dims: int) -> list[Any]:
    return values * dims if len(values) == 1 else values


def _batched(dims: int, run: Callable[..., Any], reference: Callable[[], Any], input: Tensor, *args: Any) -> Any:
    """`run(input, *args)`, through a batch of one where input has no batch axis."""
    if input.dim() == dims + 2:
        return run(input, *args)
    try:
        output = run(input.unsqueeze(0), *args)
    except RuntimeError:
        reference()  # torch's error names the sizes without the batch axis
        raise
    return output.squeeze(0) if isinstance(output, Tensor) else tuple(each.squeeze(0) for each in output)


def _make_conv(dims: int) -> _Function:
    reference: _Function = getattr(F, f"conv{dims}d")

    def conv(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: _Size = 1,
        padding: _Size | str = 0,
        dilation: _Size = 1,
        groups: int = 1,
    ) -> Tensor:
        if has_torch_function_variadic(input, weight, bias):
            tensors = (input, weight, bias)
            return handle_torch_function(conv, tensors, input, weight, bias, stride, padding, dilation, groups)
        strides, dilations, group = _integers(stride), _integers(dilation), _integer(groups)
        if isinstance(padding, str):
            pads = [0] if padding == "valid" or (padding == "same" and set(strides or ()) == {1}) else None
        else:
            pads = _integers(padding)
        ours = _is_ours(dims, input, weight, bias) and weight.dim() == dims + 2
        if not ours or strides is None or pads is None or dilations is None or group is None:
            return _left_to_torch("conv", reference, input, weight, bias, stride, padding, dilation, groups)
        source = input
        if padding == "same":
            # Where the total is odd, torch puts one zero more on the right.
            spans = zip(_per_axis(dilations, dims), weight.shape[2:], strict=False)
            totals = [d * (k - 1) for d, k in spans]
            if any(total % 2 for total in totals):
                source = F.pad(input, [extra for total in reversed(totals) for extra in (0, total % 2)])
            pads = [total // 2 for total in totals]

        def torch_conv() -> Tensor:
            return reference(input, weight, bias, stride, padding, dilation, groups)

        return _batched(dims, _conv, torch_conv, source, weight, bias, strides, pads, dilations, group)

    return document(conv, f"conv{dims}d")


def _make_conv_transpose(dims: int) -> _Function:
    reference: _Function = getattr(F, f"conv_transpose{dims}d")

    def conv_transpose(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: _Size = 1,
        padding: _Size = 0,
        output_padding: _Size = 0,
        groups: int = 1,
        dilation: _Size = 1,
    ) -> Tensor:
        if has_torch_function_variadic(input, weight, bias):
            return handle_torch_function(
                conv_transpose,
                (input, weight, bias),
                input,
                weight,
                bias,
                stride,
                padding,
                output_padding,
                groups,
                dilation,
            )
        numbers = [_integers(stride), _integers(padding), _integers(output_padding), _integers(dilation)]
        group = _integer(groups)

        def torch_conv() -> Tensor:
            return reference(input, weight, bias, stride, padding, output_padding, groups, dilation)

        ours = _is_ours(dims, input, weight, bias) and weight.dim() == dims + 2
        if not ours or group is None or any(each is None or len(each) not in (1, dims) for each in numbers):
            return _left_to_torch("conv_grad_input", torch_conv)
        strides, pads, output_pads, dilations = (_per_axis(each or [], dims) for each in numbers)
        # The output is the input of the convolution whose gradient this is.
        sizes = []
        axes = zip(input.shape[-dims:], weight.shape[2:], strides, pads, output_pads, dilations, strict=True)
        for in_size, kernel, s, p, extra, d in axes:
            sizes.append((in_size - 1) * s - 2 * p + d * (kernel - 1) + extra + 1)
            if s < 1 or p < 0 or d < 1 or extra < 0 or extra >= max(s, d) or sizes[-1] < 1:
                return _left_to_torch("conv_grad_input", torch_conv)
        source = input
        beyond = [extra // s for extra, s in zip(output_pads, strides, strict=True)]
        if any(beyond):  # a dilation larger than the stride allows output that no input element reaches
            source = F.pad(input, [after for count in reversed(beyond) for after in (0, count)])
        args = (weight, bias, sizes, strides, pads, dilations, group)
        return _batched(dims, _conv_grad_input, torch_conv, source, *args)

    return document(conv_transpose, f"conv_transpose{dims}d")


def _pool(
    dims: int,
    op: str,
    run: Callable[..., Any],
    reference: Callable[[], Any],
    input: Tensor,
    sizes: Iterable[Any],
    *flags: Any,
) -> Any:
    """A pooling operator: `sizes` are numbers or sequences of them, `flags` are passed on."""
    numbers = [_integers(size) for size in sizes]
    if not _is_ours(dims, input) or any(each is None for each in numbers):
        return _left_to_torch(op, reference)
    return _batched(dims, run, reference, input, *numbers, *flags)


def _make_max_pool(dims: int) -> tuple[_Function, _Pair]:
    reference: _Function = getattr(F, f"max_pool{dims}d")

    def max_pool_with_indices(
        input: Tensor,
        kernel_size: _Size,
        stride: _Size | None = None,
        padding: _Size = 0,
        dilation: _Size = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> tuple[Tensor, Tensor]:
        args = (input, kernel_size, stride, padding, dilation, ceil_mode)
        if has_torch_function_unary(input):
            return handle_torch_function(max_pool_with_indices, (input,), *args, return_indices)
        sizes = (kernel_size, () if stride is None else stride, padding, dilation)
        with_indices = lambda: reference(*args, True)  # noqa: E731
        return _pool(dims, "max_pool", _max_pool_with_indices, with_indices, input, sizes, ceil_mode)

    def max_pool(
        input: Tensor,
        kernel_size: _Size,
        stride: _Size | None = None,
        padding: _Size = 0,
        dilation: _Size = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Any:
        if return_indices:
            return with_indices(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
        args = (input, kernel_size, stride, padding, dilation, ceil_mode)
        if has_torch_function_unary(input):
            return handle_torch_function(max_pool, (input,), *args, return_indices)
        sizes = (kernel_size, () if stride is None else stride, padding, dilation)
        return _pool(dims, "max_pool", _max_pool, lambda: reference(*args), input, sizes, ceil_mode)

    with_indices = document(max_pool_with_indices, f"max_pool{dims}d_with_indices")
    return document(max_pool, f"max_pool{dims}d"), with_indices


def _make_avg_pool(dims: int) -> _Function:
    reference: _Function = getattr(F, f"avg_pool{dims}d")

    def avg_pool(
        input: Tensor,
        kernel_size: _Size,
        stride: _Size | None = None,
        padding: _Size = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Tensor:
        args: tuple[Any, ...] = (input, kernel_size, stride, padding, ceil_mode, count_include_pad)
        args = args if dims == 1 else (*args, divisor_override)
        if has_torch_function_unary(input):
            return handle_torch_function(public, (input,), *args)
        sizes = (kernel_size, () if stride is None else stride, padding)
        flags = (ceil_mode, count_include_pad, divisor_override)
        return _pool(dims, "avg_pool", _avg_pool, lambda: reference(*args), input, sizes, *flags)

    def avg_pool1d(
        input: Tensor,
        kernel_size: _Size,
        stride: _Size | None = None,
        padding: _Size = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> Tensor:
        return avg_pool(input, kernel_size, stride, padding, ceil_mode, count_include_pad)

    public = document(avg_pool1d if dims == 1 else avg_pool, f"avg_pool{dims}d")
    return public


def _make_adaptive_max_pool(dims: int) -> tuple[_Function, _Pair]:
    reference: _Function = getattr(F, f"adaptive_max_pool{dims}d")

    def adaptive_max_pool_with_indices(
        input: Tensor, output_size: _Size, return_indices: bool = False
    ) -> tuple[Tensor, Tensor]:
        if has_torch_function_unary(input):
            return handle_torch_function(with_indices, (input,), input, output_size, return_indices)
        run, torch_pool = _adaptive_max_pool_with_indices, lambda: reference(input, output_size, True)
        return _pool(dims, "adaptive_max_pool", run, torch_pool, input, (_filled(dims, output_size, input),))

    def adaptive_max_pool(input: Tensor, output_size: _Size, return_indices: bool = False) -> Any:
        if return_indices:
            return with_indices(input, output_size, return_indices)
        if has_torch_function_unary(input):
            return handle_torch_function(adaptive_max_pool, (input,), input, output_size, return_indices)
        run, torch_pool = _adaptive_max_pool, lambda: reference(input, output_size)
        return _pool(dims, "adaptive_max_pool", run, torch_pool, input, (_filled(dims, output_size, input),))

    with_indices = document(adaptive_max_pool_with_indices, f"adaptive_max_pool{dims}d_with_indices")
    return document(adaptive_max_pool, f"adaptive_max_pool{dims}d"), with_indices


def _make_adaptive_avg_pool(dims: int) -> _Function:
    reference: _Function = getattr(F, f"adaptive_avg_pool{dims}d")

    def adaptive_avg_pool(input: Tensor, output_size: _Size) -> Tensor:
        if has_torch_function_unary(input):
            return handle_torch_function(adaptive_avg_pool, (input,), input, output_size)
        sizes = (_filled(dims, output_size, input),)
        torch_pool = lambda: reference(input, output_size)  # noqa: E731
        return _pool(dims, "adaptive_avg_pool", _adaptive_avg_pool, torch_pool, input, sizes)

    return document(adaptive_avg_pool, f"adaptive_avg_pool{dims}d")


def _filled(dims: int, output_size: Any, input: Any) -> Any:
    """The output size with the input's in place of each None, which torch allows in two and three dimensions."""
    if dims > 1 and isinstance(output_size, (tuple, list)) and any(size is None for size in output_size):
        given = zip(output_size, input.shape[-dims:], strict=False)
        return [in_size if size is None else size for size, in_size in given]
    return output_size


def _make_max_unpool(dims: int) -> _Function:
    reference: _Function = getattr(F, f"max_unpool{dims}d")

    def max_unpool(
        input: Tensor,
        indices: Tensor,
        kernel_size: _Size,
        stride: _Size | None = None,
        padding: _Size = 0,
        output_size: _Size | None = None,
    ) -> Tensor:
        args = (indices, kernel_size, stride, padding, output_size)
        if has_torch_function_variadic(input, indices):
            return handle_torch_function(max_unpool, (input, indices), input, *args)
        torch_unpool = lambda: reference(input, *args)  # noqa: E731
        numbers = [_integers(size) for size in (kernel_size, kernel_size if stride is None else stride, padding)]
        wanted = [] if output_size is None else list(output_size) if isinstance(output_size, Iterable) else None
        if not _is_ours(dims, input, indices) or wanted is None or any(each is None for each in numbers):
            return _left_to_torch("max_unpool", torch_unpool)
        axes = [_per_axis(each or [], dims) for each in numbers]
        if any(len(axis) != dims for axis in axes) or indices.shape != input.shape:
            return _left_to_torch("max_unpool", torch_unpool)
        natural = [(n - 1) * s + k - 2 * p for n, k, s, p in zip(input.shape[-dims:], *axes, strict=True)]
        sizes = wanted[-dims:] or natural
        off = any(abs(size - mid) >= s for size, mid, s in zip(sizes, natural, axes[1], strict=False))
        if off or len(wanted) not in (0, dims, dims + 2) or any(size < 0 for size in sizes):
            return _left_to_torch("max_unpool", torch_unpool)
        if input.dim() == dims + 1:
            return _max_unpool(input.unsqueeze(0), indices.unsqueeze(0), sizes).squeeze(0)
        return _max_unpool(input, indices, sizes)

    return document(max_unpool, f"max_unpool{dims}d")


def _make_lp_pool(dims: int, avg_pool: _Function, max_pool: _Function) -> _Function:
    reference: _Function = getattr(F, f"lp_pool{dims}d")

    def lp_pool(
        input: Tensor, norm_type: float, kernel_size: _Size, stride: _Size | None = None, ceil_mode: bool = False
    ) -> Tensor:
        if has_torch_function_unary(input):
            return handle_torch_function(lp_pool, (input,), input, norm_type, kernel_size, stride, ceil_mode)
        if norm_type == float("inf"):
            return max_pool(input.abs(), kernel_size, stride, 0, 1, ceil_mode)
        if norm_type == -float("inf"):
            return -max_pool(-input.abs(), kernel_size, stride, 0, 1, ceil_mode)
        if isinstance(kernel_size, int):
            taps = kernel_size**dims
        elif dims > 1 and isinstance(kernel_size, (tuple, list)) and len(kernel_size) == dims:
            taps = math.prod(kernel_size)
        else:
            return _left_to_torch("avg_pool", reference, input, norm_type, kernel_size, stride, ceil_mode)
        mean = avg_pool(input.pow(norm_type), kernel_size, stride, 0, ceil_mode)
        return (torch.sign(mean) * F.relu(torch.abs(mean))).mul(taps).pow(1.0 / norm_type)

    return document(lp_pool, f"lp_pool{dims}d")


conv1d, conv2d, conv3d = _make_conv(1), _make_conv(2), _make_conv(3)
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

__all__ = [name for name in list(globals()) if "pool" in name or name.startswith("conv") if not name.startswith("_")]
