"""The report's pictures: SVG that takes its colours and font from the page, drawn once wide and once for a phone."""

from __future__ import annotations

import io
import math
import re
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .tables import DIRECTIONS, ms, number, times

WIDE, NARROW = 1000, 340  # in CSS pixels; one of matplotlib's points is one of them here
_ROW = 20
_BOUNDS = (1 / 16, 32)  # of ratios that are drawn to scale

# matplotlib writes these colours and the page replaces them by its own, light or dark.
_ROLES = {
    "#0a0b01": "var(--ink)",
    "#0a0b02": "var(--muted)",
    "#0a0b03": "var(--line)",
    "#0a0b04": "var(--ours)",
    "#0a0b05": "var(--torch)",
    "#0a0b06": "var(--slower)",
    "#0a0b07": "var(--card)",
}
_INK, _MUTED, _LINE, _OURS, _TORCH, _SLOWER, _CARD = _ROLES
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "cnnext",
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "text.color": _INK,
    "text.parse_math": False,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _MUTED,
    "axes.labelsize": 12,
    "axes.facecolor": "none",
    "axes.titlesize": 13,
    "axes.titlecolor": _INK,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _INK,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.labelcolor": _INK,
    "legend.fontsize": 12,
}
_MARKERS = {"forward": "o", "grad_input": "<", "grad_weight": "s", "backward": "D"}

Result = dict[str, Any]
Notes = dict[str, str]  # an element's id, and what the page shows where the pointer rests on it
Draw = Callable[[int, Notes], Figure]


def factor(speedup: float) -> str:
    """A ratio as the page writes it: 1.35×."""
    return times(speedup).replace("x", "×")


def _svg(figure: Figure, notes: Notes, label: str) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"([^>]*?) width="[^"]*"', r"\1\2", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"([^>]*?) height="[^"]*"', r"\1\2", text)
    text = text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), text)  # hundredths of pixels do
    for color, role in _ROLES.items():
        text = text.replace(color, role)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)  # the page's font
    for name, note in notes.items():
        text = text.replace(f'<g id="{name}">', f"<g><title>{escape(note)}</title>", 1)
    # Identifiers are unique in a picture only, and a page has several.
    salt = f"{zlib.crc32(label.encode()):x}"
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{salt}-", text)
    return text


def picture(draw: Draw, label: str) -> Markup:
    """The figure that ``draw`` makes for a width, once for a wide and once for a narrow page."""
    parts = []
    with mpl.rc_context(_STYLE):
        for width, kind in ((WIDE, "wide"), (NARROW, "narrow")):
            notes: Notes = {}
            parts.append(f'<div class="{kind}">{_svg(draw(width, notes), notes, f"{label}, {kind}")}</div>')
    return Markup("".join(parts))


def _figure(width: int, height: int) -> Figure:
    return Figure(figsize=(width / 72, height / 72), dpi=72)


