"""Compiles cnnext._C from every source under csrc/. All else is in pyproject.toml.

CNNEXT_CUDA      auto (default): build the CUDA kernels if torch was built for CUDA and nvcc is found; 0 never; 1 must
CNNEXT_SANITIZE  for -fsanitize=, for example address,undefined
MAX_JOBS         how many compilers run at a time
"""

import os
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "_build_backend"))
from backend import reach_torch  # noqa: E402

os.environ["PATH"] += os.pathsep + str(Path(sys.executable).parent)  # ninja, where the environment is not activated
os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "7.5;8.0+PTX;9.0a")  # torch indexes an empty list where no GPU is
if "CUDA_HOME" not in os.environ and "CUDA_PATH" not in os.environ:  # nvcc on the path may be a script elsewhere
    for home in (Path(shutil.which("nvcc") or "nvcc").resolve().parent.parent, Path("/usr/local/cuda")):
        if (home / "include/cuda_runtime.h").exists():
            os.environ.setdefault("CUDA_HOME", str(home))
SANITIZE = os.environ.get("CNNEXT_SANITIZE", "")
CXX = os.environ.get("CXX", "c++").split()

if sys.argv[1:2] in (["sdist"], ["egg_info"]):
    setup()  # these need no torch
    sys.exit()
reach_torch()

import torch  # noqa: E402
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension  # noqa: E402

if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11):
    sys.exit(f"cnnext needs torch 2.11 or newer, and this environment has {torch.__version__}: upgrade torch first")


def sources(*patterns):
    return sorted(path for pattern in patterns for path in glob(pattern, root_dir=ROOT))


def choose_cuda():
    """Whether to build the CUDA kernels, and why. Never asks for a GPU: images are built where there is none."""
    wanted = os.environ.get("CNNEXT_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        sys.exit(f"CNNEXT_CUDA must be auto, 0 or 1, not {wanted!r}")
    if wanted == "0":
        return False, "CNNEXT_CUDA=0"
    if torch.version.cuda is None:
        reason = f"torch {torch.__version__} was built without CUDA"
    elif CUDA_HOME is None or not Path(CUDA_HOME, "bin", "nvcc").exists():
        reason = "nvcc was not found (set CUDA_HOME to a CUDA toolkit)"
    elif not sources("csrc/cuda/*.cu"):
        reason = "this version of cnnext has no CUDA kernels"
    else:
        return True, f"torch {torch.__version__}, nvcc in {CUDA_HOME}"
    if wanted == "1":
        sys.exit(f"CNNEXT_CUDA=1, but {reason}")
    return False, reason


def compiler_version():
    return subprocess.run([*CXX, "--version"], capture_output=True, text=True).stdout.split("\n")[0]


def openmp_flags():
    """What makes the compiler accept OpenMP: at::parallel_for is header code, and serial without it."""
    for flags in (["-fopenmp"], ["-Xpreprocessor", "-fopenmp"]):
        command = [*CXX, *flags, "-fsyntax-only", "-xc++", "-"]
        if subprocess.run(command, input=b"#include <omp.h>\n", capture_output=True).returncode == 0:
            return flags
    print("cnnext: this compiler has no OpenMP; the kernels will use one thread")
    return []


class Build(BuildExtension):
    """Keeps objects from build to build (pip gives a new folder each time) and records how _C was built."""

    def finalize_options(self):
        super().finalize_options()
        kind = "-".join(["torch" + torch.__version__, "cuda" if CUDA else "cpu", *SANITIZE.split(",")]).rstrip("-")
        self.build_temp = str(ROOT / "build" / f"{kind}-{sys.implementation.cache_tag}")

    def run(self):
        archs = os.environ["TORCH_CUDA_ARCH_LIST"] if CUDA else ""
        print(f"cnnext: building for the CPU{f' and CUDA ({archs})' if CUDA else ' only'}: {CUDA_REASON}", flush=True)
        super().run()
        facts = {"version": self.distribution.get_version(), "torch": torch.__version__, "compiler": compiler_version()}
        facts |= {"cuda": CUDA, "cuda_reason": CUDA_REASON, "cuda_archs": archs, "sanitize": SANITIZE}
        file = Path(ROOT if self.inplace else self.build_lib, "cnnext", "_build_info.py")
        file.write_text(f"# Written by setup.py.\nBUILD_INFO = {facts!r}\n")


CUDA, CUDA_REASON = choose_cuda()
OPENMP = openmp_flags()
cxx = ["-O3", "-g0", "-Wall", "-Werror=return-type", "-ffp-contract=fast", "-fvisibility=hidden", *OPENMP]
# Not linked by GCC: its calls into OpenMP then find the one runtime that torch has loaded.
link = OPENMP if "clang" in compiler_version() else []
if link and sys.platform == "linux":
    print("cnnext: threads of Clang's OpenMP will run beside those of torch's, which is GCC's on Linux")
if SANITIZE:
    instrument = [f"-fsanitize={SANITIZE}", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"]
    cxx += [*instrument, "-O1", "-g1", "-fno-omit-frame-pointer"]
    link = [*link, *instrument]
extension = (CUDAExtension if CUDA else CppExtension)(
    "cnnext._C",
    # The table of CUDA kernels is in every build.
    sources("csrc/cpu/*.cpp", "csrc/cuda/*.cpp", "csrc/*/units/*.cpp", *(["csrc/cuda/*.cu"] if CUDA else [])),
    include_dirs=[str(ROOT / "csrc")],
    define_macros=[("CNNEXT_WITH_CUDA", "1")] if CUDA else [],
    extra_compile_args={"cxx": cxx, "nvcc": ["-O3", "--threads=2"]},
    extra_link_args=link,
)
setup(ext_modules=[extension], cmdclass={"build_ext": Build})
