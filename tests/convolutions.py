"""Convolution problems, their operands, and what torch computes for them in float64, for the tests of the operators."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from kernels import LAST, Ints, forced, layout
from torch import Tensor

from cnnext import _C, backends

OPS = ("conv", "conv_grad_input", "conv_grad_weight", "conv_grad_bias")
# Instructions that not every processor has, by the end of the names of kernels that use them; whether this one does.
# Beside AMX products of pairs of bfloat16 by vectors gain nothing.
AMX = backends.cpu_capability() == "avx512" and torch.cpu._init_amx()
INSTRUCTIONS = {
    "_bf16": backends.cpu_capability() == "avx512" and torch.cpu._is_avx512_bf16_supported() and not AMX,
    "_amx": AMX,
}


def takes_bfloat16_only(kernel: str) -> bool:
    return kernel.endswith("_bf16")


KERNELS = [
    (op, kernel)
    for op in OPS
    for kernel in backends.kernels(op)
    if all(has or not kernel.endswith(suffix) for suffix, has in INSTRUCTIONS.items())
]
INEXACT = ("winograd",)  # kernels that compute with other numbers than the products of the definition


@dataclass(frozen=True)
class Conv:
    """A convolution: sizes of input and weight, and parameters with an entry for each spatial axis."""

    input: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def __str__(self) -> str:
        words = ["x".join(map(str, self.input)), "x".join(map(str, self.weight))]
        words += [
            letter + "".join(map(str, values))
            for letter, values, usual in (("s", self.stride, 1), ("p", self.padding, 0), ("d", self.dilation, 1))
            if any(value != usual for value in values)
        ]
        return "-".join(words + [f"g{self.groups}"] * (self.groups > 1))

    @property
    def dims(self) -> int:
        return len(self.stride)

    @property
    def output(self) -> tuple[int, ...]:
        spatial = [
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip(
                self.input[2:], self.weight[2:], self.stride, self.padding, self.dilation, strict=True
            )
        ]
        return (self.input[0], self.weight[0], *spatial)

    @property
    def products(self) -> int:
        """Multiplications of the forward convolution."""
        return prod(self.output) * prod(self.weight[1:])

    @property
    def parameters(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]:
        return self.stride, self.padding, self.dilation, self.groups


def problem(
    input: Sequence[int],
    weight: Sequence[int],
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Conv:
    """A convolution whose parameters may be numbers that stand for all axes."""

    def each(value: Ints) -> tuple[int, ...]:
        return (value,) * (len(input) - 2) if isinstance(value, int) else tuple(value)

    return Conv(tuple(input), tuple(weight), each(stride), each(padding), each(dilation), groups)


@dataclass
class Operands:
    """Everything that the four operators read. `shift` is the bias of the gradient for the input."""

    input: Tensor
    weight: Tensor
    grad_output: Tensor
    bias: Tensor | None = None
    shift: Tensor | None = None

    def to(self, dtype: torch.dtype, last: bool = False, weight_last: bool = False) -> Operands:
        def vector(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(dtype)

        return Operands(
            layout(self.input.to(dtype), last),
            layout(self.weight.to(dtype), weight_last),
            layout(self.grad_output.to(dtype), last),
            vector(self.bias),
            vector(self.shift),
        )


def integers(conv: Conv, bias: bool = True, seed: int = 0, most: int = 3) -> Operands:
    """Small integers in float64: every sum of their products is exact, in whatever order and in float32 too."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randint(-most, most + 1, size, generator=generator).double()

    vectors = (draw(conv.weight[0]), draw(conv.input[1])) if bias else (None, None)
    return Operands(draw(*conv.input), draw(*conv.weight), draw(*conv.output), *vectors)


def normals(conv: Conv, dtype: torch.dtype = torch.float64, seed: int = 0) -> Operands:
    """Random normal numbers, with biases."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (conv.input, conv.weight, conv.output, conv.weight[:1], conv.input[1:2])
    return Operands(*(torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes))


def by_cnnext(op: str, conv: Conv, t: Operands, weight_last: bool = False) -> Tensor:
    """The operator's result by cnnext."""
    ops = torch.ops.cnnext
    if op == "conv":
        return ops.conv(t.input, t.weight, t.bias, *conv.parameters)
    if op == "conv_grad_input":
        return ops.conv_grad_input(t.grad_output, t.weight, t.shift, conv.input[2:], *conv.parameters)
    if op == "conv_grad_weight":
        return ops.conv_grad_weight(t.grad_output, t.input, conv.weight[2:], *conv.parameters, weight_last)
    return ops.conv_grad_bias(t.grad_output)


def by_torch(conv: Conv, t: Operands) -> dict[str, Tensor]:
    """What the four operators compute, by torch in the operands' type."""
    no_output_padding = [0] * conv.dims
    rest = (*conv.parameters[:3], False, no_output_padding, conv.groups)
    # On processors with AVX512_FP16 oneDNN does not return from large depthwise kernels in float16 (torch 2.13).
    endless = t.input.dtype == torch.float16 and conv.weight[1] == 1 and max(conv.weight[2:]) > 11
    with torch.backends.mkldnn.flags(enabled=False) if endless else nullcontext():
        result = torch.convolution(t.input, t.weight, t.bias, *rest)
        operands = (t.grad_output, t.input, t.weight, [conv.weight[0]])
        grads = torch.ops.aten.convolution_backward(*operands, *rest, [True] * 3)
    if t.shift is not None:
        grads = (grads[0] + t.shift.view(-1, *[1] * conv.dims), *grads[1:])
    return dict(zip(OPS, (result, *grads), strict=True))


