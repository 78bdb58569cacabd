"""Suites of distinct layers: those of one model, or of one kind in many networks (:data:`SUITES`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from .layers import Layer, LayerUse, collect, layer_of

DENSE = ("resnet18", "resnet50", "googlenet", "inception_v3", "vgg16", "yolo_v1")  # the models of this suite
POOLED = ("resnet50", "googlenet", "inception_v3", "vgg16")


class ConvRow(NamedTuple):
    """Convolutions that keep the size or halve it: C, input size (square where a number), R = S and so on."""

    channels: int
    size: int | tuple[int, ...]
    kernel: int
    stride: int = 1
    groups: int = 1
    dilation: int = 1
    out_channels: int = 0  # as many as inputs

    def layer(self, batch: int) -> Layer:
        size = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        dims = len(size)
        return Layer(
            f"conv{dims}d",
            (batch, self.channels, *size),
            (self.out_channels or self.channels, self.channels // self.groups, *(self.kernel,) * dims),
            stride=(self.stride,) * dims,
            padding=(self.kernel // 2 * self.dilation,) * dims,
            dilation=(self.dilation,) * dims,
            groups=self.groups,
        )


def _depthwise(channels: int, size: int | tuple[int, ...], kernel: int, stride: int = 1, dilation: int = 1) -> ConvRow:
    return ConvRow(channels, size, kernel, stride, channels, dilation)


# Layers of networks that cnnext.models does not have, from the tables of their papers.
GROUPED = {
    "efficientnet_b0": (
        _depthwise(32, 112, 3),
        _depthwise(96, 112, 3, 2),
        _depthwise(144, 56, 3),
        _depthwise(144, 56, 5, 2),
        _depthwise(240, 28, 5),
        _depthwise(240, 28, 3, 2),
        _depthwise(480, 14, 3),
        _depthwise(480, 14, 5),
        _depthwise(672, 14, 5),
        _depthwise(672, 14, 5, 2),
        _depthwise(1152, 7, 5),
        _depthwise(1152, 7, 3),
    ),
    "convnext_tiny": (
        _depthwise(96, 56, 7),
        _depthwise(192, 28, 7),
        _depthwise(384, 14, 7),
        _depthwise(768, 7, 7),
    ),
    "resnext50_32x4d": (
        ConvRow(128, 56, 3, 1, 32),
        ConvRow(256, 56, 3, 2, 32),
        ConvRow(256, 28, 3, 1, 32),
        ConvRow(512, 28, 3, 2, 32),
        ConvRow(512, 14, 3, 1, 32),
        ConvRow(1024, 14, 3, 2, 32),
        ConvRow(1024, 7, 3, 1, 32),
    ),
    # On MobileNet-V2 with an output stride of 8, and the separable variant of its pyramid.
    "deeplab_v3": (
        _depthwise(384, 33, 3, dilation=2),
        _depthwise(576, 33, 3, dilation=2),
        _depthwise(960, 33, 3, dilation=4),
        *(_depthwise(2048, 33, 3, dilation=dilation) for dilation in (6, 12, 18)),
    ),
    "conformer_m": (_depthwise(256, (400,), 31),),
    "x3d_m": (_depthwise(54, (16, 56, 56), 3), _depthwise(108, (16, 28, 28), 3)),
}
DILATED = {
    # the pyramid of a 513 x 513 image at an output stride of 16
    "deeplab_v3": tuple(ConvRow(2048, 33, 3, dilation=dilation, out_channels=256) for dilation in (6, 12, 18)),
    # the fourth and fifth stage at an output stride of 8
    "drn": tuple(ConvRow(512, 28, 3, dilation=dilation) for dilation in (2, 4)),
}
# Images of one to three channels, and what follows in small networks.
FEW_CHANNELS = {
    "lenet_5": (ConvRow(1, 28, 5, out_channels=6), ConvRow(6, 14, 5, out_channels=16)),
    "digits": (ConvRow(1, 28, 3, out_channels=32),),
    "resnet20": (ConvRow(3, 32, 3, out_channels=16),),
    "alexnet": (ConvRow(3, 224, 11, 4, out_channels=64),),
    "yolo_v3": (ConvRow(3, 416, 3, out_channels=32),),
    "srcnn": (ConvRow(1, 256, 9, out_channels=64), ConvRow(32, 256, 5, out_channels=1)),
    "wav2vec": (ConvRow(1, (16000,), 10, 5, out_channels=512),),
    "filters": (ConvRow(1, 512, 3), _depthwise(3, 512, 7)),
}
# Pooling that those models lack: a call each, of a function of torch.nn.functional on C and the spatial size.
POOLING: dict[str, tuple[tuple[str, tuple[int, ...], dict[str, Any]], ...]] = {
    "yolo_spp": tuple(
        ("max_pool2d", (512, 13, 13), {"kernel_size": k, "stride": 1, "padding": k // 2}) for k in (5, 9, 13)
    ),
    "dilated": (("max_pool2d", (64, 56, 56), {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2}),),
    "densenet": (("avg_pool2d", (64, 56, 56), {"kernel_size": 2}),),
    "heads": (
        ("adaptive_avg_pool2d", (512, 14, 14), {"output_size": 7}),
        ("adaptive_avg_pool2d", (256, 33, 33), {"output_size": 7}),
        ("adaptive_max_pool2d", (2048, 7, 7), {"output_size": 1}),
        ("adaptive_max_pool2d", (512, 14, 14), {"output_size": 7}),
        ("adaptive_max_pool2d", (256, 33, 33), {"output_size": 7}),
    ),
    "sound": (
        ("max_pool1d", (64, 2000), {"kernel_size": 3, "stride": 2, "padding": 1}),
        ("avg_pool1d", (64, 2000), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ),
    "video": (
        ("max_pool3d", (32, 16, 28, 28), {"kernel_size": 2}),
        ("max_pool3d", (32, 16, 28, 28), {"kernel_size": 3, "stride": 2, "padding": 1}),
        ("avg_pool3d", (32, 16, 28, 28), {"kernel_size": 2}),
        ("avg_pool3d", (32, 16, 28, 28), {"kernel_size": 3, "stride": 1, "padding": 1}),
    ),
}
# Fully connected heads of one picture, and the layers of pixels in a network that has them: rows of each picture, C, K.
LINEAR = {
    "resnet18": ((1, 512, 1000),),
    "resnet50": ((1, 2048, 1000),),
    "googlenet": ((1, 1024, 1000),),
    "mobilenet_v2": ((1, 1280, 1000),),
    "vgg16": ((1, 25088, 4096), (1, 4096, 4096), (1, 4096, 1000)),
    "yolo_v1": ((1, 50176, 4096), (1, 4096, 1470)),
    "squeeze_excite": ((1, 96, 24), (1, 24, 96), (1, 672, 168), (1, 168, 672)),
    "convnext_tiny": ((56**2, 96, 384), (56**2, 384, 96), (14**2, 384, 1536), (14**2, 1536, 384)),
}
SUITES = ("dense", "dilated", "grouped", "few_channels", "linear", "pooling")  # beside the models


def suite(
    name: str, batch: int = 1, size: int | None = None, training: bool = False, whole: bool = False
) -> list[LayerUse]:
    """The distinct layers of a model of ``cnnext.models``, or of several networks: one of :data:`SUITES`.

    Args:
        name: a model's name; or ``dense``, the convolutions of the models :data:`DENSE`; ``dilated``, those of
            :data:`DILATED`; ``grouped``, the depthwise and grouped ones of MobileNet-V2 and :data:`GROUPED`;
            ``few_channels``, those of :data:`FEW_CHANNELS`; ``linear``, those of :data:`LINEAR`; ``pooling``, the
            pooling layers of the models :data:`POOLED` and :data:`POOLING`. These have each layer once, however many
            networks use it and how often.
        batch: N.
        size: height and width of a model's images, by default the model's own; of a suite's models that always.
        training: include what only runs in training (GoogLeNet's auxiliary heads).
        whole: the model must run as a whole. Batch norms in training refuse a single value for each channel, as
            Inception's auxiliary head has of one image, and are left out of this otherwise.

    Raises:
        ValueError: no suite has this name, or a batch norm refuses the batch.
    """
    found: dict[Layer, LayerUse] = {}

    def add(network: str, uses: Iterable[LayerUse]) -> None:
        for use in uses:
            found.setdefault(use.layer, LayerUse(use.layer, [f"{network}.{use.names[0]}"], use.needs_grad_input))

    def of_models(networks: Iterable[str], wanted: Callable[[Layer], bool]) -> None:
        for network in networks:
            add(network, (use for use in _of_model(network, batch, None, training) if wanted(use.layer)))

    def of_rows(networks: dict[str, tuple[ConvRow, ...]]) -> None:
        for network, rows in networks.items():
            for number, row in enumerate(rows):
                of_image = row.channels <= 3 and row.groups == 1  # whose gradient nothing needs
                add(network, [LayerUse(row.layer(batch), [str(number)], not of_image)])

    if name == "dense":
        of_models(DENSE, lambda layer: layer.is_conv)
    elif name == "dilated":
        of_rows(DILATED)
    elif name == "grouped":
        of_models(["mobilenet_v2"], lambda layer: layer.groups > 1)
        of_rows(GROUPED)
    elif name == "few_channels":
        of_rows(FEW_CHANNELS)
    elif name == "linear":
        for network, heads in LINEAR.items():
            for number, (rows, channels, outputs) in enumerate(heads):
                head = Layer("linear", (batch * rows, channels), (outputs, channels), bias=True)
                add(network, [LayerUse(head, [str(number)], True)])
    elif name == "pooling":
        of_models(POOLED, lambda layer: not layer.is_conv)
        for network, calls in POOLING.items():
            for op, input_size, window in calls:
                layer = layer_of(op, torch.empty(batch, *input_size, device="meta"), **window)
                assert layer is not None
                add(network, [LayerUse(layer, [op], True)])
    else:
        return _of_model(name, batch, size, training, whole)
    return list(found.values())


def _of_model(name: str, batch: int, size: int | None, training: bool, whole: bool = False) -> list[LayerUse]:
    from cnnext import models

    with torch.device("meta"):
        model = models.build(name).train(training)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and not whole:
                module.eval()
        spec = models.SPECS[name]
        extent = size or spec.size
        return collect(model, torch.empty(batch, spec.channels, extent, extent))
