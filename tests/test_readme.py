"""The code in README and docs runs, and what they name exists."""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cnnext
from cnnext import _info

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [page for page in [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))] if page.exists()]
pytestmark = pytest.mark.skipif(not README.exists(), reason="needs the source tree")


def _examples():
    spec = importlib.util.spec_from_file_location("docs_examples", ROOT / "docs" / "examples.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


examples = _examples() if README.exists() else None
BLOCKS = examples.blocks(README.read_text(), "python") if examples else []


def lines(language):
    """(page, line) of all blocks in a language; a line that ends in a backslash goes on."""
    for page in PAGES:
        for block in examples.blocks(page.read_text(), language):
            for line in block.replace("\\\n", " ").strip().splitlines():
                if line.strip() and not line.startswith("#"):
                    yield page.name, line.partition("  #")[0].strip()


@pytest.mark.parametrize("code", BLOCKS, ids=[f"block{number}" for number in range(1, len(BLOCKS) + 1)])
def test_example_runs(code):
    exec(compile(code, str(README), "exec"), {"__name__": "__main__"})


BY_PROGRAMS = {"depth_problem.png", "fcn_coins.png", "report.png", "yolo_shapes.png"}  # of examples/ and docs/


@pytest.mark.parametrize("page", examples.pages() if examples else [], ids=lambda page: page.stem)
def test_page_runs_and_draws_what_it_shows(page, tmp_path, one_thread):
    if "viz" in page.read_text() or "profile" in page.read_text():
        pytest.importorskip("matplotlib")
    if "photograph" in page.read_text():
        pytest.importorskip("skimage")
    if "sklearn" in page.read_text():
        pytest.importorskip("sklearn")
    cnnext.reset_fallbacks()
    examples.run(page, tmp_path)
    drawn = {path.name for path in tmp_path.glob("*.png")}
    shown = {Path(path).name for path in re.findall(r"!\[.*?\]\((images/\w+\.png)\)", page.read_text())}
    assert drawn == shown - BY_PROGRAMS


def test_no_other_languages():
    found = {word for page in PAGES for word in re.findall(r"^```(\S+)", page.read_text(), re.MULTILINE)}
    assert found <= {"python", "sh", "text", "{toctree}", "{eval-rst}"}  # each of the first three has a test here


def test_links_and_files_that_are_named_exist():
    named, missing = 0, []
    for page in PAGES:
        text = page.read_text()
        paths = re.findall(r"`((?:csrc|cnnext|docs|examples|tests|benchmarks|_build_backend)/[\w./]*)`", text)
        paths = [ROOT / path for path in paths if "mix_pool" not in path]
        paths += [page.parent / link.partition("#")[0] for link in re.findall(r"\]\((?!http)([^)#]+[^)]*)\)", text)]
        named += len(paths)
        missing += [f"{page.name}: {path}" for path in paths if not path.exists()]
    assert named >= 30
    assert missing == []


def test_every_kernel_is_in_a_table():
    of_cpu, _, of_gpu = (ROOT / "docs" / "kernels.md").read_text().partition("\n## GPUs\n")
    for text, cuda in ((of_cpu, False), (of_gpu, True)):
        named = {name for row in re.findall(r"^\|(.*?)\|", text, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
        kernels = {name.removesuffix("_packed") for names in _info._kernels(cuda).values() for name in names}
        assert kernels - named == set()
        assert not cuda or named == kernels  # those of a CPU may need instructions that this one has not


def test_pictures_are_small():
    pictures = list((ROOT / "docs" / "images").iterdir())
    assert [path.name for path in pictures if path.stat().st_size > 250_000] == []
    text = "".join(page.read_text() for page in PAGES)
    assert [path.name for path in pictures if f"images/{path.name}" not in text] == []


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = {
        target for page in PAGES for target in re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.MULTILINE)
    }
    assert {"bench", "test", "docs"} <= targets
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


def _accepts(arguments):
    """Whether our command line takes these arguments; nothing is run."""
    from cnnext import bench
    from cnnext.bench import cli

    assert arguments[0] in ("info", "bench", "train"), arguments
    if arguments[0] == "info":
        assert set(arguments[1:]) <= {"--json"}
        return
    parser = argparse.ArgumentParser()
    if arguments[0] == "bench":
        bench.add_arguments(parser)
        cli.plan(parser.parse_args(arguments[1:]))
    else:
        importlib.import_module("cnnext.train").add_arguments(parser)
        parser.parse_args(arguments[1:])


def test_commands_are_accepted():
    pytest.importorskip("rich")
    extras = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    checked = 0
    for page, line in lines("sh"):
        words = [word.strip("'\"") for word in line.split()]
        while "=" in words[0]:  # variables
            words = words[1:]
        if "cnnext" in words:
            _accepts(words[words.index("cnnext") + 1 :])
        elif words[:2] == ["pip", "install"]:
            for extra in re.findall(r"\[([\w,]+)\]", line):
                assert all(re.search(rf"^{name} = \[", extras, re.MULTILINE) for name in extra.split(",")), line
        elif words[0] == "python":
            assert (ROOT / words[1]).exists(), line
        else:
            assert words[0] in ("make", ".ci/run"), f"{page}: {line}"
        checked += 1
    assert checked >= 15


# What compilers, the loader and torch say.
FOREIGN = (
    *("Python.h", "Killed signal", "undefined symbol", "GLIBCXX", "Compiled functions", "sharding strategy"),
    *("fuser method", "Recomputed values", "no weakrefs", "Unknown builtin op", "ONNX"),
    "unrecognized namespace",
)


def test_messages_in_troubleshooting_are_ours():
    sources = [
        *ROOT.glob("cnnext/**/*.py"),
        *ROOT.glob("csrc/ops/*.cpp"),
        ROOT / "setup.py",
        *ROOT.glob("_build_backend/*.py"),
    ]
    text = "".join(path.read_text() for path in sources)
    text = re.sub(r'"\s*\n\s*f?"', "", text)  # strings that go on in the next line
    text = re.sub(r"\{name\}", "bench", text)
    text += "".join(text.replace("{caller}", name) for name in ("convert", "revert"))
    messages = [line for page, line in lines("text") if page == "troubleshooting.md"]
    assert len(messages) >= 15
    unknown = [message for message in messages if message not in text]
    assert [message for message in unknown if not any(word in message for word in FOREIGN)] == []


def test_documentation_builds_without_warnings(tmp_path):
    for package in ("sphinx", "furo", "myst_parser", "latex2mathml"):
        pytest.importorskip(package)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(ROOT / "docs"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "reference.html").read_text()
    names = ["cnnext.profile", "cnnext.functional.conv2d", "cnnext.nn.MaxPool3d", "cnnext.viz.feature_maps"]
    backends = cnnext.backends
    switches = [name for name in backends.__all__ if isinstance(getattr(backends, name), backends._Switch)]
    names += [f"cnnext.backends.{name}" for name in switches]
    for name in names:
        assert f'id="{name}"' in reference, name
    assert "<math" in (tmp_path / "lecture.html").read_text()
