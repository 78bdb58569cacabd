"""Convolution and pooling for PyTorch with kernels of its own."""

from . import _load

_C, _build_info = _load.load()

__version__: str = _build_info["version"]

from . import _flops as _flops  # noqa: E402
from . import backends, functional, nn  # noqa: E402
from ._convert import conversion_report, convert, revert  # noqa: E402
from ._decompositions import decompositions  # noqa: E402
from ._explain import explain  # noqa: E402
from ._override import override  # noqa: E402
from .backends import empty_cache, fallbacks, memory_stats, reset_fallbacks  # noqa: E402

__all__ = [
    "__version__",
    "backends",
    "conversion_report",
    "convert",
    "decompositions",
    "empty_cache",
    "explain",
    "fallbacks",
    "functional",
    "memory_stats",
    "nn",
    "override",
    "reset_fallbacks",
    "revert",
]
