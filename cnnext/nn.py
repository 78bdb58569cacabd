"""`torch.nn`'s convolution, linear, pooling and batch norm layers, computed by `cnnext.functional`.

Each class is a subclass of torch's of the same name: arguments, initialisation, parameters, state_dict, repr and
pickling are torch's, and `isinstance(layer, torch.nn.Conv2d)` holds. `functional` is `cnnext.functional`, and every
other name of `torch.nn` is passed on, so that `from cnnext import nn` can replace torch's import.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import has_torch_function_unary

from . import functional as F
from ._arguments import all_names, attribute_of

if TYPE_CHECKING:  # what is derived from must be known as a type
    from torch.nn import Module as Module
    from torch.nn import Sequential as Sequential


functional = F
sys.modules[f"{__name__}.functional"] = F  # for `import cnnext.nn.functional`


def __getattr__(name: str) -> Any:
    if name.startswith("__"):  # by torch's __path__, imports of its modules would make second ones of them
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return attribute_of(nn, __name__, name)


class _Conv:
    _function: ClassVar[Callable[..., Tensor]]

    def forward(self: Any, input: Tensor, *epilogue: Any) -> Tensor:
        tensors = self._parameters
        try:  # `self.weight` searches for longer than a small convolution takes
            weight, bias = tensors["weight"], tensors["bias"]
        except KeyError:  # parametrised, pruned, ...
            weight, bias = self.weight, self.bias
        return self._conv_forward(input, weight, bias, *epilogue)

    def _conv_forward(self: Any, input: Tensor, weight: Tensor, bias: Tensor | None, *epilogue: Any) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return self._function(input, weight, bias, self.stride, padding, self.dilation, self.groups, *epilogue)


class _ConvTranspose:
    _function: ClassVar[Callable[..., Tensor]]
    _dims: ClassVar[int]

    def forward(self: Any, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if self.padding_mode != "zeros":
            raise ValueError(f"Only `zeros` padding mode is supported for ConvTranspose{self._dims}d")
        stride, padding, dilation = self.stride, self.padding, self.dilation
        extra = self._output_padding(input, output_size, stride, padding, self.kernel_size, self._dims, dilation)
        return self._function(input, self.weight, self.bias, stride, padding, extra, self.groups, dilation)


class _Linear:
    def forward(self: Any, input: Tensor) -> Tensor:
        tensors = self._parameters
        try:
            weight, bias = tensors["weight"], tensors["bias"]
        except KeyError:
            weight, bias = self.weight, self.bias
        return F.linear(input, weight, bias)


class _MaxPool:
    _function: ClassVar[Callable[..., Any]]

    def forward(self: Any, input: Tensor) -> Any:
        geometry = (self.kernel_size, self.stride, self.padding, self.dilation)
        return self._function(input, *geometry, ceil_mode=self.ceil_mode, return_indices=self.return_indices)


class _AvgPool:
    _function: ClassVar[Callable[..., Tensor]]

    def forward(self: Any, input: Tensor) -> Tensor:
        window = (self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)
        return self._function(input, *window, self.divisor_override)


class _AdaptiveMaxPool:
    _function: ClassVar[Callable[..., Any]]

    def forward(self: Any, input: Tensor) -> Any:
        return self._function(input, self.output_size, self.return_indices)


class _AdaptiveAvgPool:
    _function: ClassVar[Callable[..., Tensor]]

    def forward(self: Any, input: Tensor) -> Tensor:
        return self._function(input, self.output_size)


class _MaxUnpool:
    _function: ClassVar[Callable[..., Tensor]]

    def forward(self: Any, input: Tensor, indices: Tensor, output_size: list[int] | None = None) -> Tensor:
        return self._function(input, indices, self.kernel_size, self.stride, self.padding, output_size)


class _LPPool:
    _function: ClassVar[Callable[..., Tensor]]

    def forward(self: Any, input: Tensor) -> Tensor:
        return self._function(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)


class _BatchNorm:
    _function: ClassVar[Callable[..., Tensor]] = staticmethod(F.batch_norm)

    def forward(self: Any, input: Tensor, *epilogue: Any) -> Tensor:
        if not has_torch_function_unary(input):  # a trace does not know the size
            self._check_input_dim(input)
        tensors, moments = self._parameters, self._buffers
        try:
            weight, bias = tensors["weight"], tensors["bias"]
            mean, variance = moments["running_mean"], moments["running_var"]
        except KeyError:
            weight, bias, mean, variance = self.weight, self.bias, self.running_mean, self.running_var
        by_batch, momentum = self.training or (mean is None and variance is None), self.momentum
        if self.training and not self.track_running_stats:
            mean = variance = None
        elif self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if momentum is None:  # the running moments are the means of all
                momentum = 1 / float(self.num_batches_tracked)
        return self._function(input, mean, variance, weight, bias, by_batch, momentum or 0.0, self.eps, *epilogue)


class Conv1d(_Conv, nn.Conv1d):
    """Drop-in for `torch.nn.Conv1d`: [N, C, W] to [N, K, Q]. See `cnnext.functional.conv1d`."""

    _function = staticmethod(F.conv1d)


class Conv2d(_Conv, nn.Conv2d):
    """Drop-in for `torch.nn.Conv2d`: [N, C, H, W] to [N, K, P, Q]. See `cnnext.functional.conv2d`.

    Example:
        >>> from cnnext import nn
        >>> nn.Conv2d(3, 8, 3, padding=1)(torch.ones(1, 3, 32, 32)).shape
        torch.Size([1, 8, 32, 32])
    """

    _function = staticmethod(F.conv2d)


class Conv3d(_Conv, nn.Conv3d):
    """Drop-in for `torch.nn.Conv3d`: [N, C, D, H, W] to [N, K, O, P, Q]. See `cnnext.functional.conv3d`."""

    _function = staticmethod(F.conv3d)


class _Fused:
    activation: str = "none"
    negative_slope: float = 0.01

    def __init__(self, *args: Any, activation: str = "none", negative_slope: float = 0.01, **kwargs: Any) -> None:
        F.check_activation(activation)
        super().__init__(*args, **kwargs)
        self.activation, self.negative_slope = activation, float(negative_slope)

    def extra_repr(self: Any) -> str:
        slope = f", negative_slope={self.negative_slope}" if self.activation == "leaky_relu" else ""
        return f"{super().extra_repr()}, activation={self.activation!r}{slope}"  # type: ignore[misc]


class _FusedConv(_Fused):
    _function: ClassVar[Callable[..., Tensor]]

    def forward(self: Any, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return super().forward(input, residual, self.activation, self.negative_slope)  # type: ignore[misc]


class _FusedBatchNorm(_Fused):
    _function: ClassVar[Callable[..., Tensor]] = staticmethod(F.fused_batch_norm)

    def forward(self: Any, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return super().forward(input, residual, self.activation, self.negative_slope)  # type: ignore[misc]


class FusedConv1d(_FusedConv, Conv1d):
    """Conv1d whose `forward(input, residual=None)` is activation(convolution + residual). See FusedConv2d."""

    _function = staticmethod(F.fused_conv1d)


class FusedConv2d(_FusedConv, Conv2d):
    """Conv2d whose `forward(input, residual=None)` is activation(convolution + residual), for inference.

    Arguments are Conv2d's, and `activation` ("none", "relu", "relu6" or "leaky_relu") and `negative_slope` of the
    last. See `cnnext.functional.fused_conv2d`; `cnnext.fuse` puts these layers into a model.

    Example:
        >>> from cnnext import nn
        >>> nn.FusedConv2d(3, 8, 3, padding=1, activation="relu")(torch.ones(1, 3, 32, 32)).shape
        torch.Size([1, 8, 32, 32])
    """

    _function = staticmethod(F.fused_conv2d)


class FusedConv3d(_FusedConv, Conv3d):
    """Conv3d whose `forward(input, residual=None)` is activation(convolution + residual). See FusedConv2d."""

    _function = staticmethod(F.fused_conv3d)


class LazyConv1d(_Conv, nn.LazyConv1d):  # type: ignore[misc]
    """Drop-in for `torch.nn.LazyConv1d`: becomes a Conv1d at its first input."""

    _function, cls_to_become = staticmethod(F.conv1d), Conv1d


class LazyConv2d(_Conv, nn.LazyConv2d):  # type: ignore[misc]
    """Drop-in for `torch.nn.LazyConv2d`: becomes a Conv2d at its first input."""

    _function, cls_to_become = staticmethod(F.conv2d), Conv2d


class LazyConv3d(_Conv, nn.LazyConv3d):  # type: ignore[misc]
    """Drop-in for `torch.nn.LazyConv3d`: becomes a Conv3d at its first input."""

    _function, cls_to_become = staticmethod(F.conv3d), Conv3d


class ConvTranspose1d(_ConvTranspose, nn.ConvTranspose1d):
    """Drop-in for `torch.nn.ConvTranspose1d`. See `cnnext.functional.conv_transpose1d`."""

    _function, _dims = staticmethod(F.conv_transpose1d), 1


class ConvTranspose2d(_ConvTranspose, nn.ConvTranspose2d):
    """Drop-in for `torch.nn.ConvTranspose2d`. See `cnnext.functional.conv_transpose2d`."""

    _function, _dims = staticmethod(F.conv_transpose2d), 2


class ConvTranspose3d(_ConvTranspose, nn.ConvTranspose3d):
    """Drop-in for `torch.nn.ConvTranspose3d`. See `cnnext.functional.conv_transpose3d`."""

    _function, _dims = staticmethod(F.conv_transpose3d), 3


class LazyConvTranspose1d(_ConvTranspose, nn.LazyConvTranspose1d):  # type: ignore[misc]
    """Drop-in for `torch.nn.LazyConvTranspose1d`: becomes a ConvTranspose1d at its first input."""

    _function, _dims, cls_to_become = staticmethod(F.conv_transpose1d), 1, ConvTranspose1d


class LazyConvTranspose2d(_ConvTranspose, nn.LazyConvTranspose2d):  # type: ignore[misc]
    """Drop-in for `torch.nn.LazyConvTranspose2d`: becomes a ConvTranspose2d at its first input."""

    _function, _dims, cls_to_become = staticmethod(F.conv_transpose2d), 2, ConvTranspose2d


class LazyConvTranspose3d(_ConvTranspose, nn.LazyConvTranspose3d):  # type: ignore[misc]
    """Drop-in for `torch.nn.LazyConvTranspose3d`: becomes a ConvTranspose3d at its first input."""

    _function, _dims, cls_to_become = staticmethod(F.conv_transpose3d), 3, ConvTranspose3d


class Linear(_Linear, nn.Linear):
    """Drop-in for `torch.nn.Linear`: [..., C] to [..., K]. See `cnnext.functional.linear`."""


class LazyLinear(_Linear, nn.LazyLinear):  # type: ignore[misc]
    """Drop-in for `torch.nn.LazyLinear`: becomes a Linear at its first input."""

    cls_to_become = Linear


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """Drop-in for `torch.nn.BatchNorm1d`, of [N, C] or [N, C, W]. See `cnnext.functional.batch_norm`."""


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """Drop-in for `torch.nn.BatchNorm2d`, of [N, C, H, W]. See `cnnext.functional.batch_norm`."""


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """Drop-in for `torch.nn.BatchNorm3d`, of [N, C, D, H, W]. See `cnnext.functional.batch_norm`."""


class FusedBatchNorm1d(_FusedBatchNorm, BatchNorm1d):
    """BatchNorm1d whose `forward(input, residual=None)` is activation(normalised + residual). See FusedBatchNorm2d."""


class FusedBatchNorm2d(_FusedBatchNorm, BatchNorm2d):
    """BatchNorm2d whose `forward(input, residual=None)` is activation(normalised + residual).

    Arguments are BatchNorm2d's, and `activation` ("none", "relu", "relu6" or "leaky_relu") and `negative_slope` of the
    last. See `cnnext.functional.fused_batch_norm`; `cnnext.fuse` puts these layers into a model that trains.

    Example:
        >>> from cnnext import nn
        >>> nn.FusedBatchNorm2d(3, activation="relu")(torch.ones(2, 3, 4, 4)).shape
        torch.Size([2, 3, 4, 4])
    """


class FusedBatchNorm3d(_FusedBatchNorm, BatchNorm3d):
    """BatchNorm3d whose `forward(input, residual=None)` is activation(normalised + residual). See FusedBatchNorm2d."""


class LazyBatchNorm1d(_BatchNorm, nn.LazyBatchNorm1d):  # type: ignore[misc]
    """Drop-in for `torch.nn.LazyBatchNorm1d`: becomes a BatchNorm1d at its first input."""

    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(_BatchNorm, nn.LazyBatchNorm2d):  # type: ignore[misc]
    """Drop-in for `torch.nn.LazyBatchNorm2d`: becomes a BatchNorm2d at its first input."""

    cls_to_become = BatchNorm2d


class LazyBatchNorm3d(_BatchNorm, nn.LazyBatchNorm3d):  # type: ignore[misc]
    """Drop-in for `torch.nn.LazyBatchNorm3d`: becomes a BatchNorm3d at its first input."""

    cls_to_become = BatchNorm3d


class MaxPool1d(_MaxPool, nn.MaxPool1d):
    """Drop-in for `torch.nn.MaxPool1d`. See `cnnext.functional.max_pool1d`."""

    _function = staticmethod(F.max_pool1d)


class MaxPool2d(_MaxPool, nn.MaxPool2d):
    """Drop-in for `torch.nn.MaxPool2d`. See `cnnext.functional.max_pool2d`."""

    _function = staticmethod(F.max_pool2d)


class MaxPool3d(_MaxPool, nn.MaxPool3d):
    """Drop-in for `torch.nn.MaxPool3d`. See `cnnext.functional.max_pool3d`."""

    _function = staticmethod(F.max_pool3d)


class AvgPool1d(nn.AvgPool1d):
    """Drop-in for `torch.nn.AvgPool1d`. See `cnnext.functional.avg_pool1d`."""

    def forward(self, input: Tensor) -> Tensor:
        window = (self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)
        return F.avg_pool1d(input, *window)


class AvgPool2d(_AvgPool, nn.AvgPool2d):
    """Drop-in for `torch.nn.AvgPool2d`. See `cnnext.functional.avg_pool2d`."""

    _function = staticmethod(F.avg_pool2d)


class AvgPool3d(_AvgPool, nn.AvgPool3d):
    """Drop-in for `torch.nn.AvgPool3d`. See `cnnext.functional.avg_pool3d`."""

    _function = staticmethod(F.avg_pool3d)


class AdaptiveMaxPool1d(_AdaptiveMaxPool, nn.AdaptiveMaxPool1d):
    """Drop-in for `torch.nn.AdaptiveMaxPool1d`. See `cnnext.functional.adaptive_max_pool1d`."""

    _function = staticmethod(F.adaptive_max_pool1d)


class AdaptiveMaxPool2d(_AdaptiveMaxPool, nn.AdaptiveMaxPool2d):
    """Drop-in for `torch.nn.AdaptiveMaxPool2d`. See `cnnext.functional.adaptive_max_pool2d`."""

    _function = staticmethod(F.adaptive_max_pool2d)


class AdaptiveMaxPool3d(_AdaptiveMaxPool, nn.AdaptiveMaxPool3d):
    """Drop-in for `torch.nn.AdaptiveMaxPool3d`. See `cnnext.functional.adaptive_max_pool3d`."""

    _function = staticmethod(F.adaptive_max_pool3d)


class AdaptiveAvgPool1d(_AdaptiveAvgPool, nn.AdaptiveAvgPool1d):
    """Drop-in for `torch.nn.AdaptiveAvgPool1d`. See `cnnext.functional.adaptive_avg_pool1d`."""

    _function = staticmethod(F.adaptive_avg_pool1d)


class AdaptiveAvgPool2d(_AdaptiveAvgPool, nn.AdaptiveAvgPool2d):
    """Drop-in for `torch.nn.AdaptiveAvgPool2d`. See `cnnext.functional.adaptive_avg_pool2d`."""

    _function = staticmethod(F.adaptive_avg_pool2d)


class AdaptiveAvgPool3d(_AdaptiveAvgPool, nn.AdaptiveAvgPool3d):
    """Drop-in for `torch.nn.AdaptiveAvgPool3d`. See `cnnext.functional.adaptive_avg_pool3d`."""

    _function = staticmethod(F.adaptive_avg_pool3d)


class MaxUnpool1d(_MaxUnpool, nn.MaxUnpool1d):
    """Drop-in for `torch.nn.MaxUnpool1d`. See `cnnext.functional.max_unpool1d`."""

    _function = staticmethod(F.max_unpool1d)


class MaxUnpool2d(_MaxUnpool, nn.MaxUnpool2d):
    """Drop-in for `torch.nn.MaxUnpool2d`. See `cnnext.functional.max_unpool2d`."""

    _function = staticmethod(F.max_unpool2d)


class MaxUnpool3d(_MaxUnpool, nn.MaxUnpool3d):
    """Drop-in for `torch.nn.MaxUnpool3d`. See `cnnext.functional.max_unpool3d`."""

    _function = staticmethod(F.max_unpool3d)


class LPPool1d(_LPPool, nn.LPPool1d):
    """Drop-in for `torch.nn.LPPool1d`. See `cnnext.functional.lp_pool1d`."""

    _function = staticmethod(F.lp_pool1d)


class LPPool2d(_LPPool, nn.LPPool2d):
    """Drop-in for `torch.nn.LPPool2d`. See `cnnext.functional.lp_pool2d`."""

    _function = staticmethod(F.lp_pool2d)


class LPPool3d(_LPPool, nn.LPPool3d):
    """Drop-in for `torch.nn.LPPool3d`. See `cnnext.functional.lp_pool3d`."""

    _function = staticmethod(F.lp_pool3d)


_LAYERS = [
    name
    for name, each in list(globals().items())
    if isinstance(each, type) and issubclass(each, torch.nn.Module) and hasattr(nn, name)
]
_FUSED = [FusedConv1d, FusedConv2d, FusedConv3d, FusedBatchNorm1d, FusedBatchNorm2d, FusedBatchNorm3d]
__all__ = all_names(nn, [*_LAYERS, *(each.__name__ for each in _FUSED)])


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