def _place(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place in pixels from the lower left corner."""
    across, up = figure.get_size_inches() * 72
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def _short(text: str, pixels: float) -> str:
    """The text, or as much of its beginning as there is room for."""
    room = int((pixels - 10) / 7.2)  # a letter's usual width
    return text if len(text) <= room else text[: max(room - 1, 1)] + "…"


def _ours(result: Result) -> Result:
    return result["backends"][result["best"]["cnnext"]]


def _torchs(result: Result) -> Result:
    return result["backends"][result["best"]["torch"]]


def ratios(results: list[Result]) -> Draw:
    """Torch's time over ours for each layer as bars that start at 1; a column per direction.

    Results of one label are one row.
    """
    labels = list(dict.fromkeys(result["label"] for result in results))
    directions = [d for d in DIRECTIONS if any(result["direction"] == d for result in results)]
    # pooling has its backward in the column of the gradient of the input
    columns = [d for d in directions if d != "backward" or "grad_input" not in directions]
    values = [result["speedup"]["best"] for result in results]
    low, high = (max(_BOUNDS[0], min(0.8, *values)), min(_BOUNDS[1], max(1.25, *values)))

    def draw(width: int, notes: Notes) -> Figure:
        # on a phone the columns are under each other
        stacks = [columns] if width == WIDE else [[column] for column in columns]
        chosen = [
            [label for label in labels if any(r["label"] == label and _column(r) in stack for r in results)]
            for stack in stacks
        ]
        heights = [len(rows) * _ROW + 52 for rows in chosen]
        figure = _figure(width, sum(heights))
        left = min(max(map(len, labels)) * 7.2 + 12, 400 if width == WIDE else 168)
        bottom = sum(heights)
        for stack, rows in zip(stacks, chosen, strict=True):
            bottom -= len(rows) * _ROW + 52
            each = (width - left) / len(stack)
            for index, column in enumerate(stack):
                axes = _place(figure, left + index * each, bottom + 24, each - 14, len(rows) * _ROW)
                _bars(axes, rows, [r for r in results if _column(r) == column], (low, high), notes)
                axes.set_title(column, pad=8)
                axes.set_yticks(range(len(rows)), [_short(row, left) if index == 0 else "" for row in rows])
        return figure

    def _column(result: Result) -> str:
        direction: str = result["direction"]
        return "grad_input" if direction == "backward" and "grad_input" in directions else direction

    return draw


def _bars(axes: Axes, rows: list[str], results: list[Result], limits: tuple[float, float], notes: Notes) -> None:
    axes.set_xscale("log")
    pixels = axes.get_position().width * axes.get_figure().get_size_inches()[0] * 72  # type: ignore[union-attr]
    low, high = limits
    room = (high / low) ** (46 / max(pixels - 92, 40))  # for the number at a bar's end
    axes.set_xlim(low / room, high * room)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.axvline(1, color=_MUTED, linewidth=1, zorder=3)
    for result in results:
        value, row = result["speedup"]["best"], rows.index(result["label"])
        color = _OURS if value >= 1 else _SLOWER
        name = f"ratio{len(notes)}"
        drawn = min(max(value, low), high)
        axes.barh(row, drawn - 1, left=1, height=0.68, color=color, zorder=2)[0].set_gid(name)
        notes[name] = _note(result)
        end = (3, "left") if value >= 1 else (-3, "right")
        axes.annotate(
            factor(value),
            (drawn, row),
            (end[0], 0),
            textcoords="offset points",
            ha=end[1],
            va="center_baseline",
            fontsize=11,
            color=_INK,
        )
    _ratio_axis(axes, low / room, high * room, pixels)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_axisbelow(True)


def _ratio_axis(axes: Axes, low: float, high: float, pixels: float) -> None:
    powers = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
    step = math.ceil(len(powers) * 38 / pixels)
    ticks = [2.0**power for power in powers if power % step == 0]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def _note(result: Result) -> str:
    ours, torchs = _ours(result), _torchs(result)
    rate = (result["flops"] or result["bytes"]) / ours["median"] / 1e9
    unit = "GFLOP/s" if result["flops"] else "GB/s"
    return (
        f"{result['label']}, {result['direction']}, {result['count']} in the model\n"
        f"cnnext {ms(ours['median'])} ms ({ours.get('kernel', '')}), torch {ms(torchs['median'])} ms: "
        f"{factor(result['speedup']['best'])}\n{number(rate)} {unit}, "
        f"{100 * result['limit'] / ours['median']:.0f} % of the limit"
    )


def roofline(results: list[Result], machine: dict[str, dict[str, float]]) -> Draw:
    """Operations a second over operations per byte under the measured limits; ours filled, torch's hollow."""
    dtype = results[0]["dtype"]
    peak = machine["flops"][dtype] / 1e9
    copies = {int(size): rate / 1e9 for size, rate in machine["bandwidth"].items()}

    def draw(width: int, notes: Notes) -> Figure:
        height = 450 if width == WIDE else 430
        figure = _figure(width, height)
        axes = _place(figure, 46, 66 if width == WIDE else 126, width - 56, height - (76 if width == WIDE else 136))
        intensity = [result["operations"] / result["bytes"] for result in results]
        rates = [result["operations"] / side(result)["median"] / 1e9 for result in results for side in (_ours, _torchs)]
        left, right = min(intensity) / 1.6, max(*intensity, peak / min(copies.values())) * 1.6
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(left, right)
        axes.set_ylim(min(rates) / 1.6, max(peak, *rates) * 1.7)
        for size in dict.fromkeys((max(copies), min(copies))):
            knee = peak / copies[size]
            line = "-" if size == max(copies) else "--"
            axes.plot([left, knee, right], [left * copies[size], peak, peak], line, color=_MUTED, linewidth=1.2)
        axes.annotate(
            f"{'matrix product: ' if width == WIDE else ''}{number(peak)} GFLOP/s",
            (max(left, peak / max(copies.values())), peak),
            (4, 5),
            textcoords="offset points",
            color=_MUTED,
            bbox={"facecolor": _CARD, "edgecolor": "none", "pad": 1, "alpha": 0.8},
            zorder=5,
        )
        for result, x in zip(results, intensity, strict=True):
            marker = _MARKERS[result["direction"]]
            ours, torchs = (result["operations"] / side(result)["median"] / 1e9 for side in (_ours, _torchs))
            axes.plot([x, x], [torchs, ours], color=_LINE, linewidth=1, zorder=2)
            axes.plot(x, torchs, marker, mfc=_CARD, mec=_TORCH, mew=1.3, ms=5.5, zorder=3)
            name = f"roof{len(notes)}"
            axes.plot(x, ours, marker, color=_OURS, mec=_CARD, mew=0.6, ms=7.5, zorder=4, gid=name)
            notes[name] = _note(result)
        _plain_log(axes)
        axes.set_xlabel("operations per byte")
        axes.set_ylabel("GFLOP/s", labelpad=2)
        handles: dict[str, Any] = {}
        shown = [direction for direction in DIRECTIONS if any(r["direction"] == direction for r in results)]
        marks: list[tuple[str, dict[str, Any]]] = [
            ("cnnext", {"marker": "o", "color": _OURS, "ms": 7.5}),
            ("torch", {"marker": "o", "mfc": _CARD, "mec": _TORCH, "mew": 1.3, "ms": 5.5}),
            *((direction, {"marker": _MARKERS[direction], "color": _MUTED}) for direction in shown),
        ]
        for text, format in marks:
            handles[text] = axes.plot([], [], ls="", **format)[0]
        for size in dict.fromkeys((max(copies), min(copies))):
            line = "-" if size == max(copies) else "--"
            text = f"copy of {_bytes(size)}: {number(copies[size])} GB/s"
            handles[text] = axes.plot([], [], line, color=_MUTED, linewidth=1.2)[0]
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="lower center",
            ncols=8 if width == WIDE else 2,
            columnspacing=1.2,
            handletextpad=0.5,
            handlelength=1.6,
            borderaxespad=0,
        )
        return figure

    return draw


