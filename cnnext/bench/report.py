"""Progress, tables and the JSON document of a benchmark."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from . import environment, network, tables
from .sections import Event, Section

_PIPE_WIDTH = 100


def make_console() -> Console:
    """A console as wide as the terminal; where the output is a pipe, wide enough for the tables."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(highlight=False, width=_PIPE_WIDTH)
    return console


class Report:
    """Takes the events of :func:`sections.run`, shows progress, prints each table as soon as it is whole."""

    def __init__(self, dtype: str, single: bool = False) -> None:
        self.console = make_console()
        self.dtype = dtype
        self.single = single
        self.networks: list[dict[str, Any]] = []
        self.layers: list[dict[str, Any]] = []
        self.machine: dict[str, dict[str, float]] = {"flops": {}, "bandwidth": {}}
        self.environments: dict[str, Event] = {}
        self._sections: list[Section] = []
        self._section: Section | None = None  # of the last result
        self._allocator = ""
        self._pending: list[dict[str, Any]] = []
        self._begun = time.perf_counter()
        self._progress: Progress | None = None

    def announce(self, groups: Iterable[tuple[str, list[Section]]], quick: bool) -> None:
        """Says what will be done, before the first second of it passes."""
        self.console.print("[bold]cnnext bench[/]: our convolution and pooling layers beside torch's")
        compared = "every result is compared with float64 before it is timed"
        for allocator, sections in groups:
            if any(section.kind == "network" for section in sections):
                compared += f" (gradients of whole networks to {100 * network.FLIPS:.0f} %)"
            for kind in ("network", "layers"):
                chosen = [section for section in sections if section.kind == kind]
                if not chosen:
                    continue
                if kind == "network":
                    what = ", ".join(f"{section.title} N={section.batch}" for section in chosen)
                    what = f"whole networks on a photograph, every such layer replaced: {what}"
                elif self.single:
                    what = f"{chosen[0].title}, N={chosen[0].batch}"
                else:
                    uses = [use for section in chosen for use in section.uses]
                    models = ", ".join(dict.fromkeys(section.model for section in chosen))
                    what = f"the layers of {models}, each direction at the batch size of its network run"
                    what += f" ({len(uses)} shapes)" if uses else ""
                self.console.print(f"  {what}; allocator: {allocator}", style="dim")
        self.console.print(
            f"  {self.dtype}; {compared}; backends take turns"
            + ("; [yellow]--quick: rough figures[/]" if quick else ""),
            style="dim",
        )

    def start(self, allocator: str, sections: list[Section]) -> None:
        """A group of sections is about to run."""
        self._sections, self._allocator = sections, allocator
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.fields[title]}"),
                BarColumn(bar_width=24),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                console=self.console,
                transient=True,
            )
            self._progress.start()
            self._task = self._progress.add_task("starting", total=1.0, title=sections[0].title)

    def take(self, event: Event) -> None:
        """Handles one event."""
        kind = event["event"]
        if kind == "environment":
            self._environment(event)
        elif kind == "machine":
            for what in self.machine:
                self.machine[what].update(event[what])
        elif kind == "progress":
            self._show(self._sections[event["section"]], event["text"], event["done"])
        elif kind == "result":
            section = self._section = self._sections[event["section"]]
            result = {"allocator": self._allocator, **event["result"]}
            (self.networks if section.kind == "network" else self.layers).append(result)
            self._pending.append(result)
        elif kind == "end":
            self._flush(self._sections[event["section"]])
            if event["section"] == len(self._sections) - 1:
                self.close()
                self._layer_summary()

    def _show(self, section: Section, text: str, done: float) -> None:
        if self._progress is not None:
            self._progress.update(self._task, title=section.title, description=text, completed=done)

    def _environment(self, event: Event) -> None:
        self.environments[self._allocator] = {key: value for key, value in event.items() if key != "event"}
        if len(self.environments) == 1:
            self.console.print(
                f"  {event['cpu']}, {event['threads']} threads of {event['cpus']} CPUs, {event['libc']}; "
                f"torch {event['torch']} ({event['torch_capability']}), "
                f"cnnext {event['cnnext']} ({event['cnnext_capability']})",
                style="dim",
            )
            load = (event["load_average"] or [0.0])[0]
            if load > 0.5:
                self.console.print(f"  [yellow]other programs are running (load {load:.1f}): figures will be noisy[/]")
        if event["allocator"]:
            variables = " ".join(f"{name}={value}" for name, value in event["allocator"].items())
            self.console.print(f"  allocator set by {variables}", style="dim", soft_wrap=True)

    def _flush(self, section: Section) -> None:
        """Prints the tables of a finished (or interrupted) section."""
        results, self._pending = self._pending, []
        if not results:
            return
        width = self.console.width
        self.console.print()
        if section.kind == "network":
            for result in results:
                self.console.print(tables.network(result, width))
                self.console.print(tables.network_notes(result), style="dim")
        elif self.single:
            for result in results:
                self.console.print(tables.single_layer(result, width))
        else:
            for table in tables.layers(results, width):
                self.console.print(table)
        for warning in tables.warnings(results):
            self.console.print(warning, style="yellow")

    def _layer_summary(self) -> None:
        """What all layers have in common, once they are measured or nothing more will be."""
        if not self.layers:
            return
        if not self.single:
            self.console.print()
            for table in tables.geometric_means(self.layers, self.console.width):
                self.console.print(table)
        self.console.print(tables.peaks(self.machine), style="dim")
        self.console.print(tables.LAYER_NOTES, style="dim")

    def _flush_pending(self) -> None:
        """Prints what a section has so far that was not ended, and what belongs under all tables."""
        if self._section is not None:
            self._flush(self._section)
        self._layer_summary()

    def interrupted(self) -> None:
        """Ctrl-C: shows what is there."""
        self.close()
        so_far = "; measured so far:" if self.networks or self.layers else " before anything was measured"
        self.console.print(f"\n[yellow]interrupted[/]{so_far}")
        self._flush_pending()

    def failed(self, error: BaseException) -> None:
        """A comparison failed, something is not installed, or a process ended early: shows what is there."""
        self.close()
        self._flush_pending()
        self.console.print(f"[bold red]stopped:[/] {escape(str(error))}", soft_wrap=True)

    def close(self) -> None:
        """Takes the progress bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def as_json(self) -> dict[str, Any]:
        """Everything measured, and where."""
        return {
            "seconds": round(time.perf_counter() - self._begun, 1),
            "environment": self.environments,
            "fixed_allocator": environment.FIXED_ALLOCATOR,
            "machine": self.machine,
            "networks": self.networks,
            "layers": self.layers,
            "geometric_means": tables.summary(self.layers),
        }
