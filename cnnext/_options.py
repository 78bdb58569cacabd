"""Types of the command lines' options: argparse tells what was expected and what came, and ends with status 2."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

MOST = 2**31 - 1  # what sizes and seeds can be multiplied without an overflow


def whole(least: int, most: int = MOST) -> Callable[[str], int]:
    """Reads a whole number from ``least`` to ``most``."""

    def read(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} to {most}, got {text!r}")
        return int(text)

    return read


def extents(least: int) -> Callable[[str], tuple[int, ...]]:
    """Reads whole numbers of at least ``least``, joined by x."""
    number = whole(least)

    def read(text: str) -> tuple[int, ...]:
        try:
            return tuple(map(number, text.lower().split("x")))
        except argparse.ArgumentTypeError:
            raise argparse.ArgumentTypeError(
                f"expected whole numbers from {least} joined by x such as 16x64x56x56, got {text!r}"
            ) from None

    return read


def positive(text: str) -> float:
    """Reads a number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return value
