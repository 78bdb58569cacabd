"""DeepLab-v3 on a dilated ResNet-50 (Chen et al., https://arxiv.org/abs/1706.05587), named as torchvision names it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import nn
from .fcn_resnet import SegmentationNet


def _conv(in_channels: int, out_channels: int, **options: Any) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, bias=False, **options),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]


class ASPPPooling(nn.Sequential):
    """The mean of the image, at every pixel."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), *_conv(in_channels, out_channels, kernel_size=1))

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(super().forward(x), size=x.shape[-2:], mode="bilinear", align_corners=False)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: convolutions of several dilations side by side, joined by a 1x1."""

    def __init__(self, in_channels: int, dilations: Sequence[int], out_channels: int = 256) -> None:
        super().__init__()
        branches = [nn.Sequential(*_conv(in_channels, out_channels, kernel_size=1))]
        for dilation in dilations:
            dilated = _conv(in_channels, out_channels, kernel_size=3, padding=dilation, dilation=dilation)
            branches.append(nn.Sequential(*dilated))
        branches.append(ASPPPooling(in_channels, out_channels))
        self.convs = nn.ModuleList(branches)
        joined = _conv(len(branches) * out_channels, out_channels, kernel_size=1)
        self.project = nn.Sequential(*joined, nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.project(torch.cat([branch(x) for branch in self.convs], 1))


def deeplabv3_resnet50(num_classes: int = 21, **options: Any) -> SegmentationNet:
    """DeepLab-v3 on ResNet-50, 39,638,869 parameters. ``options`` go to :class:`SegmentationNet`; torchvision's
    checkpoint needs ``aux_loss=True``.

    Example::

        model = cnnext.models.deeplabv3_resnet50().eval()
        model(torch.randn(1, 3, 224, 224))["out"].shape  # (1, 21, 224, 224)
    """
    classifier = nn.Sequential(
        ASPP(2048, dilations=(12, 24, 36)),
        *_conv(256, 256, kernel_size=3, padding=1),
        nn.Conv2d(256, num_classes, kernel_size=1),
    )
    return SegmentationNet(classifier, num_classes, **options)
