"""The benchmark: what it measures, that it refuses wrong results, and what it prints and writes."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import cnnext
import cnnext.functional

pytest.importorskip("rich")
pytest.importorskip("skimage")

from test_bench_arguments import CONV, parse

from cnnext import bench
from cnnext.bench import cli, layer_bench, layers, network, sections, tables, timing
from cnnext.bench.photo import photograph

# --- the photograph and timing -----------------------------------------------------------------------------------


def test_photograph_crops_differ():
    crops = photograph(3, size=32)
    assert crops.shape == (3, 3, 32, 32)
    assert crops.dtype == torch.float32
    assert 0.3 < float(crops.std()) < 3
    for i in range(3):
        for j in range(i):
            assert float((crops[i] - crops[j]).abs().mean()) > 0.1
    assert torch.equal(photograph(3, size=32), crops)


def test_interleaved_turns():
    order = []
    functions = {name: lambda name=name: order.append(name) for name in "ab"}
    slow = {"a": lambda: (order.append("a"), torch.ones(3_000_000).sum()), "b": functions["b"]}
    timings = timing.finish(timing.interleave(slow, min_time=0.0, repeats=4))
    assert [len(timings[name].seconds) for name in "ab"] == [4, 4]
    assert timings["b"].calls > 100 * timings["a"].calls  # short calls are timed in blocks
    tail = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert tail[-8:] == ["a", "b"] * 4


def test_quartiles():
    sample = timing.Timing(1, [1.0, 2.0, 3.0, 4.0, 100.0])
    assert sample.median == 3.0
    assert sample.quartiles == (2.0, 4.0)


def test_peak_memory_sees_what_a_step_needs():
    def step():
        torch.ones(50, 1 << 20)  # 200 MiB
        torch.ones(10, 1 << 20)

    peak = timing.peak_memory(step)
    if peak is None:
        pytest.skip("this kernel does not reset VmHWM")
    assert 195 <= peak / 2**20 <= 230


def test_bandwidth_and_flops_are_plausible():
    machine = timing.Machine(seconds=0.02)
    assert 1e8 < machine.flops(torch.float32) < 1e14
    assert 1e7 < machine.bandwidth(1 << 20) < 1e13
    assert machine.bandwidth(1 << 20) == machine.bandwidth((1 << 20) - 100)


# --- runs --------------------------------------------------------------------------------------------------------

POOL = ("max_pool2d", "2x8x12x12", "--kernel", 3, "--stride", 2, "--padding", 1)


def run(tmp_path, *arguments):
    file = tmp_path / "bench.json"
    status = bench.main(parse(*arguments, "--quick", "--json", file))
    return status, json.loads(file.read_text())


def test_only_our_networks_run_with_torch_memory():
    seen = {}

    class Probe(torch.nn.Module):
        def forward(self, x):
            seen[self.backend] = cnnext.backends.torch_memory.enabled
            return self.weight * x.mean()

        def __init__(self, backend):
            super().__init__()
            self.backend, self.weight = backend, torch.nn.Parameter(torch.ones(1))

    (networks, _) = cli.plan(parse("--model", "resnet18", "--mode", "infer", "--torch-memory"))
    assert all(section.torch_memory for section in networks[1])
    for backend in ("torch", "cnnext"):
        network._step(Probe(backend), backend, "nchw", torch.float32, torch.ones(1, 3, 4, 4), None, True)()
    assert seen == {"torch": False, "cnnext": True}
    assert not cnnext.backends.torch_memory.enabled


def test_each_model_has_a_process_of_its_own(monkeypatch):
    """Memory is kept there: that of all suites together was more than the machine had."""
    children = []

    def in_child(group, allocator):
        children.append([section.model for section in group])
        for index in range(len(group)):
            yield {"event": "end", "section": index}

    monkeypatch.setattr(sections, "_run_in_child", in_child)
    ((_, group),) = cli.plan(parse("--model", "resnet18", "lecture", "--only", "layers"))
    events = list(sections.run(group, "fixed"))
    assert [set(models) for models in children] == [{"resnet18"}, {"lecture"}]
    assert [event["section"] for event in events] == list(range(len(group)))


def test_what_was_measured_before_a_process_died_is_written(tmp_path, monkeypatch, capsys):
    before = sections.run

    def dies(group, allocator):
        yield from before(group, "default")
        raise sections.Failed("the benchmark's child process ended with status -9")

    monkeypatch.setattr(sections, "run", dies)
    status, document = run(tmp_path, *CONV)
    assert status == 1
    assert len(document["layers"]) == len(layers.CONV_DIRECTIONS)
    assert "ended with status -9" in capsys.readouterr().out


def test_a_measurement_that_raises_is_told_in_a_line(tmp_path, monkeypatch, capsys):
    measure = layer_bench.measure

    def failing(layer, *args, **kwargs):
        yield from measure(layer, ("forward",), *args[1:], **kwargs)
        raise RuntimeError("[enforce fail] not enough memory\nand more")

    monkeypatch.setattr(layer_bench, "measure", failing)
    status, document = run(tmp_path, *CONV, "--allocator", "default")
    assert (status, len(document["layers"])) == (1, 1)
    printed = capsys.readouterr().out
    assert "stopped: 8→16 3x3 @12: [enforce fail] not enough memory\n" in printed
    assert "8→16 3x3 @12 · forward" in printed  # what was measured before


def test_a_child_tells_what_it_raised():
    refused = layers.Layer("conv2d", (1, 3, 8, 8), (4, 5, 3, 3), stride=(1, 1), padding=(0, 0), dilation=(1, 1))
    section = sections.Section("layers", "title", "float32", ("nchw",), 1, 0.0, 1, directions=("forward",))
    section.add(layers.LayerUse(refused, ["conv"], True))
    with pytest.raises(sections.Failed, match="title, 3→4 3x3 @8: Invalid channel dimensions"):
        list(sections.run([section], "fixed"))


def test_no_empty_file_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(sections, "run", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, *CONV)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("arguments", "directions"), [(CONV, layers.CONV_DIRECTIONS), (POOL, layers.POOL_DIRECTIONS)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_single_layer(arguments, directions, dtype, tmp_path, capsys):
    status, document = run(tmp_path, *arguments, "--dtype", dtype, "--allocator", "default")
    assert status == 0
    assert [result["direction"] for result in document["layers"]] == list(directions)
    for result in document["layers"]:
        assert set(result["backends"]) == {
            f"{library} {layout}" for library in ("torch", "cnnext") for layout in layers.LAYOUTS
        }
        for name, backend in result["backends"].items():
            assert 0 < backend["q1"] <= backend["median"] <= backend["q3"]
            assert backend["error"]["relative"] < 0.02
            assert ("kernel" in backend) == name.startswith("cnnext")
        assert result["speedup"]["nchw"] == pytest.approx(
            result["backends"]["torch nchw"]["median"] / result["backends"]["cnnext nchw"]["median"]
        )
        assert result["limit"] > 0
    (environment,) = document["environment"].values()
    assert environment["torch"] == torch.__version__
    assert environment["threads"] == torch.get_num_threads()
    assert document["machine"]["flops"][dtype] > 0
    printed = capsys.readouterr().out
    assert "grad_weight" in printed or "backward" in printed
    assert max(map(len, printed.splitlines())) <= 100


@pytest.mark.parametrize(
    "op", ["conv1d", "conv3d", "conv_transpose2d", "avg_pool1d", "avg_pool3d", "adaptive_max_pool2d"]
)
def test_other_layers(op, tmp_path):
    dims = int(op[-2])
    shape = "2x4" + "x8" * dims
    options = {"conv": ["--weight", "4x4" + "x3" * dims], "avg_": ["--kernel", 2], "adap": ["--output-size", 2]}
    status, document = run(tmp_path, op, shape, *options[op[:4]], "--allocator", "default")
    assert (status, {result["layer"]["op"] for result in document["layers"]}) == (0, {op})


def test_fixed_allocator_runs_in_a_child(tmp_path):
    status, document = run(tmp_path, *CONV, "--direction", "forward")
    assert status == 0
    assert set(document["fixed_allocator"].items()) <= set(document["environment"]["fixed"]["allocator"].items())
    assert document["layers"][0]["allocator"] == "fixed"


def test_wrong_result_stops_before_timing(monkeypatch, tmp_path, capsys):
    right = cnnext.functional.conv2d

    def wrong(*args, **kwargs):
        output = right(*args, **kwargs).clone()
        output[..., -1, -1] = 0  # one corner of the border
        return output

    monkeypatch.setattr(cnnext.functional, "conv2d", wrong)
    status, document = run(tmp_path, *CONV, "--allocator", "default")
    assert (status, document["status"]) == (1, 1)
    assert document["layers"] == []
    printed = capsys.readouterr().out
    assert "stopped:" in printed
    assert "8→16 3x3 @12 forward: cnnext nchw differs" in printed


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("op", ["conv2d", "max_pool2d"])
def test_a_missing_row_is_noticed_in_any_type(op, dtype, monkeypatch, tmp_path):
    right = getattr(cnnext.functional, op)

    def wrong(*args, **kwargs):
        output = right(*args, **kwargs).clone()
        output[..., -1, :] = 0
        return output

    monkeypatch.setattr(cnnext.functional, op, wrong)
    layer = ("1x3x224x224", "--weight", "4x3x3x3", "--padding", 1) if op == "conv2d" else ("1x2x224x224", "--kernel", 3)
    options = ("--dtype", dtype, "--direction", "forward", "--allocator", "default", "--threads", 1)
    assert run(tmp_path, op, *layer, *options)[0] == 1


def test_nan_and_wrong_shape_are_mismatches():
    found = {"torch nchw": {"max": 0.0, "relative": 0.0}, "cnnext nchw": {"max": 0.0, "relative": float("nan")}}
    with pytest.raises(layer_bench.Mismatch, match="x: cnnext nchw differs from float64 by nan"):
        layer_bench.check(found, "x", torch.float32, 0.1)
    with pytest.raises(layer_bench.Mismatch, match="size"):
        layer_bench.errors(torch.ones(2), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize(("error", "told"), [(1e30, 1e30), (1.0, 1.0), (float("nan"), None), (float("inf"), None)])
def test_wrong_results_of_torch_excuse_none_of_ours(error, told):
    def check(ours, *others):
        names = ("cnnext nchw", "torch nchw", "torch channels_last")
        found = {
            name: {"max": 0.0, "relative": each} for name, each in zip(names, (ours, error, *others), strict=False)
        }
        return layer_bench.check(found, "x", torch.bfloat16, layer_bench.limit(torch.bfloat16, 10**9))

    assert check(1e-3) == {"torch nchw": told}
    assert check(1e-3, 1e-3) == {"torch nchw": told}
    for others in ((), (1e-3,)):
        with pytest.raises(layer_bench.Mismatch, match="cnnext nchw differs"):
            check(0.9, *others)


def test_limit_of_right_results():
    """Above what torch's sums one after another were seen to have, and far below what a wrong result has."""
    assert 1.5e-5 < layer_bench.limit(torch.float32, 1 << 20) < 2e-4
    assert 4.1e-3 < layer_bench.limit(torch.float16, 961) < 0.1


