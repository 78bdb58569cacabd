"""What the benchmark measures: the layers of models, found by the calls they make, and their work."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cnnext
import cnnext.functional
from cnnext import models
from cnnext.bench import layer_bench, layers, suites, timing


def counts(uses):
    total = {}
    for use in uses:
        total[use.layer.op] = total.get(use.layer.op, 0) + use.count
    return total


@pytest.mark.parametrize(
    ("name", "training", "expected"),
    [
        ("resnet18", False, {"conv2d": 20, "max_pool2d": 1, "adaptive_avg_pool2d": 1}),
        ("resnet50", False, {"conv2d": 53, "max_pool2d": 1, "adaptive_avg_pool2d": 1}),
        ("googlenet", False, {"conv2d": 57, "max_pool2d": 13, "adaptive_avg_pool2d": 1}),
        ("googlenet", True, {"conv2d": 59, "max_pool2d": 13, "adaptive_avg_pool2d": 3}),
    ],
)
def test_suites_are_the_models_layers(name, training, expected):
    assert counts(suites.suite(name, training=training)) == expected


@pytest.mark.parametrize("name", [*models.names(), *suites.SUITES])
def test_every_suite_trains_with_one_image(name):
    """Batch norms in training refuse a single value for each channel, of which Inception's auxiliary head has some."""
    size = models.SPECS[name].size if name in models.SPECS else 224
    assert sum(counts(suites.suite(name, 1, size, training=True)).values()) > 0


def layers_named(*names):
    return {use.layer for name in names for use in suites.suite(name)}


@pytest.mark.parametrize(
    ("name", "belongs", "expected"),
    [
        ("dense", lambda layer: layer.is_conv, layers_named(*suites.DENSE)),
        ("grouped", lambda layer: layer.groups > 1, layers_named("mobilenet_v2", "resnext50_32x4d")),
        ("few_channels", lambda layer: layer.weight[1] <= 32, set()),
        ("pooling", lambda layer: not layer.is_conv, layers_named(*suites.POOLED)),
    ],
)
def test_suites_of_many_networks_have_each_of_their_layers_once(name, belongs, expected):
    found = suites.suite(name)
    assert all(use.count == 1 and belongs(use.layer) for use in found)
    assert len({use.layer for use in found}) == len(found)
    assert {use.layer for use in found} >= {layer for layer in expected if belongs(layer)}


def test_the_gradient_of_an_image_is_not_measured():
    needed = {use.layer.weight: use.needs_grad_input for use in suites.suite("few_channels")}
    assert not needed[6, 1, 5, 5] and needed[16, 6, 5, 5]  # LeNet's first layer and its second


def test_suite_has_each_layer_once_with_its_flops():
    uses = suites.suite("resnet50")
    assert len({use.layer for use in uses}) == len(uses)
    assert [use.layer.label() for use in uses if not use.needs_grad_input] == ["3→64 7x7/2 @224"]
    # 4.09 GMAC of convolution, as published for the variant with the stride in the 3x3
    assert sum(use.layer.flops() * use.count for use in uses) == pytest.approx(2 * 4.087e9, rel=1e-3)


def test_suite_scales_with_batch_and_size():
    (one, many) = (suites.suite("resnet18", batch, size) for batch, size in ((1, 64), (4, 128)))
    assert [use.layer.weight for use in one] == [use.layer.weight for use in many]
    assert many[0].layer.input == (4, 3, 128, 128)


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2),
        nn.Conv2d(4, 6, (2, 3), padding=(0, 2), bias=False),
        nn.Conv2d(4, 6, 3, padding="same"),
        nn.Conv2d(4, 6, 4, padding="same"),
        nn.Conv2d(4, 6, 3, padding=(2, 1), padding_mode="reflect"),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.MaxPool2d((2, 3), dilation=2),
        nn.AvgPool2d(2, padding=1, count_include_pad=False),
        nn.AvgPool2d(2, divisor_override=3),
        nn.AdaptiveAvgPool2d((3, None)),
        nn.AdaptiveMaxPool2d(2),
    ],
    ids=repr,
)
def test_layer_of_module(module):
    x = torch.randn(2, 4, 11, 12)
    ((layer, names),) = ((use.layer, use.names) for use in layers.collect(module, x))
    assert names == [""]
    assert layer.output() == tuple(module(x).shape)
    assert layers.Layer.from_json(json.loads(json.dumps(layer.as_json()))) == layer
    if layer.input == tuple(x.shape):
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        assert torch.equal(layer.call(F, x, weight, bias), module(x))


