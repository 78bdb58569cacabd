"""The benchmark's figures, by clocks and machines that are made up: whose a time is, and what is computed of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("rich")
pytest.importorskip("skimage")

from test_bench_arguments import CONV, parse

from cnnext.bench import cli, layer_bench, layers, network, sections, timing

CPU = torch.device("cpu")
NAMES = [f"{library} {layout}" for library in ("torch", "cnnext") for layout in layers.LAYOUTS]
SECONDS = dict(zip(NAMES, (4.0, 3.0, 2.5, 0.5), strict=True))
LAYER = layers.Layer("conv2d", (2, 3, 8, 8), (4, 3, 3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1))
POOL = layers.Layer("max_pool2d", (2, 3, 8, 8), kernel=(2, 2), stride=(2, 2), padding=(0, 0), dilation=(1, 1))
MACHINE = SimpleNamespace(device=CPU, flops=lambda dtype: 1e9, bandwidth=lambda size: 1e6)


def timed(seconds: float) -> timing.Timing:
    return timing.Timing(1, [seconds])


@pytest.fixture
def known_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every backend takes the time of its name, without a run."""

    def interleave(functions, *_):
        yield 0.0
        return {name: timed(SECONDS[name]) for name in functions}

    monkeypatch.setattr(layer_bench, "interleave", interleave)
    monkeypatch.setattr(network, "interleave", interleave)


# --- the clock ---------------------------------------------------------------------------------------------------


class Clock:
    """Time passes in calls only."""

    def __init__(self) -> None:
        self.now = 0.0

    def takes(self, *seconds: float) -> Callable[[], None]:
        """A function whose calls take these times in turn, the last one for ever."""
        turns = itertools.chain(seconds, itertools.repeat(seconds[-1]))

        def function() -> None:
            self.now += next(turns)

        return function


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    fake = SimpleNamespace(perf_counter=lambda: clock.now, perf_counter_ns=lambda: round(clock.now * 1e9))
    monkeypatch.setattr(timing, "time", fake)
    return clock


def test_a_block_is_the_time_of_its_calls(clock):
    assert timing._block(clock.takes(1.0, 2.0, 4.0), 3, CPU) == pytest.approx(7.0)


def test_times_are_of_one_call(clock):
    functions = {"slow": clock.takes(0.5), "fast": clock.takes(1e-4)}
    found = timing.finish(timing.interleave(functions, min_time=5.0))
    for name, expected in (("slow", 0.5), ("fast", 1e-4)):
        assert found[name].seconds == pytest.approx([expected] * len(found[name].seconds))
    assert found["slow"].calls == 1
    assert found["fast"].calls * 1e-4 >= timing._BLOCK_SECONDS
    # the slow one has its seconds; the other takes as many turns, and no more rounds are made
    assert len(found["slow"].seconds) == len(found["fast"].seconds)
    assert 10 <= len(found["slow"].seconds) <= 21


def test_the_first_call_is_not_timed(clock):
    found = timing.finish(timing.interleave({"a": clock.takes(30.0, 1.0)}, min_time=3.0))
    assert set(found["a"].seconds) == {1.0}


def test_at_least_five_rounds(clock):
    assert len(timing.finish(timing.interleave({"a": clock.takes(10.0)}, min_time=0.1))["a"].seconds) == 5
    assert len(timing.finish(timing.interleave({"a": clock.takes(10.0)}, 0.1, repeats=2))["a"].seconds) == 2


def test_what_is_done_before_each_call_is_not_timed(clock):
    order, short, long = [], clock.takes(1e-4), clock.takes(7.0)
    functions = {name: lambda name=name: (order.append(name), short()) for name in "ab"}
    before = {name: lambda name=name: (order.append(f"before {name}"), long()) for name in "ab"}
    found = timing.finish(timing.interleave(functions, 1.0, repeats=3, before=before))
    assert all(each.calls == 1 and each.seconds == pytest.approx([1e-4] * 3) for each in found.values())
    assert order[-12:] == ["before a", "a", "before b", "b"] * 3


# --- the machine -------------------------------------------------------------------------------------------------


