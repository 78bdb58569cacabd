"""Pictures of what a convolutional network computes: kernels, activation maps, and windows on their input.

Every function returns a `matplotlib.figure.Figure`; matplotlib comes with `pip install 'cnnext[report]'`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["activation_maps", "feature_maps", "kernels", "window"]

_INPUT, _PADDING, _TAP, _OUTPUT = "#d8e6f5", "#f1f1f1", "#f4a259", "#8cb369"
_CELL = 0.42  # inches


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ModuleNotFoundError("cnnext.viz needs matplotlib: run `pip install 'cnnext[report]'`") from None
    return Figure(figsize=(width, height), layout="constrained")


def _picture(image: Tensor) -> Any:
    """[C, H, W] as matplotlib draws it: three channels in colour, else the mean of them, from 0 to 1."""
    image = image.detach().float().cpu()
    image = image.permute(1, 2, 0) if image.shape[0] == 3 else image.mean(0)
    low, high = image.min(), image.max()
    return ((image - low) / (high - low).clamp_min(1e-12)).numpy()


def _grid(figure: Any, maps: Tensor, signed: bool, titles: Sequence[str] | None = None) -> None:
    """Draws [count, height, width] as squares, all to one scale."""
    columns = math.ceil(math.sqrt(len(maps)))
    axes = figure.subplots(math.ceil(len(maps) / columns), columns, squeeze=False).flat
    largest = float(maps.abs().max()) or 1.0
    for index, ax in enumerate(axes):
        ax.set_axis_off()
        if index < len(maps):
            low = -largest if signed else min(0.0, float(maps.min()))
            ax.imshow(maps[index].numpy(), cmap="RdBu_r" if signed else "gray", vmin=low, vmax=largest)
            if titles:
                ax.set_title(titles[index], fontsize=8)


def _layer(model: nn.Module, layer: str | nn.Module) -> tuple[str, nn.Module]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    if isinstance(layer, nn.Module):
        names = [name for name, module in model.named_modules() if module is layer]
        if not names:
            raise ValueError("the layer is not part of the model")
        return names[0], layer
    modules = dict(model.named_modules())
    if layer not in modules:
        raise ValueError(f"the model has no layer {layer!r}; there are {', '.join(filter(None, modules))}")
    return layer, modules[layer]


def _batch(image: Tensor) -> Tensor:
    if not isinstance(image, Tensor):
        raise TypeError(f"expected the image as a tensor, got {type(image).__name__}")
    if image.dim() not in (3, 4) or (image.dim() == 4 and image.shape[0] != 1):
        raise ValueError(f"expected one image, [C, H, W] or [1, C, H, W], got {list(image.shape)}")
    return image if image.dim() == 4 else image[None]


def activation_maps(model: nn.Module, image: Tensor, layer: str | nn.Module) -> Tensor:
    """The output of one layer of a model for an image.

    Args:
        model: any module; it runs as it is, in its mode, without gradients.
        image: [C, H, W] or [1, C, H, W]
        layer: the layer or its name in the model, such as "layer1.0.conv1".

    Returns:
        [K, P, Q], of the first call where the model runs the layer several times.

    Raises:
        ValueError: if the model has no such layer, does not run it, or its output is no batch of maps.

    Example:
        >>> import cnnext
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
        >>> cnnext.viz.activation_maps(model, torch.rand(3, 16, 16), "1").shape
        torch.Size([8, 14, 14])
    """
    name, module = _layer(model, layer)
    outputs: list[Any] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:  # a copy, as ReLU(inplace=True) may write over it
        outputs.append(output.clone() if isinstance(output, Tensor) else output)

    handle = module.register_forward_hook(keep)
    try:
        with torch.no_grad():
            model(_batch(image).clone())
    finally:
        handle.remove()
    if not outputs:
        raise ValueError(f"the model does not run its layer {name!r}")
    maps = outputs[0]
    if not isinstance(maps, Tensor) or maps.dim() != 4:
        got = list(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise ValueError(f"expected [1, K, P, Q] from layer {name!r}, got {got}")
    return maps[0].detach().float().cpu()


def kernels(layer: nn.Module, count: int = 16) -> Figure:
    """Draws the kernels of a 2-d convolution: in colour where it reads three channels, else the first channel's.

    Args:
        layer: a convolution, whose weight is [K, C / groups, R, S], or a transposed one, drawn in the same order.
        count: how many kernels to draw at most.

    Raises:
        ValueError: if the layer has no such weight, or `count` is less than 1.

    Example:
        >>> import cnnext
        >>> figure = cnnext.viz.kernels(torch.nn.Conv2d(3, 16, 5))
    """
    weight = _weight(layer)
    if weight is None:
        raise ValueError(f"expected a layer with a weight [K, C, R, S], got {type(layer).__name__}")
    _check_count(count)
    figure = _figure(5, 3.6)
    _draw_kernels(figure, weight[:count])
    return figure  # type: ignore[no-any-return]


def _check_count(count: int) -> None:
    if count < 1:
        raise ValueError(f"expected count to be 1 or more, got {count}")


def _weight(layer: nn.Module) -> Tensor | None:
    """[K, C / groups, R, S], of a transposed convolution too."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 4:
        return None
    if isinstance(layer, nn.ConvTranspose2d):  # [C, K / groups, R, S]
        weight = weight.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
    return weight.detach().float().cpu()


