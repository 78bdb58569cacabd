"""Exchange of torch's layers for ours inside a model, and back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, TypeVar, cast

import torch
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from . import nn

Model = TypeVar("Model", bound=torch.nn.Module)
Choice = str | type[torch.nn.Module] | Callable[[str, torch.nn.Module], bool]
Choices = Choice | Iterable[Choice] | None

Classes = dict[type[torch.nn.Module], type[torch.nn.Module]]

_OURS: Classes = {getattr(torch.nn, name): getattr(nn, name) for name in nn._LAYERS}
_TORCHS: Classes = {ours: torchs for torchs, ours in _OURS.items()}
_NAMES = frozenset(nn._LAYERS)
_MISSING = (torch.nn.FractionalMaxPool2d, torch.nn.FractionalMaxPool3d)


def _check(model: Any, caller: str) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"cnnext.{caller}: expected a torch.nn.Module, got {type(model).__name__}")


def _several(choices: Any) -> tuple[Choice, ...]:
    if choices is None:
        return ()
    one = isinstance(choices, str) or callable(choices) or not isinstance(choices, Iterable)
    several = (choices,) if one else tuple(choices)
    for each in several:
        if isinstance(each, torch.nn.Module) or not (isinstance(each, str) or callable(each)):
            what = "patterns for names, types of module and functions of name and module"
            raise TypeError(f"include and exclude are {what}, but one is an instance of {type(each).__name__}")
    return several


def _matches(choice: Choice, name: str, module: torch.nn.Module) -> bool:
    if isinstance(choice, str):
        return fnmatchcase(name, choice)
    return isinstance(module, choice) if isinstance(choice, type) else choice(name, module)


def base_of(kind: type[Any]) -> type[torch.nn.Module] | None:
    """The layer that a type of module is or derives from, ours before torch's."""
    return next((cls for cls in kind.__mro__ if cls in _OURS or cls in _TORCHS), None)


def plain_type(kind: type[Any]) -> type[Any]:
    """Our layer that a user's subclass became by `convert`; any other type itself."""
    return base_of(kind) or kind if "_users" in vars(kind) else kind


_COMPUTES = {"forward", "__call__"}
_IS_MADE = {"__new__", "__init_subclass__", "__reduce__", "__reduce_ex__", "__getnewargs__", "__getnewargs_ex__"}


def _leaves_computing_to(base: type[Any], kind: type[Any]) -> bool:
    """Whether a user's subclass of torch's layer computes, and is copied and pickled, as that layer is."""

    def names(kind: type[Any], base: type[Any]) -> set[str]:
        return {name for cls in kind.__mro__[: kind.__mro__.index(base)] for name in vars(cls)}

    ours = {name for name in names(_OURS[base], base) if not name.startswith("__")}
    simple = type(kind) is type and not issubclass(kind, LazyModuleMixin)
    return simple and names(kind, base).isdisjoint(ours | _COMPUTES | _IS_MADE)


