"""Types of the command lines' options: argparse tells what was expected and what came, and ends with status 2."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path

MOST = 2**31 - 1  # what sizes and seeds can be multiplied without an overflow


def whole(least: int, most: int = MOST) -> Callable[[str], int]:
    """Reads a whole number from ``least`` to ``most``."""

    def read(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} to {most}, got {text!r}")
        return int(text)

    return read


def cpus() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(text: str) -> int:
    """Reads a number of threads; one for which there is no CPU only waits, and many thousands end the process."""
    return whole(1, cpus())(text)


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


def output_file(text: str) -> str:
    """A file that can be written, told before minutes pass; leaves none that was not there."""
    path = Path(text)
    there = path.exists()
    try:
        path.open("a").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: {error.strerror}") from None
    if not there:
        path.unlink()
    return text


def output_folder(text: str) -> str:
    """A folder, which is made where it is missing."""
    try:
        Path(text).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot make the folder {text!r}: {error.strerror}") from None
    return text
