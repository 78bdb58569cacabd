"""What one Python call costs beyond its arithmetic: microseconds per call on 1x1x4x4 tensors.

python benchmarks/call_overhead.py [--threads 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table

import cnnext.functional
from cnnext._options import output_file, positive, threads
from cnnext.bench.report import make_console
from cnnext.bench.timing import Timing, finish, interleave


def calls(functional: object, grad: bool, backward: bool) -> dict[str, Callable[[], object]]:
    """The measured calls of one library."""
    x = torch.randn(1, 1, 4, 4, requires_grad=grad)
    weight = torch.randn(1, 1, 3, 3, requires_grad=grad)
    f: Any = functional
    functions: dict[str, Callable[[], Any]] = {
        "conv2d": lambda: f.conv2d(x, weight, None, 1, 1),
        "conv_transpose2d": lambda: f.conv_transpose2d(x, weight, None, 1, 1),
        "max_pool2d": lambda: f.max_pool2d(x, 2),
        "max_pool2d with indices": lambda: f.max_pool2d(x, 2, return_indices=True),
        "avg_pool2d": lambda: f.avg_pool2d(x, 2),
        "adaptive_avg_pool2d": lambda: f.adaptive_avg_pool2d(x, 2),
        "adaptive_max_pool2d": lambda: f.adaptive_max_pool2d(x, 2),
    }
    if not backward:
        return functions

    def with_backward(name: str, function: Callable[[], Any]) -> Callable[[], object]:
        def first() -> torch.Tensor:
            output = function()
            return output[0] if isinstance(output, tuple) else output

        ones = torch.ones_like(first())
        inputs = (x, weight) if name.startswith("conv") else (x,)
        return lambda: torch.autograd.grad(first(), inputs, ones)

    return {name: with_backward(name, function) for name, function in functions.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=threads, default=1)
    parser.add_argument("--min-time", type=positive, default=1.0, metavar="S", help="seconds per function")
    parser.add_argument("--json", type=output_file, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    cases = {"no grad": (False, False), "grad": (True, False), "forward + backward": (True, True)}
    functions = {}
    for case, (grad, backward) in cases.items():
        for library, functional in (("torch", F), ("cnnext", cnnext.functional)):
            for name, function in calls(functional, grad, backward).items():
                functions[f"{name}|{case}|{library}"] = function
    try:
        timings: dict[str, Timing] = finish(interleave(functions, options.min_time))
    except KeyboardInterrupt:
        print("interrupted: the calls take turns, and none has been measured to its end", file=sys.stderr)
        return 130

    console = make_console()
    table = Table(title=f"µs per call on 1x1x4x4, {options.threads} thread(s), median of rounds in turns")
    for heading in ("call", "", "torch", "cnnext", "difference"):
        table.add_column(heading, justify="left" if heading in ("call", "") else "right")
    for name in calls(F, False, False):
        for case in cases:
            theirs, ours = (timings[f"{name}|{case}|{library}"].median * 1e6 for library in ("torch", "cnnext"))
            table.add_row(name, case, f"{theirs:.2f}", f"{ours:.2f}", f"{ours - theirs:+.2f}")
    console.print(table)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({name: timing.as_json() for name, timing in timings.items()}, file, indent=1, allow_nan=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
