"""Pictures of kernels, activation maps and windows: that they draw what the model computes."""

from __future__ import annotations

import doctest
import re

import numpy as np
import pytest
import torch
from torch import nn

import cnnext
from cnnext import viz

pytest.importorskip("matplotlib")


@pytest.fixture
def model():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 2)
    ).eval()


def drawings(figure):
    return [image for ax in figure.findobj(lambda a: hasattr(a, "images")) for image in ax.images]


def images(figure):
    return [np.asarray(image.get_array()) for image in drawings(figure)]


def texts(figure):
    return [text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text")) if text.get_text()]


def test_activation_maps_are_the_layers_output(model):
    image = torch.rand(3, 8, 8)
    for layer, expected in (("0", model[0](image)), (model[2], model[:3](image))):
        assert torch.equal(viz.activation_maps(model, image, layer), expected)
        assert torch.allclose(viz.activation_maps(cnnext.convert(model), image[None], layer), expected, atol=1e-5)
        cnnext.revert(model)
    assert not model[0]._forward_hooks


def test_activation_maps_are_of_the_first_call_and_without_gradients():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 1)

        def forward(self, x):
            assert not torch.is_grad_enabled()
            return self.conv(self.conv(x))

    model, image = Twice(), torch.rand(2, 4, 4)
    assert torch.equal(viz.activation_maps(model, image, "conv"), model.conv(image))


def test_layers_in_place_change_no_map_and_no_image(model):
    image = torch.rand(3, 8, 8) - 0.5
    before = image.clone()
    expected = model[0](image)
    behind = nn.Sequential(model[0], nn.ReLU(inplace=True), nn.Dropout(inplace=True)).eval()
    assert expected.min() < 0
    assert torch.equal(viz.activation_maps(behind, image, "0"), expected)
    viz.feature_maps(nn.Sequential(nn.ReLU(inplace=True), model[0]), image, "0")
    assert torch.equal(image, before)


@pytest.mark.parametrize("channels", [1, 3])
def test_feature_maps_draw_image_kernels_and_the_strongest_maps(model, channels):
    model[0] = nn.Conv2d(channels, 6, 3, padding=1)
    with torch.no_grad():
        model[0].weight[4] *= 100
    image = torch.rand(channels, 8, 8)
    figure = viz.feature_maps(model, image, "0", count=4)
    maps = model[0](image).detach()
    order = maps.flatten(1).norm(dim=1).argsort(descending=True)[:4]
    drawn = images(figure)
    assert len(drawn) == 1 + 4 + 4
    scaled = [(each - each.min()) / (each.max() - each.min()) for each in (image, *model[0].weight.detach()[order])]
    expected = scaled if channels == 3 else [scaled[0], *model[0].weight.detach()[order]]
    for array, each in zip(drawn[:5], expected, strict=True):
        assert np.array_equal(array, each.permute(1, 2, 0).numpy() if channels == 3 else each[0].numpy())
    for array, channel in zip(drawn[5:], order.tolist(), strict=True):
        assert np.array_equal(array, maps[channel].numpy())
    assert order[0] == 4
    assert [text for text in texts(figure) if text.isdecimal()] == [str(channel) for channel in order.tolist()]
    assert f"kernels of 0, 6x{channels}x3x3" in texts(figure)
    assert "activation maps of 0, 6x8x8" in texts(figure)


def test_maps_have_one_scale(model):
    """From -largest to largest where any is negative, else from 0, in grey."""
    image = torch.rand(3, 8, 8)
    for layer, expected in (("0", "RdBu_r"), ("1", "gray")):
        _, *drawn = drawings(viz.feature_maps(model, image, layer, count=6))
        largest = viz.activation_maps(model, image, layer).abs().max()
        for each in drawn[-6:]:
            assert each.get_clim() == (-largest if layer == "0" else 0, largest)
            assert each.get_cmap().name == expected


def test_a_grey_picture_of_several_channels_is_their_mean():
    image = torch.rand(2, 8, 8)
    mean = image.mean(0)
    drawn = images(viz.feature_maps(nn.Sequential(nn.Identity()), image, "0"))
    assert np.array_equal(drawn[0], ((mean - mean.min()) / (mean.max() - mean.min())).numpy())


def test_layers_without_kernels(model):
    assert len(images(viz.feature_maps(model, torch.rand(3, 8, 8), "2"))) == 1 + 6


def test_kernels():
    layer = nn.Conv2d(2, 5, 3)
    drawn = images(viz.kernels(layer, count=4))
    assert all(np.array_equal(array, layer.weight[i, 0].detach().numpy()) for i, array in enumerate(drawn))
    assert len(drawn) == 4