@pytest.mark.parametrize("wrong", [("nchw",), layers.LAYOUTS])
@pytest.mark.parametrize("factor", [1e30, float("nan")])
def test_wrong_results_of_torch_are_told_and_not_timed(wrong, factor, monkeypatch, tmp_path, capsys):
    right = layer_bench.torch_call

    def broken(layer, direction, tensors):
        call = right(layer, direction, tensors)
        layout = "nchw" if tensors.input.is_contiguous() else "channels_last"
        reference = tensors.input.dtype == torch.float64
        return call if reference or direction != "forward" or layout not in wrong else lambda: call() * factor

    monkeypatch.setattr(layer_bench, "torch_call", broken)
    status, document = run(tmp_path, *CONV, "--allocator", "default", "--report", tmp_path)
    assert status == 0
    forward, *gradients = document["layers"]
    assert list(forward["wrong"]) == [f"torch {layout}" for layout in wrong]
    others = [layout for layout in layers.LAYOUTS if layout not in wrong]
    assert [name for name in forward["backends"] if name.startswith("torch")] == [f"torch {each}" for each in others]
    assert set(forward["speedup"]) == ({"best", *others} if others else set())
    assert [set(result["speedup"]) for result in gradients] == [{"best", *layers.LAYOUTS}] * 2
    means = {row["direction"] for row in document["geometric_means"]}
    assert means == ({"forward", "grad_input", "grad_weight"} if others else {"grad_input", "grad_weight"})
    printed = " ".join(capsys.readouterr().out.split())
    error = "not finite" if factor != factor else "1.0e+30"
    told = f"(relative errors): 8→16 3x3 @12 forward ({', '.join(f'{tables.LAYOUT[each]} {error}' for each in wrong)})."
    assert told in printed
    assert told in (tmp_path / "layer.html").read_text()
    for table in tables.layers(document["layers"], 100):
        assert table.row_count == (2 if others or "forward" not in str(table.title) else 1)  # all together


