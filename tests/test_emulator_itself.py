"""The emulator itself: single instructions, and faults planted in the kernels' sources, which it must find."""

from __future__ import annotations

import contextlib

import pytest
import torch
from convolutions import by_torch, integers, problem
from emulation import Emulator, build, golden

pytestmark = pytest.mark.usefixtures("one_thread")


def test_single_instructions() -> None:
    """What a GPU must print too (benchmarks/gpu.sh golden): four registers of a warp, or one of four warps."""
    lines = dict(line.split(" ", 1) for line in golden().splitlines())
    words = {name: [int(word, 16) for word in text.split()] for name, text in lines.items()}
    assert set(map(len, words.values())) == {128}
    assert len(words) == 16
    # Lane 5 has row 1, columns 2 and 3 of each matrix, and transposed the rows 2 and 3 of column 1.
    assert words["ldmatrix"][20:24] == [(64 * m + 11) << 16 | 64 * m + 10 for m in range(4)]
    assert words["ldmatrix.trans"][20:24] == [(64 * m + 25) << 16 | 64 * m + 17 for m in range(4)]
    # Lane 3 gets what lanes 6 and 19 have.
    assert words["shfl"][12:16] == [0x40C00000, (1 << 30) + 19, 1, 0]
    # 1 + 24 / 2048: to float16 exact; to bfloat16 halfway, to the even one above. Too large a number; 3 / 2 ** 25.
    assert words["cvt"][96:99] == [0x3F82 << 16 | 0x3C0C, 0x3F818000, 0x3F820000]
    assert words["cvt"][117:119] == [0x7F800000, 0x47800000]
    assert words["cvt"][120] & 0xFFFF == 2
    # Lane 31 reads the chunk of lane 0, of which nothing is copied; lane 30 that of lane 1, with one word.
    assert words["cp.async"][124:] == [0, 0, 0, 0]
    assert words["cp.async"][120:124] == [1004, 0, 0, 0]
    # Seven steps through a ring of two stages, each lane's numbers from four further on.
    assert words["mbarrier"] == words["cp.async.bulk"][: 4 * 26] + words["mbarrier"][4 * 26 :]
    assert words["mbarrier"][0] == sum((1000 + 4 * step) * 3 ** (6 - step) for step in range(7))
    # Thread 0 has row 0, columns 8 j and 8 j + 1, and row 8; a[row, k] and b[k, column] are of fixed numbers.
    for name, across in (
        ("wgmma.f16", False),
        ("wgmma.bf16", False),
        ("wgmma.bf16.across", True),
        ("wgmma.tf32", False),
    ):
        depth = 32 if name == "wgmma.tf32" else 64
        first, second = (
            torch.tensor([(m * i + n) * 7 % 11 - 5 for i in range(64 * depth)]).view(64, depth)
            for m, n in ((1, 0), (3, 1))
        )
        product = first.T @ second if across else first @ second.T
        sums = [int(product[8 * (r // 2), 8 * j + r % 2]) + 4 * j + r for j in range(8) for r in range(4)]
        assert words[name][0] == sum(each * (i + 1) for i, each in enumerate(sums)) % 2**32
    assert golden(seed=7) == golden(seed=8)


MBARRIER_FAULTS = {
    "the wrong parity": ("ptx::mbarrier_wait(full + stage, parity);", "ptx::mbarrier_wait(full + stage, 1 - parity);"),
    "a missing arrival": ("ptx::mbarrier_arrive(empty + stage);", ""),
    "one arrival too many": ("full + stage, kBulk ? 1 : kWarp", "full + stage, kBulk ? 1 : kWarp - 1"),
    "too few bytes expected": (
        "full + stage, (kWarp - step) * 16);\n        ptx::copy",
        "full + stage, 16);\n        ptx::copy",
    ),
    "no initialisation": ("if (threadIdx.x == 0) {", "if (threadIdx.x > 999) {"),
}


@pytest.mark.parametrize("fault", MBARRIER_FAULTS)
def test_planted_faults_of_mbarriers_are_caught(fault: str) -> None:
    """They end in an error that names them or in wrong numbers, never in a hang."""
    right = golden().splitlines()
    found = golden(MBARRIER_FAULTS[fault]).splitlines()
    assert found != right
    assert found[:9] == right[:9]
    if fault == "a missing arrival":
        assert found[-1] == "error: deadlock: 64 threads wait for a phase of an mbarrier that does not end"
    if fault == "no initialisation":
        assert found[-1] == "error: an mbarrier is used before its initialisation"


# Each in the source of one launcher, whose kernel and type the runs are of, and in the directions that read it.
SM80 = ("conv_gemm_float_sm80.cu", "gemm_3xtf32_sm80", torch.float32)
SM90 = ("conv_gemm_sm90.cu", "gemm_sm90", torch.bfloat16)
TF32 = ("conv_gemm_tf32_sm90.cu", "gemm_tf32_sm90", torch.float32)
BOTH, GRAD_INPUT, GRAD_WEIGHT = ("conv", "conv_grad_input"), ("conv_grad_input",), ("conv_grad_weight",)
FAULTS = {
    "a missing wait": (SM80, BOTH, ("tile_sm80.cuh", "ptx::wait_copies<kAhead - 1>();", "")),
    "a missing barrier": (SM80, BOTH, ("tile_sm80.cuh", "__syncthreads();  // the copies", "// the copies")),
    "a tap one too far": (
        SM80, BOTH, ("conv_gather.cuh", "offset + m * offset_step;", "offset + (m + 1) * offset_step;"),
    ),
    "a write beyond the end": (SM80, BOTH, ("conv_gemm.cuh", "first + at >= rows ||", "first + at > rows ||")),
    "a divergent barrier": (
        SM80, BOTH, ("tile_sm80.cuh", "__syncthreads();  // the copies", "if (lane) __syncthreads();  //"),
    ),
    "wgmma: a missing fence": (SM90, BOTH, ("tile_sm90.cuh", "ptx::fence_for_wgmma();", "")),
    "wgmma: a missing wait": (SM90, BOTH, ("tile_sm90.cuh", "ptx::wgmma_wait<0>();", "")),
    "wgmma: a stage filled too early": (SM90, BOTH, ("tile_sm90.cuh", "ptx::wgmma_wait<1>();", "")),
    "wgmma: a wrong permutation": (SM90, BOTH, ("tile_sm90.cuh", "row % 4 * 2 : row % 8", "row % 4 * 2 : row % 4")),
    "wgmma: a wrong step": (SM90, GRAD_INPUT, ("tile_sm90.cuh", "kAcross ? 16 * 128 :", "kAcross ? 8 * 128 :")),
    "TF32: a missing fence": (TF32, BOTH, ("tile_tf32_sm90.cuh", "!kAcross) ptx::fence_for", "false) ptx::fence_for")),
    "TF32: a missing fence behind turning": (
        TF32, GRAD_WEIGHT, ("tile_tf32_sm90.cuh", "turn_b(stage);\n        ptx::fence_for_wgmma();", "turn_b(stage);"),
    ),
    "TF32: a stage filled too early": (
        TF32, BOTH, ("tile_tf32_sm90.cuh", "(!kAcross) ptx::wgmma_wait<0>", "(false) ptx::wgmma_wait<0>"),
    ),
    "TF32: turned too early": (
        TF32, GRAD_WEIGHT, ("tile_tf32_sm90.cuh", "(kAcross) ptx::wgmma_wait<0>", "(false) ptx::wgmma_wait<0>"),
    ),
    "TF32: not all is turned": (TF32, GRAD_WEIGHT, ("tile_tf32_sm90.cuh", "__syncthreads();  // all is", "// all is")),
    "TF32: a wrong fragment": (TF32, BOTH, ("tile_tf32_sm90.cuh", "first ^ k * 2", "first + k * 2")),
    "TF32: a weight that is not turned": (
        TF32, GRAD_INPUT, ("pack.cuh", "tile[inner * (kTurn + 1) + i]", "tile[i * (kTurn + 1) + inner]"),
    ),
    "TF32: the weight of another tap": (TF32, GRAD_INPUT, ("conv_gemm_launch.cuh", "w.tap * along}", "along}")),
}  # fmt: skip


@pytest.mark.parametrize(("name", "op"), [(name, op) for name, (_, ops, _) in FAULTS.items() for op in ops])
def test_planted_faults_are_caught(name: str, op: str) -> None:
    """With a fault in the source every run fails, or gives a wrong result."""
    (source, kernel, dtype), _, fault = FAULTS[name]
    faulty = Emulator(build(fault, source))
    conv = problem((1, 72, 5, 7), (72, 72, 3, 3), padding=1)
    operands = integers(conv)
    expected = by_torch(conv, operands)[op].to(dtype)
    for _ in range(5):
        with contextlib.suppress(RuntimeError):
            found = faulty.conv(op, kernel, conv, operands, dtype, True, True, tf32="_tf32" in kernel)
            assert not torch.equal(found, expected)


def test_a_warp_that_runs_ahead_is_caught() -> None:
    """Without the last barrier a warp writes results where others still read operands: in some orders, not in all."""
    fault = ("tile_sm80.cuh", "ptx::wait_copies<0>();\n    __syncthreads();", "")
    faulty = Emulator(build(fault, "conv_gemm_float_sm80.cu"))
    conv = problem((1, 16, 5, 7), (24, 16, 1, 1))
    operands = integers(conv)
    expected = by_torch(conv, operands)["conv"].float()
    results = [faulty.conv("conv", "gemm_3xtf32_sm80", conv, operands, torch.float32, True, True) for _ in range(20)]
    assert not all(torch.equal(result, expected) for result in results)


def test_bank_conflicts_are_counted() -> None:
    """Without the permutation of chunks, rows meet in the same banks."""
    plain = Emulator(build(("tile_sm80.cuh", "chunk ^ (row >> 1 & 3)", "chunk"), "conv_gemm_float_sm80.cu"))
    conv = problem((1, 16, 5, 7), (24, 16, 1, 1))
    operands = integers(conv)
    result = plain.conv("conv", "gemm_3xtf32_sm80", conv, operands, torch.float32, True, True)
    assert torch.equal(result, by_torch(conv, operands)["conv"].float())
    assert plain.bank_conflicts > 0
