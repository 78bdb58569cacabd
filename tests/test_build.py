"""The package as it is built: instruction sets, OpenMP, wheel contents, and what is said when a build cannot work."""

from __future__ import annotations

import ast
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

import cnnext
from cnnext import _load

ROOT = Path(__file__).resolve().parent.parent
X86 = platform.machine() in ("x86_64", "AMD64")
LINUX = sys.platform == "linux"
SHARES_OPENMP = LINUX and "clang" not in cnnext._build_info["compiler"]  # with torch, whose runtime is GCC's


def run(*command: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, **kwargs)


def run_python(code: str, **kwargs: object) -> str:
    """What `code` prints in an interpreter of its own."""
    result = run(sys.executable, "-c", code, **kwargs)
    assert result.returncode == 0, result.stderr
    return result.stdout


# Instruction sets


@pytest.fixture(scope="module")
def registers() -> dict[str, set[str]]:
    """Per function of the library, the widths of the vector registers that it names."""
    if not (LINUX and X86 and shutil.which("objdump")):
        pytest.skip("needs objdump and x86-64 Linux")
    found: dict[str, set[str]] = {}
    name = ""
    command = ["objdump", "-d", "-C", "--no-show-raw-insn", cnnext._C.__file__]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.endswith(">:\n"):
                name = line.partition("<")[2][:-3]
                found.setdefault(name, set())
            else:
                found.setdefault(name, set()).update(re.findall(r"%([xyz])mm", line))
    if not any("cnnext::cpu::" in name for name in found):
        pytest.skip("the library is stripped")
    return found


def test_each_instruction_set_keeps_to_its_namespace(registers: dict[str, set[str]]) -> None:
    def stray(width: str, *allowed: str) -> list[str]:
        # Some of Clang's names objdump does not demangle.
        inside = re.compile("|".join(rf"cnnext::cpu::{isa}::|6cnnext3cpu{len(isa)}{isa}" for isa in allowed))
        return [name for name, widths in registers.items() if width in widths and not inside.search(name)]

    # A copy of a shared inline function that the linker keeps for everyone would crash older processors.
    assert stray("z", "avx512") == []
    assert stray("y", "avx2", "avx512") == []


def test_each_instruction_set_is_used(registers: dict[str, set[str]]) -> None:
    def widths(isa: str) -> set[str]:
        return set().union(*(found for name, found in registers.items() if f"cnnext::cpu::{isa}::" in name))

    assert "z" in widths("avx512")
    assert "y" in widths("avx2")
    assert widths("baseline") == {"x"}


# Compilers


@pytest.mark.parametrize("source", sorted((ROOT / "csrc/cpu").glob("units/*.cpp")), ids=lambda path: path.stem)
@pytest.mark.parametrize("compiler", ["clang++", "g++-11"])
def test_other_compilers_accept_the_kernels(compiler: str, source: Path) -> None:
    """Clang's vectors are of other types than GCC's, and GCC 11 has no __builtin_shufflevector."""
    if not shutil.which(compiler):
        pytest.skip(f"needs {compiler}")
    if not X86 and not source.stem.startswith("baseline"):
        pytest.skip("needs x86-64")
    flags = ["-std=c++17", "-fsyntax-only", "-Wall", "-Werror"]
    result = run(compiler, *flags, f"-I{ROOT / 'csrc'}", source)
    assert result.returncode == 0, result.stderr


# OpenMP


@pytest.mark.skipif(not SHARES_OPENMP, reason="reads /proc of what GCC compiled")
def test_one_openmp_runtime_is_loaded() -> None:
    code = """
import re, torch, cnnext
torch.ops.cnnext.avg_pool(torch.ones(1, 1, 4, 4), [2])
files = {line.split()[-1] for line in open("/proc/self/maps") if "/" in line}
print(*(file for file in files if re.search(r"/lib(gomp|iomp5|omp)[-.]", file)))
"""
    assert len(run_python(code).split()) == 1


