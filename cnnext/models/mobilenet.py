"""MobileNet-V2 (Sandler et al., https://arxiv.org/abs/1801.04381), named as torchvision names it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import nn

# Per stage: expansion of the hidden channels, channels, blocks, stride of the first block (table 2 of the paper).
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """1x1 to many channels, 3x3 within each channel, 1x1 back to few without activation; a shortcut if sizes allow."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [_conv(in_channels, hidden, 1)]
        layers += [
            _conv(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, channels, kernel_size=1, bias=False),
            nn.BatchNorm2d(channels),
        ]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNet-V2 with torchvision's parameter names.

    Args:
        num_classes: width of the last layer.
        dropout: probability before the last layer.

    Shape:
        input ``[N, 3, H, W]``, output ``[N, num_classes]``.
    """

    def __init__(self, num_classes: int = 1000, dropout: float = 0.2) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(3, 32, 3, stride=2)]
        in_channels = 32
        for expansion, channels, blocks, stride in _STAGES:
            for index in range(blocks):
                layers.append(InvertedResidual(in_channels, channels, 1 if index else stride, expansion))
                in_channels = channels
        self.features = nn.Sequential(*layers, _conv(in_channels, 1280, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(1280, num_classes))

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def mobilenet_v2(**options: Any) -> MobileNetV2:
    """MobileNet-V2, 3,504,872 parameters. ``options`` go to :class:`MobileNetV2`.

    Example::

        model = cnnext.models.mobilenet_v2().eval()
        model(torch.randn(1, 3, 224, 224)).shape  # (1, 1000)
    """
    return MobileNetV2(**options)
