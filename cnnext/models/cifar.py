"""The depth problem: deep networks for small images with and without shortcuts (He et al., section 4.2,
https://arxiv.org/abs/1512.03385).

A plain network of 6n + 2 layers and its residual twin have the same layers and as many parameters; a shortcut
only adds a block's input to its output. With depth the plain one becomes harder to train, its twin does not.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import nn


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm, with or without the shortcut around them."""

    def __init__(self, in_channels: int, channels: int, stride: int, residual: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.new_channels = channels - in_channels
        self.residual = residual

    def shortcut(self, x: Tensor) -> Tensor:
        """The identity without parameters ("option A"): every second pixel, and zeros for the new channels."""
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.new_channels)) if self.new_channels else x

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        if self.residual:
            y = y + self.shortcut(x)
        return F.relu(y, inplace=True)


class CifarNet(nn.Module):
    """A plain or residual network of 6n + 2 layers: three stages of n blocks with 16, 32 and 64 channels.

    Args:
        depth: number of layers with weights, 6n + 2.
        residual: with shortcuts.
        num_classes: width of the last layer.
        in_channels: 1 for grey images, 3 for coloured ones.

    Shape:
        input ``[N, in_channels, H, W]``, output ``[N, num_classes]``.

    Raises:
        ValueError: ``depth`` is not 6n + 2.
    """

    def __init__(self, depth: int, residual: bool, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth should be 6n + 2 such as 20 or 56, got {depth}")
        blocks = depth // 6
        self.conv1 = nn.Conv2d(in_channels, 16, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)

        def stage(in_channels: int, channels: int, stride: int) -> nn.Sequential:
            rest = [Block(channels, channels, 1, residual) for _ in range(blocks - 1)]
            return nn.Sequential(Block(in_channels, channels, stride, residual), *rest)

        self.layer1 = stage(16, 16, stride=1)
        self.layer2 = stage(16, 32, stride=2)
        self.layer3 = stage(32, 64, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def plain20(**options: Any) -> CifarNet:
    """20 layers without shortcuts, 269,722 parameters. ``options`` go to :class:`CifarNet`."""
    return CifarNet(20, residual=False, **options)


def plain56(**options: Any) -> CifarNet:
    """56 layers without shortcuts, 853,018 parameters. ``options`` go to :class:`CifarNet`."""
    return CifarNet(56, residual=False, **options)


def resnet20(**options: Any) -> CifarNet:
    """20 layers with shortcuts, 269,722 parameters. ``options`` go to :class:`CifarNet`.

    Example::

        model = cnnext.models.resnet20()
        model(torch.randn(1, 3, 32, 32)).shape  # (1, 10)
    """
    return CifarNet(20, residual=True, **options)


def resnet56(**options: Any) -> CifarNet:
    """56 layers with shortcuts, 853,018 parameters. ``options`` go to :class:`CifarNet`."""
    return CifarNet(56, residual=True, **options)
