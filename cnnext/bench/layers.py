"""Single convolution, linear and pooling layers as data, and those of convolution and pooling that a model runs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import cnnext.functional
from cnnext._explain import module_path
from cnnext._override import function_name

CONV = ("conv1d", "conv2d", "conv3d")
CONV_TRANSPOSE = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
MAX_POOL = ("max_pool1d", "max_pool2d", "max_pool3d")
AVG_POOL = ("avg_pool1d", "avg_pool2d", "avg_pool3d")
LP_POOL = ("lp_pool1d", "lp_pool2d", "lp_pool3d")
ADAPTIVE_POOL = tuple(f"adaptive_{kind}_pool{dims}d" for kind in ("avg", "max") for dims in (1, 2, 3))
LINEAR = "linear"
OPS = CONV + CONV_TRANSPOSE + MAX_POOL + AVG_POOL + ADAPTIVE_POOL

CONV_DIRECTIONS = ("forward", "grad_input", "grad_weight")
POOL_DIRECTIONS = ("forward", "backward")
LAYOUTS = ("nchw", "channels_last")


@dataclass(frozen=True)
class Layer:
    """One call of a convolution, linear or pooling function: its name and the shapes that decide its work.

    Tuples have one entry per spatial dimension; ``input`` and ``weight`` are whole sizes, of a linear layer [rows, C]
    and [K, C]. ``output_size`` is that of adaptive pooling.
    """

    op: str
    input: tuple[int, ...]
    weight: tuple[int, ...] = ()
    bias: bool = False
    kernel: tuple[int, ...] = ()
    output_size: tuple[int | None, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor_override: int | None = None

    @property
    def dims(self) -> int:
        return 0 if self.is_linear else int(self.op[-2])

    @property
    def is_conv(self) -> bool:
        return self.op in CONV or self.is_transposed

    @property
    def is_linear(self) -> bool:
        return self.op == LINEAR

    @property
    def has_weight(self) -> bool:
        return self.is_conv or self.is_linear

    def as_conv(self) -> Layer:
        """A linear layer as the convolution of one tap that it is computed as; any other itself."""
        if not self.is_linear:
            return self
        rows, channels = self.input
        ones = (1, 1)
        weight = (*self.weight, *ones)
        return Layer("conv2d", (1, channels, 1, rows), weight, stride=ones, padding=(0, 0), dilation=ones)

    @property
    def is_transposed(self) -> bool:
        return self.op in CONV_TRANSPOSE

    @property
    def directions(self) -> tuple[str, ...]:
        return CONV_DIRECTIONS if self.has_weight else POOL_DIRECTIONS

    def call(self, functional: Any, input: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Calls the function of this name in ``functional`` (``torch.nn.functional`` or ``cnnext.functional``)."""
        function = getattr(functional, self.op)
        if self.is_linear:
            return function(input, weight, bias)
        if self.is_transposed:
            window = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
            return function(input, weight, bias, *window)
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
        weight = torch.empty(self.weight, device="meta") if self.has_weight else None
        return tuple(self.call(F, torch.empty(self.input, device="meta"), weight).shape)

    @property
    def window(self) -> tuple[int, ...]:
        """Extents of a pooling window; adaptive pooling has none of its own, and its largest is told."""
        sizes = zip(self.input[2:], self.output()[2:], strict=True)
        return self.kernel or tuple(math.ceil(size / max(out_size, 1)) for size, out_size in sizes)

    def flops(self) -> int:
        """Floating-point operations of any one direction, taps in the padding included; 0 of pooling."""
        if not self.has_weight:
            return 0
        return 2 * math.prod(self.input if self.is_transposed else self.output()) * math.prod(self.weight[1:])

    def operations(self) -> int:
        """The same; of pooling, additions or comparisons."""
        return self.flops() or math.prod(self.output()) * math.prod(self.window)

    def bytes(self, dtype: torch.dtype) -> int:
        """Bytes that any one direction must read and write at least: input, output and weight once each."""
        elements = math.prod(self.input) + math.prod(self.output())
        return (elements + (math.prod(self.weight) if self.has_weight else 0)) * dtype.itemsize

    def kind(self) -> str:
        """The family this layer is averaged with, such as ``3x3``, ``1x1/2`` or ``max 3x3/2``."""
        if self.is_linear:
            return LINEAR
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
        return f"transposed {kind}" if self.is_transposed else kind

    def family(self) -> str:
        """What several kinds have in common: ``dense``, ``grouped``, ``depthwise``, ``linear``, ``max``, ``avg``,
        ``adaptive``."""
        if self.is_linear:
            return LINEAR
        if self.op in ADAPTIVE_POOL:
            return "adaptive"
        if not self.is_conv:
            return self.op[:3]
        return "dense" if self.groups == 1 else "depthwise" if self.groups == self.input[1] else "grouped"

    def label(self) -> str:
        """Short name in the field's terms: ``64→256 1x1 @56`` is C→K, kernel, stride, @ input size."""
        if self.is_linear:
            return f"{self.weight[1]}→{self.weight[0]} linear"
        size = _same(self.input[2:])
        if not self.is_conv:
            return f"{self.kind()} {self.input[1]} @{size}"
        groups = f" g{self.groups}" if self.groups > 1 else ""
        kind = self.kind().replace("depthwise ", "").replace("grouped ", "")
        out_channels = self.weight[1] * self.groups if self.is_transposed else self.weight[0]
        return f"{self.input[1]}→{out_channels} {kind}{groups} @{size}"

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
    """A layer, the names of the modules that run it, which gradients training needs, and its input's element type."""

    layer: Layer
    names: list[str]
    needs_grad_input: bool
    needs_grad_weight: bool = True
    dtype: torch.dtype = torch.float32

    @property
    def count(self) -> int:
        return len(self.names)

    def directions(self, wanted: Sequence[str]) -> tuple[str, ...]:
        """Those of the wanted directions that the layer has and a model needs."""
        needed = {"forward": True, "grad_weight": self.needs_grad_weight}
        return tuple(d for d in self.layer.directions if d in wanted and needed.get(d, self.needs_grad_input))

    def flops(self, training: bool) -> int:
        """FLOPs of all its runs, in the directions that are computed."""
        return self.layer.flops() * self.count * len(self.directions(CONV_DIRECTIONS if training else ("forward",)))


