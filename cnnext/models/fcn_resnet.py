"""FCN on a dilated ResNet-50 (Long et al., https://arxiv.org/abs/1411.4038), named as torchvision names it."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .. import nn
from .resnet import resnet50


class FCNHead(nn.Sequential):
    """From feature maps to one score map per class."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        channels = in_channels // 4
        super().__init__(
            nn.Conv2d(in_channels, channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Dropout(0.1),
            nn.Conv2d(channels, num_classes, kernel_size=1),
        )


class Backbone(nn.Module):
    """ResNet-50 up to its last feature map; stages 3 and 4 dilate instead of downsampling, so that it has an eighth
    of the image's size. Returns the maps of stage 4 (2048 channels) and 3 (1024)."""

    def __init__(self) -> None:
        super().__init__()
        resnet = resnet50(replace_stride_with_dilation=(False, True, True))
        self.conv1, self.bn1, self.relu, self.maxpool = resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        stage3 = self.layer3(self.layer2(self.layer1(x)))
        return self.layer4(stage3), stage3


class SegmentationNet(nn.Module):
    """A dilated ResNet-50 with a head that scores every pixel, and torchvision's parameter names.

    Args:
        classifier: the head, on 2048 channels.
        num_classes: of the auxiliary head.
        aux_loss: build the auxiliary head on stage 3, which is used in training. Torchvision's checkpoints hold one
            and load with ``strict=True`` only into a network that has it.

    Shape:
        input ``[N, 3, H, W]``; output a dictionary of ``[N, num_classes, H, W]``: "out" and, with ``aux_loss``, "aux".
    """

    def __init__(self, classifier: nn.Module, num_classes: int, aux_loss: bool = False) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.classifier = classifier
        self.aux_classifier = FCNHead(1024, num_classes) if aux_loss else None

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        size = x.shape[-2:]
        stage4, stage3 = self.backbone(x)
        scores = {"out": self.classifier(stage4)}
        if self.aux_classifier is not None:
            scores["aux"] = self.aux_classifier(stage3)
        return {
            name: F.interpolate(score, size=size, mode="bilinear", align_corners=False)
            for name, score in scores.items()
        }


def fcn_resnet50(num_classes: int = 21, **options: Any) -> SegmentationNet:
    """FCN on ResNet-50, 32,957,013 parameters. ``options`` go to :class:`SegmentationNet`; torchvision's checkpoint
    needs ``aux_loss=True``.

    Example::

        model = cnnext.models.fcn_resnet50().eval()
        model(torch.randn(1, 3, 224, 224))["out"].shape  # (1, 21, 224, 224)
    """
    return SegmentationNet(FCNHead(2048, num_classes), num_classes, **options)