@pytest.mark.parametrize("library", [nn, cnnext.nn], ids=["torch", "cnnext"])
def test_lp_pooling_is_the_pooling_it_calls(library):
    x = torch.rand(2, 4, 11, 12)
    for norm, pool in ((2, nn.AvgPool2d), (float("inf"), nn.MaxPool2d)):
        (found,) = layers.collect(library.LPPool2d(norm, 3, 2, ceil_mode=True), x)
        (expected,) = layers.collect(pool(3, 2, ceil_mode=True), x)
        assert found == expected
    assert layers.collect(library.LPPool1d(2, 3), x[0])[0].layer.op == "avg_pool1d"


def test_layer_of_other_modules_and_dims():
    assert layers.collect(nn.ReLU(), torch.ones(1, 2, 3, 3)) == []
    assert layers.collect(nn.Conv1d(2, 3, 3), torch.ones(1, 2, 9))[0].layer.op == "conv1d"
    assert layers.collect(nn.MaxPool3d(2), torch.ones(1, 2, 4, 4, 4))[0].layer.op == "max_pool3d"
    assert layers.collect(nn.Conv2d(2, 3, 3), torch.ones(2, 8, 8))[0].layer.input == (1, 2, 8, 8)


class Functions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.ours = cnnext.nn.Conv2d(4, 4, 1)

    def forward(self, x):
        y = F.max_pool2d(self.ours(self.first(x)), 2)
        z, _ = F.max_pool2d(y, 2, stride=1, return_indices=True)
        return cnnext.functional.avg_pool2d(F.conv2d(z, self.ours.weight, stride=(2, 1)), [2, 1])


def test_calls_of_functions_are_collected_too():
    uses = layers.collect(Functions(), torch.randn(1, 3, 12, 12))
    found = [(use.layer.op, use.names, use.needs_grad_input) for use in uses]
    assert found == [
        ("conv2d", ["first"], False),
        ("conv2d", ["ours"], True),
        ("max_pool2d", [""], True),
        ("max_pool2d", [""], True),
        ("conv2d", [""], True),
        ("avg_pool2d", [""], True),
    ]
    assert [use.layer.stride for use in uses] == [(1, 1), (1, 1), (2, 2), (1, 1), (2, 1), (2, 1)]


@pytest.mark.parametrize(
    "module",
    [
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.ConvTranspose1d(4, 6, 4, dilation=2, bias=False),
    ],
    ids=repr,
)
def test_transposed_convolution(module):
    x = torch.randn(2, 4, *[9] * (module.weight.dim() - 2))
    (use,) = layers.collect(module, x)
    layer = use.layer
    assert layer.output() == tuple(module(x).shape)
    assert torch.equal(layer.call(F, x, module.weight, module.bias), module(x))
    results = list(
        layer_bench.measure(
            layer, layer.directions, torch.float32, layers.LAYOUTS, timing.Machine(0.02), 0.0, repeats=1
        )
    )
    assert [r["direction"] for r in results] == list(layers.CONV_DIRECTIONS)
    assert layer.flops() == 2 * x.numel() * module.weight[0].numel()


def test_labels_and_work():
    layer = layers.Layer("conv2d", (16, 256, 56, 56), (64, 256, 1, 1), stride=(1, 1), padding=(0, 0), dilation=(1, 1))
    assert layer.label() == "256→64 1x1 @56"
    assert layer.flops() == 2 * 16 * 56 * 56 * 256 * 64
    assert layer.bytes(torch.float32) == 4 * (16 * 256 * 56 * 56 + 16 * 64 * 56 * 56 + 64 * 256)
    pool = layers.Layer("max_pool2d", (1, 64, 112, 112), kernel=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(1, 1))
    assert (pool.label(), pool.flops()) == ("max 3x3/2 64 @112", 0)
    depthwise = layers.Layer(
        "conv2d", (1, 32, 8, 8), (32, 1, 3, 3), stride=(1, 1), padding=(2, 2), dilation=(2, 2), groups=32
    )
    assert depthwise.kind() == "depthwise 3x3 d2"
