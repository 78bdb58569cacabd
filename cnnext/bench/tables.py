"""The tables of a benchmark, built from its results (the dicts that also go to JSON)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

_LIBRARY = {"torch": "torch", "cnnext": "[bold]cnnext[/]"}
LAYOUT = {"nchw": "NCHW", "channels_last": "channels_last"}
_SHORT_LAYOUT = {"nchw": "NCHW", "channels_last": "CL"}
_PREEMPTIONS = 40  # a second; an idle machine has a few, one busy neighbour on one core some hundreds
DIRECTIONS = ("forward", "grad_input", "grad_weight", "backward")
MODES = {"infer": "inference", "train": "training step", "backward": "forward and backward"}

LAYER_NOTES = (
    "CL: channels_last. +-: half the distance of the quartiles. of limit: the time that the measured peaks allow "
    "(FLOPs by peak FLOP/s, or bytes read and written once by copy bandwidth, whichever is longer) over the measured "
    "time; above 100 % means fewer operations than a direct convolution has, or data that stayed in cache. speedup: "
    "torch's median over ours. Pooling forward is that of inference; profile(backward=True) times that of training, "
    "which keeps what the gradient needs. Means count a layer as often as the model runs it, a suite of several models "
    "once."
)


@dataclass
class Rows:
    """Cells under headings, made into a table that fits: where there is no room, optional columns go."""

    title: str
    columns: list[tuple[str, str, int]]  # heading, justification, order of leaving (0 stays, 1 goes first)
    rows: list[tuple[tuple[str, ...], str | None, bool]] = field(default_factory=list)

    def add(self, *cells: str, style: str | None = None, end_section: bool = False) -> None:
        self.rows.append((cells, style, end_section))

    def table(self, width: int) -> Table:
        shown = list(range(len(self.columns)))
        needed = [
            max(cell_len(Text.from_markup(row[index]).plain) for row in [*(cells for cells, _, _ in self.rows), heads])
            for heads in [tuple(heading for heading, _, _ in self.columns)]
            for index in shown
        ]
        leaving = sorted((index for index in shown if self.columns[index][2]), key=lambda index: self.columns[index][2])

        def fits(gap: int) -> bool:
            return sum(needed[index] + gap for index in shown) + 2 <= width

        while leaving and not fits(1):
            shown.remove(leaving.pop(0))
        table = Table(
            title=Text(self.title, style="bold"),  # a model's name may hold anything
            title_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 1 if fits(2) else 0, 0, 0),
        )
        for index in shown:
            heading, justify, _ = self.columns[index]
            table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        for cells, style, end_section in self.rows:
            table.add_row(*(cells[index] for index in shown), style=style, end_section=end_section)
        return table


def number(value: float) -> str:
    """Three figures: 0.0123, 1.23, 12.3, 123."""
    if not math.isfinite(value):
        return "-"
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{min(max(digits, 0), 4)}f}"


def ms(seconds: float) -> str:
    return number(seconds * 1e3)


def _quartiles(backend: dict[str, Any]) -> str:
    return f"{ms(backend['q1'])}-{ms(backend['q3'])}"


def _spread(backend: dict[str, Any]) -> str:
    return f"{50 * (backend['q3'] - backend['q1']) / backend['median']:.0f} %"


def times(value: float) -> str:
    return f"{value:.2f}x" if value < 99.5 else f"{value:.0f}x"


def _colored(value: float | None) -> str:
    if value is None or math.isnan(value):
        return ""
    return f"[{'green' if value >= 1 else 'red'}]{times(value)}[/]"


def network(result: dict[str, Any], width: int) -> Table:
    """One network in one mode: a row per backend."""
    batch = result["batch"]
    columns = [
        ("", "left", 0),
        ("layout", "left", 0),
        ("median ms", "right", 0),
        ("quartiles", "right", 3),
        ("images/s", "right", 1),
        ("peak MiB", "right", 0),
        ("max error", "right", 2),
        ("rel. error", "right", 0),
        ("speedup", "right", 0),
        ("to best", "right", 4),
    ]
    title = f"{result['model']} · {MODES[result['mode']]} · N={batch} · {result['input']} · {result['dtype']}"
    rows = Rows(f"{title} · allocator {result['allocator']}{pooled(result)}", columns)
    backends = result["backends"]
    best = backends[result["best"]["torch"]]["median"] if "best" in result["speedup"] else math.nan
    for name, backend in backends.items():
        library, layout = name.split()
        memory = backend["peak_memory"]
        error = backend["error"]["gradient" if "gradient" in backend["error"] else "output"]
        ours = library == "cnnext"
        rows.add(
            _LIBRARY[library],
            LAYOUT[layout],
            ms(backend["median"]),
            _quartiles(backend),
            number(batch / backend["median"]),
            "n/a" if memory is None else number(memory / 2**20),
            f"{error['max']:.1e}",
            f"{error['relative']:.1e}",
            _colored(result["speedup"].get(layout)) if ours else "",
            _colored(best / backend["median"]) if ours else "",
        )
    _add_wrong(rows, result)
    return rows.table(width)


def pooled(result: dict[str, Any]) -> str:
    """Where the two sides differ in more than their layers."""
    switches = [name for name in ("torch_memory", "packed_weights") if result.get(name)]
    folded = "batch norms folded by torch.fx and by" if result["mode"] == "infer" else "ours by"
    fused = f", {folded} cnnext.fuse" if result.get("fused") else ""
    return fused + (f", ours with {' and '.join(switches)}" if switches else "")


def network_notes(result: dict[str, Any]) -> str:
    """What a reader of :func:`network` needs to know."""
    counts = result["replaced"]
    norms = f", {counts['batch_norm']} batch norms" if "batch_norm" in counts else ""  # a profile counts none
    fallbacks = "; ".join(f"{what} ({count})" for what, count in result["fallbacks"].items()) or "none"
    compared = "outputs" if result["mode"] == "infer" else "gradients"
    rounds = next(iter(result["backends"].values()))["rounds"]
    best = result["backends"][result["best"]["cnnext"]]["median"]
    of_peak = (
        f" Convolutions alone, {result['conv_flops'] / 1e9:.3g} GFLOP, would take {ms(result['limit'])} ms at the "
        f"machine's measured peak: {100 * result['limit'] / best:.0f} % of our best."
    )
    return (
        f"{counts['convolution']} convolutions{norms} and {counts['pooling']} pooling layers replaced; fallbacks to "
        f"torch: {fallbacks}. {rounds} rounds. "
        f"speedup: over torch in the same layout; to best: over torch's better layout. "
        f"Errors are those of the {compared} against float64. peak MiB: what steps need on top of model and images, "
        f"{result['memory_from']}.{of_peak if result['conv_flops'] else ''}"
    )


_LAYER_COLUMNS = [
    ("n", "right", 0),
    ("layer", "left", 0),
    ("kernel", "left", 6),
    ("", "left", 2),
    ("ms", "right", 0),
    ("+-", "right", 1),
    ("GFLOP/s", "right", 5),
    ("of limit", "right", 0),
    ("torch ms", "right", 4),
    ("", "left", 3),
    ("speedup", "right", 0),
]


def batches(results: list[dict[str, Any]]) -> str:
    """N of all results; a model may put its pixels or its frames into the batch."""
    sizes = [result["batch"] for result in results]
    return f"N={min(sizes)}" + (f" to {max(sizes)}" if min(sizes) < max(sizes) else "")


def _cold(result: dict[str, Any]) -> str:
    return ", cold caches" if result.get("cold") else ""


def rate_of(result: dict[str, Any], seconds: float) -> float:
    """GFLOP/s of a convolution, GB/s of pooling."""
    return (result["flops"] or result["bytes"]) / seconds / 1e9


def layers(results: list[dict[str, Any]], width: int) -> Iterable[Table]:
    """Tables of a model's layers: one per direction, convolution and pooling apart."""
    for conv, direction in itertools.product((True, False), DIRECTIONS):
        chosen = [result for result in results if result["direction"] == direction and bool(result["flops"]) == conv]
        if not chosen:
            continue
        what, rate = ("convolution", "GFLOP/s") if conv else ("pooling", "GB/s")
        dtypes = ", ".join(dict.fromkeys(result["dtype"] for result in chosen))
        title = f"{chosen[0]['model']} · {what} {direction} · {batches(chosen)} · {dtypes}"
        columns = [(heading.replace("GFLOP/s", rate), *rest) for heading, *rest in _LAYER_COLUMNS]
        rows = Rows(f"{title} · allocator {chosen[0]['allocator']}{_cold(chosen[0])}", columns)  # type: ignore[arg-type]
        for index, result in enumerate(chosen):
            ours = result["backends"][result["best"]["cnnext"]]
            theirs = result["best"].get("torch")
            rows.add(
                str(result["count"]),
                result["label"],
                ours["kernel"],
                _SHORT_LAYOUT[result["best"]["cnnext"].split()[1]],
                ms(ours["median"]),
                _spread(ours),
                number(rate_of(result, ours["median"])),
                f"{100 * result['limit'] / ours['median']:.0f} %",
                ms(result["backends"][theirs]["median"]) if theirs else "wrong",
                _SHORT_LAYOUT[theirs.split()[1]] if theirs else "",
                _colored(result["speedup"].get("best")),
                end_section=index == len(chosen) - 1,
            )
        if of_both := compared(chosen):
            _add_total(rows, of_both, "all layers" if len(of_both) == len(chosen) else "all compared")
        yield rows.table(width)


