"""``cnnext bench``: our layers beside torch's, checked, then timed.

The parts, each usable alone: ``layers`` (layers as data), ``suites`` (those of models), ``layer_bench`` (one layer),
``network`` (a whole model on a photograph), ``timing`` (interleaved timing, peak memory, the machine's peaks),
``sections`` (what runs in which process), ``report`` (tables and JSON), ``cli``.
"""

from .cli import add_arguments, main

__all__ = ["add_arguments", "main"]
