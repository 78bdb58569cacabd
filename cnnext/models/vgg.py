"""VGG (Simonyan and Zisserman, https://arxiv.org/abs/1409.1556), named as torchvision names it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import nn

# Channels of the 3x3 convolutions in each of the five stages of VGG-16 ("D" in the paper).
_VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def _features(stages: Sequence[Sequence[int]], batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    in_channels = 3
    for stage in stages:
        for channels in stage:
            layers.append(nn.Conv2d(in_channels, channels, kernel_size=3, padding=1))
            if batch_norm:
                layers.append(nn.BatchNorm2d(channels))
            layers.append(nn.ReLU(inplace=True))
            in_channels = channels
        layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
    return nn.Sequential(*layers)


class VGG(nn.Module):
    """VGG with torchvision's parameter names.

    Args:
        stages: channels of the convolutions, one sequence per stage; a stage ends with pooling.
        num_classes: width of the last layer.
        batch_norm: after every convolution.
        hidden: width of the two hidden fully connected layers.
        dropout: probability after each of them.

    Shape:
        input ``[N, 3, H, W]`` with H and W at least 32, output ``[N, num_classes]``.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[int]],
        num_classes: int = 1000,
        batch_norm: bool = False,
        hidden: int = 4096,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.features = _features(stages, batch_norm)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            nn.Linear(stages[-1][-1] * 7 * 7, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


def vgg16(**options: Any) -> VGG:
    """VGG-16, 138,357,544 parameters. ``options`` go to :class:`VGG`.

    Example::

        model = cnnext.models.vgg16().eval()
        model(torch.randn(1, 3, 224, 224)).shape  # (1, 1000)
    """
    return VGG(_VGG16, **options)


def vgg16_bn(**options: Any) -> VGG:
    """VGG-16 with batch norm, 138,365,992 parameters. ``options`` go to :class:`VGG`."""
    return VGG(_VGG16, batch_norm=True, **options)
