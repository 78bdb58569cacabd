"""Networks for classification, segmentation and detection, in the layers of ``cnnext.nn``.

Where torchvision has a network, parameter names and shapes are torchvision's, so that its checkpoints load with
``strict=True`` (into ``fcn_resnet50`` and ``deeplabv3_resnet50`` with ``aux_loss=True``). Everything else is plain
PyTorch, and ``cnnext.revert`` makes the same network with torch's layers::

    model = cnnext.models.resnet50()
    model.load_state_dict(torch.load("resnet50-11ad3fa6.pth"))
    torchs = cnnext.revert(copy.deepcopy(model))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from . import yolo
from .cifar import CifarNet, plain20, plain56, resnet20, resnet56
from .deeplab import deeplabv3_resnet50
from .fcn import FCN, fcn8s, fcn16s, fcn32s
from .fcn_resnet import SegmentationNet, fcn_resnet50
from .googlenet import GoogLeNet, GoogLeNetOutputs, googlenet
from .inception import Inception3, InceptionOutputs, inception_v3
from .lecture import Lecture, lecture
from .mobilenet import MobileNetV2, mobilenet_v2
from .resnet import ResNet, resnet18, resnet34, resnet50, resnet101, resnet152, resnext50_32x4d
from .vgg import VGG, vgg16, vgg16_bn
from .yolo import YOLO, yolo_v1


class Spec(NamedTuple):
    """A network and the images it was made for. task: "classification", "segmentation" or "detection";
    channels and size: of the images, height and width in pixels."""

    builder: Callable[..., nn.Module]
    task: str
    channels: int
    size: int


def _specs(task: str, channels: int, size: int, *builders: Callable[..., nn.Module]) -> dict[str, Spec]:
    return {builder.__name__: Spec(builder, task, channels, size) for builder in builders}


SPECS: dict[str, Spec] = {
    **_specs("classification", 1, 28, lecture),
    **_specs("classification", 3, 32, plain20, plain56, resnet20, resnet56),
    **_specs("classification", 3, 224, resnet18, resnet34, resnet50, resnet101, resnet152, resnext50_32x4d),
    **_specs("classification", 3, 224, googlenet, vgg16, vgg16_bn, mobilenet_v2),
    **_specs("classification", 3, 299, inception_v3),
    **_specs("segmentation", 3, 224, fcn32s, fcn16s, fcn8s, fcn_resnet50, deeplabv3_resnet50),
    **_specs("detection", 3, 448, yolo_v1),
}


def names(task: str | None = None) -> list[str]:
    """The names that :func:`build` accepts, of one task ("classification", "segmentation", "detection") or all."""
    return [name for name, spec in SPECS.items() if task in (None, spec.task)]


def build(name: str, **options: Any) -> nn.Module:
    """Builds a model by name with random weights; ``options`` go to its constructor.

    Raises:
        ValueError: no model has this name.

    Example::

        model = cnnext.models.build("resnet50", num_classes=10)
        model(torch.randn(1, 3, 224, 224)).shape  # (1, 10)
    """
    if name not in SPECS:
        raise ValueError(f"no model is named {name!r}; there are {', '.join(SPECS)}")
    return SPECS[name].builder(**options)


__all__ = [
    "FCN",
    "SPECS",
    "VGG",
    "YOLO",
    "CifarNet",
    "GoogLeNet",
    "GoogLeNetOutputs",
    "Inception3",
    "InceptionOutputs",
    "Lecture",
    "MobileNetV2",
    "ResNet",
    "SegmentationNet",
    "Spec",
    "build",
    "deeplabv3_resnet50",
    "fcn8s",
    "fcn16s",
    "fcn32s",
    "fcn_resnet50",
    "googlenet",
    "inception_v3",
    "lecture",
    "mobilenet_v2",
    "names",
    "plain20",
    "plain56",
    "resnet18",
    "resnet20",
    "resnet34",
    "resnet50",
    "resnet56",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "vgg16",
    "vgg16_bn",
    "yolo",
    "yolo_v1",
]