@pytest.mark.skipif(not SHARES_OPENMP, reason="reads /proc of what GCC compiled")
def test_kernels_use_the_threads_of_torch() -> None:
    code = """
import os, torch, cnnext
torch.set_num_threads(3)
x = torch.empty(8, 8, 128, 128)  # not filled: torch would start the threads for that
before = len(os.listdir("/proc/self/task"))
torch.ops.cnnext.max_pool(x, [3])
print(len(os.listdir("/proc/self/task")) - before)
"""
    assert int(run_python(code)) == 2


# The import


def test_version_is_that_of_the_project() -> None:
    match = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert match is not None
    assert cnnext.__version__ == match[1]


@pytest.mark.parametrize("version", ["2.99.0", "3.0.0a0+git123"])
def test_torch_of_another_minor_version_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    built = ".".join(torch.__version__.split(".")[:2])
    running = ".".join(version.split(".")[:2])
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(ImportError, match=rf"built for torch {built}, running {running}: reinstall with `pip install"):
        _load.load()


def test_torch_of_another_patch_version_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", ".".join(torch.__version__.split(".")[:2]) + ".99+cpu")
    assert _load.load()[0] is cnnext._C


@pytest.mark.parametrize("missing", ["cnnext._build_info", "cnnext._C"])
def test_library_that_was_not_built(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)  # makes the import of it fail
    with pytest.raises(ImportError, match="run `pip install -e \\.` in the source folder"):
        _load.load()


def test_stub_names_what_the_library_has() -> None:
    stub = ast.parse((Path(cnnext.__file__).parent / "_C.pyi").read_text())
    functions = [node.name for node in stub.body if isinstance(node, ast.FunctionDef)]
    assert sorted(functions) == sorted(name for name in vars(cnnext._C) if not name.startswith("_"))


def test_every_operator_is_in_one_unit() -> None:
    """A file that no unit of csrc/ops names would not be compiled."""
    if not (ROOT / "setup.py").exists():
        pytest.skip("needs the source tree")
    units = "".join(path.read_text() for path in (ROOT / "csrc/ops/units").iterdir())
    named = re.findall(r'^#include "\.\./(.*)"$', units, re.MULTILINE)
    assert sorted(named) == sorted(path.name for path in (ROOT / "csrc/ops").glob("*.cpp"))


# setup.py and the build backend, on a copy of the project whose library is one empty module: compiles in a second


@pytest.fixture
def project(tmp_path: Path) -> Path:
    if not (ROOT / "setup.py").exists():
        pytest.skip("needs the source tree")
    folder = tmp_path / "project"
    for name in ("cnnext", "_build_backend"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "_build_info.py"))
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, folder)
    (folder / "csrc/ops/units").mkdir(parents=True)
    (folder / "csrc/ops/units/python.cpp").write_text(
        "#include <Python.h>\n"
        'static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};\n'
        "PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }\n"
    )
    return folder


@pytest.fixture
def can_build() -> None:
    pytest.importorskip("setuptools", minversion="77")
    if not (shutil.which("c++") or os.environ.get("CXX")):
        pytest.skip("needs a C++ compiler")


