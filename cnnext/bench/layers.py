"""Single convolution and pooling layers as data, and suites of them derived from models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONV = ("conv1d", "conv2d", "conv3d")
MAX_POOL = ("max_pool1d", "max_pool2d", "max_pool3d")
AVG_POOL = ("avg_pool1d", "avg_pool2d", "avg_pool3d")
ADAPTIVE_POOL = tuple(f"adaptive_{kind}_pool{dims}d" for kind in ("avg", "max") for dims in (1, 2, 3))
OPS = CONV + MAX_POOL + AVG_POOL + ADAPTIVE_POOL

CONV_DIRECTIONS = ("forward", "grad_input", "grad_weight")
POOL_DIRECTIONS = ("forward", "backward")
LAYOUTS = ("nchw", "channels_last")


@dataclass(frozen=True)
class Layer:
    """One call of a convolution or pooling function: its name and the shapes that decide its work.

    Tuples have one entry per spatial dimension; ``input`` and ``weight`` are whole sizes. ``output_size`` is
    that of adaptive pooling.
    """

    op: str
    input: tuple[int, ...]
    weight: tuple[int, ...] = ()
    bias: bool = False
    kernel: tuple[int, ...] = ()
    output_size: tuple[int | None, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor_override: int | None = None

    @property
    def dims(self) -> int:
        return int(self.op[-2])

    @property
    def is_conv(self) -> bool:
        return self.op in CONV

    @property
    def directions(self) -> tuple[str, ...]:
        return CONV_DIRECTIONS if self.is_conv else POOL_DIRECTIONS

    def call(self, functional: Any, input: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Calls the function of this name in ``functional`` (``torch.nn.functional`` or ``cnnext.functional``)."""
        function = getattr(functional, self.op)
        if self.is_conv:
            return function(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        if self.op in MAX_POOL:
            return function(input, self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode)
        if self.op in AVG_POOL:
            options = {} if self.divisor_override is None else {"divisor_override": self.divisor_override}
            return function(
                input, self.kernel, self.stride, self.padding, self.ceil_mode, self.count_include_pad, **options
            )
        return function(input, self.output_size)

    def output(self) -> tuple[int, ...]:
        """Size of the whole output, from torch's own shape function.

        Raises:
            RuntimeError: torch does not accept these shapes.
        """
        weight = torch.empty(self.weight, device="meta") if self.is_conv else None
        return tuple(self.call(F, torch.empty(self.input, device="meta"), weight).shape)

    def flops(self) -> int:
        """Floating-point operations of a convolution in any one direction, taps in the padding included."""
        return 2 * math.prod(self.output()) * math.prod(self.weight[1:]) if self.is_conv else 0

    def bytes(self, dtype: torch.dtype) -> int:
        """Bytes that any one direction must read and write at least: input, output and weight once each."""
        elements = math.prod(self.input) + math.prod(self.output())
        return (elements + (math.prod(self.weight) if self.is_conv else 0)) * dtype.itemsize

    def kind(self) -> str:
        """The family this layer is averaged with, such as ``3x3``, ``1x1/2`` or ``max 3x3/2``."""
        if not self.is_conv:
            name = self.op.rsplit("_pool", 1)[0].replace("adaptive_avg", "avg").replace("adaptive_max", "max")
            if self.op in ADAPTIVE_POOL:
                return f"{name} to {'x'.join(map(str, self.output_size))}"
            return f"{name} {_extent(self.kernel)}{_stride(self.stride)}"
        kind = f"{_extent(self.weight[2:])}{_stride(self.stride)}"
        if max(self.dilation) > 1:
            kind += f" d{_same(self.dilation)}"
        if self.groups > 1:
            kind = ("depthwise " if self.groups == self.input[1] else "grouped ") + kind
        return kind

    def label(self) -> str:
        """Short name in the field's terms: ``64→256 1x1 @56`` is C→K, kernel, stride, @ input size."""
        size = _same(self.input[2:])
        if not self.is_conv:
            return f"{self.kind()} {self.input[1]} @{size}"
        groups = f" g{self.groups}" if self.groups > 1 else ""
        kind = self.kind().removeprefix("depthwise ").removeprefix("grouped ")
        return f"{self.input[1]}→{self.weight[0]} {kind}{groups} @{size}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> Layer:
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()
        }
        return Layer(**values)