def _add_total(rows: Rows, results: list[dict[str, Any]], what: str) -> None:
    def total(value: Callable[[dict[str, Any]], float]) -> float:
        return sum(value(result) * result["count"] for result in results)

    ours = total(lambda result: result["backends"][result["best"]["cnnext"]]["median"])
    theirs = total(lambda result: result["backends"][result["best"]["torch"]]["median"])
    work = total(lambda result: result["flops"] or result["bytes"])
    rows.add(
        str(sum(result["count"] for result in results)),
        what,
        "",
        "",
        ms(ours),
        "",
        number(work / ours / 1e9),
        f"{100 * total(lambda result: result['limit']) / ours:.0f} %",
        ms(theirs),
        "",
        _colored(theirs / ours),
        style="bold",
    )


def single_layer(result: dict[str, Any], width: int) -> Table:
    """One direction of a layer: a row per backend."""
    rate = "GFLOP/s" if result["flops"] else "GB/s"
    columns = [
        ("", "left", 0),
        ("layout", "left", 0),
        ("kernel", "left", 4),
        ("median ms", "right", 0),
        ("quartiles", "right", 3),
        (rate, "right", 5),
        ("of limit", "right", 0),
        ("max error", "right", 1),
        ("rel. error", "right", 2),
        ("speedup", "right", 0),
    ]
    work = f"{result['flops'] / 1e9:.3g} GFLOP, " if result["flops"] else ""
    title = f"{result['label']} · {result['direction']} · N={result['batch']} · {result['dtype']}"
    rows = Rows(f"{title} · {work}{result['bytes'] / 2**20:.3g} MiB{_cold(result)}", columns)
    for name, backend in result["backends"].items():
        library, layout = name.split()
        rows.add(
            _LIBRARY[library],
            LAYOUT[layout],
            backend.get("kernel", ""),
            ms(backend["median"]),
            _quartiles(backend),
            number(rate_of(result, backend["median"])),
            f"{100 * result['limit'] / backend['median']:.0f} %",
            f"{backend['error']['max']:.1e}",
            f"{backend['error']['relative']:.1e}",
            _colored(result["speedup"].get(layout)) if library == "cnnext" else "",
        )
    _add_wrong(rows, result)
    table = rows.table(width)
    if "best" in result["speedup"] and len(result["backends"]) > 2:
        table.caption = f"best layout against best layout: {_colored(result['speedup']['best'])}"
        table.caption_justify = "right"
    return table