def _bytes(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"


def _plain_log(axes: Axes) -> None:
    """Ticks at 1, 10, 100, ... written out; at 2 and 5 too where there is room for few of those."""
    for axis, limits, set_ticks in (
        ("x", axes.get_xlim(), axes.set_xticks),
        ("y", axes.get_ylim(), axes.set_yticks),
    ):
        powers = range(math.floor(math.log10(limits[0])), math.ceil(math.log10(limits[1])) + 1)
        ticks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
        ticks = [tick for tick in ticks if limits[0] <= tick <= limits[1]]
        if len(ticks) > 6:
            ticks = [tick for tick in ticks if math.log10(tick) % 1 < 1e-9 or math.log10(tick) % 1 > 1 - 1e-9]
        set_ticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.grid(axis=axis)  # type: ignore[arg-type]
    axes.minorticks_off()
    axes.tick_params(axis="y", labelcolor=_MUTED, length=0)
    axes.tick_params(axis="x", length=0)
    axes.set_axisbelow(True)


def kinds(groups: list[tuple[str, list[Result]]], most: int = 9) -> Draw:
    """Milliseconds of all layers of a kind, ours beside torch's; one panel per group of results."""
    panels = []
    for title, results in groups:
        total: dict[str, list[float]] = {}
        for result in results:
            sums = total.setdefault(result["kind"], [0.0, 0.0])
            for index, side in enumerate((_ours, _torchs)):
                sums[index] += side(result)["median"] * result["count"] * 1e3
        rows = sorted(total.items(), key=lambda row: -max(row[1]))
        if len(rows) > most:
            rest = [sum(row[1][index] for row in rows[most:]) for index in (0, 1)]
            rows = [*rows[:most], (f"{len(rows) - most} other kinds", rest)]
        panels.append((title, rows))

    def draw(width: int, notes: Notes) -> Figure:
        side_by_side = width == WIDE and len(panels) > 1
        heights = [len(rows) * 34 + 40 for _, rows in panels]
        figure = _figure(width, max(heights) if side_by_side else sum(heights))
        top = max(heights) if side_by_side else sum(heights)
        widest = width / len(panels) if side_by_side else width
        left = min(12 + 7.2 * max(len(kind) for _, rows in panels for kind, _ in rows), widest / 2)
        for index, ((title, rows), height) in enumerate(zip(panels, heights, strict=True)):
            start = index * widest if side_by_side else 0.0
            axes = _place(figure, start + left, top - height + 6, widest - left - 70, height - 40)
            if not side_by_side:
                top -= height
            for row, (kind, pair) in enumerate(rows):
                for value, offset, color in ((pair[0], -0.19, _OURS), (pair[1], 0.19, _TORCH)):
                    name = f"kind{len(notes)}"
                    axes.barh(row + offset, value, 0.36, color=color)[0].set_gid(name)
                    library = "cnnext" if color == _OURS else "torch"
                    notes[name] = f"{kind}, {title}: {library} {number(value)} ms"
                    axes.annotate(
                        f"{number(value)} ms",
                        (value, row + offset),
                        (3, 0),
                        textcoords="offset points",
                        va="center_baseline",
                        fontsize=11,
                    )
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.set_yticks(range(len(rows)), [_short(kind, left) for kind, _ in rows])
            axes.set_xlim(0)
            axes.set_xticks([])
            axes.tick_params(axis="y", length=0)
            axes.spines["bottom"].set_visible(False)
            axes.set_title(title, pad=6)
        return figure

    return draw


def accuracy(results: list[Result]) -> Draw:
    """Our relative error against torch's, each against float64; under the diagonal ours is nearer."""
    shown = [r for r in results if _ours(r)["error"]["relative"] > 0 or _torchs(r)["error"]["relative"] > 0]
    found = [side(r)["error"]["relative"] for r in shown for side in (_ours, _torchs)]
    smallest = min((error for error in found if error > 0), default=1e-8)

    def draw(width: int, notes: Notes) -> Figure:
        side = 330 if width == WIDE else 300
        across = 480 if width == WIDE else width
        figure = _figure(across, side + 44)
        axes = _place(figure, 58, 42, across - 72, side - 4)
        low, high = smallest / 2, max([*found, smallest]) * 2
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.plot([low, high], [low, high], color=_MUTED, linewidth=1)
        axes.annotate("equal", (high, high), (-6, -14), textcoords="offset points", ha="right", color=_MUTED)
        for result in shown:
            ours, torchs = (max(side(result)["error"]["relative"], low) for side in (_ours, _torchs))
            name = f"error{len(notes)}"
            marker = _MARKERS[result["direction"]]
            axes.plot(torchs, ours, marker, color=_OURS, mec=_CARD, mew=0.6, ms=7, gid=name, clip_on=False)
            notes[name] = (
                f"{result['label']}, {result['direction']} ({_ours(result).get('kernel', '')})\n"
                f"cnnext {_ours(result)['error']['relative']:.1e}, torch {_torchs(result)['error']['relative']:.1e}"
            )
        _plain_log(axes)
        axes.set_xlabel("torch's relative error")
        axes.set_ylabel("cnnext's relative error", labelpad=2)
        return figure

    return draw


def exact(results: Iterable[Result]) -> int:
    """How many results have no error at all on either side, as maxima have."""
    return sum(_ours(r)["error"]["relative"] == 0 == _torchs(r)["error"]["relative"] for r in results)
