"""``cnnext.profile`` of models that keep state, freeze weights or mix element types, and what it leaves as it was."""

from __future__ import annotations

import json
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.flop_counter import FlopCounterMode

import cnnext

pytest.importorskip("rich")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from cnnext.bench import layer_bench, layers, profiling, tables, timing

pytestmark = pytest.mark.usefixtures("one_thread")


def profile(model, *inputs, **options):
    return cnnext.profile(model, inputs, min_time=1e-4, **options)


def whole(found):
    (network,) = found.to_dict()["networks"]
    return network


def test_a_model_that_changes_with_each_run_is_no_mismatch():
    model = nn.Sequential(spectral_norm(nn.Conv2d(3, 8, 3)), spectral_norm(nn.Conv2d(8, 8, 3))).train()
    assert len(profile(model, torch.randn(2, 3, 16, 16)).layers) == 2


def test_autocast_is_refused_with_what_to_do_instead():
    model, x = nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(ValueError, match=r"autocast is on.*call profile outside of it.*\.to\(torch\.bfloat16\)"):
            profile(model, x)
        with torch.autocast("cpu", enabled=False):
            profile(model, x)


@pytest.mark.parametrize(("model", "size"), [(nn.Conv2d(3, 4, 3), (1, 3, 8, 8)), (nn.MaxPool1d(2), (1, 3, 8))])
def test_json_has_no_nan(model, size):
    found = profile(model, torch.randn(size))
    json.dumps(found.to_dict(), allow_nan=False)
    assert "NaN" not in found.html().partition('id="data">')[2].partition("</script>")[0]


def test_frozen_weights_have_no_gradient_to_measure():
    def conv(frozen):
        return nn.Conv2d(4, 4, 3, padding=1).requires_grad_(not frozen)

    model, x = nn.Sequential(*map(conv, (True, True, False, True, False))), torch.randn(2, 4, 8, 8)
    found = profile(model, x, backward=True)
    directions = {}
    for layer in found.layers:
        directions.setdefault(tuple(layer["names"]), []).append(layer["direction"])
    assert directions == {
        ("0", "1"): ["forward"],
        ("2",): ["forward", "grad_weight"],
        ("3",): ["forward", "grad_input"],
        ("4",): ["forward", "grad_input", "grad_weight"],
    }
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    assert whole(found)["conv_flops"] == counter.get_total_flops()


@pytest.mark.parametrize("model", [nn.MaxPool2d(2), nn.Conv2d(3, 4, 3).requires_grad_(False)], ids=["pool", "frozen"])
def test_backward_without_anything_to_compute_is_refused(model):
    x = torch.randn(1, 3, 8, 8)
    with pytest.raises(
        ValueError, match="backward=True, but no output of the model depends on a parameter or input that"
    ):
        profile(model, x, backward=True)
    assert [layer["direction"] for layer in profile(model, x).layers] == ["forward"]


def test_gradients_of_inputs_are_measured_where_they_are_required():
    class Both(nn.Module):
        def forward(self, x, y):
            return F.relu(F.max_pool2d(x, 2), inplace=True) * F.avg_pool2d(y, 2)

    x, y = torch.randn(1, 3, 8, 8, requires_grad=True), torch.randn(1, 3, 8, 8)
    found = profile(Both(), x, y, backward=True)
    assert [(layer["label"], layer["direction"]) for layer in found.layers] == [
        ("max 2x2/2 3 @8", "forward"),
        ("max 2x2/2 3 @8", "backward"),
        ("avg 2x2/2 3 @8", "forward"),
    ]
    assert {name for backend in whole(found)["backends"].values() for name in backend["error"]} == {
        "output",
        "gradient",
    }
    assert x.grad is None and x.requires_grad
    # without backward nothing is recorded, also where a model changes its input
    profile(nn.Sequential(nn.ReLU(inplace=True), nn.MaxPool2d(2)), x)


def test_gradients_of_inputs_are_of_one_run():
    model, x = nn.Conv2d(1, 2, 3, bias=False), torch.randn(1, 1, 8, 8, requires_grad=True)
    step = profiling._Step(model, (x,), True, "torch")
    first, second = step.results()["gradient"], step.results()["gradient"]
    assert first.numel() == model.weight.numel() + x.numel()
    assert torch.equal(first, second)


def test_the_record_of_fallbacks_is_the_users():
    class Counting(nn.Module):
        def forward(self, x):
            return x * cnnext.functional.conv2d(torch.ones(1, 1, 4, 4).long(), torch.ones(1, 1, 3, 3).long()).sum()

    cnnext.reset_fallbacks()
    model = Counting()
    model(torch.ones(1))
    before = cnnext.fallbacks()
    assert before == {"conv: element type": 1}
    assert profile(model, torch.ones(1, 1, 2, 2)).fallbacks == before
    assert cnnext.fallbacks() == before


