"""python -m cnnext: info and its self-test, and how the command line behaves."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cnnext
from cnnext import _info
from cnnext.__main__ import main

X86 = platform.machine() in ("x86_64", "AMD64")


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cnnext", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environ}, cwd=Path.home())


def test_info_as_json() -> None:
    result = run("info", "--json", OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stdout + result.stderr
    info = json.loads(result.stdout)
    assert info["cnnext"] == cnnext.__version__
    assert info["torch"] == torch.__version__
    assert info["threads"] == 1
    assert info["cpu"]
    assert info["compiler"]
    assert info["cuda"] or info["cuda_reason"]
    assert set(info["self_test"].values()) == {"ok"}


def test_self_test_covers_every_operator_dimension_layout_and_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators that only gradients and indices use are run through them."""
    seen = set()
    cases = _info._self_test_cases

    def recording(dims: int, channels_last: bool) -> dict[str, _info._Case]:
        def record(name: str, case: _info._Case) -> _info._Case:
            def operator(x: torch.Tensor, *args: object) -> object:
                last = x.dim() > 3 and not x.is_contiguous()
                seen.add((name, x.dim() - 2, last, x.dtype))
                return case.operator(x, *args)

            return case._replace(operator=operator)

        return {name: record(name, case) for name, case in cases(dims, channels_last).items()}

    monkeypatch.setattr(_info, "_self_test_cases", recording)
    cnnext.reset_fallbacks()
    results = _info.self_test()
    assert cnnext.fallbacks() == {}
    assert set(results.values()) == {"ok"}
    internal = {name for name in _info._operators() if name.endswith(("_with_offsets", "_select"))}
    internal |= {"max_pool_indices"}
    assert results.keys() == (set(_info._operators()) - internal) | {"lp_pool", "adaptive_max_pool_grad_input"}
    layouts = [(1, False), (2, False), (2, True), (3, False), (3, True)]
    types = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
    assert seen == {(name, *layout, dtype) for name in results for layout in layouts for dtype in types}


def test_kernels_are_listed_in_order_and_end_in_the_reference() -> None:
    kernels = _info.collect()["kernels"]
    assert {"conv", "conv_grad_input", "conv_grad_weight"} <= kernels.keys()
    assert all(names[-1] == "reference" for names in kernels.values() if len(names) > 1)


@pytest.mark.skipif(not X86, reason="x86-64 only")
@pytest.mark.parametrize(("value", "expected"), [("default", "baseline"), ("avx2", "avx2"), ("avx512", "avx512")])
def test_capability_follows_torch(value: str, expected: str) -> None:
    highest = torch.backends.cpu.get_cpu_capability().lower()
    order = ["default", "avx2", "avx512"]
    if highest not in order or order.index(value) > order.index(highest):
        pytest.skip("the processor, or ATEN_CPU_CAPABILITY, has less")
    assert json.loads(run("info", "--json", ATEN_CPU_CAPABILITY=value).stdout)["capability"] == expected


def test_info_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["cnnext", cnnext.__version__]
    assert any(line.startswith("CUDA") and ("built for" in line or "not built: " in line) for line in lines)
    assert "self-test" in lines
    assert any(line.split() == ["conv", "ok"] for line in lines)


def test_wrong_result_is_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def error() -> torch.Tensor:
        raise RuntimeError("no such kernel")

    one = torch.ones(1)
    cases = {"conv": _info._Case(lambda: 2 * one, (), lambda: one), "avg_pool": _info._Case(error, (), lambda: one)}
    monkeypatch.setattr(_info, "_self_test_cases", lambda dims, channels_last: cases)
    assert main(["info"]) == 1
    printed = capsys.readouterr().out
    assert "FAIL: differs from torch (1-d contiguous float32 input)" in printed
    assert "FAIL: RuntimeError: no such kernel" in printed


def test_self_test_runs_on_the_device_it_is_given() -> None:
    """Results of the meta device can not be compared; a GPU's are."""
    assert all(
        result.startswith("FAIL: NotImplementedError: Cannot copy") for result in _info.self_test("meta").values()
    )
    if torch.cuda.is_available() and cnnext._build_info["cuda"]:
        assert set(_info.self_test("cuda").values()) == {"ok"}


def test_every_gpu_is_tested_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The CPU stands in for two GPUs: what is told of them, and that a failure of one is one."""
    monkeypatch.setattr(_info, "_gpus", lambda: [torch.device("cpu"), torch.device("cpu", 0)])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert "a GPU (cpu), a GPU (cpu:0)" in printed
    assert "depthwise" in printed[printed.index("kernels of GPUs") : printed.index("self-test on a GPU (cpu)")]
    assert "self-test on a GPU (cpu:0)" in printed
    passed = _info.self_test()
    monkeypatch.setattr(
        _info, "self_test", lambda device="cpu": {"conv": "FAIL: off"} if "0" in str(device) else passed
    )
    assert main(["info"]) == 1
    assert "FAIL: off" in capsys.readouterr().out


def test_no_gpu_is_told_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(_info, "_gpus", list)
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^GPU +none that cnnext can use$", printed, re.MULTILINE)
    assert "self-test on" not in printed


def test_info_needs_no_extras(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("rich", "skimage"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["info"]) == 0


def test_bench_without_extras_says_what_to_install() -> None:
    code = "import sys; sys.modules['rich'] = None; from cnnext.__main__ import main; sys.exit(main(['bench']))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == "cnnext bench needs rich: run `pip install 'cnnext[bench]'`\n"


def test_version_and_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as version:
        main(["--version"])
    assert version.value.code == 0
    assert capsys.readouterr().out == f"cnnext {cnnext.__version__}\n"
    with pytest.raises(SystemExit) as unknown:
        main(["unknown"])
    assert unknown.value.code == 2
