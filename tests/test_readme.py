"""The README's examples run, and the files that it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"
TEXT = README.read_text() if README.exists() else ""
# Each block behind as many empty lines as precede it, so that a traceback names the README's line.
PYTHON = [
    "\n" * TEXT.count("\n", 0, block.start(1)) + block[1]
    for block in re.finditer(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
]


@pytest.mark.parametrize("code", PYTHON, ids=[f"block{number}" for number in range(1, len(PYTHON) + 1)])
def test_example_runs(code: str) -> None:
    exec(compile(code, str(README), "exec"), {"__name__": "__main__"})


@pytest.mark.skipif(not TEXT, reason="needs the source tree")
def test_files_that_are_named_exist() -> None:
    paths = re.findall(r"`((?:csrc|cnnext|examples|tests|benchmarks|_build_backend)/[\w./]*)`", TEXT)
    assert len(paths) >= 8
    assert [path for path in paths if not (README.parent / path).exists()] == []


@pytest.mark.skipif(not TEXT, reason="needs the source tree")
def test_commands_that_are_named_exist() -> None:
    makefile = (README.parent / "Makefile").read_text()
    for target in {*re.findall(r"\bmake ([a-z]+)", TEXT)}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
