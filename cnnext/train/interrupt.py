"""Ctrl-C between steps."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def ignore_interrupt(worker: int) -> None:
    """For processes that read pictures: a Ctrl-C in the terminal reaches them too, but ending them is the trainer's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def between_steps() -> Iterator[Callable[[], None]]:
    """Holds the first Ctrl-C back until the function it gives is called; a second one acts at once.

    Python drops an exception that a signal's handler raises in a destructor or a weak reference's callback, and
    torch has many of them: a Ctrl-C that strikes there would be lost.
    """
    pressed = False

    def press(*_: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, press)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