@pytest.mark.parametrize("groups", [1, 2])
def test_kernels_of_transposed_convolution_are_the_outputs(groups):
    """A kernel is what a pixel of the first input channel that an output channel reads becomes in it."""
    layer = nn.ConvTranspose2d(4, 4, 3, groups=groups, bias=False)
    image = torch.zeros(4, 1, 1)
    image[:: 4 // groups] = 1  # the first of each group
    expected = layer(image).detach()
    for array, kernel in zip(images(viz.kernels(layer)), expected, strict=True):
        assert np.array_equal(array, kernel.numpy())
    drawn = images(viz.feature_maps(nn.Sequential(layer), image, "0"))
    assert len(drawn) == 1 + 4 + 4
    assert all(np.array_equal(kernel, output) for kernel, output in zip(drawn[1:5], drawn[5:], strict=True))


@pytest.mark.parametrize("count", [0, -1])
def test_wrong_count(model, count):
    with pytest.raises(ValueError, match=f"expected count to be 1 or more, got {count}"):
        viz.kernels(model[0], count)
    with pytest.raises(ValueError, match=f"expected count to be 1 or more, got {count}"):
        viz.feature_maps(model, torch.rand(3, 8, 8), "0", count)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("7",), "the model has no layer '7'; there are 0, 1, 2, 3, 4"),
        ((nn.ReLU(),), "the layer is not part of the model"),
        (("4",), r"expected \[1, K, P, Q\] from layer '4', got \[1, 2\]"),
    ],
)
def test_wrong_layers(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        viz.feature_maps(model, torch.rand(3, 8, 8), *arguments)


def test_wrong_images_and_idle_layers(model):
    with pytest.raises(ValueError, match=r"expected one image, .* got \[2, 3, 8, 8\]"):
        viz.feature_maps(model, torch.rand(2, 3, 8, 8), "0")
    with pytest.raises(TypeError, match="expected the image as a tensor, got ndarray"):
        viz.feature_maps(model, np.zeros((3, 8, 8)), "0")
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got NoneType"):
        viz.activation_maps(None, torch.rand(3, 8, 8), "0")
    model.idle = nn.Identity()
    model.forward = model[0].forward
    with pytest.raises(ValueError, match="does not run its layer 'idle'"):
        viz.activation_maps(model, torch.rand(3, 8, 8), "idle")
    with pytest.raises(ValueError, match="expected a layer with a weight"):
        viz.kernels(nn.ReLU())


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "dilation", "at"),
    [(5, 3, 1, 0, 1, (2, 2)), (5, 3, 1, 1, 2, (0, 1)), ((6, 7), (2, 3), (2, 1), (1, 0), 1, (3, 4))],
)
def test_window_marks_what_the_output_reads(size, kernel, stride, padding, dilation, at):
    from matplotlib.colors import to_hex
    from matplotlib.patches import Rectangle

    figure = viz.window(size, kernel, stride, padding, dilation, at)
    color = {
        (r.get_x(), r.get_y()): to_hex(r.get_facecolor()) for r in figure.axes[0].patches if isinstance(r, Rectangle)
    }
    marked = {place for place, each in color.items() if each == viz._TAP}
    # what an output reads is where its gradient is not zero
    pair = lambda value: (value, value) if isinstance(value, int) else value  # noqa: E731
    (h, w), (ph, pw) = pair(size), pair(padding)
    x = torch.zeros(1, 1, h + 2 * ph, w + 2 * pw, requires_grad=True)
    y = torch.nn.functional.conv2d(x, torch.ones(1, 1, *pair(kernel)), stride=stride, dilation=dilation)
    y[0, 0, at[0], at[1]].backward()
    assert marked == {(float(column), float(row)) for row, column in x.grad[0, 0].nonzero().tolist()}
    assert sum(each == viz._OUTPUT for each in color.values()) == 1
    assert sum(each in (viz._OUTPUT, "#ffffff") for each in color.values()) == y.numel()
    inside = [(column + pw, row + ph) for row in range(h) for column in range(w)]
    assert all(color[place] in (viz._TAP, viz._INPUT) for place in inside)
    assert sum(each == viz._PADDING for each in color.values()) == x.numel() - h * w - len(marked - set(inside))
    assert texts(figure).count("0") == x.numel() - h * w
    assert f"\n{h}x{w} → {y.shape[2]}x{y.shape[3]}" in figure.axes[0].get_title()


@pytest.mark.parametrize("name", viz.__all__)
def test_example_in_docstring(name):
    [test] = doctest.DocTestFinder(recurse=False).find(getattr(viz, name), name, globs={"torch": torch})
    assert doctest.DocTestRunner().run(test) in [(0, 2), (0, 3)]


def test_window_says_what_it_shows():
    title = viz.window((6, 7), (2, 3), (2, 1), (1, 0)).axes[0].get_title()
    assert title == "2x3 kernel, stride 2x1, padding 1x0, dilation 1\n6x7 → 4x5"


def test_window_without_such_an_output():
    with pytest.raises(ValueError, match=r"the output has 3x3 pixels and none at \(3, 0\)"):
        viz.window(5, 3, at=(3, 0))


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [("size", (0, 5), 1), ("kernel_size", 0, 1), ("stride", 0, 1), ("padding", -1, 0), ("dilation", (1, 0), 1)],
)
def test_window_of_wrong_numbers(name, value, least):
    arguments = {"size": 5, "kernel_size": 3, name: value}
    message = f"expected {name} to be one or two numbers from {least}, got {value}"
    with pytest.raises(ValueError, match=re.escape(message)):
        viz.window(**arguments)


@pytest.mark.parametrize("at", [(0, 0, 0), (), (-1, 0)])
def test_window_at_no_place(at):
    with pytest.raises(ValueError, match=re.escape(f"expected at to be one or two numbers from 0, got {at}")):
        viz.window(5, 3, at=at)
