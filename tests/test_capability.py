"""Every instruction set that this machine has must pass the exact tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
# ATEN_CPU_CAPABILITY, and what cnnext calls it, from the oldest.
CAPABILITIES = {"default": "baseline", "avx2": "avx2", "avx512": "avx512"}

PROGRAM = """
import sys, pytest
from cnnext import backends
assert backends.cpu_capability() == sys.argv[1], backends.cpu_capability()
sys.exit(pytest.main(sys.argv[2:]))
"""


def environment(**changes: str) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "ATEN_CPU_CAPABILITY"} | changes


@pytest.fixture(scope="module")
def best() -> str:
    """The newest instruction set of this machine: asking for a newer one would crash."""
    program = "from cnnext import backends; print(backends.cpu_capability())"
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment(), check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("file", sorted(file.name for file in TESTS.glob("test_*_exact.py")))
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_exact_tests_pass(capability: str, file: str, best: str) -> None:
    ours = CAPABILITIES[capability]
    order = list(CAPABILITIES.values())
    if order.index(ours) > order.index(best):
        pytest.skip(f"this machine has no {ours}")
    if ours == best:
        pytest.skip("the tests themselves run with it")
    command = [sys.executable, "-c", PROGRAM, ours, "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(TESTS / file)]
    done = subprocess.run(
        command, env=environment(ATEN_CPU_CAPABILITY=capability), cwd=TESTS.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
