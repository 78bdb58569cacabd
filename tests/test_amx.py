"""Convolution by AMX: on processors that have it, and by the kernels' own sources with emulated registers."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from convolutions import KERNELS, Conv, Operands, by_kernel, by_torch, integers, normals, problem
from emulation import Emulator, Refused, build
from test_conv_exact import CASES
from torch import Tensor

from cnnext import backends

pytestmark = pytest.mark.usefixtures("one_thread")

AMX_KERNELS = {"conv": "rows_amx", "conv_grad_input": "rows_amx", "conv_grad_weight": "gemm_amx"}
IN_BOTH_LAYOUTS = pytest.mark.parametrize("last", [False, True], ids=["nchw", "channels_last"])
LARGE = problem((1, 128, 20, 20), (256, 128, 1, 1))  # that float32 by AMX takes

By = Callable[[str, Conv, Operands, bool], Tensor | None]  # float32 by AMX, None where it does not take the problem


@pytest.fixture(scope="module")
def emulator() -> Emulator:
    if backends.cpu_capability() != "avx512":
        pytest.skip("needs AVX-512")
    return Emulator(build())


@pytest.fixture(params=["processor", "emulator"])
def by_amx(request: pytest.FixtureRequest) -> By:
    if request.param == "emulator":
        emulated: Emulator = request.getfixturevalue("emulator")
        return lambda op, conv, t, last: by_emulator(emulated, op, conv, t, torch.float32, last, last)
    if ("conv", "rows_amx") not in KERNELS:
        pytest.skip("needs AMX")
    return lambda op, conv, t, last: by_kernel(op, AMX_KERNELS[op], conv, t.to(torch.float32, last, last))


def by_emulator(
    emulator: Emulator, op: str, conv: Conv, t: Operands, dtype: torch.dtype, last: bool, weight_last: bool,
    threads: int = 1, kept: bool = False,
) -> Tensor | None:  # fmt: skip
    try:
        return emulator.amx(op, AMX_KERNELS[op], conv, t, dtype, last, weight_last, threads, kept)
    except Refused:
        return None


def test_every_problem_is_exact_in_the_emulator(emulator: Emulator) -> None:
    """Both types and layouts, one thread and several, packed weights in the call, before it and kept, in turns."""
    ways = itertools.cycle(itertools.product((True, False), (False, True), ((1, False), (3, False), (2, True))))
    taken = dict.fromkeys(itertools.product(AMX_KERNELS, (torch.float32, torch.bfloat16)), 0)
    for conv in CASES:
        t = integers(conv)
        expected: dict[str, Tensor] = {}
        for op, dtype in taken:
            last, weight_last, (threads, kept) = next(ways)
            kept &= op != "conv_grad_weight"
            result = by_emulator(emulator, op, conv, t, dtype, last, weight_last, threads, kept)
            if result is not None:
                taken[op, dtype] += 1
                expected = expected or by_torch(conv, t)
                assert torch.equal(result, expected[op].to(dtype)), (op, str(conv), dtype, last, threads, kept)
    assert min(taken.values()) > 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@IN_BOTH_LAYOUTS
def test_threads_do_not_change_bits(emulator: Emulator, dtype: torch.dtype, last: bool) -> None:
    conv = problem((2, 96, 33, 30), (104, 96, 3, 3), stride=2, padding=1)
    t = normals(conv, dtype)
    for op in AMX_KERNELS:
        one, four = (by_emulator(emulator, op, conv, t, dtype, last, last, threads) for threads in (1, 4))
        assert one is not None
        assert four is not None
        assert torch.equal(one, four), op


@IN_BOTH_LAYOUTS
@pytest.mark.parametrize(
    "conv",
    [
        LARGE,
        problem((2, 160, 13, 13), (96, 160, 1, 1)),  # rows that are read in place
        problem((3, 70, 15, 15), (131, 70, 1, 1)),
        problem((2, 64, 35, 35), (100, 64, 3, 3), stride=2, padding=1),
        problem((1, 96, 17, 17), (160, 96, 1, 7), padding=(0, 3)),
        problem((2, 128, 24, 24), (192, 64, 3, 3), stride=(2, 1), padding=1, groups=2),
        problem((1, 1100, 16, 16), (560, 1100, 1, 1)),  # more than one block of channels
        problem((3, 512, 9, 9), (256, 512, 1, 1)),  # registers with pixels of two images
        problem((2, 128, 31, 33), (128, 128, 3, 3), stride=(2, 3), padding=1),
        problem((1, 96, 5, 12, 14), (96, 96, 2, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
    ],
    ids=str,
)
def test_integers_of_float32_are_summed_exactly(by_amx: By, conv: Conv, last: bool) -> None:
    t = integers(conv, bias=False)
    expected = by_torch(conv, t)
    taken = 0
    for op in AMX_KERNELS:
        result = by_amx(op, conv, t, last)
        if result is not None:
            taken += 1
            assert torch.equal(result, expected[op].float()), op
    assert taken > 0


@IN_BOTH_LAYOUTS
def test_rounding_errors_are_not_above_torchs(by_amx: By, last: bool) -> None:
    conv = problem((1, 256, 28, 28), (128, 256, 3, 3), stride=2, padding=1)
    t = normals(conv, torch.float32)
    t.bias = t.shift = None
    exact, torchs = by_torch(conv, t.to(torch.float64)), by_torch(conv, t)
    for op in AMX_KERNELS:
        result = by_amx(op, conv, t, last)
        assert result is not None
        ours, theirs = ((each - exact[op]).square().mean().sqrt() for each in (result, torchs[op]))
        assert ours < 1.5 * theirs, op


@IN_BOTH_LAYOUTS
@pytest.mark.parametrize("one_hot", ["input", "weight"])
def test_every_bit_of_float32_counts(by_amx: By, one_hot: str, last: bool) -> None:
    t = normals(LARGE, torch.float32)
    images, channels = t.input.flatten(2), t.weight.flatten(1)
    if one_hot == "weight":
        channels.copy_(torch.eye(128).roll(5, 0).repeat(2, 1))
        expected = t.input.roll(5, 1).repeat(1, 2, 1, 1)
    else:
        images.copy_(torch.eye(128, 400))  # pixel i has channel i alone
        expected = torch.nn.functional.pad(channels, (0, 272)).view(1, 256, 20, 20)
    t.bias = None
    result = by_amx("conv", LARGE, t, last)
    assert result is not None
    assert torch.equal(result, expected)


@IN_BOTH_LAYOUTS
def test_every_bit_of_float32_counts_for_the_weight(by_amx: By, last: bool) -> None:
    t = normals(LARGE, torch.float32)
    pixels = t.grad_output.flatten(2)
    pixels.zero_()
    pixels[0, :, 37:293] = torch.eye(256)  # output channel k has pixel k + 37 alone
    result = by_amx("conv_grad_weight", LARGE, t, last)
    assert result is not None
    assert torch.equal(result.flatten(1), t.input.flatten(2)[0, :, 37:293].t())
    pixels.copy_(torch.randn(1, 256, 400))
    t.input.zero_()
    t.input.flatten(2)[0, :, 101:229] = torch.eye(128)
    result = by_amx("conv_grad_weight", LARGE, t, last)
    assert result is not None
    assert torch.equal(result.flatten(1), pixels[0, :, 101:229])


@IN_BOTH_LAYOUTS
@pytest.mark.parametrize("op", AMX_KERNELS)
@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan"), torch.finfo(torch.float32).max])
@pytest.mark.parametrize("factor", [0, 1])
def test_sums_that_are_not_finite(by_amx: By, op: str, number: float, factor: int, last: bool) -> None:
    # Integers have two parts that are zero, the largest float32 rounds up to an infinity.
    t = integers(LARGE, bias=False)
    factors = {"input": t.input, "weight": t.weight, "grad_output": t.grad_output}
    del factors[{"conv": "grad_output", "conv_grad_input": "input", "conv_grad_weight": "weight"}[op]]
    list(factors.values())[factor].flatten()[1234] = number
    result = by_amx(op, LARGE, t, last)
    assert result is not None
    expected = by_torch(LARGE, t)[op].float()  # of float64
    assert 0 < (expected.abs() > 3e38).sum() + expected.isnan().sum() < expected.numel() / 2
    assert torch.equal(result.isnan(), expected.isnan())
    assert ((result == expected) | expected.isnan()).all()