@contextmanager
def unwritten_is_nan() -> Iterator[None]:
    """Fills new tensors with NaN, results and workspaces too: an element that is never written shows."""
    torch.use_deterministic_algorithms(True)
    try:
        with backends.memory_pool(False):
            yield
    finally:
        torch.use_deterministic_algorithms(False)


def by_kernel(
    op: str, kernel: str, conv: Conv, t: Operands, weight_last: bool = False, device: str = "cpu"
) -> Tensor | None:
    """The operator's result by one kernel, or None if it does not take the problem. What it does not write is NaN."""
    with unwritten_is_nan():
        return forced(op, kernel, lambda: by_cnnext(op, conv, t, weight_last), device)


def taking(op: str, conv: Conv, t: Operands, weight_last: bool) -> list[str]:
    """The kernels that take the problem, asked beforehand: a call that one refuses costs as much as most that run."""
    kernels = [kernel for each, kernel in KERNELS if each == op]
    if op == "conv_grad_bias":  # nothing is to be chosen
        return kernels
    operands = {
        "conv": (t.input, t.weight),
        "conv_grad_input": (t.grad_output, t.weight),
        "conv_grad_weight": (t.input, t.grad_output),
    }
    last = any(map(_C.is_channels_last, operands[op]))
    is_result = op == "conv_grad_weight"  # in which one spatial axis has no channels last either
    result_last = weight_last and len(conv.weight) in LAST if is_result else _C.is_channels_last(t.weight)
    sizes = (conv.input, conv.weight, *conv.parameters)
    answers = _C.explain_conv(op, *sizes, t.input.dtype, last, weight_channels_last=result_last)["candidates"]
    takes = {answer["name"] for answer in answers if answer["supported"]}
    return [kernel for kernel in kernels if kernel in takes]


def check_exact(
    conv: Conv, t: Operands, expected: Mapping[str, Tensor], dtype: torch.dtype, last: bool, weight_last: bool
) -> None:
    """Every kernel of every operator that takes the problem computes exactly what is expected.

    A kernel with other arithmetic may be off by a little: less than what a wrong index changes integers by.
    """
    given = t.to(dtype, last, weight_last)
    with unwritten_is_nan():
        for op, kernel in [(each, kernel) for each in OPS for kernel in taking(each, conv, given, weight_last)]:
            if kernel == "reference" and conv.products > 300_000:
                continue
            result = forced(op, kernel, partial(by_cnnext, op, conv, given, weight_last))
            where = f"{op} by {kernel}: {conv}, {dtype}, last={last}, weight_last={weight_last}"
            assert result is not None and result.dtype == dtype, where
            if kernel in INEXACT:
                most = 0.02 + torch.finfo(dtype).eps * expected[op].abs()
                assert ((result.double() - expected[op]).abs() < most).all(), where
            else:
                assert torch.equal(result, expected[op].to(dtype)), where


EXTENTS = (1, 2, 3, 5, 8, 13, 14, 15, 16, 17, 31, 32, 33, 64, 65, 111, 112, 113, 127, 129, 255, 256, 257, 300, 513)


@st.composite
def convolutions(draw: st.DrawFn, most_products: int = 400_000) -> Conv:
    """Any convolution of moderate size: the larger its channels, the smaller its image. Many have kernels of 3x3."""
    dims = draw(st.sampled_from((1, 2, 2, 3)))
    usual = dims == 2 and draw(st.booleans())
    groups = draw(st.sampled_from((1, 1, 1, 2, 3, 16, 33)))
    extents = st.sampled_from([extent for extent in EXTENTS if extent * groups <= 600])
    channels, outputs = draw(extents), draw(extents)
    small = st.integers(1, 4 if dims < 3 else 3)
    kernel = (
        (3, 3)
        if usual
        else draw(st.tuples(*[st.one_of(st.just(1), small, st.integers(1, 7 if dims < 3 else 3))] * dims))
    )
    dilation = draw(st.tuples(*[st.one_of(st.just(1), small)] * dims))
    padding = draw(st.tuples(*[st.one_of(st.just(0), st.integers(0, 5))] * dims))
    stride = (1, 1) if usual else draw(st.tuples(*[st.one_of(st.just(1), st.integers(1, 5))] * dims))
    images = draw(st.sampled_from((1, 1, 2, 3, 5)))
    pixels = most_products // (channels * outputs * groups * prod(kernel) * images)
    most = max(1, min(70, int(pixels ** (1 / dims))))
    size = [
        max(1, d * (k - 1) + 1 - 2 * p) + draw(st.integers(0, most - 1) if s == 1 else st.integers(0, 2 * most))
        for k, s, p, d in zip(kernel, stride, padding, dilation, strict=True)
    ]
    return problem(
        (images, channels * groups, *size), (outputs * groups, channels, *kernel), stride, padding, dilation, groups
    )


def examples(count: int) -> settings:
    """The same `count` examples in every run; CNNEXT_EXAMPLES=n tries n new ones instead."""
    many = os.environ.get("CNNEXT_EXAMPLES")
    return settings(
        max_examples=int(many or count),
        derandomize=not many,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
