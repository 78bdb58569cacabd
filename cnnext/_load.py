"""Loads the compiled library, or says in one sentence why it cannot be loaded."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def load() -> tuple[ModuleType, dict[str, Any]]:
    """Returns `cnnext._C` and the facts that setup.py recorded when it was built.

    Raises:
        ImportError: if the library was not built, or was built for a torch of another minor version. C++ extensions
            keep to one minor version of torch; past it they fail with an undefined symbol, or worse.
    """
    try:
        facts: dict[str, Any] = importlib.import_module("cnnext._build_info").BUILD_INFO
    except ModuleNotFoundError:
        raise ImportError(
            "cnnext's compiled library is not built: run `pip install -e .` in the source folder (or, if cnnext is "
            "installed elsewhere, start Python outside the source folder)"
        ) from None
    built, running = _minor(facts["torch"]), _minor(torch.__version__)
    if built != running:
        raise ImportError(
            f"cnnext was built for torch {built}, running {running}: reinstall with "
            "`pip install --force-reinstall --no-deps --no-cache-dir .` in the source folder"
        )
    try:
        return importlib.import_module("cnnext._C"), facts
    except ModuleNotFoundError:
        raise ImportError(
            "cnnext's compiled library was not built for this Python: run `pip install -e .` in the source folder"
        ) from None