def geometric_mean(pairs: list[tuple[float, int]]) -> float:
    """Of (value, weight) pairs."""
    total = sum(weight for _, weight in pairs)
    return math.exp(sum(math.log(value) * weight for value, weight in pairs) / total)


def summary(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Speedups over torch by model, direction and kind of layer. Kind ``all`` is all convolutions, or all
    pooling layers, ``all max`` and the like one family of them where there are several. Each has the number of layers,
    geometric means best against best and by each layout that was measured, and the smallest and largest best against
    best. Layers that torch computes wrongly are left out."""
    results = compared(results)
    families: dict[tuple[str, bool], set[str]] = {}
    for result in results:
        families.setdefault((result["model"], bool(result["flops"])), set()).add(result["family"])
    groups: dict[tuple[str, bool, str, str], list[dict[str, Any]]] = {}
    for result in results:
        model, conv = result["model"], bool(result["flops"])
        several = [f"all {result['family']}"] if len(families[model, conv]) > 1 else []
        for kind in (result["kind"], *several, "all"):
            groups.setdefault((model, conv, result["direction"], kind), []).append(result)
    rows = []
    for (model, conv, direction, kind), members in groups.items():
        best = [result["speedup"]["best"] for result in members]
        rows.append(
            {
                "model": model,
                "op": "convolution" if conv else "pooling",
                "direction": direction,
                "kind": kind,
                "layers": sum(result["count"] for result in members),
                "lowest": min(best),
                "highest": max(best),
                **{
                    which: geometric_mean(pairs)
                    for which in ("best", "nchw", "channels_last")
                    if (pairs := [(r["speedup"][which], r["count"]) for r in members if which in r["speedup"]])
                },
            }
        )
    return rows


def geometric_means(results: list[dict[str, Any]], width: int) -> Iterable[Table]:
    """One table per model of :func:`summary`."""
    summaries = summary(results)
    for model in dict.fromkeys(row["model"] for row in summaries):
        columns = [("", "left", 0), ("kind", "left", 0), ("n", "right", 0), ("best", "right", 0)]
        columns += [("lowest-highest", "right", 1), ("NCHW", "right", 3), ("channels_last", "right", 2)]
        rows = Rows(f"{model} · geometric means of the speedup over torch", columns)
        for op, direction in itertools.product(("convolution", "pooling"), DIRECTIONS):
            chosen = [r for r in summaries if (r["model"], r["op"], r["direction"]) == (model, op, direction)]
            chosen.sort(key=lambda row: (row["kind"].startswith("all"), row["kind"] == "all", -row["layers"]))
            for index, row in enumerate(chosen):
                rows.add(
                    f"{op} {direction}" if index == 0 else "",
                    row["kind"],
                    str(row["layers"]),
                    _colored(row["best"]),
                    f"{times(row['lowest'])}-{times(row['highest'])}",
                    *(_colored(row.get(which)) for which in ("nchw", "channels_last")),
                    style="bold" if row["kind"].startswith("all") else None,
                    end_section=row["kind"] == "all",
                )
        yield rows.table(width)


def compared(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that torch computed rightly too, so that there is a speedup."""
    return [result for result in results if "best" in result["speedup"]]


def _add_wrong(rows: Rows, result: dict[str, Any]) -> None:
    """A row for each layout in which torch's result was wrong."""
    for name in result.get("wrong", {}):
        cells = {"": _LIBRARY["torch"], "layout": LAYOUT[name.split()[1]], "median ms": "wrong"}
        rows.add(*(cells.get(heading, "") for heading, _, _ in rows.columns))


def wrong(results: list[dict[str, Any]]) -> str:
    """What torch computed wrongly; empty where that is nothing."""
    found = []
    for result in results:
        errors = [
            f"{LAYOUT[name.split()[1]]} {'not finite' if error is None else f'{error:.1e}'}"
            for name, error in result.get("wrong", {}).items()
        ]
        if errors:
            what = f"{result['label']} {result['direction']}" if "label" in result else result["model"]
            found.append(f"{what} ({', '.join(errors)})")
    if not found:
        return ""
    return f"Wrong results of torch, not timed and without a speedup (relative errors): {'; '.join(found)}."


def warnings(results: list[dict[str, Any]]) -> list[str]:
    """What makes some figures missing or doubtful."""
    return [warning for warning in (wrong(results), disturbance(results)) if warning]


def disturbance(results: list[dict[str, Any]]) -> str:
    """A warning where other programs ran during a measurement; empty where none did."""
    most = max((backend["preemptions"] for result in results for backend in result["backends"].values()), default=0.0)
    if most < _PREEMPTIONS:
        return ""
    return f"Other programs took the CPU away up to {most:.0f} times a second while this was measured: do not trust it."


def peaks(machine: dict[str, dict[str, float]]) -> str:
    """The measured peaks in one line; empty where nothing needed them."""
    flops = ", ".join(f"{dtype} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in machine["flops"].items())
    sizes = {int(size): rate for size, rate in machine["bandwidth"].items()}
    copies = ", ".join(
        f"{_size(size)} {sizes[size] / 1e9:.0f}" for size in sorted(sizes) if math.log2(size) % 4 == 0 or len(sizes) < 6
    )
    measured = [f"matrix product {flops}"] * bool(flops) + [f"copy GB/s by bytes touched: {copies}"] * bool(copies)
    return f"Measured peaks: {'; '.join(measured)}" if measured else ""


def _size(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"