def _times(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _draw_kernels(figure: Any, weight: Tensor) -> None:
    if weight.shape[1] != 3:
        _grid(figure, weight[:, 0], signed=True)
        return
    columns = math.ceil(math.sqrt(len(weight)))
    axes = figure.subplots(math.ceil(len(weight) / columns), columns, squeeze=False).flat
    for index, ax in enumerate(axes):
        ax.set_axis_off()
        if index < len(weight):
            ax.imshow(_picture(weight[index]))


def feature_maps(model: nn.Module, image: Tensor, layer: str | nn.Module, count: int = 16) -> Figure:
    """Draws an image, the kernels of a layer, and the activation maps that they make of it.

    The strongest maps are drawn, with the number of their channel; a layer without kernels has maps only. Red is
    positive and blue negative; maps that are nowhere negative, as behind ReLU, are grey.

    Args:
        model: any module; it runs as it is, in its mode, without gradients.
        image: [C, H, W] or [1, C, H, W]
        layer: the layer or its name in the model, such as "layer1.0.conv1".
        count: how many maps to draw at most.

    Raises:
        ValueError: if the model has no such layer, does not run it, its output is no batch of maps, or `count` is less
            than 1.

    Example:
        >>> import cnnext
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
        >>> figure = cnnext.viz.feature_maps(model, torch.rand(3, 16, 16), "0")
    """
    _check_count(count)
    name, module = _layer(model, layer)
    maps = activation_maps(model, image, module)
    strongest = maps.flatten(1).norm(dim=1).argsort(descending=True)[:count]
    weight = _weight(module)
    figure = _figure(8 if weight is None else 11, 3.6)
    widths = [1, 1.5] if weight is None else [1, 1.2, 1.5]
    parts = figure.subfigures(1, len(widths), width_ratios=widths)
    ax = parts[0].subplots()
    ax.imshow(_picture(_batch(image)[0]), cmap="gray")
    ax.set_axis_off()
    parts[0].suptitle(f"input, {_times(image.shape[-3:])}", fontsize=10)
    words = name or "the layer"
    if weight is not None:
        _draw_kernels(parts[1], weight[strongest] if len(weight) == len(maps) else weight[:count])
        parts[1].suptitle(f"kernels of {words}, {_times(weight.shape)}", fontsize=10)
    drawn = maps[strongest]
    _grid(parts[-1], drawn, bool((drawn < 0).any()), [str(int(channel)) for channel in strongest])
    parts[-1].suptitle(f"activation maps of {words}, {_times(maps.shape)}", fontsize=10)
    return figure  # type: ignore[no-any-return]


def window(
    size: int | tuple[int, int],
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    at: tuple[int, int] = (0, 0),
) -> Figure:
    """Draws which pixels of a padded input one output of a convolution or pooling reads.

    Args:
        size: of the input, (H, W)
        kernel_size, stride, padding, dilation: a number or one per axis
        at: the output's place, (p, q)

    Raises:
        ValueError: if there is no such output, or an argument is not one or two numbers that can be.

    Example:
        >>> import cnnext
        >>> figure = cnnext.viz.window(5, 3, padding=1, dilation=2, at=(1, 1))
    """
    sizes, kernel, step = _pair("size", size, 1), _pair("kernel_size", kernel_size, 1), _pair("stride", stride, 1)
    pad, spread, at = _pair("padding", padding, 0), _pair("dilation", dilation, 1), _pair("at", at, 0)
    output = tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(sizes, kernel, step, pad, spread, strict=True)
    )
    if not all(0 <= place < extent for place, extent in zip(at, output, strict=True)):
        raise ValueError(f"the output has {output[0]}x{output[1]} pixels and none at {at}")
    padded = [n + 2 * p for n, p in zip(sizes, pad, strict=True)]
    taps = {
        (at[0] * step[0] + r * spread[0], at[1] * step[1] + s * spread[1])
        for r in range(kernel[0])
        for s in range(kernel[1])
    }
    across, down = padded[1] + output[1] + 2, max(padded[0], output[0])
    figure = _figure(across * _CELL, (down + 1) * _CELL)
    ax = figure.subplots()
    for row in range(padded[0]):
        for column in range(padded[1]):
            inside = all(p <= i < p + n for i, p, n in zip((row, column), pad, sizes, strict=True))
            color = _TAP if (row, column) in taps else _INPUT if inside else _PADDING
            _cell(ax, column, row, color, "" if inside else "0")
    left, top = padded[1] + 2, (down - output[0]) / 2
    for row in range(output[0]):
        for column in range(output[1]):
            _cell(ax, left + column, top + row, _OUTPUT if (row, column) == at else "white")
    ax.annotate(
        "", (left - 0.3, down / 2), (padded[1] + 0.3, down / 2), arrowprops={"arrowstyle": "->", "color": "#555"}
    )
    given = {"stride": step, "padding": pad, "dilation": spread}
    numbers = (f"{what} {a if a == b else f'{a}x{b}'}" for what, (a, b) in given.items())
    words = f"{kernel[0]}x{kernel[1]} kernel, {', '.join(numbers)}"
    ax.set_title(f"{words}\n{sizes[0]}x{sizes[1]} → {output[0]}x{output[1]}", fontsize=9)
    ax.set_xlim(-0.1, across + 0.1)
    ax.set_ylim(down + 0.1, -0.1)
    ax.set_aspect("equal")
    ax.set_axis_off()
    return figure  # type: ignore[no-any-return]


def _pair(name: str, value: int | tuple[int, int], least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or min(pair) < least:
        raise ValueError(f"expected {name} to be one or two numbers from {least}, got {value}")
    return pair[0], pair[1]


def _cell(ax: Axes, left: float, top: float, color: str, text: str = "") -> None:
    from matplotlib.patches import Rectangle

    ax.add_patch(Rectangle((left, top), 1, 1, facecolor=color, edgecolor="#7a8691", linewidth=0.8))
    if text:
        ax.text(left + 0.5, top + 0.5, text, ha="center", va="center", fontsize=8, color="#8a939c")