def test_element_types_are_kept():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 8, 3, dtype=torch.bfloat16)
            self.norm = nn.GroupNorm(2, 8)
            self.head = nn.Conv2d(8, 2, 1)

        def forward(self, x, scale):
            seen.add((x.dtype, scale.dtype))
            x = self.norm(self.conv(x).float()) * scale.to(dtype=torch.float32)
            return self.head(F.relu(x))

    seen = set()
    found = profile(Mixed(), torch.randn(1, 4, 8, 8, dtype=torch.bfloat16), torch.tensor(2.0, dtype=torch.float64))
    assert seen == {(torch.bfloat16, torch.float64), (torch.float64, torch.float64)}  # as given, and for comparison
    assert [layer["dtype"] for layer in found.layers] == ["bfloat16", "float32"]
    network = whole(found)
    assert network["dtype"] == "bfloat16"
    assert 1e-4 < network["backends"]["cnnext nchw"]["error"]["output"]["relative"] < 1e-1


def test_a_model_that_cannot_be_compared_says_so():
    class Fixed(nn.Module):
        def forward(self, x):
            return F.conv2d(x, torch.ones(1, 1, 3, 3))

    with pytest.raises(ValueError, match="does not run in float64, with which results are compared: "):
        profile(Fixed(), torch.randn(1, 1, 8, 8))


class Later(nn.Module):
    """Takes its images last."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, table, x):
        return self.conv(x) * table.sum()


@pytest.mark.parametrize(
    ("size", "expected"), [((2, 3, 8, 8), (2, "3x8x8")), ((3, 8, 8), (1, "3x8x8"))], ids=["batch", "no batch"]
)
def test_batch_is_that_of_the_layers(size, expected):
    network = whole(profile(Later(), torch.ones(7, 5), torch.randn(size)))
    assert (network["batch"], network["input"]) == expected


@pytest.mark.parametrize("op", ["max_pool2d", "adaptive_max_pool2d"])
def test_pooling_forward_in_training_keeps_what_the_gradient_needs(op, monkeypatch):
    seen = []
    for functional in (F, cnnext.functional):
        call = getattr(functional, op)

        def record(*args, call=call):
            output = call(*args)
            if output.dtype == torch.float32 and not output.is_meta:  # not the reference, nor the output's size
                seen.append(output.requires_grad)
            return output

        monkeypatch.setattr(functional, op, record)
    window = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0), "dilation": (1, 1)}
    layer = layers.Layer(op, (1, 4, 8, 8), **(window if op == "max_pool2d" else {"output_size": (2, 2)}))
    for training in (False, True):
        seen.clear()
        how = (torch.float32, ("nchw",), timing.Machine(0.01), 0.0, 1, training)
        (result,) = layer_bench.measure(layer, ("forward",), *how)
        assert set(seen) == {training}
        assert result["backends"]["cnnext nchw"]["kernel"]


def test_profile_times_pooling_as_it_runs(monkeypatch):
    seen = []
    measure = layer_bench.measure

    def recorded(layer, *args, training=False):
        seen.append((layer.label(), training))
        return measure(layer, *args, training=training)

    monkeypatch.setattr(layer_bench, "measure", recorded)
    model = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(1, 2, 1), nn.MaxPool2d(2))
    for backward in (False, True):
        seen.clear()
        profile(model, torch.randn(1, 1, 8, 8), backward=backward)
        assert [training for _, training in seen] == [False, backward and seen[1][1], backward]


@pytest.mark.parametrize("preemptions", [0.0, 300.0])
def test_disturbance_is_told(preemptions, monkeypatch):
    as_json = timing.Timing.as_json
    monkeypatch.setattr(timing.Timing, "as_json", lambda self: {**as_json(self), "preemptions": preemptions})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = profile(nn.Conv2d(1, 1, 1), torch.randn(1, 1, 4, 4))
    assert found.disturbed == (preemptions > 0)
    expected = [(tables.disturbance(found.layers), __file__)] if preemptions else []
    assert [(str(each.message), each.filename) for each in told] == expected


def test_one_interruption_of_milliseconds_is_no_disturbance(monkeypatch):
    switches = iter((0, 1))
    monkeypatch.setattr(timing.resource, "getrusage", lambda _: SimpleNamespace(ru_nivcsw=next(switches)))
    timings = timing.finish(timing.interleave({"a": lambda: None}, 0.0, 1))
    assert 0 < timings["a"].preemptions <= 10


def test_without_layers_no_peaks_are_told():
    found = profile(nn.ReLU(), torch.ones(2, 2))
    assert "Measured peaks" not in str(found) + found.html()
    assert math.isfinite(found.speedup)