def test_network_and_its_layers(tmp_path, capsys):
    # one thread: this says nothing about time, and is not slowed by what else runs beside the tests
    options = ["--model", "resnet18", "--allocator", "default", "--repeats", 1, "--threads", 1]
    status, document = run(tmp_path, *options)
    assert status == 0
    assert [(r["model"], r["mode"]) for r in document["networks"]] == [("resnet18", "infer"), ("resnet18", "train")]
    for result in document["networks"]:
        assert result["replaced"] == {"convolution": 20, "batch_norm": 20, "pooling": 2}
        assert result["fallbacks"] == {}
        assert len(result["backends"]) == 4
        peaks = [backend["peak_memory"] for backend in result["backends"].values()]
        assert None in peaks or 2**18 < min(peaks) < max(peaks) < 2**28
        assert set(result["backends"]["cnnext nchw"]["error"]) == (
            {"output"} if result["mode"] == "infer" else {"output", "gradient"}
        )
    directions = {(r["direction"], bool(r["flops"])) for r in document["layers"]}
    assert directions == {
        ("forward", True),
        ("forward", False),
        ("grad_input", True),
        ("grad_weight", True),
        ("backward", False),
    }
    means = {(row["op"], row["direction"], row["kind"]): row for row in document["geometric_means"]}
    assert means["convolution", "forward", "all"]["layers"] == 20
    assert means["convolution", "grad_input", "all"]["layers"] == 19  # the image needs no gradient
    printed = capsys.readouterr().out
    assert "geometric means" in printed
    assert max(map(len, printed.splitlines())) <= 100


