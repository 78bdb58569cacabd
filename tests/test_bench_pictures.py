"""The benchmark's tables, pictures and pages, of results that are made up: every figure stands where it belongs."""

from __future__ import annotations

import math
from typing import Any

import pytest

pytest.importorskip("rich")
pytest.importorskip("skimage")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cnnext.bench import charts, environment, layers, page, tables
from cnnext.bench.report import Report
from cnnext.bench.sections import Section

NAMES = [f"{library} {layout}" for library in ("torch", "cnnext") for layout in layers.LAYOUTS]
Result = dict[str, Any]


def conv(channels: int = 16, padding: int = 1, kernel: int = 3, batch: int = 2) -> layers.Layer:
    weight = (2 * channels, channels, kernel, kernel)
    geometry = {"stride": (1, 1), "padding": (padding, padding), "dilation": (1, 1)}
    return layers.Layer("conv2d", (batch, channels, 8, 8), weight, **geometry)


CONV = conv()
POOL = layers.Layer("max_pool2d", (2, 3, 8, 8), kernel=(2, 2), stride=(2, 2), padding=(0, 0), dilation=(1, 1))


def layer_result(
    layer: layers.Layer = CONV,
    direction: str = "forward",
    ours: float = 2e-3,
    torchs: float = 4e-3,
    count: int = 1,
    names: tuple[str, ...] = ("features.0",),
    errors: tuple[float, float] = (1e-7, 2e-7),
    limit: float = 1e-3,
) -> Result:
    """Ours is best in channels_last, torch's in channels first; the other layout takes twice as long."""

    def backend(median: float, error: float) -> Result:
        spread = {"q1": 0.9 * median, "q3": 1.1 * median, "rounds": 5, "preemptions": 0.0}
        return {"median": median, **spread, "error": {"max": 3 * error, "relative": error}, "kernel": "gemm"}

    medians = dict(zip(NAMES, (torchs, 2 * torchs, 2 * ours, ours), strict=True))
    return {
        "model": "resnet50",
        "mode": "infer",
        "allocator": "fixed",
        "count": count,
        "names": list(names),
        "layer": layer.as_json(),
        "label": layer.label(),
        "kind": layer.kind(),
        "family": layer.family(),
        "direction": direction,
        "dtype": "float32",
        "batch": layer.input[0],
        "flops": 10**9 if layer.is_conv else 0,
        "operations": 10**9,
        "bytes": 10**7,
        "limit": limit,
        "wrong": {},
        "backends": {name: backend(medians[name], errors[name.startswith("torch")]) for name in NAMES},
        "best": {"torch": "torch nchw", "cnnext": "cnnext channels_last"},
        "speedup": {"best": torchs / ours, "nchw": torchs / ours / 2, "channels_last": 2 * torchs / ours},
    }


def network_result(**fields: Any) -> Result:
    backends = layer_result(ours=0.2, torchs=0.3)["backends"]
    for number, backend in enumerate(backends.values()):
        backend["error"] = {"output": {"max": 2e-3, "relative": 1e-3}}
        backend["peak_memory"] = (number + 1) << 20
    return {
        "model": "resnet50",
        "mode": "infer",
        "batch": 6,
        "input": "3x8x8",
        "dtype": "float32",
        "allocator": "default",
        "memory_from": "in this process",
        "replaced": {"convolution": 2, "pooling": 1},
        "conv_flops": 5 * 10**9,
        "limit": 0.05,
        "fallbacks": {},
        "wrong": {},
        "backends": backends,
        "best": {"torch": "torch nchw", "cnnext": "cnnext channels_last"},
        "speedup": {"best": 1.5, "nchw": 0.75, "channels_last": 3.0},
        **fields,
    }


def document(*results: Result, networks: tuple[Result, ...] = ()) -> dict[str, Any]:
    return {
        "environment": {"default": environment.facts()},
        "machine": {"flops": {"float32": 1e12}, "bandwidth": {str(1 << 15): 8e10, str(1 << 25): 2e10}},
        "networks": list(networks),
        "layers": list(results),
    }


