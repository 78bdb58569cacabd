"""Convolution and pooling for PyTorch with kernels of its own."""

from ._load import load as _load

_C, _build_info = _load()

__version__: str = _build_info["version"]

__all__ = ["__version__"]
