"""Inference by whole networks in every way there is: torch's eager layers, folded by torch.fx, compiled and frozen by
inductor; ours exchanged for them by `convert`, and fused by `cnnext.fuse`. All in turns, in both memory formats.

python benchmarks/inference.py [--model resnet50 resnet18] [--batch 1] [--threads T] [--no-compile] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch._inductor.config
from rich.table import Table

from cnnext import models
from cnnext._options import output_file, positive, threads, whole
from cnnext.bench import environment, layer_bench, network
from cnnext.bench.layers import LAYOUTS
from cnnext.bench.photo import photograph
from cnnext.bench.report import make_console
from cnnext.bench.timing import finish, interleave

EAGER, COMPILED, FUSED = "torch, eager", "torch.compile, frozen", "cnnext.fuse"
WAYS = {  # the library, and whether it fuses
    EAGER: ("torch", False),
    "torch.fx fuse": ("torch", True),
    COMPILED: ("torch", False),
    "cnnext.convert": ("cnnext", False),
    FUSED: ("cnnext", True),
}
_MOST_ERROR = 1e-3  # relative, of right results in float32 of networks as deep as these


def run_of(model: torch.nn.Module, images: torch.Tensor) -> Callable[[], torch.Tensor]:
    """What is timed: no gradient is wanted."""

    def run() -> torch.Tensor:
        with torch.no_grad():
            output: torch.Tensor = model(images)
            return output

    return run


def measure(name: str, batch: int, compiles: bool, min_time: float) -> dict[str, dict[str, Any]]:
    """Time and error of one network in each way and memory format."""
    size = models.SPECS[name].size
    model = network.prepared_model(name, size, training=False)
    images = photograph(batch, size)
    exact = run_of(network.converted(model, "torch", LAYOUTS[0], torch.float64), images.double())()
    runs = {}
    for way, (library, fuses) in WAYS.items():
        for layout in LAYOUTS:
            if way == COMPILED and not compiles:
                continue
            each = network.converted(model, library, layout, None, fuse=fuses)
            runs[f"{way}|{layout}"] = run_of(
                torch.compile(each) if way == COMPILED else each, layer_bench.in_layout(images, layout)
            )
    errors = {key: layer_bench.errors(run(), exact) for key, run in runs.items()}
    layer_bench.check(errors, f"{name} inference", torch.float32, _MOST_ERROR)
    timings = finish(interleave(runs, min_time))
    return {key: {**timings[key].as_json(), "error": errors[key]} for key in runs}


def table(name: str, batch: int, found: dict[str, dict[str, Any]]) -> Table:
    rows = Table(title=f"{name} · inference · N={batch} · float32 · ms, median of rounds in turns")
    rows.add_column("")
    for heading in ("NCHW", "channels_last", "of best eager", "rel. error"):
        rows.add_column(heading, justify="right")
    eager = min(found[f"{EAGER}|{layout}"]["median"] for layout in LAYOUTS)
    for way in WAYS:
        if f"{way}|{LAYOUTS[0]}" in found:
            each = [found[f"{way}|{layout}"] for layout in LAYOUTS]
            best = min(each, key=lambda result: result["median"])
            times = (f"{result['median'] * 1e3:.2f}" for result in each)
            rows.add_row(way, *times, f"{eager / best['median']:.2f}x", f"{best['error']['relative']:.1e}")
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["resnet50", "resnet18", "googlenet", "mobilenet_v2"])
    parser.add_argument("--batch", type=whole(1), default=1, metavar="N")
    parser.add_argument("--threads", type=threads, metavar="T", help="default: torch's")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile, which needs a compiler")
    parser.add_argument("--min-time", type=positive, default=3.0, metavar="S", help="seconds per way and format")
    parser.add_argument("--json", type=output_file, metavar="FILE")
    options = parser.parse_args()
    known = [name for name, spec in models.SPECS.items() if spec.task == "classification" and spec.channels == 3]
    unknown = [name for name in options.model if name not in known]
    if unknown:
        parser.error(f"no classifier is named {unknown[0]!r}; there are {', '.join(known)}")
    if options.threads:
        torch.set_num_threads(options.threads)
    torch._inductor.config.freezing = True

    console = make_console()
    networks = []
    status = 0
    try:
        for name in dict.fromkeys(options.model):
            found = measure(name, options.batch, not options.no_compile, options.min_time)
            networks.append({"model": name, "batch": options.batch, "ways": found})
            console.print(table(name, options.batch, found))
    except (KeyboardInterrupt, layer_bench.Mismatch, RuntimeError) as error:  # what was measured so far is written
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
        console.print(f"stopped: {str(error) or 'interrupted'}", markup=False)
    if options.json:
        document = {"environment": environment.facts(torch.device("cpu")), "networks": networks}
        with open(options.json, "w") as file:
            json.dump(document, file, indent=1, allow_nan=False)
    return status


if __name__ == "__main__":
    sys.exit(main())