@cast("Callable[[Any], Any]", cache)
def _subclass_of_ours(kind: Any) -> Any:
    """A user's subclass of torch's layer as one of ours too. It has no name to be found by: pickles hold the user's."""

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        state = super(cls, self).__reduce_ex__(max(int(protocol), 2))[2:]
        return (_restored, (kind,), *state)

    base: Any = base_of(kind)
    names = {"__module__": nn.__name__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    cls: Any = type(kind.__name__, (_OURS[base], kind), {**names, "__reduce_ex__": __reduce_ex__, "_users": kind})
    return cls


def _restored(kind: Any) -> Any:
    cls = _subclass_of_ours(kind)
    return cls.__new__(cls)


def _other(kind: type[torch.nn.Module], classes: Classes) -> type[torch.nn.Module] | None:
    """What a layer becomes where `classes` are exchanged."""
    if kind in classes or classes is _TORCHS:
        return classes.get(kind) or vars(kind).get("_users")
    base = base_of(kind)
    takes = base in classes and _leaves_computing_to(base, kind)
    return cast("type[torch.nn.Module]", _subclass_of_ours(kind)) if takes else None


def _obstacle(module: torch.nn.Module, classes: Classes) -> str | None:
    """Why a layer stays as it is where `classes` are exchanged; None if it is exchanged, or no layer of that side."""
    kind, base = type(module), base_of(type(module))
    if base in classes and parametrize.is_parametrized(module):
        return f"parametrized {base.__name__}"
    if _other(kind, classes):  # a forward of the layer's own hides that of its class, which is what is exchanged
        return f"{kind.__name__} whose forward was replaced" if "forward" in vars(module) else None
    if base in classes:
        same = kind.__name__ == base.__name__
        return f"{f'{kind.__module__}.' * same}{kind.__qualname__}, a subclass of {base.__name__}"
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
    """What `conversion_report` says of one module; None if it is none of the layers that we have."""
    if base_of(type(module)) in _TORCHS:
        return "cnnext"
    if obstacle := _obstacle(module, _OURS):
        return f"left alone: {obstacle}"
    return "torch: convert exchanges it" if _other(type(module), _OURS) else None


def _exchange(
    model: torch.nn.Module, include: Choices, exclude: Choices, classes: Classes, caller: str
) -> dict[str, str]:
    """Exchanges layers in place. Names of those that stay as they are, and why."""
    _check(model, caller)
    included, excluded = _several("*" if include is None else include), _several(exclude)
    names: dict[torch.nn.Module, list[str]] = {}  # a shared layer has several
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)

    def chosen(module: torch.nn.Module, choices: tuple[Choice, ...]) -> bool:
        return any(_matches(choice, name, module) for choice in choices for name in names[module])

    for choice in (*included, *excluded):
        if isinstance(choice, str) and not any(chosen(module, (choice,)) for module in names):
            warnings.warn(f"cnnext.{caller}: no module has a name like {choice!r}", stacklevel=3)
    left_alone = {}
    for module in names:
        if not chosen(module, included) or chosen(module, excluded):
            continue
        if obstacle := _obstacle(module, classes):
            left_alone[names[module][0]] = obstacle
        elif other := _other(type(module), classes):
            module.__class__ = other
    return left_alone


def _warn(left_alone: dict[str, str], caller: str) -> None:
    if left_alone:
        listed = ", ".join(f"{name or 'the model'} ({why})" for name, why in left_alone.items())
        warnings.warn(f"cnnext.{caller} left alone {listed}", stacklevel=3)


def conversion_report(model: torch.nn.Module) -> dict[str, str]:
    """Says of each convolution, linear, pooling and batch norm layer of a model whether it is ours, and if not, why.

    Returns:
        The layer's first name in the model (empty for the model itself) to "cnnext", "torch: convert exchanges it" or
        "left alone: ..." with the reason.

    Example:
        >>> import cnnext
        >>> cnnext.conversion_report(torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), cnnext.nn.MaxPool2d(2)))
        {'0': 'torch: convert exchanges it', '1': 'cnnext'}
    """
    _check(model, "conversion_report")
    states = ((name, _state(module)) for name, module in model.named_modules())
    return {name: state for name, state in states if state is not None}


def convert(model: Model, include: Choices = None, exclude: Choices = None) -> Model:
    """Makes a model's convolution, linear, pooling and batch norm layers ours, in place.

    A layer stays the same object and only its class changes: parameters, buffers, hooks and an optimizer's references
    survive. A user's subclass that leaves computing to torch's class stays what it was (`isinstance` holds) and becomes
    a subclass of ours too. Subclasses with a `forward` of their own, parametrized, quantised and scripted layers, those
    whose `forward` was replaced and fractional max pooling are left alone, and one warning names them;
    `conversion_report(model)` has the full list.

    Args:
        model: any module; it may itself be a layer.
        include, exclude: which layers: a pattern for their name ("features.*", as in fnmatch), a type of module, a
            function of name and module, or several of these. All are included and none excluded by default. A shared
            layer has several names, of which one is enough.

    Returns:
        The model that was given.

    Example:
        >>> import cnnext
        >>> type(cnnext.convert(torch.nn.Conv2d(3, 8, 3)))
        <class 'cnnext.nn.Conv2d'>
    """
    _warn(_exchange(model, include, exclude, _OURS, "convert"), "convert")
    return model


def revert(model: Model, include: Choices = None, exclude: Choices = None) -> Model:
    """Makes a model's layers torch's again, in place: the opposite of `convert`, with the same arguments.

    Layers whose type is not exactly ours (user subclasses and parametrized ones) or whose `forward` was replaced are
    left alone, and one warning names them.

    Example:
        >>> import cnnext
        >>> type(cnnext.revert(cnnext.nn.Conv2d(3, 8, 3)))
        <class 'torch.nn.modules.conv.Conv2d'>
    """
    _warn(_exchange(model, include, exclude, _TORCHS, "revert"), "revert")
    return model
