"""FCN-32s, 16s and 8s on VGG-16 (Long et al., https://arxiv.org/abs/1411.4038).

VGG's fully connected layers become convolutions, so that every place of the last feature map is classified, and
transposed convolutions that start as bilinear interpolation bring the scores back to the image's size. FCN-16s and
8s add the scores of finer feature maps on the way. The paper pads the image by 100 pixels and crops; here the 7x7
convolution is padded instead.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import nn
from .vgg import _VGG16, VGG, _features


def bilinear_kernel(channels: int, factor: int) -> Tensor:
    """The weight with which a transposed convolution of stride ``factor`` interpolates each channel bilinearly.

    Returns:
        ``[channels, channels, 2 * factor, 2 * factor]``; zero between different channels.
    """
    position = (torch.arange(2 * factor) + 0.5) / factor - 1  # of the taps, in input pixels from the centre
    triangle = 1 - position.abs()
    weight = torch.zeros(channels, channels, 2 * factor, 2 * factor)
    weight[range(channels), range(channels)] = torch.outer(triangle, triangle)
    return weight


def _upsample(channels: int, factor: int) -> nn.ConvTranspose2d:
    layer = nn.ConvTranspose2d(channels, channels, 2 * factor, stride=factor, padding=factor // 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(bilinear_kernel(channels, factor))
    return layer


class FCN(nn.Module):
    """FCN on VGG-16.

    Args:
        stride: 32, 16 or 8: how many pixels a place of the finest map that is scored stands for.
        num_classes: with the background.
        batch_norm: VGG's features have batch norm, as ``vgg16_bn``; helps where they are not pretrained.
        hidden: channels of the layers that were fully connected.
        dropout: probability after each of them.

    Shape:
        input ``[N, 3, H, W]`` of any size, output ``[N, num_classes, H, W]``.

    Raises:
        ValueError: ``stride`` is not 32, 16 or 8.
    """

    def __init__(
        self,
        stride: int,
        num_classes: int = 21,
        batch_norm: bool = False,
        hidden: int = 4096,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if stride not in (32, 16, 8):
            raise ValueError(f"stride should be 32, 16 or 8, got {stride}")
        self.stride = stride
        self.features = _features(_VGG16, batch_norm)
        self.classifier = nn.Sequential(
            nn.Conv2d(512, hidden, kernel_size=7, padding=3),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Conv2d(hidden, hidden, kernel_size=1),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Conv2d(hidden, num_classes, kernel_size=1),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
        if stride <= 16:
            self.score_pool4 = nn.Conv2d(512, num_classes, kernel_size=1)
            self.upsample_pool5 = _upsample(num_classes, 2)
        if stride == 8:
            self.score_pool3 = nn.Conv2d(256, num_classes, kernel_size=1)
            self.upsample_pool4 = _upsample(num_classes, 2)
        self.upsample = _upsample(num_classes, stride)
        # Scores start at zero: the network begins undecided, and finer maps join as they learn.
        for name, module in self.named_modules():
            if name.startswith("score_") or name == "classifier.6":
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)

    def load_vgg(self, vgg: VGG) -> None:
        """Takes the weights of a trained VGG-16, except those of its last layer.

        Raises:
            RuntimeError: shapes differ (``hidden`` is not 4096, or one has batch norm and the other has not).
        """
        self.features.load_state_dict(vgg.features.state_dict())
        for index in (0, 3):
            linear: Any = vgg.classifier[index]
            conv: Any = self.classifier[index]
            weight = linear.weight.detach().view(linear.out_features, -1, *conv.kernel_size)
            conv.load_state_dict({"weight": weight, "bias": linear.bias.detach()})

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % 32, 0, -height % 32))
        pools = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.modules.pooling.MaxPool2d):
                pools.append(x)
        x = self.classifier(x)
        if self.stride <= 16:
            x = self.upsample_pool5(x) + self.score_pool4(pools[3])
        if self.stride == 8:
            x = self.upsample_pool4(x) + self.score_pool3(pools[2])
        return self.upsample(x)[:, :, :height, :width]


def fcn32s(**options: Any) -> FCN:
    """FCN-32s, 136,152,917 parameters. ``options`` go to :class:`FCN`."""
    return FCN(32, **options)


def fcn16s(**options: Any) -> FCN:
    """FCN-16s, 134,815,994 parameters. ``options`` go to :class:`FCN`."""
    return FCN(16, **options)


def fcn8s(**options: Any) -> FCN:
    """FCN-8s, 134,489,759 parameters. ``options`` go to :class:`FCN`.

    Example::

        model = cnnext.models.fcn8s(hidden=256).eval()
        model(torch.randn(1, 3, 224, 224)).shape  # (1, 21, 224, 224)
    """
    return FCN(8, **options)