# --- tables ------------------------------------------------------------------------------------------------------


def cells(table: Table) -> list[dict[str, str]]:
    """The rows of a table by heading, without markup; those without a heading by their number."""
    columns = {
        str(column.header) or str(number): [Text.from_markup(str(cell)).plain for cell in column.cells]
        for number, column in enumerate(table.columns)
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def test_table_of_a_network():
    rows = cells(tables.network(network_result(), 150))
    assert [(row["0"], row["layout"]) for row in rows] == [
        ("torch", "NCHW"), ("torch", "channels_last"), ("cnnext", "NCHW"), ("cnnext", "channels_last"),
    ]  # fmt: skip
    assert [row["median ms"] for row in rows] == ["300", "600", "400", "200"]
    assert [row["quartiles"] for row in rows] == ["270-330", "540-660", "360-440", "180-220"]
    assert [row["images/s"] for row in rows] == ["20.0", "10.0", "15.0", "30.0"]
    assert [row["peak MiB"] for row in rows] == ["1.00", "2.00", "3.00", "4.00"]
    assert [row["speedup"] for row in rows] == ["", "", "0.75x", "3.00x"]  # in the same layout
    assert [row["to best"] for row in rows] == ["", "", "0.75x", "1.50x"]  # over 300 ms
    assert {(row["max error"], row["rel. error"]) for row in rows} == {("2.0e-03", "1.0e-03")}
    notes = tables.network_notes(network_result())
    assert "Convolutions alone, 5 GFLOP, would take 50.0 ms at the machine's measured peak: 25 % of our best." in notes
    assert "Convolutions alone" not in tables.network_notes(network_result(conv_flops=0, limit=0.0))


def test_table_of_layers():
    results = [layer_result(count=3), layer_result(conv(32), ours=4e-3, torchs=2e-3)]
    (table,) = tables.layers(results, 150)
    first, second, total = cells(table)
    assert (first["n"], first["ms"], first["torch ms"], first["speedup"]) == ("3", "2.00", "4.00", "2.00x")
    assert (first["3"], first["9"], first["+-"]) == ("CL", "NCHW", "10 %")  # of ours and of torch's
    assert (first["GFLOP/s"], first["of limit"]) == ("500", "50 %")
    assert (second["ms"], second["torch ms"], second["speedup"], second["GFLOP/s"]) == ("4.00", "2.00", "0.50x", "250")
    # three times 2 and once 4; three times 4 and once 2
    assert (total["n"], total["ms"], total["torch ms"], total["speedup"]) == ("4", "10.0", "14.0", "1.40x")
    assert (total["GFLOP/s"], total["of limit"]) == ("400", "40 %")


def test_table_of_a_single_layer():
    table = tables.single_layer(layer_result(POOL, "backward"), 150)
    rows = cells(table)
    assert [row["median ms"] for row in rows] == ["4.00", "8.00", "4.00", "2.00"]
    assert [row["GB/s"] for row in rows] == ["2.50", "1.25", "2.50", "5.00"]
    assert [row["of limit"] for row in rows] == ["25 %", "12 %", "25 %", "50 %"]
    assert [row["speedup"] for row in rows] == ["", "", "1.00x", "4.00x"]
    assert Text.from_markup(str(table.caption)).plain == "best layout against best layout: 2.00x"


def test_batches_of_a_table():
    results = [layer_result(conv(batch=batch)) for batch in (3, 2, 12)]
    assert " · N=2 to 12 · " in str(next(iter(tables.layers(results, 100))).title)
    assert tables.batches(results[:1]) == "N=3"


@pytest.mark.parametrize("width", [60, 80])
def test_tables_in_narrow_terminals(width):
    label = "2048→2048 3x3/2 d12 g32 @14"
    layer = layer_result() | {"label": label}
    network = network_result()
    for result in (layer, network):
        for backend in result["backends"].values():
            backend["kernel"] = "group_tiles_bf16"
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(tables.network(network, width))
        console.print(*tables.layers([layer], width))
        console.print(tables.single_layer(layer, width))
        console.print(*tables.geometric_means([layer], width))
    assert "…" not in capture.get()
    assert label in capture.get()


@pytest.mark.parametrize("name", ["[red]x[/red]", "[/]", ":warning:", "a\\"])
def test_names_of_models_are_no_markup(name):
    console = Console(width=150, highlight=False)
    with console.capture() as capture:
        console.print(tables.network(network_result(model=name), 150))
    assert f"{name} · inference" in capture.get()


# --- what a run prints -------------------------------------------------------------------------------------------


def report_of(*sections: tuple[str, list[Result]], ends: int = 100) -> Report:
    """A report that has taken these results by section, of which the first ones have ended."""
    report = Report("float32")
    group = [Section("layers", name, "float32", layers.LAYOUTS, 1, 0.0, model=name) for name, _ in sections]
    report.start("default", group)
    for number, (name, results) in enumerate(sections):
        for result in results:
            report.take({"event": "result", "section": number, "result": {**result, "model": name}})
        if number < ends:
            report.take({"event": "end", "section": number})
    return report


def test_the_summary_comes_after_the_last_section_even_if_that_has_no_result(capsys):
    report_of(("vgg16", [layer_result()]), ("lecture", []))
    printed = capsys.readouterr().out
    assert printed.count("vgg16 · geometric means") == 1
    assert printed.count("Pooling forward is that of inference") == 1


@pytest.mark.parametrize("ending", ["interrupted", "failed"])
@pytest.mark.parametrize("more", [[], [layer_result(conv(32))]], ids=["between", "in a section"])
def test_what_was_measured_before_the_end_is_summed_up(ending, more, capsys):
    report = report_of(("vgg16", [layer_result()]), ("lecture", more), ("resnet18", []), ends=1)
    report.interrupted() if ending == "interrupted" else report.failed(ValueError("no"))
    printed = capsys.readouterr().out
    assert printed.count("vgg16 · geometric means") == 1
    assert printed.count("lecture · convolution forward") == bool(more)
    assert printed.count("lecture · geometric means") == bool(more)


def test_nothing_is_summed_up_where_nothing_was_measured(capsys):
    report_of(("vgg16", []), ends=0).interrupted()
    assert capsys.readouterr().out.strip() == "interrupted before anything was measured"


# --- pictures ----------------------------------------------------------------------------------------------------

WIDTHS = pytest.mark.parametrize("width", [charts.WIDE, charts.NARROW])


def bars(axes: Axes) -> list[tuple[float, float, float, str]]:
    """Row, beginning, end and colour of each bar."""
    found = []
    for bar in axes.patches:
        y = bar.get_y() + bar.get_height() / 2
        color = next(role for role in (charts._OURS, charts._TORCH, charts._SLOWER) if _same(role, bar))
        found.append((round(y, 2), bar.get_x(), pytest.approx(bar.get_x() + bar.get_width()), color))
    return found


def _same(role: str, bar: Any) -> bool:
    return tuple(round(255 * part) for part in bar.get_facecolor()[:3]) == tuple(bytes.fromhex(role[1:]))


def texts(axes: Axes) -> dict[str, tuple[float, float]]:
    return {text.get_text(): text.xy for text in axes.texts}


def ticks(axes: Axes, axis: str) -> dict[float, str]:
    one = axes.xaxis if axis == "x" else axes.yaxis
    return {
        float(place): label.get_text() for place, label in zip(one.get_ticklocs(), one.get_ticklabels(), strict=True)
    }


def at(axes: Axes, figure: Figure) -> tuple[float, float, float, float]:
    """Left, bottom, right and top in pixels."""
    box, (width, height) = axes.get_position(), figure.get_size_inches() * 72
    return box.x0 * width, box.y0 * height, box.x1 * width, box.y1 * height


@WIDTHS
def test_bars_of_ratios(width):
    results = [
        layer_result(conv(8), torchs=6e-3),
        layer_result(conv(16), torchs=1e-3),
        layer_result(conv(8), "grad_input", torchs=2e-3),
        layer_result(POOL, torchs=200e-3),
        layer_result(POOL, "backward", torchs=3e-3),
    ]
    notes: charts.Notes = {}
    figure = charts.ratios(results)(width, notes)
    forward, grad_input = figure.axes
    assert [axes.get_title() or axes.get_title(loc="left") for axes in figure.axes] == ["forward", "grad_input"]
    ours, slower = charts._OURS, charts._SLOWER
    # 100x is drawn as 32x and told
    assert bars(forward) == [(0, 1, 3.0, ours), (1, 1, 0.5, slower), (2, 1, 32.0, ours)]
    rows = {text: xy[1] for text, xy in texts(forward).items()}
    assert rows == {"3.00×": 0, "0.50×": 1, "100×": 2}
    assert list(ticks(forward, "y").values()) == ["8→16 3x3 @8", "16→32 3x3 @8", "max 2x2/2 3 @8"]
    pool = 2 if width == charts.WIDE else 1  # under each other each has its own rows
    assert bars(grad_input) == [(0, 1, 1.0, ours), (pool, 1, 1.5, ours)]
    assert len(notes) == 5
    for axes in figure.axes:
        assert axes.get_xscale() == "log"
        left, right = axes.get_xlim()
        assert left < 0.5 and right > 32
        assert axes.get_ylim() == (len(ticks(axes, "y")) - 0.5, -0.5)  # the first row is at the top
        for place, text in ticks(axes, "x").items():
            assert float(text) == place and math.log2(place) % 1 == 0
        assert 1 in ticks(axes, "x") and left < min(ticks(axes, "x")) and max(ticks(axes, "x")) < right
    (one, two) = (at(axes, figure) for axes in figure.axes)
    assert two[0] >= one[2] if width == charts.WIDE else two[3] <= one[1]  # beside or under each other
    across, up = figure.get_size_inches() * 72
    assert all(right <= across and top <= up for _, _, right, top in (one, two))


@WIDTHS
def test_points_of_the_roofline(width):
    results = [layer_result(torchs=4e-3), layer_result(conv(32), "grad_weight") | {"operations": 2 * 10**8}]
    notes: charts.Notes = {}
    (axes,) = charts.roofline(results, document()["machine"])(width, notes).axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    lines = [(line.get_xdata(), line.get_ydata(), line) for line in axes.lines if len(line.get_xdata())]
    roofs = [(list(x), list(y)) for x, y, _ in lines if len(x) == 3]
    left, right = axes.get_xlim()
    # in GFLOP/s: the copy's GB/s times operations per byte, up to the peak
    assert roofs == [([left, 50, right], [left * 20, 1000, 1000]), ([left, 12.5, right], [left * 80, 1000, 1000])]
    points = [(x[0], y[0], line.get_marker(), line.get_color() == charts._OURS) for x, y, line in lines if len(x) == 1]
    assert points == [
        (100, pytest.approx(250), "o", False), (100, pytest.approx(500), "o", True),
        (20, pytest.approx(50), "s", False), (20, pytest.approx(100), "s", True),
    ]  # fmt: skip
    assert all(left < x < right and axes.get_ylim()[0] < y < axes.get_ylim()[1] for x, y, *_ in points)
    assert "1000 GFLOP/s" in next(iter(texts(axes)))
    (legend,) = axes.figure.legends
    told = [text.get_text() for text in legend.get_texts()]
    assert told == [
        "cnnext", "torch", "forward", "grad_weight", "copy of 32 MiB: 20.0 GB/s", "copy of 32 KiB: 80.0 GB/s",
    ]  # fmt: skip
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("operations per byte", "GFLOP/s")
    for axis in "xy":
        assert all(float(text) == place for place, text in ticks(axes, axis).items())


@WIDTHS
def test_time_by_kind(width):
    results = [
        layer_result(conv(8), count=2),
        layer_result(conv(16), ours=1e-3, torchs=2e-3),
        layer_result(POOL, ours=9e-3, torchs=8e-3),
    ]
    gradients = [layer_result(direction="grad_weight", ours=0.5e-3, torchs=1e-3)]
    figure = charts.kinds([("forward, N=2", results), ("gradients, N=2", gradients)])(width, {})
    first, second = figure.axes
    ours, torchs = charts._OURS, charts._TORCH
    # the longest first; twice 2 and once 1 ms beside twice 4 and once 2
    assert bars(first) == [
        (-0.19, 0, 5, ours), (0.19, 0, 10, torchs), (0.81, 0, 9, ours), (1.19, 0, 8, torchs),
    ]  # fmt: skip
    assert texts(first) == {
        "5.00 ms": (5, -0.19), "10.0 ms": (10, 0.19), "9.00 ms": (9, 0.81), "8.00 ms": (8, 1.19),
    }  # fmt: skip
    assert list(ticks(first, "y").values()) == ["3x3", "max 2x2/2"]
    assert bars(second) == [(-0.19, 0, 0.5, ours), (0.19, 0, 1, torchs)]
    for axes in figure.axes:
        assert axes.get_xlim()[0] == 0
        assert axes.get_ylim() == (len(ticks(axes, "y")) - 0.5, -0.5)


def test_rare_kinds_are_summed_up():
    results = [layer_result(conv(kernel=kernel), ours=kernel * 1e-3, torchs=1e-3) for kernel in range(1, 6)]
    figure = charts.kinds([("forward", results)], most=3)(charts.WIDE, {})
    (axes,) = figure.axes
    assert list(ticks(axes, "y").values()) == ["5x5", "4x4", "3x3", "2 other kinds"]
    assert bars(axes)[-2:] == [(2.81, 0, 3, charts._OURS), (3.19, 0, 2, charts._TORCH)]


def test_points_of_accuracy():
    results = [layer_result(errors=(1e-7, 4e-7)), layer_result(POOL, errors=(0.0, 0.0))]
    results.append(layer_result(conv(32), "grad_weight", errors=(3e-6, 0.0)))
    (axes,) = charts.accuracy(results)(charts.WIDE, {}).axes
    diagonal, *points = axes.lines
    low, high = axes.get_xlim()
    assert axes.get_ylim() == (low, high)
    assert (list(diagonal.get_xdata()), list(diagonal.get_ydata())) == ([low, high], [low, high])
    # torch's error across, ours up; an exact result at the edge, one that is exact on both sides not at all
    found = [(point.get_xdata()[0], point.get_ydata()[0], point.get_marker()) for point in points]
    assert found == [(4e-7, 1e-7, "o"), (low, 3e-6, "s")]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("torch's relative error", "cnnext's relative error")
    assert charts.exact(results) == 1


@WIDTHS
def test_long_names_are_cut_at_their_end(width):
    layer = layers.Layer(
        "conv_transpose3d", (1, 1024, 4, 5, 6), (1024, 1, 13, 14, 15), stride=(12, 12, 11), padding=(0, 0, 0),
        output_padding=(0, 0, 0), dilation=(10, 20, 30), groups=1024,
    )  # fmt: skip
    results = [layer_result(layer) | {"label": f"{layer.label()} {'features.' * 9}"}]
    for figure in (charts.ratios(results)(width, {}), charts.kinds([("a", results), ("b", results)])(width, {})):
        for axes in figure.axes:
            left, _, right, _ = at(axes, figure)
            assert right - left > 50
            for text in ticks(axes, "y").values():
                assert 7.2 * len(text) < left + 1 and (not text or text[:8] in f"{results[0]['label']} {layer.kind()}")


# --- pages -------------------------------------------------------------------------------------------------------


def rows_of(results: list[Result]) -> list[tuple[str, str]]:
    return [(result["label"], result["direction"]) for result in page._told_apart(results)]


def test_layers_of_one_label_are_told_apart():
    padded, bare = conv(batch=1), conv(padding=0, batch=1)
    assert padded.label() == bare.label() == "16→32 3x3 @8"
    results = [
        layer_result(padded, names=("a", "c")),
        layer_result(bare, names=("b",)),
        layer_result(conv(8), names=("d",)),
        layer_result(conv(batch=4), "grad_weight", names=("a", "c")),  # of the first, by another batch
    ]
    label = padded.label()
    assert rows_of(results) == [
        (f"{label} a", "forward"), (f"{label} b", "forward"), ("8→16 3x3 @8", "forward"), (f"{label} a", "grad_weight"),
    ]  # fmt: skip
    # a layer that is the second forward may be the only one with a gradient
    more = [*results, layer_result(bare, "grad_input", names=("b",))]
    assert rows_of(more) == [*rows_of(results), (f"{label} b", "grad_input")]
    assert [result["label"] for result in results[:2]] == [label, label]  # the document stays as it is
    html = page.render(document(*results))
    for name in ("a", "b"):
        assert html.count(f">{label} {name}</td>") == (2 if name == "a" else 1)
        assert f">{label} {name}</text>" in html
    calls = [layer_result(layer, names=("",)) for layer in (padded, bare, conv(batch=4))]  # of functions
    assert [name for name, _ in rows_of(calls)] == [label, f"{label} (2)", f"{label} (3)"]
    axes = charts.ratios(page._told_apart(calls))(charts.WIDE, {}).axes[0]
    assert [bar[0] for bar in bars(axes)] == [0, 1, 2]


def test_page_of_a_model_with_several_batches():
    sizes = [layer_result(conv(batch=batch), direction) for batch in (4, 1, 9) for direction in layers.CONV_DIRECTIONS]
    html = page.render(document(*sizes))
    for text in ("forward of 3 layers, N=1 to 9, float32", ">forward, N=1 to 9</text>", ">gradients, N=1 to 9</text>"):
        assert text in html


def test_headlines():
    html = page.render(document(networks=(network_result(),)))
    assert "<span>cnnext channels_last</span>" in html and "<span>torch NCHW</span>" in html  # of which the ratio is
    for to_best, speedup in (("0.75×", "0.75×"), ("1.50×", "3.00×")):
        assert f"<td>{speedup}</td>\n<td>{to_best}</td></tr>" in html
    one = network_result()
    one["backends"] = {name: one["backends"][name] for name in one["best"].values()}
    assert "<span>cnnext</span>" in page.render(document(networks=(one,)))
    assert '<div class="ratio faster" data-value="1.5">1.50×<small>faster than torch</small>' in html
    assert 'class="ours" style="width: 66.66666666666667%"></i><span>200 ms</span>' in html
    assert 'style="width: 100.0%"></i><span>300 ms</span>' in html
    slower = network_result(speedup={"best": 0.5})
    assert '<div class="ratio slower" data-value="0.5">2.00×<small>slower than torch</small>' in page.render(
        document(networks=(slower,))
    )
    # memory, of the most
    for share, size in ((25, "1.00"), (50, "2.00"), (75, "3.00"), (100, "4.00")):
        assert f'style="width: {share}.0%"></i>\n<span>{size} MiB</span>' in html
    layer_page = page.render(document(layer_result(count=3), layer_result(conv(32), ours=4e-3, torchs=2e-3)))
    assert 'data-value="1.4">1.40×<small>faster' in layer_page
    assert "forward of 4 layers, N=2, float32" in layer_page
