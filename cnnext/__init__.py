"""Convolution, linear layers, pooling and batch normalisation for PyTorch with kernels of its own."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from . import _load

_C, _build_info = _load.load()

__version__: str = _build_info["version"]

from . import _flops as _flops  # noqa: E402
from . import backends, functional, nn  # noqa: E402
from ._convert import conversion_report, convert, revert  # noqa: E402
from ._decompositions import decompositions  # noqa: E402
from ._explain import explain  # noqa: E402
from ._fuse import fuse  # noqa: E402
from ._override import override  # noqa: E402
from .backends import empty_cache, fallbacks, memory_stats, reset_fallbacks  # noqa: E402

if TYPE_CHECKING:
    from . import models, viz
    from .bench.profiling import Profile as Profile
    from .bench.profiling import profile as profile

__all__ = [  # without profile, so that `import *` needs no package of an extra
    "__version__",
    "backends",
    "conversion_report",
    "convert",
    "decompositions",
    "empty_cache",
    "explain",
    "fallbacks",
    "functional",
    "fuse",
    "memory_stats",
    "models",
    "nn",
    "override",
    "reset_fallbacks",
    "revert",
    "viz",
]


def __getattr__(name: str) -> Any:
    """What is imported when first used: it takes time, or packages that come with an extra."""
    if name in ("models", "viz"):
        return importlib.import_module(f".{name}", __name__)
    if name in ("profile", "Profile"):
        try:
            from .bench import profiling
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            raise ModuleNotFoundError(f"cnnext.profile needs {package}: run `pip install 'cnnext[report]'`") from None
        return getattr(profiling, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    profiling = ("profile", "Profile") if importlib.util.find_spec("rich") else ()  # help() gets what is listed
    return sorted({*globals(), *__all__, *profiling})
