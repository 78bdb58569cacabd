"""Builds the emulator of tests/emulator with the kernels' own sources, those for CUDA and for AMX, and runs operators
in it."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import math
import mmap
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from convolutions import Conv, Operands
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}  # csrc/problem.h's DType
CXX = os.environ.get("CXX", "g++").split()
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-w", "-U_FORTIFY_SOURCE", "-ffp-contract=off"]


def build(fault: tuple[str, str, str] | None = None, in_source: str = "") -> Path:
    """Compiles the emulator into build/, one object for each source, each again only when something changed.

    Args:
        fault: a file of csrc/cuda, a text in it, and what stands there instead: an error that must be found.
        in_source: the .cu file that is compiled with the fault; the others stay as they are.
    """
    folder = ROOT / "build" / "emulator"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests may run side by side
        tree = ROOT / "csrc" if fault is None else _faulty(folder, *fault)
        sources = dict.fromkeys(sorted((ROOT / "csrc/cuda").glob("*.c[pu]*")), ROOT / "csrc")
        sources = {path: root for path, root in sources.items() if path.suffix in (".cu", ".cpp")}
        sources |= dict.fromkeys(sorted((ROOT / "tests/emulator").glob("*.cpp")), ROOT / "csrc")
        if fault is not None:
            del sources[ROOT / "csrc/cuda" / in_source]
            sources[tree / "cuda" / in_source] = tree
        objects = [_compile(folder, path, root) for path, root in sources.items()]
        key = hashlib.sha256(" ".join(map(str, objects)).encode()).hexdigest()[:16]
        library = folder / f"emulator-{key}.so"
        if not library.exists():
            _run([*CXX, *FLAGS, "-shared", *map(str, objects), "-o", str(library)])
    return library


def golden(fault: tuple[str, str] = ("", ""), seed: int = 0) -> str:
    """What the emulated instructions make of fixed numbers, or the error that they end with.

    Args:
        fault: a text in golden.cu, and what stands there instead.
        seed: of the order in which threads run.
    """
    folder = ROOT / "build" / "emulator"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        source = ROOT / "tests/emulator/golden.cu"
        text = source.read_text()
        if fault[0]:
            assert text.count(fault[0]) == 1, f"{fault[0]!r} is not in golden.cu once"
            source = folder / "faulty_golden.cu"
            source.write_text(text.replace(*fault))
        sources = [source, *(ROOT / f"tests/emulator/{name}.cpp" for name in ("emulator", "instructions"))]
        objects = [str(_compile(folder, path, ROOT / "csrc")) for path in sources]
        _run([*CXX, *objects, "-o", str(folder / "golden")])
        return subprocess.run([str(folder / "golden"), str(seed)], capture_output=True, text=True).stdout


def _compile(folder: Path, source: Path, tree: Path) -> Path:
    cpu = [] if source.is_relative_to(tree / "cuda") else [tree / "cpu"]  # kernels for CUDA include nothing of it
    folders = [tree, tree / "cuda", ROOT / "tests/emulator", *cpu]
    files = [path for folder in folders for path in sorted(folder.iterdir())]
    headers = [path for path in files if path.suffix in (".h", ".cuh", ".inl")]
    command = [*CXX, *FLAGS, "-DCNNEXT_WITH_CUDA", f"-I{tree}", f"-I{ROOT / 'tests/emulator'}", "-x", "c++", "-c"]
    text = b"".join(path.read_bytes() for path in (source, *headers)) + " ".join([*CXX, *FLAGS]).encode()
    target = folder / f"{source.stem}-{hashlib.sha256(text).hexdigest()[:16]}.o"
    if not target.exists():
        _run([*command, str(source), "-o", str(target)])
    return target


def _run(command: list[str]) -> None:
    target = Path(command[-1])
    temporary = target.with_suffix(".unfinished")
    subprocess.run([*command[:-1], str(temporary)], check=True)
    temporary.rename(target)


def _faulty(folder: Path, name: str, old: str, new: str) -> Path:
    """A copy of the sources with another text in one of them."""
    tree = folder / "faulty" / hashlib.sha256(f"{name}{old}{new}".encode()).hexdigest()[:16]
    shutil.rmtree(tree, ignore_errors=True)
    (tree / "cuda").mkdir(parents=True)
    for path in (*(ROOT / "csrc").glob("*.h"), *(ROOT / "csrc/cuda").iterdir()):
        shutil.copy(path, tree / path.relative_to(ROOT / "csrc"))
    text = (tree / "cuda" / name).read_text()
    assert text.count(old) == 1, f"{old!r} is not in {name} once"
    (tree / "cuda" / name).write_text(text.replace(old, new))
    return tree


def unwritten(size: tuple[int, ...], last: bool = False, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Zeros that take no memory until they are written."""
    memory = mmap.mmap(-1, math.prod(size) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
    flat = torch.frombuffer(memory, dtype=dtype)
    return flat.view(size[0], *size[2:], size[1]).movedim(-1, 1) if last else flat.view(size)


class Refused(Exception):
    """The kernel does not take the problem."""


class Emulator:
    """The kernels of the library, run on the CPU. Each call gets another order of threads and copies."""

    def __init__(self, library: Path) -> None:
        self.emulator = ctypes.CDLL(str(library))
        for name in ("emulate_conv", "emulate_pool", "emulate_amx"):
            if hasattr(self.emulator, name):
                getattr(self.emulator, name).restype = ctypes.c_char_p
        self.seed = 0
        self.bank_conflicts = 0

    def _next_seed(self) -> int:
        self.seed += 1
        return self.seed

    def conv(
        self, op: str, kernel: str, conv: Conv, t: Operands, dtype: torch.dtype, last: bool, weight_last: bool,
        arch: int = 90, tf32: bool = False, shift: int | Sequence[int] = 0, blocks: int = 264, most_blocks: int = 0,
    ) -> Tensor:  # fmt: skip
        """The result of one operator by one kernel, on small tensors of that type and layout.

        With `most_blocks` large ones are used as they are, which all have to be there and be laid out so; only so many
        of the first and of the last blocks of each launch run.
        """
        given = t if most_blocks else t.to(dtype, last, weight_last)
        tensors, result = _conv_tensors(op, conv, given, dtype, fresh=not most_blocks)
        conflicts = ctypes.c_int64()
        answer = self.emulator.emulate_conv(
            op.encode(), kernel.encode(), _conv_sizes(conv), _conv_flags(conv, dtype, last, weight_last, arch, tf32),
            _pointers(tensors), _bytes(tensors), _longs([shift] * 4 if isinstance(shift, int) else shift),
            self._next_seed(), ctypes.c_int64(blocks), ctypes.c_int64(most_blocks), ctypes.byref(conflicts),
        )  # fmt: skip
        self.bank_conflicts = conflicts.value
        _check(answer)
        return result

    def amx(
        self, op: str, kernel: str, conv: Conv, t: Operands, dtype: torch.dtype, last: bool, weight_last: bool,
        threads: int = 1, kept: bool = False,
    ) -> Tensor:  # fmt: skip
        """The result of one operator by one of the CPU's kernels for AMX; with `kept`, of a packed weight's second use.

        The tasks of all threads run one after the other.
        """
        tensors, result = _conv_tensors(op, conv, t.to(dtype, last, weight_last), dtype)
        answer = self.emulator.emulate_amx(
            op.encode(), kernel.encode(), _conv_sizes(conv), _conv_flags(conv, dtype, last, weight_last, threads, kept),
            _pointers(tensors), _bytes(tensors), self._next_seed(),
        )  # fmt: skip
        _check(answer)
        return result

    def pool(
        self, op: str, sizes: Sequence[int], axes: Sequence[Sequence[int]], tensors: Sequence[Tensor | None],
        dtype: torch.dtype, last: bool, count_padding: bool = True, divisor: int = 0, shift: int | Sequence[int] = 0,
        blocks: int = 264, most_blocks: int = 0,
    ) -> None:  # fmt: skip
        """One operator of pooling, on tensors (input, output, offsets, indices); it writes those it makes.

        `axes` has (input, output, kernel, stride, padding, dilation, adaptive) for each spatial axis.
        """
        all_axes = [[1, 1, 1, 1, 0, 1, 0]] * (3 - len(axes)) + [list(axis) for axis in axes]
        flat = [*sizes, *(value for axis in all_axes for value in axis)]
        flags = [DTYPES[dtype], int(last), int(count_padding), divisor]
        given = [torch.empty(0) if each is None else each for each in tensors]
        answer = self.emulator.emulate_pool(
            op.encode(), _longs(flat), (ctypes.c_int * 4)(*flags), _pointers(given), _bytes(given),
            _longs([shift] * 3 + [0] if isinstance(shift, int) else shift), self._next_seed(), ctypes.c_int64(blocks),
            ctypes.c_int64(most_blocks),
        )  # fmt: skip
        _check(answer)


def _conv_tensors(
    op: str, conv: Conv, t: Operands, dtype: torch.dtype, fresh: bool = True
) -> tuple[list[Tensor], Tensor]:
    """Input, weight, bias and output as the kernel takes them, and the one among them that it writes: if `fresh`, a new
    one full of NaN."""
    bias = {"conv": t.bias, "conv_grad_input": t.shift}.get(op)
    if op == "conv_grad_bias":
        bias = torch.empty(conv.weight[0], dtype=dtype)
    tensors = [t.input, t.weight, torch.empty(0, dtype=dtype) if bias is None else bias, t.grad_output]
    result = {"conv": 3, "conv_grad_input": 0, "conv_grad_weight": 1, "conv_grad_bias": 2}[op]
    if fresh:
        tensors[result] = torch.full_like(tensors[result], float("nan"))
    return tensors, tensors[result]


def _conv_sizes(conv: Conv) -> ctypes.Array[ctypes.c_int64]:
    axes: list[int] = [1, 1, 1, 1, 0, 1] * (3 - conv.dims)
    for i in range(conv.dims):
        axes += [conv.input[i + 2], conv.output[i + 2], conv.weight[i + 2]]
        axes += [conv.stride[i], conv.padding[i], conv.dilation[i]]
    return _longs([conv.input[0], conv.input[1], conv.weight[0], conv.groups, *axes])


def _conv_flags(
    conv: Conv, dtype: torch.dtype, last: bool, weight_last: bool, *more: int
) -> ctypes.Array[ctypes.c_int]:
    in_memory = [last and conv.dims > 1, weight_last and conv.dims > 1]
    return (ctypes.c_int * 5)(DTYPES[dtype], *map(int, (*in_memory, *more)))


def _longs(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(values))(*values)


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(each.data_ptr() for each in tensors))


def _bytes(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_int64]:
    return _longs([each.numel() * each.element_size() for each in tensors])


def _check(answer: bytes | None) -> None:
    if answer is None:
        return
    text = answer.decode()
    if text.startswith("refused: "):
        raise Refused(text.removeprefix("refused: "))
    raise RuntimeError(text)