def _sizes(value: Any, dims: int) -> tuple[Any, ...]:
    sizes = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return sizes * dims if len(sizes) == 1 else sizes


def layer_of(name: str, *args: Any, **kwargs: Any) -> Layer | None:
    """The layer that a call of ``torch.nn.functional``'s function of this name is; None where it is not of :data:`OPS`.

    A module that pads first and then convolves, as for ``padding_mode="reflect"``, calls it with the padded input. LP
    pooling is the pooling of powers that it calls, by averages or maxima.
    """
    op = name.removesuffix("_with_indices")
    if op not in OPS + LP_POOL:
        return None
    call = inspect.signature(getattr(cnnext.functional, op)).bind(*args, **kwargs)
    call.apply_defaults()
    given = call.arguments
    if op in LP_POOL:
        pool = op.replace("lp", "max" if math.isinf(given["norm_type"]) else "avg")
        return layer_of(pool, given["input"], given["kernel_size"], given["stride"], ceil_mode=given["ceil_mode"])
    dims = int(op[-2])
    size = tuple(given["input"].shape)
    size = size if len(size) == dims + 2 else (1, *size)
    if op in ADAPTIVE_POOL:
        wanted = zip(_sizes(given["output_size"], dims), size[2:], strict=True)
        return Layer(op, size, output_size=tuple(extent if want is None else want for want, extent in wanted))
    fields: dict[str, Any] = {key: _sizes(given[key], dims) for key in ("padding", "dilation") if key in given}
    if op in CONV or op in CONV_TRANSPOSE:
        fields |= {"weight": tuple(given["weight"].shape), "bias": given["bias"] is not None}
        fields |= {"stride": _sizes(given["stride"], dims), "groups": given["groups"]}
        if op in CONV_TRANSPOSE:
            fields["output_padding"] = _sizes(given["output_padding"], dims)
        elif given["padding"] == "valid":
            fields["padding"] = (0,) * dims
        elif given["padding"] == "same":
            totals = [d * (k - 1) for d, k in zip(fields["dilation"], fields["weight"][2:], strict=True)]
            fields["padding"] = tuple(total // 2 for total in totals)
            if any(total % 2 for total in totals):  # more on one side than on the other: padded before
                size = (*size[:2], *(extent + total for extent, total in zip(size[2:], totals, strict=True)))
                fields["padding"] = (0,) * dims
    else:
        fields["kernel"] = _sizes(given["kernel_size"], dims)
        fields["stride"] = _sizes(given["stride"], dims) if given["stride"] else fields["kernel"]
        names = ("ceil_mode", "count_include_pad", "divisor_override")
        fields |= {key: given[key] for key in names if key in given}
    return Layer(op, size, **fields)


_FUSED = {getattr(cnnext.functional, f"fused_{op}"): op for op in CONV}


class _Recorder(TorchFunctionMode):
    """Notes every call of convolution and pooling, torch's or ours, and the module that made it."""

    def __init__(self, path: list[str]) -> None:
        super().__init__()
        self.path = path
        self.uses: dict[tuple[Any, ...], LayerUse] = {}

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = function_name(func)
        if func in _FUSED:  # as a convolution: our functions hand on all arguments by position
            name, args = _FUSED[func], args[:7]
        layer = layer_of(name, *args, **(kwargs or {})) if name else None
        if layer is not None:
            given = dict(zip(("input", "weight"), args, strict=False)) | (kwargs or {})
            dtype = given["input"].dtype if given["input"].is_floating_point() else torch.float32
            needs = (given["input"].requires_grad, layer.is_conv and given["weight"].requires_grad)
            use = self.uses.setdefault((layer, *needs, dtype), LayerUse(layer, [], *needs, dtype))
            use.names.append(self.path[-1] if self.path else "")
        return result


def collect(model: nn.Module, *inputs: Any) -> list[LayerUse]:
    """Runs ``model`` on ``inputs`` and lists its distinct layers in the order they first ran.

    Layers and calls of functions are seen, torch's and ours. All may be on the meta device, which makes it instant.
    """
    with module_path(model) as path, _Recorder(path) as recorder, torch.enable_grad():
        model(*inputs)
    return list(recorder.uses.values())
