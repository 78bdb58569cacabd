"""Convolution and threads: the same bits for any number of them, from run to run, and alone or in a batch; all work."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from convolutions import KERNELS, OPS, Conv, Operands, by_cnnext, by_kernel, normals, problem
from kernels import DTYPES, bits
from torch import Tensor

from cnnext import _C, backends, explain, functional

pytestmark = pytest.mark.usefixtures("threads", "no_fallback")

# Few and many tasks, tasks that split a sum, and tasks cut along channels, pixels, groups and images.
CASES = [
    problem((1, 2, 3, 4), (600, 2, 1, 1)),
    problem((1, 300, 7, 7), (40, 300, 3, 3), padding=1),
    problem((3, 17, 29, 30), (32, 17, 3, 3), padding=1),
    problem((2, 3, 65, 64), (5, 3, 3, 3), stride=2, padding=1),
    problem((2, 33, 15, 14), (66, 1, 3, 3), padding=1, groups=33),
    problem((2, 35, 60, 61), (35, 1, 3, 3), stride=2, padding=1, groups=35),
    problem((2, 80, 30, 31), (40, 4, 3, 3), padding=1, groups=20),
    problem((2, 4, 3000), (6, 2, 5), dilation=2, groups=2),
    problem((2, 4, 6, 13, 14), (5, 4, 3, 3, 3), padding=1),
    problem((1, 2, 131, 60), (24, 2, 11, 11), stride=2, padding=2),
    problem((1, 1, 9000), (24, 1, 10), stride=5, padding=3),
    problem((1, 48, 20, 21), (96, 48, 3, 3), padding=1),
    problem((2, 64, 57, 56), (80, 64, 3, 3), stride=2, padding=1),
    problem((1, 2048, 9, 9), (48, 2048, 1, 1)),
    problem((1, 320, 40, 36), (72, 320, 3, 3), padding=1),
    problem((1, 64, 12, 12), (64, 64, 3, 3), padding=1),
]


def results(conv: Conv, operands: dict[tuple[torch.dtype, bool], Operands]) -> dict[tuple[object, ...], Tensor]:
    """The bits of everything that any kernel computes, also of the default choice."""
    found = {}
    for (dtype, last), t in operands.items():
        for op, kernel in KERNELS:
            if kernel == "reference" and conv.products > 500_000:
                continue
            result = by_kernel(op, kernel, conv, t, last)
            if result is not None:
                found[op, kernel, dtype, last] = bits(result)
        for op in OPS:
            found[op, "default", dtype, last] = bits(by_cnnext(op, conv, t, last))
    return found


@pytest.mark.parametrize("conv", CASES, ids=str)
def test_same_bits_for_any_number_of_threads(conv: Conv) -> None:
    operands = {(dtype, last): normals(conv).to(dtype, last, last) for dtype in DTYPES for last in (False, True)}
    torch.set_num_threads(1)
    expected = results(conv, operands)
    for threads in (1, 2, 3, 5, 16):
        torch.set_num_threads(threads)
        found = results(conv, operands)
        assert found.keys() == expected.keys()
        for key, result in found.items():
            assert torch.equal(result, expected[key]), (threads, *key)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("conv", CASES, ids=str)
def test_same_bits_alone_and_in_a_batch(conv: Conv, threads: int) -> None:
    torch.set_num_threads(threads)
    conv = replace(conv, input=(5, *conv.input[1:]))
    single = replace(conv, input=(1, *conv.input[1:]))
    for dtype in (torch.float32, torch.bfloat16):
        t = normals(conv).to(dtype)
        for op, kernel in [*KERNELS, ("conv", "default"), ("conv_grad_input", "default")]:
            if op not in ("conv", "conv_grad_input") or (kernel == "reference" and conv.products > 500_000):
                continue

            def run(of: Conv, given: Operands, op: str = op, kernel: str = kernel) -> Tensor | None:
                return by_cnnext(op, of, given) if kernel == "default" else by_kernel(op, kernel, of, given)

            batch = run(conv, t)
            for image in (0, 3):
                part = slice(image, image + 1)
                alone = run(single, replace(t, input=t.input[part], grad_output=t.grad_output[part]))
                assert (alone is None) == (batch is None), (op, kernel, dtype)
                if batch is not None:
                    assert torch.equal(bits(alone), bits(batch[part])), (op, kernel, dtype, image)


def test_zeros_have_one_sign_in_channels_first() -> None:
    """Products that underflow to a negative zero, in whole tiles and at the end of a plane."""
    x, weight = torch.full((3, 16, 9, 11), -1e-30), torch.full((40, 16, 1, 1), 1e-30)
    with backends.force_kernel("conv", "gemm"):
        assert len(bits(functional.conv2d(x, weight)).unique()) == 1


@pytest.mark.parametrize("op", ["conv", "conv_grad_input"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_choice_does_not_depend_on_the_batch(op: str, dtype: torch.dtype) -> None:
    def chosen(images: int, channels: int, size: int, kernel: int, groups: int, last: bool) -> str:
        input_size, weight_size = [images, channels, size, size], [channels, channels // groups, kernel, kernel]
        ones, none = [1, 1], [0, 0]
        choice = _C.explain_conv(op, input_size, weight_size, ones, none, ones, groups, dtype, channels_last=last)
        return choice["kernel"]

    for channels, size, kernel, last in itertools.product((3, 16, 256), (3, 7, 28), (1, 3), (False, True)):
        for groups in (1, channels):
            assert len({chosen(n, channels, size, kernel, groups, last) for n in (1, 2, 16, 64)}) == 1


def test_same_bits_from_concurrent_calls() -> None:
    """Python's threads share our memory pool and the settings, but no scratch memory."""
    jobs = [
        (op, conv, normals(conv).to(torch.float32, last)) for op in OPS for conv in CASES[1:4] for last in (False, True)
    ]
    torch.set_num_threads(2)
    expected = [bits(by_cnnext(*job)) for job in jobs]

    def differing(first: int) -> list[int]:
        order = [(first + n) % len(jobs) for n in range(2 * len(jobs))]
        return [number for number in order if not torch.equal(bits(by_cnnext(*jobs[number])), expected[number])]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(differing, range(0, 20, 5))) == [[]] * 4


