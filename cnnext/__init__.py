"""Convolution and pooling for PyTorch with kernels of its own."""

from . import _load

_C, _build_info = _load.load()

__version__: str = _build_info["version"]

__all__ = ["__version__"]
