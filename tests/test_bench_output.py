"""What the benchmark prints: its tables, and its scripts as a user runs them."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch._inductor.config

pytest.importorskip("rich")
pytest.importorskip("skimage")

from test_bench_arguments import CONV

from cnnext.bench import layer_bench, layers, tables, timing
from cnnext.bench.layers import LAYOUTS

# --- tables ------------------------------------------------------------------------------------------------------


def result(
    label="512→512 3x3/2 d2 g32 @14",
    kernel="gemm_packed_avx512",
    flops=10**9,
    speedup=2.0,
    count=3,
    kind="3x3",
    family="grouped",
):
    def backend(median):
        return {"median": median, "q1": median * 0.9, "q3": median * 1.1, "kernel": kernel, "preemptions": 0.0}

    names = [f"{library} {layout}" for library in ("torch", "cnnext") for layout in layers.LAYOUTS]
    return {
        "model": "resnet50",
        "label": label,
        "kind": kind,
        "family": family,
        "count": count,
        "direction": "forward",
        "allocator": "fixed",
        "flops": flops,
        "bytes": 10**7,
        "limit": 1e-3,
        "batch": 16,
        "dtype": "float32",
        "backends": {name: backend(0.1234 if name.startswith("torch") else 0.1234 / speedup) for name in names},
        "best": {"torch": "torch nchw", "cnnext": "cnnext channels_last"},
        "speedup": {"best": speedup, "nchw": speedup, "channels_last": speedup},
    }


@pytest.mark.parametrize("width", [80, 100])
def test_layer_table_fits(width):
    from rich.console import Console

    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        for table in tables.layers([result(), result()], width):
            console.print(table)
    printed = capture.get()
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= width
    for cell in (
        "512→512 3x3/2 d2 g32 @14",
        "gemm_packed_avx512",
        "2.00x",
        "61.7",
        "all layers",
    ):  # 123.4 ms of torch's over 2
        assert cell in printed


def test_geometric_means_count_layers():
    rows = tables.summary([result(speedup=2.0, count=3), result(speedup=0.5, count=1, kind="1x1")])
    means = {row["kind"]: row for row in rows}
    assert means["all"]["best"] == pytest.approx((2.0**3 * 0.5) ** 0.25)
    assert (means["all"]["lowest"], means["all"]["highest"], means["all"]["layers"]) == (0.5, 2.0, 4)
    assert means["1x1"]["best"] == pytest.approx(0.5)


def test_families_have_means_where_there_are_several():
    alone = [result(speedup=2.0), result(speedup=0.5, kind="1x1")]
    assert {row["kind"] for row in tables.summary(alone)} == {"3x3", "1x1", "all"}
    rows = tables.summary([*alone, result(speedup=4.0, kind="5x5", family="depthwise")])
    means = {row["kind"]: row["best"] for row in rows}
    assert means["all grouped"] == pytest.approx(1.0)
    assert means["all depthwise"] == pytest.approx(4.0)


@pytest.mark.parametrize(("value", "text"), [(0.01234, "0.0123"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234")])
def test_three_figures(value, text):
    assert tables.number(value) == text


def test_disturbance_is_told():
    disturbed = result()
    disturbed["backends"]["torch nchw"]["preemptions"] = 300.0
    assert tables.disturbance([result()]) == ""
    assert "300 times a second" in tables.disturbance([disturbed])


# --- as a user ---------------------------------------------------------------------------------------------------


def test_command_line():
    command = [sys.executable, "-m", "cnnext", "bench", *map(str, CONV), "--quick", "--direction", "forward"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "8→16 3x3 @12 · forward" in done.stdout


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("call_overhead.py", ["--min-time", "-1"], "argument --min-time: expected a positive number, got '-1'"),
        ("call_overhead.py", ["--threads", "0"], "argument --threads: expected a whole number from 1 to "),
        (
            "call_overhead.py",
            ["--json", "/no/such/file"],
            "argument --json: cannot write '/no/such/file': No such file",
        ),
        ("inference.py", ["--threads", "100000"], "argument --threads: expected a whole number from 1 to "),
        ("inference.py", ["--json", "/no/such/file"], "argument --json: cannot write '/no/such/file': No such file"),
        ("inference.py", ["--model", "yolo_v1"], "no classifier is named 'yolo_v1'; there are "),
        ("layers.py", ["--suite", "none"], "argument --suite: invalid choice: 'none'"),
        ("layers.py", ["--batch", "0"], "argument --batch: expected a whole number from 1 to "),
        ("layers.py", ["--json", f"{__file__}/x.json"], "argument --json: cannot make the folder "),
        ("networks.py", ["--batches", "1", "0"], "argument --batches: expected a whole number from 1 to "),
        ("networks.py", ["--json", __file__], "argument --json: cannot make the folder "),
        ("networks.py", ["--layout", "nhwc"], "argument --layout: invalid choice: 'nhwc'"),
    ],
)
def test_wrong_arguments_of_scripts(script, arguments, message, monkeypatch, capsys):
    """Nothing is measured first."""
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(BENCHMARKS / script), run_name="__main__")
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (layer_bench.Mismatch("wrong"), 1)])
def test_inference_writes_what_was_measured_before_an_end(error, status, monkeypatch, tmp_path, capsys):
    script = runpy.run_path(str(BENCHMARKS / "inference.py"))
    found = {
        f"{way}|{layout}": {"median": 1.0, "error": {"relative": 0.0}} for way in script["WAYS"] for layout in LAYOUTS
    }

    def measure(name, *_):
        if name == "vgg16":
            raise error
        return found

    monkeypatch.setitem(script["main"].__globals__, "measure", measure)
    monkeypatch.setattr(
        sys, "argv", ["inference.py", "--model", "resnet18", "vgg16", "--json", str(tmp_path / "x.json")]
    )
    with torch._inductor.config.patch(freezing=False):  # which the script sets
        assert script["main"]() == status
    assert [each["model"] for each in json.loads((tmp_path / "x.json").read_text())["networks"]] == ["resnet18"]
    printed = capsys.readouterr().out
    assert "resnet18 · inference" in printed
    assert f"stopped: {str(error) or 'interrupted'}" in printed


@pytest.mark.usefixtures("threads")
def test_call_overhead_ends_quietly(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(timing, "interleave", interrupted)
    monkeypatch.setattr(sys, "argv", ["call_overhead.py"])
    assert runpy.run_path(str(BENCHMARKS / "call_overhead.py"))["main"]() == 130
    assert "interrupted: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "arguments", "expected"),
    [
        ("layers.py", ["--suite", "pooling", "--batch", "2", "--quick", "--direction", "forward"], "pooling forward"),
        ("call_overhead.py", ["--min-time", "0.01"], "forward + backward"),
        ("inference.py", ["--model", "resnet20", "--no-compile", "--min-time", "0.01"], "cnnext.fuse"),
    ],
)
def test_scripts(script, arguments, expected, tmp_path):
    path = BENCHMARKS / script
    file = tmp_path / "folder" / "out.json" if script == "layers.py" else tmp_path / "out.json"
    command = [sys.executable, str(path), *arguments, "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
    assert json.loads(file.read_text())