# Runs each operator in both formats and reports how long each thread of the process computed, in nanoseconds.
PROGRAM = """
import json, os, sys, torch, cnnext
from cnnext import _C, backends, explain, functional

def times():
    return {t: int(open(f"/proc/self/task/{t}/schedstat").read().split()[0]) for t in os.listdir("/proc/self/task")}

torch.set_num_threads(int(sys.argv[1]))
ops = torch.ops.cnnext
found = []
for last in (False, True):
    x, w, g = torch.ones(8, 64, 32, 32), torch.ones(64, 64, 3, 3), torch.ones(8, 64, 30, 30)
    if last:
        x, w, g = (t.contiguous(memory_format=torch.channels_last) for t in (x, w, g))
    for op, run in {
        "conv": lambda: ops.conv(x, w),
        "conv_grad_input": lambda: ops.conv_grad_input(g, w, None, [32, 32]),
        "conv_grad_weight": lambda: ops.conv_grad_weight(g, x, [3, 3]),
        "conv_grad_bias": lambda: [ops.conv_grad_bias(g) for _ in range(20)],
    }.items():
        run()
        before = times()
        for _ in range(10):
            run()
        after = times()
        found.append((op, last, sorted((after[t] - before.get(t, 0) for t in after), reverse=True)))
print(json.dumps(found))
"""


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="needs Linux's count of each thread's time")
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_work(threads: int) -> None:
    """at::parallel_for runs serially, and says nothing, in a library compiled without OpenMP."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}  # a thread that waits shall not look busy
    command = [sys.executable, "-c", PROGRAM, str(threads)]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    for op, last, times in json.loads(output):
        share = sum(times[1:]) / sum(times)
        assert share < 0.02 if threads == 1 else share > 0.2, (op, last, times)


SWITCHES = {name: each for name, each in vars(backends).items() if isinstance(each, backends._Switch)}


def overlap(first: AbstractContextManager[None], second: AbstractContextManager[None]) -> Iterator[None]:
    """Each block in a thread of its own; they end in the order in which they began. Yields inside of both, and inside
    of the second."""
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        one.submit(first.__enter__).result()
        other.submit(second.__enter__).result()
        yield
        one.submit(first.__exit__, None, None, None).result()
        yield
        other.submit(second.__exit__, None, None, None).result()


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("inner", [False, True])
def test_blocks_of_several_threads_may_overlap(name: str, inner: bool) -> None:
    switch = SWITCHES[name]
    before = switch.enabled
    seen = [switch.enabled for _ in overlap(switch(not before), switch(inner))]
    assert seen == [inner, inner]  # of the block that began last, and of the one that has not ended
    assert switch.enabled is before
    assert backends.enabled is True


def test_forced_kernels_of_several_threads_may_overlap() -> None:
    def kernel() -> str:
        return explain(functional.conv2d, torch.ones(1, 3, 8, 8), torch.ones(4, 3, 3, 3)).layers[0].directions[0].kernel

    usual = kernel()
    blocks = [backends.force_kernel("conv", name) for name in ("reference", "gemm")]
    assert [kernel() for _ in overlap(*blocks)] == ["gemm", "gemm"]
    assert kernel() == usual
    with backends.force_kernel("conv", "reference"):
        assert kernel() == "reference"
