"""``cnnext train``: trains a classifier of ``cnnext.models`` on real pictures, with our layers or torch's.

The parts, each usable alone: ``data`` (digits or a folder of pictures as datasets), ``loop`` (epochs, on one or several
processes), ``checkpoint``, ``progress`` and ``curves`` (what is seen), ``distributed`` (torchrun), ``cli``.
"""

from .cli import add_arguments, main

__all__ = ["add_arguments", "main"]
