"""The smallest whole network: features are extracted by convolution, activation and pooling, then classified."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import nn


class Lecture(nn.Module):
    """Two times convolution, ReLU and max pooling, then two fully connected layers.

    Args:
        num_classes: width of the last layer.
        in_channels: 1 for grey images, 3 for coloured ones.
        image_size: height and width of the images in pixels, a multiple of 4.
        dropout: probability between the fully connected layers.

    Shape:
        input ``[N, in_channels, image_size, image_size]``, output ``[N, num_classes]``.

    Raises:
        ValueError: ``image_size`` is no positive multiple of 4.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, image_size: int = 28, dropout: float = 0.5) -> None:
        super().__init__()
        if image_size < 4 or image_size % 4:
            raise ValueError(f"image_size should be a positive multiple of 4, got {image_size}")
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 32, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64 * (image_size // 4) ** 2, 128),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(128, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def lecture(**options: Any) -> Lecture:
    """The lecture's network, 421,642 parameters. ``options`` go to :class:`Lecture`.

    Example::

        model = cnnext.models.lecture()
        model(torch.randn(1, 1, 28, 28)).shape  # (1, 10)
    """
    return Lecture(**options)
