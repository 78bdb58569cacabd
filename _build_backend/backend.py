"""Build backend: setuptools, with the installed torch in reach.

`pip install .` builds in an isolated environment that has no torch. Asking for one there would download a second
torch, and not always the one that will run. So the environment that pip was called from is appended to `sys.path`.
"""

from __future__ import annotations

import importlib.util
import os
import site
import sys
import sysconfig
from typing import Any

from setuptools import build_meta as _setuptools
from setuptools.build_meta import (  # noqa: F401  (the hooks that stay as they are)
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

NO_TORCH = (
    "cnnext is compiled against the torch that will run it, and this environment has none: "
    "run `pip install torch` (2.11 or newer) first, then install cnnext again."
)


def _site_packages() -> list[str]:
    """Folders that may hold the caller's torch, nearest first."""
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    # `uv` and `python -m build` use an interpreter of their own; what they leave is the name of the active environment.
    active = os.environ.get("VIRTUAL_ENV") or os.environ.get("CONDA_PREFIX")
    if active:
        folders.append(sysconfig.get_path("purelib", vars={"base": active, "platbase": active}))
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    folders += site.getsitepackages([sys.prefix, sys.base_prefix])  # --system-site-packages, Debian's dist-packages
    return list(dict.fromkeys(folders))


def reach_torch() -> None:
    """Makes `import torch` possible, or raises SystemExit with what to do."""
    if importlib.util.find_spec("torch"):
        return
    for folder in _site_packages():
        if os.path.isfile(os.path.join(folder, "torch", "__init__.py")):
            sys.path.append(folder)  # last: what the isolated environment does have comes first
            return
    raise SystemExit(NO_TORCH)


# pip asks these before it resolves the dependencies: the place to stop, or it would first download a torch.
def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    reach_torch()
    return _setuptools.get_requires_for_build_wheel(config_settings)


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    reach_torch()
    return _setuptools.get_requires_for_build_editable(config_settings)