def _extent(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


def _same(sizes: tuple[int, ...]) -> str:
    return str(sizes[0]) if len(set(sizes)) == 1 else _extent(sizes)


def _stride(stride: tuple[int, ...]) -> str:
    return "" if set(stride) == {1} else f"/{_same(stride)}"


@dataclass
class LayerUse:
    """A layer, the names of the modules that run it, and whether training needs the gradient of its input."""

    layer: Layer
    names: list[str]
    needs_grad_input: bool

    @property
    def count(self) -> int:
        return len(self.names)


def _tuple(value: Any, dims: int) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * dims


def layer_of(module: nn.Module, input: Tensor) -> Layer | None:
    """The layer that ``module`` runs on ``input``; None where it is no convolution or pooling of :data:`OPS`."""
    size = tuple(input.shape)
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        dims = len(module.kernel_size)
        padding: tuple[int, ...] = (0,) * dims
        # both sides of every dimension, the last dimension first
        before, after = module._reversed_padding_repeated_twice[::2], module._reversed_padding_repeated_twice[1::2]
        if module.padding_mode == "zeros" and before == after:
            padding = tuple(reversed(before))
        else:  # the module pads first and then convolves without padding
            grown = [extent + sum(pads) for extent, *pads in zip(size[2:], before[::-1], after[::-1], strict=True)]
            size = (*size[:2], *grown)
        return Layer(
            f"conv{dims}d",
            size,
            weight=tuple(module.weight.shape),
            bias=module.bias is not None,
            stride=tuple(module.stride),
            padding=padding,
            dilation=tuple(module.dilation),
            groups=module.groups,
        )
    dims = len(size) - 2
    if isinstance(module, (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)):
        return Layer(
            f"max_pool{dims}d",
            size,
            kernel=_tuple(module.kernel_size, dims),
            stride=_tuple(module.stride, dims),
            padding=_tuple(module.padding, dims),
            dilation=_tuple(module.dilation, dims),
            ceil_mode=module.ceil_mode,
        )
    if isinstance(module, (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)):
        return Layer(
            f"avg_pool{dims}d",
            size,
            kernel=_tuple(module.kernel_size, dims),
            stride=_tuple(module.stride, dims),
            padding=_tuple(module.padding, dims),
            ceil_mode=module.ceil_mode,
            count_include_pad=module.count_include_pad,
            divisor_override=getattr(module, "divisor_override", None),
        )
    adaptive = {
        "avg": (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
        "max": (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    }
    for kind, classes in adaptive.items():
        if isinstance(module, classes):
            output = _tuple(module.output_size, dims)
            output = tuple(extent if want is None else want for want, extent in zip(output, size[2:], strict=True))
            return Layer(f"adaptive_{kind}_pool{dims}d", size, output_size=output)
    return None


def collect(model: nn.Module, input: Tensor) -> list[LayerUse]:
    """Runs ``model`` on ``input`` and lists its distinct layers in the order they first ran.

    Only modules are seen, not calls of ``torch.nn.functional`` in a ``forward``. Both may be on the meta device,
    which makes it instant.
    """
    uses: dict[tuple[Layer, bool], LayerUse] = {}
    hooks = []

    def hook(name: str) -> Any:
        def record(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            layer = layer_of(module, args[0])
            if layer is not None:
                key = (layer, args[0].requires_grad)
                uses.setdefault(key, LayerUse(layer, [], args[0].requires_grad)).names.append(name)

        return record

    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(hook(name)))
    try:
        with torch.enable_grad():
            model(input)
    finally:
        for handle in hooks:
            handle.remove()
    return list(uses.values())


def suite(name: str, batch: int = 1, size: int = 224, training: bool = False) -> list[LayerUse]:
    """The distinct layers of a model of ``cnnext.models``, or ``pooling``: the pooling layers of all of them.

    Args:
        name: a model's name or ``pooling``.
        batch: N.
        size: height and width of the images.
        training: include what only runs in training (GoogLeNet's auxiliary heads).

    Raises:
        ValueError: no suite has this name.
    """
    from cnnext import models

    if name == "pooling":
        pooling: dict[Layer, LayerUse] = {}
        for model_name in ("resnet50", "googlenet"):
            for use in suite(model_name, batch, size, training):
                if not use.layer.is_conv:
                    found = pooling.setdefault(use.layer, LayerUse(use.layer, [], True))
                    found.names += [f"{model_name}.{module}" for module in use.names]
        return list(pooling.values())
    with torch.device("meta"):
        model = models.build(name).train(training)
        return collect(model, torch.empty(batch, 3, size, size))