def build(project: Path, what: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Calls the backend as pip does: what is "build_wheel" or "build_sdist"."""
    code = f"import sys; sys.path[:0] = ['_build_backend']; import backend; print(backend.{what}('dist'))"
    return run(sys.executable, "-c", code, cwd=project, env={**os.environ, **environ})


@pytest.mark.usefixtures("can_build")
def test_wheel_holds_the_package_and_no_sources(project: Path) -> None:
    (project / "cnnext/_build_info.py").write_text("BUILD_INFO = 'of an editable install'\n")
    result = build(project, "build_wheel", CNNEXT_CUDA="0")
    assert result.returncode == 0, result.stderr
    assert "cnnext: building for the CPU only: CNNEXT_CUDA=0" in result.stdout
    (wheel,) = (project / "dist").glob("*.whl")
    assert f"-{sys.implementation.cache_tag.replace('cpython-', 'cp')}-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.startswith("cnnext-")}
        facts: dict[str, dict[str, object]] = {}
        exec(archive.read("cnnext/_build_info.py"), facts)
    assert all(name.startswith("cnnext/") for name in names)
    assert {"cnnext/py.typed", "cnnext/_C.pyi", "cnnext/__main__.py", "cnnext/functional.py"} <= names
    assert "cnnext/_C" + sysconfig.get_config_var("EXT_SUFFIX") in names
    assert not any(name.endswith((".cpp", ".h")) for name in names)
    assert facts["BUILD_INFO"]["torch"] == torch.__version__
    assert facts["BUILD_INFO"]["version"] == cnnext.__version__
    assert facts["BUILD_INFO"]["cuda"] is False


@pytest.mark.usefixtures("can_build")
def test_sdist_holds_the_sources_and_nothing_built(project: Path) -> None:
    (project / "cnnext/_build_info.py").write_text("")
    (project / "benchmarks/results/zen4").mkdir(parents=True)
    for name in ("layers.py", "results/README.md", "results/zen4/2026-11-28_dense_n1.json"):
        (project / "benchmarks" / name).write_text("")
    result = build(project, "build_sdist")
    assert result.returncode == 0, result.stderr
    (sdist,) = (project / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"csrc/ops/units/python.cpp", "setup.py", "_build_backend/backend.py", "cnnext/py.typed", "LICENSE"} <= names
    assert not any(name.endswith((".so", "_build_info.py")) for name in names)
    measured = {name for name in names if name.startswith("benchmarks/") and "." in name}
    assert measured == {"benchmarks/layers.py", "benchmarks/results/README.md"}


@pytest.mark.usefixtures("can_build")
def test_cuda_that_cannot_be_built_is_an_error(project: Path) -> None:
    result = build(project, "build_wheel", CNNEXT_CUDA="1")  # this copy has no CUDA sources
    assert result.returncode != 0
    assert result.stderr.splitlines()[-1].startswith("CNNEXT_CUDA=1, but ")


@pytest.mark.usefixtures("can_build")
def test_cuda_choice_is_one_of_three(project: Path) -> None:
    result = build(project, "build_wheel", CNNEXT_CUDA="yes")
    assert result.returncode != 0
    assert result.stderr.splitlines()[-1] == "CNNEXT_CUDA must be auto, 0 or 1, not 'yes'"


@pytest.fixture
def setuptools_alone(tmp_path: Path) -> Path:
    """A folder that holds setuptools and nothing else, as pip's isolated environment does."""
    setuptools = pytest.importorskip("setuptools")
    packages = Path(setuptools.__file__).parent.parent
    folder = tmp_path / "packages"
    folder.mkdir()
    for name in ("setuptools", "_distutils_hack"):
        (folder / name).symlink_to(packages / name)
    return folder


@pytest.mark.skipif(not Path(sysconfig.get_path("purelib"), "torch").exists(), reason="torch is elsewhere")
def test_torch_is_found_from_an_isolated_build(project: Path, setuptools_alone: Path) -> None:
    code = f"""
import importlib.util, sys
sys.path[:] = [{str(setuptools_alone)!r}, "_build_backend", *(p for p in sys.path if "site-packages" not in p)]
assert importlib.util.find_spec("torch") is None
import backend
backend.reach_torch()
print(importlib.util.find_spec("torch").origin)
print(importlib.util.find_spec("setuptools").origin)
"""
    found, tools = run_python(code, cwd=project, env={**os.environ, "PIP_BUILD_TRACKER": "", "PYTHONPATH": ""}).split()
    assert Path(found).samefile(torch.__file__)
    assert tools.startswith(str(setuptools_alone))


@pytest.mark.parametrize("hook", ["get_requires_for_build_wheel", "get_requires_for_build_editable"])
def test_without_torch_one_sentence_says_what_to_do(
    project: Path, tmp_path: Path, setuptools_alone: Path, hook: str
) -> None:
    bare = tmp_path / "bare"
    assert run(sys.executable, "-m", "venv", "--without-pip", bare).returncode == 0
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{setuptools_alone}:{project / '_build_backend'}"}
    result = run(bare / "bin/python", "-c", f"import backend; backend.{hook}()", cwd=project, env=environ)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "run `pip install torch`" in result.stderr
