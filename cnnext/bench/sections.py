"""A benchmark is a list of sections; each runs here or, with another allocator, in a child process."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from . import environment, layer_bench, network
from .layers import Layer, LayerUse
from .timing import Machine, Steps

Event = dict[str, Any]


@dataclass
class Section:
    """A network in one mode, or a list of layers, with all that measuring it depends on. JSON-serialisable."""

    kind: str  # "network", "layers", or "memory": a network's peak memory of one side (torch or cnnext) in one layout
    title: str
    dtype: str
    layouts: tuple[str, ...]
    batch: int
    min_time: float
    repeats: int | None = None
    threads: int | None = None
    model: str = ""
    mode: str = ""
    side: str = ""
    image_size: int = 224
    torch_memory: bool = False
    packed_weights: bool = False
    fuse: bool = False
    directions: tuple[str, ...] = ()
    cold: bool = False
    uses: list[dict[str, Any]] = field(default_factory=list)

    def add(self, use: LayerUse) -> None:
        self.uses.append({"layer": use.layer.as_json(), "names": use.names, "needs_grad_input": use.needs_grad_input})

    def layer_uses(self) -> Iterator[LayerUse]:
        """What was added."""
        for use in self.uses:
            yield LayerUse(**{**use, "layer": Layer.from_json(use["layer"])})


def run(sections: list[Section], allocator: str) -> Iterator[Event]:
    """Runs sections in order and yields events, each a dict with ``event`` one of

    ``environment`` (once, first), ``progress`` (``section``, ``text``, ``done`` from 0 to 1), ``result``
    (``section``, ``result``), ``end`` (``section``) and ``machine`` (the peaks measured so far).

    Args:
        allocator: ``default`` runs in this process; ``fixed`` in a child that starts with
            :data:`environment.FIXED_ALLOCATOR`, because glibc reads those only at its start. Each model has a child of
            its own, as memory that is kept would add up.

    Raises:
        Mismatch: a result of ours was wrong.
        Failed: torch refused what was to be measured, or a child ended early; for want of memory, for example.
    """
    here = all(os.environ.get(name) == value for name, value in environment.FIXED_ALLOCATOR.items())
    if allocator == "default" or here:
        yield from _run_here(sections)
        return
    first = 0
    for _, group in itertools.groupby(sections, key=lambda section: section.model):
        of_model = list(group)
        for event in _run_in_child(of_model, environment.FIXED_ALLOCATOR):
            yield {**event, "section": first + event["section"]} if "section" in event else event
        first += len(of_model)


class Failed(RuntimeError):
    """A measurement raised an error, or its process ended before it was done."""


def _run_here(sections: list[Section]) -> Iterator[Event]:
    before = torch.get_num_threads()
    if sections and sections[0].threads:
        torch.set_num_threads(sections[0].threads)
    try:
        yield {"event": "environment", **environment.facts()}
        machine = Machine(seconds=min(0.5, 3 * max((section.min_time for section in sections), default=0.0)))
        for index, section in enumerate(sections):
            steps = {"network": _network, "memory": _memory, "layers": _layers}[section.kind]
            doing = section.title
            try:
                for event in steps(section, machine):
                    if event["event"] == "progress":
                        doing = ", ".join(dict.fromkeys((section.title, event["text"])))
                    yield {**event, "section": index}
                    if event["event"] == "result":
                        yield {"event": "machine", **machine.as_json()}
            except Failed:  # of a child, which has told where
                raise
            except (RuntimeError, ValueError) as error:
                message = str(error).partition("\n")[0]
                raise Failed(f"{doing}: {message}") from error
            yield {"event": "end", "section": index}
    finally:
        torch.set_num_threads(before)


def _network(section: Section, machine: Machine) -> Iterator[Event]:
    measuring = network.measure(
        section.model,
        section.mode,
        section.batch,
        getattr(torch, section.dtype),
        section.layouts,
        machine,
        section.min_time,
        section.repeats,
        section.image_size,
        section.torch_memory,
        section.packed_weights,
        section.fuse,
    )
    steps = Steps(measuring)
    for text, done in steps:
        yield {"event": "progress", "text": text, "done": done}
    result = steps.result
    result["memory_from"] = "each backend in a fresh process"
    for name, backend in result["backends"].items():
        yield {"event": "progress", "text": f"peak memory, {name}", "done": 1.0}
        side, layout = name.split()
        alone = replace(section, kind="memory", side=side, layouts=(layout,))
        for event in _run_in_child([alone], environment.MAPPED_ALLOCATOR):
            if event["event"] == "result":
                backend["peak_memory"] = event["result"]["peak_memory"]
    yield {"event": "result", "result": result}


def _memory(section: Section, machine: Machine) -> Iterator[Event]:
    (layout,) = section.layouts
    what = (section.model, section.mode, section.batch, getattr(torch, section.dtype), section.side, layout)
    switches = (section.torch_memory, section.packed_weights, section.fuse)
    peak = network.step_memory(*what, section.image_size, *switches)
    yield {"event": "result", "result": {"peak_memory": peak}}


def _layers(section: Section, machine: Machine) -> Iterator[Event]:
    yield {"event": "progress", "text": "the machine's peaks", "done": 0.0}
    machine.flops(getattr(torch, section.dtype))
    for index, use in enumerate(section.layer_uses()):
        yield {"event": "progress", "text": use.layer.label(), "done": index / len(section.uses)}
        for result in layer_bench.measure(
            use.layer,
            use.directions(section.directions),
            getattr(torch, section.dtype),
            section.layouts,
            machine,
            section.min_time,
            section.repeats,
            cold=section.cold,
        ):
            about = {"model": section.model, "mode": section.mode, "count": use.count, "names": use.names}
            yield {"event": "result", "result": {**about, **result}}


_ERRORS = {error.__name__: error for error in (layer_bench.Mismatch, Failed)}  # that a child tells as events


def _run_in_child(sections: list[Section], allocator: dict[str, str]) -> Iterator[Event]:
    variables = {**os.environ, **allocator}
    # found even where this process got its path from a script's folder
    variables["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    child = subprocess.Popen(
        [sys.executable, "-m", "cnnext.bench.sections"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=variables,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        json.dump([asdict(section) for section in sections], child.stdin)
        child.stdin.close()
        for line in child.stdout:
            event = json.loads(line)
            if event["event"] in _ERRORS:
                raise _ERRORS[event["event"]](event["message"])
            yield event
        if child.wait() != 0:
            raise Failed(f"the benchmark's child process ended with status {child.returncode}")
    finally:
        child.terminate()
        child.wait()


def _child() -> None:
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not get between the events
    sections = [Section(**fields) for fields in json.load(sys.stdin)]
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        try:
            for event in _run_here(sections):
                print(json.dumps(event), file=output, flush=True)
        except tuple(_ERRORS.values()) as error:
            print(json.dumps({"event": type(error).__name__, "message": str(error)}), file=output, flush=True)


if __name__ == "__main__":
    _child()