class _Copied(TorchDispatchMode):
    """Counts the bytes that copies read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.copy_.default:
            self.bytes += args[0].nbytes + args[1].nbytes
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flops_of_a_machine_of_one_gflop_a_second(dtype, monkeypatch):
    def block(function, calls, device):
        with FlopCounterMode(display=False) as counter:
            result = function()
        done.append((result.dtype, counter.get_total_flops()))
        return calls * counter.get_total_flops() / 1e9

    done = []
    monkeypatch.setattr(timing, "_block", block)
    assert timing.Machine(seconds=0.0).flops(dtype) == pytest.approx(1e9)
    assert {each for each, _ in done} == {dtype, torch.float32}  # a kernel may convert to float32
    assert max(flops for _, flops in done) >= 2 * 512**3


@pytest.mark.parametrize(
    ("size", "touched"), [(1, 1 << 15), (1 << 20, 1 << 20), (3 << 20, 4 << 20), (1 << 29, 1 << 28)]
)
def test_bandwidth_of_a_machine_of_one_gigabyte_a_second(size, touched, monkeypatch):
    def block(function, calls, device):
        with _Copied() as counter:
            copies = function()
        done.append(counter.bytes // len(copies))
        return calls * counter.bytes / 1e9

    done = []
    monkeypatch.setattr(timing, "_block", block)
    assert timing.Machine(seconds=0.0).bandwidth(size) == pytest.approx(1e9)
    assert set(done) == {touched}


def test_what_a_larger_copy_reaches_a_smaller_one_does(monkeypatch):
    machine = timing.Machine(seconds=0.0)
    seconds = iter((1.0, 0.5, 100.0, 1000.0))
    monkeypatch.setattr(machine, "_fastest", lambda functions: next(seconds))
    sizes = [1 << 22, 1 << 24, 1 << 23]
    assert [machine.bandwidth(size) for size in sizes] == [1 << 22, 1 << 25, 1 << 25]
    assert machine.bandwidth(1 << 22) == 1 << 25
    assert machine.as_json()["bandwidth"] == {
        str(1 << 22): 1 << 22,
        str(1 << 23): (1 << 23) / 100,
        str(1 << 24): 1 << 25,
    }
    assert machine.bandwidth(1 << 25) == (1 << 25) / 1000  # but not the other way round


def test_the_machine_is_as_fast_as_its_fastest_try(monkeypatch):
    times = itertools.chain((5.0, 3.0, 4.0), itertools.repeat(6.0))
    monkeypatch.setattr(timing, "_block", lambda *_: next(times))
    assert timing.Machine(seconds=0.0)._fastest({"a": lambda: None, "b": lambda: None}) == 3.0


# --- one layer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "direction"), [(LAYER, "forward"), (LAYER, "grad_weight"), (POOL, "backward")])
def test_each_time_is_that_of_its_name(layer, direction, known_times):
    (result,) = layer_bench.measure(layer, (direction,), torch.float32, layers.LAYOUTS, MACHINE, 0.0)
    assert {name: backend["median"] for name, backend in result["backends"].items()} == SECONDS
    assert result["best"] == {"torch": "torch channels_last", "cnnext": "cnnext channels_last"}
    assert result["speedup"] == {"best": 6.0, "nchw": 1.6, "channels_last": 6.0}


@pytest.mark.parametrize(
    ("layer", "direction"), [(LAYER, "forward"), (LAYER, "grad_input"), (LAYER, "grad_weight"), (POOL, "forward")]
)
def test_what_is_timed_is_of_its_name(layer, direction, monkeypatch):
    """Of the library, and on operands in the layout."""
    ran = []

    def recorded(library, make):
        def call(layer, direction, tensors, *args):
            last = tensors.input.is_contiguous(memory_format=torch.channels_last)
            assert tensors.grad_output.is_contiguous(memory_format=torch.channels_last) == last
            assert tensors.weight is None or tensors.weight.is_contiguous(memory_format=torch.channels_last) == last
            call = make(layer, direction, tensors, *args)
            return lambda: (ran.append(f"{library} {'channels_last' if last else 'nchw'}"), call())[1]

        return call

    def interleave(functions, *_):
        yield 0.0
        for name, function in functions.items():
            ran.clear()
            function()
            assert ran == [name]
        return {name: timed(1.0) for name in functions}

    monkeypatch.setattr(layer_bench, "torch_call", recorded("torch", layer_bench.torch_call))
    monkeypatch.setattr(layer_bench, "our_call", recorded("cnnext", layer_bench.our_call))
    monkeypatch.setattr(layer_bench, "interleave", interleave)
    (result,) = layer_bench.measure(layer, (direction,), torch.float32, layers.LAYOUTS, MACHINE, 0.0)
    assert list(result["backends"]) == ["torch nchw", "cnnext nchw", "torch channels_last", "cnnext channels_last"]


@pytest.mark.parametrize("direction", layers.CONV_DIRECTIONS)
def test_our_call_runs_our_kernels_and_torchs_none(direction):
    tensors = layer_bench.Tensors.random(LAYER)
    for library, call in (
        ("torch", layer_bench.torch_call(LAYER, direction, tensors)),
        ("cnnext", layer_bench.our_call(LAYER, direction, tensors, "nchw")),
    ):
        with torch.profiler.profile() as profile:
            call()
        names = {event.name.partition("::")[0] for event in profile.events() if "conv" in event.name}
        assert ("cnnext" in names, "aten" in names) == (library == "cnnext", library == "torch"), names


@pytest.mark.parametrize(("flops", "bandwidth"), [(1e9, 1e12), (1e12, 1e6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_limit_of_a_layer(flops, bandwidth, dtype, known_times):
    machine = SimpleNamespace(
        device=CPU, flops=lambda asked: flops if asked == dtype else 0, bandwidth=lambda size: bandwidth
    )
    work = 2 * (2 * 4 * 8 * 8) * (3 * 3 * 3)
    size = dtype.itemsize * (2 * 3 * 8 * 8 + 2 * 4 * 8 * 8 + 4 * 3 * 3 * 3)
    (conv,) = layer_bench.measure(LAYER, ("forward",), dtype, layers.LAYOUTS, machine, 0.0)
    assert (conv["flops"], conv["bytes"]) == (work, size)
    assert conv["limit"] == pytest.approx(max(work / flops, size / bandwidth))
    (pool,) = layer_bench.measure(POOL, ("forward",), dtype, layers.LAYOUTS, machine, 0.0)
    assert pool["limit"] == pytest.approx(dtype.itemsize * (2 * 3 * 8 * 8 + 2 * 3 * 4 * 4) / bandwidth)


def test_best_is_the_fastest():
    def compare(**medians):
        return layer_bench.compare({name.replace("_", " ", 1): {"median": each} for name, each in medians.items()})

    found = compare(torch_nchw=3.0, cnnext_nchw=1.0, torch_channels_last=2.0, cnnext_channels_last=4.0)
    assert found["best"] == {"torch": "torch channels_last", "cnnext": "cnnext nchw"}
    assert found["speedup"] == {"best": 2.0, "nchw": 3.0, "channels_last": 0.5}
    found = compare(torch_nchw=3.0, cnnext_nchw=1.5, cnnext_channels_last=1.0)
    assert found["best"] == {"torch": "torch nchw", "cnnext": "cnnext channels_last"}
    assert found["speedup"] == {"best": 3.0, "nchw": 2.0}
    assert compare(cnnext_nchw=1.5) == {"best": {"cnnext": "cnnext nchw"}, "speedup": {}}


# --- whole networks ----------------------------------------------------------------------------------------------


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_an_inference_step_records_no_gradient():
    modes, model = [], small()
    model.register_forward_hook(lambda module, inputs, output: modes.append((torch.is_grad_enabled(), output.grad_fn)))
    step = network.Step(model, torch.rand(1, 3, 8, 8), None, False)
    step()
    assert modes == [(False, None)]
    assert not step.results()["output"].requires_grad


def test_a_training_step_is_one_of_sgd():
    images, labels = torch.rand(2, 3, 8, 8), torch.tensor([1, 5])
    model, expected = small(), small()
    expected.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD(expected.parameters(), lr=1e-3, momentum=0.9)
    step = network.Step(model, images, labels, False)
    for _ in range(2):  # gradients are not summed up, and the momentum is kept
        step()
        optimizer.zero_grad()
        F.cross_entropy(expected(images), labels).backward()
        optimizer.step()
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-7)
    assert not torch.allclose(model[2].weight, small()[2].weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("library", ["torch", "cnnext"])
@pytest.mark.parametrize("layout", layers.LAYOUTS)
def test_weights_and_images_are_in_the_layout(library, layout, dtype):
    model, format = small(), layer_bench.memory_format(layout, 2)
    step = network._step(model, library, layout, dtype, torch.rand(2, 3, 8, 8), None, False)
    for tensor in (step.images, step.model[0].weight, step.model[2].weight):
        assert tensor.is_contiguous(memory_format=format)
        assert not tensor.is_contiguous(memory_format=layer_bench.memory_format(*{*layers.LAYOUTS} - {layout}, 2))
        assert tensor.dtype == dtype
    assert torch.equal(step.model[2].weight, model[2].weight.to(dtype))
    assert type(step.model[0]).__module__.startswith("cnnext") == (library == "cnnext")
    assert model[0].weight.is_contiguous()  # a copy was changed


def test_figures_of_a_network(known_times, monkeypatch):
    monkeypatch.setattr(network, "prepared_model", lambda *_: small().eval())
    monkeypatch.setattr(network, "photograph", lambda count, size: torch.rand(count, 3, size, size))
    flops = 2 * 2 * (4 * 6 * 6 * 27 + 8 * 4 * 4 * 36)  # two a product, of two images
    how = (torch.float32, layers.LAYOUTS, MACHINE, 0.0)
    result = timing.finish(network.measure("resnet18", "infer", 2, *how, size=8))
    assert {name: backend["median"] for name, backend in result["backends"].items()} == SECONDS
    assert result["speedup"]["best"] == 6.0
    assert result["conv_flops"] == flops
    assert result["limit"] == pytest.approx(flops / 1e9)


# --- what options do ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("threads")
def test_threads_are_those_that_were_asked_for(monkeypatch):
    torch.set_num_threads(1)
    seen = []

    def nothing(section, machine):
        seen.append(torch.get_num_threads())
        yield {"event": "result", "result": {}}

    monkeypatch.setattr(sections, "_layers", nothing)
    for wanted, expected in ((None, 1), (3, 3)):
        section = sections.Section("layers", "title", "float32", ("nchw",), 1, 0.0, threads=wanted)
        events = list(sections.run([section], "default"))
        assert seen.pop() == expected
        assert events[0]["threads"] == expected
        assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("layer", "direction", "written"),
    [(LAYER, "forward", "input"), (LAYER, "grad_weight", "grad_output"), (POOL, "backward", "grad_output")],
)
def test_a_cold_layer_finds_only_what_the_last_one_wrote(layer, direction, written, monkeypatch):
    given, touched = {}, []

    def keep(layer, direction, tensors, *_):
        if tensors.input.dtype == torch.float32:  # not the reference's
            given[tensors.input.is_contiguous()] = tensors
        return lambda: torch.zeros(())

    def interleave(functions, min_time, repeats, device, before):
        yield 0.0
        for name in functions:
            tensors = given[name.endswith("nchw")]
            versions = [tensors.input._version, tensors.grad_output._version]
            before[name]()
            changed = [t._version - v for t, v in zip((tensors.input, tensors.grad_output), versions, strict=True)]
            touched.append(changed)
        return {name: timed(1.0) for name in functions}

    monkeypatch.setattr(layer_bench, "torch_call", keep)
    monkeypatch.setattr(layer_bench, "our_call", keep)
    monkeypatch.setattr(layer_bench, "interleave", interleave)
    monkeypatch.setattr(layer_bench, "_OTHER_BYTES", 64)
    list(layer_bench.measure(layer, (direction,), torch.float32, layers.LAYOUTS, MACHINE, 0.0, cold=True))
    assert touched == [[written == "input", written == "grad_output"]] * 4


def test_cold_reaches_the_sections():
    for arguments in (CONV, ["--model", "resnet18", "--only", "layers"]):
        for wanted in (True, False):
            for _, group in cli.plan(parse(*arguments, *(["--cold"] if wanted else []))):
                assert [section.cold for section in group] == [wanted] * len(group)


def test_threads_reach_the_sections():
    for arguments in (CONV, ["--model", "resnet18", "--mode", "infer"]):
        for _, group in cli.plan(parse(*arguments, "--threads", 1)):
            assert [section.threads for section in group] == [1] * len(group)