def test_fused_networks(tmp_path, capsys):
    options = ["--model", "resnet18", "--only", "networks", "--layout", "nchw"]
    options += ["--repeats", 1, "--threads", 1, "--fuse"]
    status, document = run(tmp_path, *options)
    results = document["networks"]
    assert status == 0 and [(each["mode"], each["fused"], each["fallbacks"]) for each in results] == [
        ("infer", True, {}),
        ("train", True, {}),
    ]
    printed = " ".join(capsys.readouterr().out.split())
    assert "batch norms folded by torch.fx and by cnnext.fuse" in printed and "ours by cnnext.fuse" in printed
    for training, library, kind, activated, norms in (
        (False, "torch", nn.Module, 0, 0),
        (False, "cnnext", cnnext.nn.FusedConv2d, 17, 0),
        (True, "torch", nn.Module, 0, 20),
        (True, "cnnext", cnnext.nn.FusedBatchNorm2d, 17, 20),
    ):
        model = network.prepared_model("resnet18", 64, training)
        fused = list(network.converted(model, library, "nchw", None, fuse=True).modules())
        assert sum(isinstance(module, nn.BatchNorm2d) for module in fused) == norms
        assert library == "torch" or sum(isinstance(module, kind) for module in fused) == activated


def test_wrong_network_stops_before_timing(monkeypatch, tmp_path):
    class Wrong(nn.MaxPool2d):
        def forward(self, x):
            return super().forward(x) * 1.01

    Wrong.__module__ = "cnnext.nn"
    convert = cnnext.convert

    def wrong(model):
        convert(model)
        model.maxpool.__class__ = Wrong
        return model

    monkeypatch.setattr(cnnext, "convert", wrong)
    options = ["--model", "resnet18", "--only", "networks", "--mode", "infer"]
    status, document = run(tmp_path, *options)
    assert (status, document["networks"]) == (1, [])


@pytest.mark.parametrize(("dtype", "value"), [(torch.float32, 2.0), (torch.bfloat16, 6.0)])
def test_a_network_is_not_right_because_torchs_is_as_wrong(dtype, value):
    class Model:
        def __init__(self, value):
            self.value = value

        def results(self):
            return {"output": torch.full((4,), self.value, dtype=torch.float64)}

    def make(library, layout, dtype):
        return Model(1.0 if dtype == torch.float64 else value)

    with pytest.raises(layer_bench.Mismatch, match="x output: cnnext nchw differs"):
        list(network.compare("x", make, dtype, ("nchw",), timing.Machine(0.01), 0.0))


def test_unconverted_layers_are_noticed(monkeypatch):
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.MaxPool2d(2))
    with pytest.raises(layer_bench.Mismatch, match="convert left 0 as torch"):
        network.replaced(model)


def test_interrupt_prints_and_writes_what_is_there(monkeypatch, tmp_path, capsys):
    measure = layer_bench.measure

    def interrupted(layer, *args, **kwargs):
        if not layer.is_conv:
            raise KeyboardInterrupt
        yield from measure(layer, *args, **kwargs)

    monkeypatch.setattr(layer_bench, "measure", interrupted)
    options = ["--model", "resnet18", "--only", "layers", "--mode", "infer", "--allocator", "default"]
    status, document = run(tmp_path, *options)
    assert (status, len(document["layers"])) == (130, 1)
    printed = capsys.readouterr().out
    assert "interrupted" in printed
    assert "3→64 7x7/2 @64" in printed
