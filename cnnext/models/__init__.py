"""The networks the library is measured on, in plain ``torch.nn`` layers.

Parameter names and shapes are torchvision's, so its checkpoints load with ``strict=True``. Nothing here
knows of cnnext's kernels: ``cnnext.convert(model)`` swaps the convolution and pooling layers, and an
unconverted copy is the comparison::

    model = cnnext.models.resnet50()
    model.load_state_dict(torch.load("resnet50-11ad3fa6.pth"))
    ours = cnnext.convert(copy.deepcopy(model))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from .googlenet import GoogLeNet, GoogLeNetOutputs, googlenet
from .resnet import ResNet, resnet18, resnet34, resnet50, resnet101, resnet152, resnext50_32x4d

_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    builder.__name__: builder
    for builder in (resnet18, resnet34, resnet50, resnet101, resnet152, resnext50_32x4d, googlenet)
}


def names() -> list[str]:
    """The names :func:`build` accepts."""
    return list(_BUILDERS)


def build(name: str, **options: Any) -> nn.Module:
    """Builds a model by name with random weights; ``options`` go to its constructor.

    Raises:
        ValueError: no model has this name.

    Example::

        model = cnnext.models.build("resnet50", num_classes=10)
        model(torch.randn(1, 3, 224, 224)).shape  # (1, 10)
    """
    if name not in _BUILDERS:
        raise ValueError(f"no model is named {name!r}; there are {', '.join(_BUILDERS)}")
    return _BUILDERS[name](**options)


__all__ = [
    "GoogLeNet",
    "GoogLeNetOutputs",
    "ResNet",
    "build",
    "googlenet",
    "names",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
]
