"""Compiles every CUDA source for every architecture, with no GPU: `make cuda-check`.

Warnings are errors. Prints registers and local memory of each kernel; none may spill, or keep an array there. Looks for
the instructions that are meant in the machine code, where nvdisasm is found (`pip install nvidia-cuda-nvdisasm`). With
--torch, builds and links the whole extension beside a torch for CUDA, imports it and looks for its operators. What was
compiled is kept in build/cuda-check, and compiled again only when it or a header of it has changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "cuda-check"
ARCHS = ("75", "80", "86", "89", "90a", "100", "120")
# C++17, as torch up to 2.11 compiles; it must be C++20 as well, as torch since.
FLAGS = ["-std=c++17", "-O3", "--Werror=all-warnings", "-Xptxas=-v,--warn-on-spills", "-Xcompiler=-Wall"]
# What the machine code of a source must hold from sm_80 on, or of _sm90 for 90a: tensor cores, asynchronous copies,
# matrix loads, stores of 16 bytes.
MEANT = {
    "conv_gemm_sm80": ("HMMA.16816.F32 ", "HMMA.16816.F32.BF16", "LDGSTS.E.BYPASS.128", "LDSM.16.M88.4",
                       "LDSM.16.MT88.4", "STG.E.128"),
    "conv_gemm_sm90": ("HGMMA.64x128x16.F32 ", "HGMMA.64x128x16.F32.BF16", "LDGSTS.E.BYPASS.128", "STG.E.128"),
    "conv_gemm_tf32_sm90": ("HGMMA.64x128x8.F32.TF32", "LDGSTS.E.BYPASS.128", "LDSM.16.M88.4", "STG.E.128"),
    "conv_gemm_float_sm80": ("HMMA.1688.F32.TF32", "LDGSTS.E.BYPASS.128", "LDSM.16.M88.4", "STG.E.128"),
    "conv_depthwise": ("LDG.E.128", "STG.E.128"),
    "pool": ("LDG.E.128", "STG.E.128"),
}  # fmt: skip
# What ptxas says where an asynchronous product's registers are used while it runs: then products wait for each other,
# or for a fence or a wait that it adds.
COMPLAINTS = ("are serialized", "is injected")
OPERATORS = ("conv", "conv_grad_input", "conv_grad_weight", "conv_grad_bias", "max_pool_with_offsets", "avg_pool",
             "max_pool_grad_input", "adaptive_avg_pool", "max_unpool")  # fmt: skip


@dataclass
class Kernel:
    """What the assembler says of one kernel. Bytes are of a thread, but for shared memory."""

    name: str
    registers: int
    shared_bytes: int
    local_bytes: int  # the stack frame, where spills are too


def find(tool: str) -> str | None:
    """A tool of the CUDA toolkit: on the path, in CUDA_HOME, or of a package from PyPI."""
    homes = [
        os.environ.get("CUDA_HOME", "/usr/local/cuda"),
        *map(str, Path(sys.prefix).glob("lib/*/site-packages/nvidia/*")),
    ]
    return shutil.which(tool) or next((str(Path(h, "bin", tool)) for h in homes if Path(h, "bin", tool).exists()), None)


def demangle(names: Sequence[str]) -> list[str]:
    if not shutil.which("c++filt"):
        return list(names)
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    short = [
        re.sub(r"cnnext::(cuda::)?|\(int\)|\(bool\)|void |\(.*", "", name.replace("(int)", ""))
        for name in text.splitlines()
    ]
    return short if len(short) == len(names) else list(names)


def kernels_of(log: str) -> list[Kernel]:
    """Reads what ptxas -v prints."""
    pattern = (
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores"
        r".*?Used (\d+) registers(.*?)\n"
    )
    found = re.findall(pattern, log, re.DOTALL)
    names = demangle([each[0] for each in found])
    kernels = []
    for name, (_, frame, stores, registers, rest) in zip(names, found, strict=True):
        shared = re.search(r"(\d+) bytes smem", rest)
        kernels.append(Kernel(name, int(registers), int(shared[1]) if shared else 0, max(int(frame), int(stores))))
    return kernels


def compile(nvcc: str, source: Path, arch: str, key: str) -> tuple[Path, list[Kernel], str]:
    """The cubin of one source for one architecture, its kernels, and what the compiler complained of."""
    cubin = FOLDER / f"{source.stem}-sm{arch}-{key}.cubin"
    facts = cubin.with_suffix(".json")
    if facts.exists():
        return cubin, [Kernel(**each) for each in json.loads(facts.read_text())], ""
    command = [nvcc, *FLAGS, f"-arch=sm_{arch}", f"-I{ROOT / 'csrc'}", "-cubin", str(source), "-o", str(cubin)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        return cubin, [], f"{source.name} for sm_{arch}: {done.stdout}{done.stderr}"
    if any(complaint in done.stdout + done.stderr for complaint in COMPLAINTS):
        return cubin, [], f"{source.name} for sm_{arch}: {done.stdout}{done.stderr}"
    kernels = kernels_of(done.stdout + done.stderr)
    facts.write_text(json.dumps([asdict(kernel) for kernel in kernels]))
    return cubin, kernels, ""


def with_headers(source: Path, found: tuple[Path, ...] = ()) -> tuple[Path, ...]:
    """The source and what it includes of the library."""
    if source in found or not source.exists():
        return found
    found = (*found, source)
    for name in re.findall(r'^#include "(.+)"', source.read_text(), re.MULTILINE):
        for folder in (source.parent, ROOT / "csrc"):
            found = with_headers((folder / name).resolve(), found)
    return found


def check_sources(archs: Sequence[str], jobs: int) -> list[str]:
    """Compiles all, prints the table; returns what is wrong."""
    nvcc = find("nvcc")
    if nvcc is None:
        return ["nvcc was not found"]
    FOLDER.mkdir(parents=True, exist_ok=True)
    tasks = []
    for source in [*sorted((ROOT / "csrc/cuda").glob("*.cu")), ROOT / "tests/emulator/golden.cu"]:
        text = b"".join(path.read_bytes() for path in with_headers(source))
        key = hashlib.sha256(text + " ".join((*FLAGS, *Kernel.__annotations__, *COMPLAINTS)).encode()).hexdigest()[:12]
        tasks += [(source, arch, key) for arch in archs]
    with ThreadPoolExecutor(jobs) as pool:
        results = list(pool.map(lambda task: compile(nvcc, *task), tasks))
    wrong = [complaint for _, _, complaint in results if complaint]
    table: dict[tuple[str, str], dict[str, Kernel]] = {}
    for (source, arch, _), (_, kernels, _) in zip(tasks, results, strict=True):
        for kernel in kernels:
            table.setdefault((source.stem, kernel.name), {})[arch] = kernel
            if kernel.local_bytes:
                wrong.append(
                    f"{source.stem}: {kernel.name} has {kernel.local_bytes} bytes of local memory for sm_{arch}"
                )
    print(f"{'registers for sm_':>76} {' '.join(f'{arch:>4}' for arch in archs)}  local bytes")
    for (source_name, name), by_arch in table.items():
        registers = " ".join(f"{by_arch[arch].registers if arch in by_arch else '-':>4}" for arch in archs)
        local = sum(kernel.local_bytes for kernel in by_arch.values())
        print(f"{source_name + ': ' + name:<76.76} {registers}  {local}")
    nvdisasm = find("nvdisasm")
    if nvdisasm is None:
        print("The machine code was not looked at: nvdisasm was not found (pip install nvidia-cuda-nvdisasm)")
        return wrong
    for (source, arch, _), (cubin, kernels, _) in zip(tasks, results, strict=True):
        meant_here = arch == "90a" if "sm90" in source.stem else arch != "75"
        if source.stem in MEANT and meant_here and kernels:
            code = subprocess.run([nvdisasm, "-c", str(cubin)], capture_output=True, text=True, check=True).stdout
            missing = [each for each in MEANT[source.stem] if each not in code]
            wrong += [f"{source.stem} for sm_{arch} has no {each}" for each in missing]
            counts = ", ".join(f"{code.count(each)} {each.strip()}" for each in MEANT[source.stem])
            print(f"{source.stem} for sm_{arch}: {counts}")
    return wrong


def check_extension(python: str, jobs: int) -> list[str]:
    """Builds the extension beside that Python's torch and imports it; no GPU is needed."""
    library = FOLDER / "lib"
    environ = {**os.environ, "CNNEXT_CUDA": "1", "MAX_JOBS": str(jobs), "PYTHONPATH": str(library)}
    environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0")
    command = [python, "setup.py", "-q", "build", "--build-base", str(FOLDER), "--build-lib", str(library)]
    if subprocess.run(command, cwd=ROOT, env=environ).returncode != 0:
        return ["the extension was not built"]
    code = f"""
import torch, cnnext
assert cnnext.__file__.startswith({str(library)!r}), cnnext.__file__
for op in {OPERATORS!r}:
    assert torch._C._dispatch_has_kernel_for_dispatch_key("cnnext::" + op, "CUDA"), op
try:
    cnnext.functional.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3))
except Exception as error:
    raise SystemExit(f"the CPU's kernels do not run in a build with CUDA: {{error}}")
print("imported with torch", torch.__version__, "and GPUs:", torch.cuda.device_count())
"""
    done = subprocess.run([python, "-c", code], cwd=FOLDER, env=environ)
    return [] if done.returncode == 0 else ["the extension was built, but does not work"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", nargs="+", default=ARCHS, metavar="ARCH", help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=int(os.environ.get("MAX_JOBS", "1")), help="compilers at a time")
    parser.add_argument("--torch", metavar="PYTHON", help="also build the extension with this Python's torch")
    args = parser.parse_args()
    if args.torch:  # its environment may have the disassembler
        folders = Path(args.torch).parent.parent.glob("lib/*/site-packages/nvidia/*/bin")
        os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], *map(str, folders)])
    wrong = check_sources(args.archs, args.jobs)
    if args.torch:
        wrong += check_extension(args.torch, args.jobs)
    for each in wrong:
        print(f"WRONG: {each}")
    print(f"{len(args.archs)} architectures: {'all is as meant' if not wrong else f'{len(wrong)} things are wrong'}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
