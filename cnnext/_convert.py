"""Exchange of torch's layers for ours inside a model, and back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch.nn.utils import parametrize

from . import nn

Model = TypeVar("Model", bound=torch.nn.Module)
Choice = str | type[torch.nn.Module] | Callable[[str, torch.nn.Module], bool]
Choices = Choice | Iterable[Choice] | None

Classes = dict[type[torch.nn.Module], type[torch.nn.Module]]

_OURS: Classes = {getattr(torch.nn, name): getattr(nn, name) for name in nn.__all__}
_TORCHS: Classes = {ours: torchs for torchs, ours in _OURS.items()}
_NAMES = frozenset(nn.__all__)
_MISSING = (torch.nn.FractionalMaxPool2d, torch.nn.FractionalMaxPool3d)


def _matches(choices: Choices, name: str, module: torch.nn.Module) -> bool:
    if isinstance(choices, (str, type)) or not isinstance(choices, Iterable):
        choices = () if choices is None else (choices,)
    for choice in choices:
        if isinstance(choice, str):
            matched = fnmatchcase(name, choice)
        elif isinstance(choice, type):
            matched = isinstance(module, choice)
        else:
            matched = choice(name, module)
        if matched:
            return True
    return False


def _chosen(model: torch.nn.Module, include: Choices, exclude: Choices) -> Iterator[tuple[str, torch.nn.Module]]:
    for name, module in model.named_modules():
        if (include is None or _matches(include, name, module)) and not _matches(exclude, name, module):
            yield name, module


def _base(module: torch.nn.Module) -> type[torch.nn.Module] | None:
    """The layer that a module is or derives from, ours before torch's."""
    return next((cls for cls in type(module).__mro__ if cls in _OURS or cls in _TORCHS), None)


def _obstacle(module: torch.nn.Module, classes: Classes) -> str | None:
    """Why a layer stays as it is where `classes` are exchanged; None if it is exchanged, or no layer of that side."""
    kind, base = type(module), _base(module)
    if kind in classes:
        return None
    if base in classes and parametrize.is_parametrized(module):
        return f"parametrized {base.__name__}"
    if base in classes:
        return f"{kind.__qualname__}, a subclass of {base.__name__}"
    if base is not None or classes is _TORCHS:
        return None
    if isinstance(module, torch.jit.ScriptModule):
        name = getattr(module, "original_name", "")
        return f"{name} compiled by torch.jit" if name in _NAMES else None
    if kind.__module__.startswith("torch.ao.nn") and kind.__name__ in _NAMES:
        return f"quantised {kind.__name__}"
    missing = next((cls.__name__ for cls in _MISSING if isinstance(module, cls)), None)
    return missing and f"cnnext has no {missing}"


def _state(module: torch.nn.Module) -> str | None:
    """What `conversion_report` says of one module; None if it is no convolution or pooling layer."""
    if _base(module) in _TORCHS:
        return "cnnext"
    if type(module) in _OURS:
        return "torch: convert exchanges it"
    obstacle = _obstacle(module, _OURS)
    return obstacle and f"left alone: {obstacle}"


def _exchange(model: Model, include: Choices, exclude: Choices, classes: Classes, warning: str) -> Model:
    left_alone = []
    for name, module in _chosen(model, include, exclude):
        if type(module) in classes:
            module.__class__ = classes[type(module)]
        elif obstacle := _obstacle(module, classes):
            left_alone.append(f"{name or 'the model'} ({obstacle})")
    if left_alone:
        warnings.warn(f"{warning} {', '.join(left_alone)}", stacklevel=3)
    return model


def conversion_report(model: torch.nn.Module) -> dict[str, str]:
    """Says of each convolution and pooling layer of a model whether it is ours, and if not, why.

    Returns:
        The layer's name in the model (empty for the model itself) to "cnnext", "torch: convert exchanges it" or
        "left alone: ..." with the reason.

    Example:
        >>> import cnnext
        >>> cnnext.conversion_report(torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), cnnext.nn.MaxPool2d(2)))
        {'0': 'torch: convert exchanges it', '1': 'cnnext'}
    """
    states = ((name, _state(module)) for name, module in model.named_modules())
    return {name: state for name, state in states if state is not None}


def convert(model: Model, include: Choices = None, exclude: Choices = None) -> Model:
    """Makes a model's convolution and pooling layers ours, in place.

    A layer stays the same object and only its class changes: parameters, buffers, hooks and an optimizer's references
    survive. Layers whose type is not exactly torch's (user subclasses, parametrized, quantised or scripted ones) and
    fractional max pooling are left alone, and one warning names them; `conversion_report(model)` has the full list.

    Args:
        model: any module; it may itself be a layer.
        include, exclude: which layers: a pattern for their name ("features.*", as in fnmatch), a type of module, a
            function of name and module, or several of these. All are included and none excluded by default.

    Returns:
        The model that was given.

    Example:
        >>> import cnnext
        >>> type(cnnext.convert(torch.nn.Conv2d(3, 8, 3)))
        <class 'cnnext.nn.Conv2d'>
    """
    return _exchange(model, include, exclude, _OURS, "cnnext.convert left alone")


def revert(model: Model, include: Choices = None, exclude: Choices = None) -> Model:
    """Makes a model's layers torch's again, in place: the opposite of `convert`, with the same arguments.

    Layers whose type is not exactly ours (user subclasses and parametrized ones) are left alone, and one warning names
    them.

    Example:
        >>> import cnnext
        >>> type(cnnext.revert(cnnext.nn.Conv2d(3, 8, 3)))
        <class 'torch.nn.modules.conv.Conv2d'>
    """
    return _exchange(model, include, exclude, _TORCHS, "cnnext.revert left alone")
