"""benchmarks/gpu.py and gpu.sh as far as they go without a GPU: suites, arguments, tables, sections."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cnnext.bench.layers import Layer

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_benchmark", ROOT / "benchmarks" / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


NETWORKS = {"resnet50": 23, "googlenet": 50, "inception_v3": 42, "mobilenet_v2": 35, "deeplabv3_resnet50": 30}


@pytest.mark.parametrize("network", NETWORKS)
def test_convolutions_of_a_network(gpu: ModuleType, network: str) -> None:
    layers = gpu.layers_of(network, 64)
    assert len(layers) >= NETWORKS[network] - 5
    assert all(layer.is_conv and layer.input[0] == 64 for layer in layers)
    assert len(set(layers)) == len(layers)


def test_all_pooling_is_one_suite(gpu: ModuleType) -> None:
    kinds = {layer.kind() for layer in gpu.layers_of("pooling", 64)}
    assert {"max 3x3/2", "max 3x3", "avg 3x3", "avg to 1x1"} <= kinds


def row(**fields: Any) -> dict[str, Any]:
    found = {
        "suite": "a",
        "number": 0,
        "layer": "64→64 3x3 @56",
        "mode": "bf16",
        "layout": "nchw",
        "kernel": "gemm_sm80",
    }
    found |= {"direction": "forward", "torch_ms": 1.0, "ours_ms": 0.5, "ratio": 2.0, "tflops": 100.0, "gbs": 1000.0}
    return {**found, "difference": 1e-3, "right": True, **fields}


def test_table(gpu: ModuleType) -> None:
    assert len(gpu.line(row())) == len(gpu.HEADER)
    assert gpu.line(row(right=False)).endswith("WRONG: differs by 1.0e-03")
    rows = [row(), row(layout="channels_last", torch_ms=0.4, ours_ms=0.4), row(number=1, torch_ms=0.5)]
    means = {
        line.split("x torch")[0].rsplit(None, 1)[0]: float(line.split("x torch")[0].split()[-1])
        for line in gpu.summary(rows)
    }
    assert [means[key] for key in sorted(means)] == [pytest.approx(x, abs=0.006) for x in (1.0, 1.0, 2**0.5)]


CONV = Layer("conv2d", (2, 3, 9, 8), (8, 3, 3, 3), bias=True, stride=(2, 2), padding=(1, 1), dilation=(1, 1))
POOL = Layer("max_pool2d", (2, 3, 9, 8), kernel=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(1, 1))


@pytest.fixture
def on_the_cpu(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program with the CPU for a GPU, and a clock that runs a call once."""

    class Clock:
        def __call__(self, run: Any, times: int = 1) -> float:
            run()
            return 1.0

    monkeypatch.setattr(gpu, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(gpu, "Clock", Clock)
    monkeypatch.setattr(gpu, "driver", lambda: "none")
    monkeypatch.setattr(gpu, "layers_of", lambda name, batch: [POOL] if name == "pooling" else [CONV, CONV])
    return gpu


def test_rows_of_layers(on_the_cpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every mode, layout and direction of a convolution and of pooling, compared with torch."""
    file = tmp_path / "found.json"
    assert on_the_cpu.main(["layers", "--suite", "resnet50", "pooling", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["layers"]
    assert len(rows) == 2 * 5 * 2 * 3 + 3 * 2 * 2
    assert all(row["right"] and row["ratio"] == 1 for row in rows)
    assert "72 results compared with torch's: none wrong; no failures" in capsys.readouterr().out


def test_wrong_results_and_errors(
    on_the_cpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong result and a layer that fails are told of; after an error of the GPU what was found before is there."""
    ours, calls = on_the_cpu.our_call, []
    errors = {5: "CUDA error: an illegal memory access was encountered"}

    def wrong(*args: Any) -> Any:
        calls.append(args)
        if len(calls) in errors:
            raise RuntimeError(errors[len(calls)])
        call = ours(*args)
        return lambda: call() * (1.1 if len(calls) == 2 else 1)

    monkeypatch.setattr(on_the_cpu, "our_call", wrong)
    arguments = ["layers", "--suite", "resnet50", "--modes", "fp32", "--layouts", "nchw", "--json"]
    with pytest.raises(RuntimeError, match="illegal memory access"):
        on_the_cpu.main([*arguments, str(tmp_path / "found.json")])
    rows = json.loads((tmp_path / "found.json").read_text())["layers"]
    assert [row["right"] for row in rows] == [True, False, True, True]
    assert "WRONG: differs by" in capsys.readouterr().out
    calls.clear()
    errors = {1: "CUDA out of memory"}
    assert on_the_cpu.main([*arguments, str(tmp_path / "found.json")]) == 1
    printed = capsys.readouterr().out
    assert "fp32  FAILED: CUDA out of memory" in printed
    assert "3 results compared with torch's: 1 wrong; 1 failures" in printed
    calls.clear()
    errors.clear()
    monkeypatch.setattr(on_the_cpu, "layers_of", lambda name, batch: [CONV])
    assert on_the_cpu.main([*arguments, str(tmp_path / "found.json")]) == 1


def test_results_are_written_as_they_are_found(on_the_cpu: ModuleType, tmp_path: Path) -> None:
    """A program that is ended, and not by an error of its own, has left all up to then."""
    file, found = tmp_path / "found.json", []

    def look() -> None:
        found.append(len(json.loads(file.read_text())["layers"]))
        if len(found) == 3:
            raise KeyboardInterrupt

    measure = on_the_cpu.measure_layers
    on_the_cpu.measure_layers = lambda *args: measure(*args[:-1], lambda: (args[-1](), look()))
    with pytest.raises(KeyboardInterrupt):
        on_the_cpu.main(["layers", "--modes", "fp32", "tf32", "--layouts", "nchw", "--json", str(file)])
    on_the_cpu.measure_layers = measure
    assert found == [3, 6, 9]


def test_networks(on_the_cpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ours and torch's, trained and run, in both modes; nothing once time is up."""

    def seconds_of(step: Any) -> float:
        step()
        return 0.5

    def step(x: Tensor, target: Tensor, training: bool, autocast: bool) -> Any:
        return lambda: steps.append((training, autocast))

    steps: list[tuple[bool, bool]] = []
    monkeypatch.setattr(on_the_cpu, "seconds_of", seconds_of)
    monkeypatch.setattr(on_the_cpu, "network_step", step)
    arguments = ["networks", "--batch", "2", "--json", str(tmp_path / "found.json")]
    assert on_the_cpu.main(arguments) == 0
    found = json.loads((tmp_path / "found.json").read_text())["networks"]
    assert [row["images_per_s"] for row in found] == [4.0] * 8
    assert sorted(set(steps)) == [(False, False), (False, True), (True, False), (True, True)]
    assert on_the_cpu.main([*arguments, "--seconds", "-1"]) == 0
    assert json.loads((tmp_path / "found.json").read_text())["networks"] == []


def test_cases_for_the_sanitizer_call_every_operator(on_the_cpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    called = set()

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.add(func._schema.name.removeprefix("cnnext::").removeprefix("adaptive_"))
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    with Recorder():
        on_the_cpu.cases()
    kernels = {"conv", "conv_grad_input", "conv_grad_weight", "conv_grad_bias", "max_pool", "max_pool_with_offsets",
               "max_pool_indices", "max_pool_grad_input", "max_pool_select", "avg_pool", "avg_pool_grad_input",
               "max_unpool", "max_unpool_grad_input"}  # fmt: skip
    assert kernels - {"max_pool_indices"} <= called
    assert called & {"max_pool_indices", "max_pool_with_indices"}  # made of offsets


def test_modes_cover_float32_in_three_ways(gpu: ModuleType) -> None:
    singles = {(mode.tf32, mode.kernel) for mode in gpu.MODES.values() if mode.dtype.itemsize == 4}
    assert singles == {(True, None), (False, None), (False, "direct")}


@pytest.mark.parametrize("arguments", [["layers", "--suite", "nothing"], ["layers", "--modes", "fp8"], ["everything"]])
def test_unknown_arguments(gpu: ModuleType, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        gpu.main(arguments)
    assert error.value.code == 2
    assert "invalid choice" in capsys.readouterr().err


def stub(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_sections_of_the_script(tmp_path: Path) -> None:
    """Each section runs its command; one that fails, or has no time left, is told of and fails the run."""
    stub(tmp_path / "nvidia-smi", "echo 9.0")
    stub(tmp_path / "nvcc", "echo release")
    stub(tmp_path / "python", 'echo "$@ from ${PYTHONPATH%%:*}"\ncase "$*" in *googlenet*|setup*) exit 1;; esac')
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHON": str(tmp_path / "python"), "OUT": str(tmp_path / "out")}
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "ceilings", "resnet50", "googlenet"]
    done = subprocess.run(command, env={**environ, "LAYERS": "--modes bf16"}, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    layers = f"gpu.py --json {tmp_path}/out/resnet50.json layers --suite resnet50 --seconds 210 --modes bf16"
    assert f"{layers} from {ROOT}\n" in done.stdout  # nothing needs to be installed
    summary = (tmp_path / "out" / "summary.txt").read_text().splitlines()
    assert [each.split(",")[0] for each in summary] == [
        "== ceilings: passed", "== resnet50: passed", "== googlenet: FAILED",
    ]  # fmt: skip
    done = subprocess.run([*command[:2], "build", "ceilings"], env=environ, capture_output=True, text=True)
    assert done.returncode == 1 and "== build: FAILED" in done.stdout and "ceilings" not in done.stdout
    done = subprocess.run(command[:3], env={**environ, "LIMIT_S": "10"}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "== ceilings: NOT RUN, no time was left" in done.stdout
