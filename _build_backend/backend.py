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
    """Where the caller's packages are, in the order in which its interpreter looks."""
    folders = [] if sys.prefix == sys.base_prefix else [sysconfig.get_path("purelib")]
    # pip builds with its own interpreter. uv and `python -m build` make another one; what they leave of the active
    # environment is its name or its place in PATH.
    if "PIP_BUILD_TRACKER" not in os.environ:
        active = [os.environ.get("VIRTUAL_ENV"), os.environ.get("CONDA_PREFIX")]
        active += [os.path.dirname(folder) for folder in os.get_exec_path() if folder.endswith("bin")]
        for prefix in active:
            if prefix and any(os.path.exists(os.path.join(prefix, name)) for name in ("pyvenv.cfg", "conda-meta")):
                folders.append(sysconfig.get_path("purelib", vars={"base": prefix, "platbase": prefix}))
    if sys.base_prefix in site.PREFIXES:  # no virtual environment, or one with --system-site-packages
        folders.append(site.getusersitepackages())
    return list(dict.fromkeys(folders + site.getsitepackages()))


def reach_torch() -> None:
    """Makes `import torch` possible, or raises SystemExit with what to do."""
    if importlib.util.find_spec("torch"):
        return
    sys.path += _site_packages()  # last: what the isolated environment does have comes first
    importlib.invalidate_caches()
    if not importlib.util.find_spec("torch"):
        raise SystemExit(NO_TORCH)


# pip asks these before it resolves the dependencies: the place to stop, or it would first download a torch.
def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    reach_torch()
    return _setuptools.get_requires_for_build_wheel(config_settings)


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    reach_torch()
    return _setuptools.get_requires_for_build_editable(config_settings)
