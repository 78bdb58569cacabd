"""What our kernels of convolution do not take: it goes to torch and is recorded, or is refused; nothing else is."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from convolutions import by_cnnext, normals, problem
from kernels import DTYPES
from torch import Tensor

from cnnext import backends

pytestmark = pytest.mark.usefixtures("one_thread")
ops = torch.ops.cnnext
EITHER = [False, True]


def check_fallback(reasons: dict[str, int], call: Callable[[], Tensor], expected: Tensor) -> None:
    backends.reset_fallbacks()
    result = call()
    assert backends.fallbacks() == reasons
    assert result.dtype == expected.dtype
    assert torch.equal(result, expected)


@pytest.mark.parametrize("stride", [2**31, 2**62, 2**63 - 1])
def test_strides_beyond_32_bits_go_to_torch(stride: int) -> None:
    x, w = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    expected = F.conv2d(x, w, None, stride)
    assert expected.shape == (2, 4, 1, 1)
    backends.reset_fallbacks()
    assert torch.equal(ops.conv(x, w, None, [stride], [0], [1], 1), expected)
    assert sum(backends.fallbacks().values()) == 1


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.int64, torch.int32, torch.uint8])
def test_foreign_types_go_to_torch(dtype: torch.dtype) -> None:
    x, w = torch.randint(0, 4, (2, 4, 7, 7)).to(dtype), torch.randint(0, 4, (6, 2, 3, 3)).to(dtype)
    b = torch.arange(6).to(dtype)
    expected = F.conv2d(x, w, b, 2, 1, 1, 2)
    check_fallback({"conv: element type": 1}, lambda: ops.conv(x, w, b, [2], [1], [1], 2), expected)
    if dtype.is_complex:
        x.requires_grad_()
        grad_output = expected.clone()
        expected = torch.autograd.grad(F.conv2d(x, w, b, 2, 1, 1, 2), x, grad_output)[0]
        assert torch.equal(torch.autograd.grad(ops.conv(x, w, b, [2], [1], [1], 2), x, grad_output)[0], expected)


@pytest.mark.parametrize(
    "sizes", [((0, 3, 8, 8), (4, 3, 3, 3)), ((2, 0, 8, 8), (4, 0, 3, 3)), ((2, 3, 8, 8), (0, 3, 3, 3))]
)
@pytest.mark.parametrize("last", EITHER)
def test_empty(sizes: Any, last: bool) -> None:
    """An empty batch, no input channels or no output channels: as torch, also the gradients."""
    conv = problem(*sizes, padding=1)
    t = normals(conv).to(torch.float32, last)
    rest = (*conv.parameters[:3], False, [0, 0], 1)
    try:
        expected = torch.convolution(t.input, t.weight, t.bias, *rest)
    except RuntimeError as error:
        with pytest.raises(RuntimeError, match=str(error).split("\n")[0][:30].replace("[", r"\[")):
            by_cnnext("conv", conv, t)
        return
    check_fallback({"conv: empty tensor": 1}, lambda: by_cnnext("conv", conv, t), expected)
    leaves = [each.detach().requires_grad_() for each in (t.input, t.weight, t.bias)]
    output = ops.conv(*leaves, *conv.parameters)
    grad_output = torch.ones_like(output)
    gradients = torch.autograd.grad(output, leaves, grad_output)
    torchs = torch.ops.aten.convolution_backward(grad_output, t.input, t.weight, [sizes[1][0]], *rest, [True] * 3)
    for ours, theirs in zip(gradients, torchs, strict=True):
        assert torch.equal(ours, theirs)


def test_float_paths_record_no_fallback(no_fallback: None) -> None:
    usual = [
        problem((2, 5, 30), (6, 5, 3), padding=1),
        problem((2, 40, 13, 14), (36, 40, 3, 3), padding=1),
        problem((2, 6, 9, 8), (6, 1, 3, 3), padding=(1, 2), groups=6),
        problem((2, 4, 6, 5, 7), (6, 2, 3, 2, 3), padding=1, dilation=(1, 2, 1), groups=2),
    ]
    for conv, dtype, last in itertools.product(usual, DTYPES, EITHER):
        t = normals(conv).to(dtype, last)
        leaves = [each.requires_grad_() for each in (t.input, t.weight, t.bias)]
        first = torch.autograd.grad(by_cnnext("conv", conv, t), leaves, t.grad_output, create_graph=True)
        torch.autograd.grad(sum(each.sum() for each in first), leaves[:2])


# Sizes that do not fit together must be refused by the operators that torch has no error for.
X, W, Y = torch.ones(2, 4, 8, 8), torch.ones(6, 2, 3, 3), torch.ones(2, 6, 6, 6)
INVALID: list[tuple[str, tuple[Any, ...]]] = [
    ("conv_grad_input", (Y, W, None, [8, 9], [1], [0], [1], 2)),
    ("conv_grad_input", (Y, W, None, [8, 8], [1], [0], [1], 4)),
    ("conv_grad_input", (Y, W, None, [8, 8], [1], [0], [1], 0)),
    ("conv_grad_input", (Y, W, None, [8, 8], [1], [0], [1], -2)),
    ("conv_grad_input", (Y, W, None, [8, 8], [0], [0], [1], 2)),
    ("conv_grad_input", (Y, W, None, [8, 8], [1], [-1], [1], 2)),
    ("conv_grad_input", (Y, W, None, [8, 8], [1], [0], [0], 2)),
    ("conv_grad_input", (Y, W, None, [8], [1], [0], [1], 2)),
    ("conv_grad_input", (Y, W, None, [8, 8, 8], [1], [0], [1], 2)),
    ("conv_grad_input", (Y, W, None, [-8, 8], [1], [0], [1], 2)),
    ("conv_grad_input", (Y, W, None, [8, 8], [1, 1, 1], [0], [1], 2)),
    ("conv_grad_input", (Y[:, :5], W, None, [8, 8], [1], [0], [1], 2)),
    ("conv_grad_input", (Y, W, torch.ones(3), [8, 8], [1], [0], [1], 2)),
    ("conv_grad_input", (Y, W, torch.ones(4, 1), [8, 8], [1], [0], [1], 2)),
    ("conv_grad_input", (Y[0], W, None, [8, 8], [1], [0], [1], 2)),
    ("conv_grad_input", (Y, W[0], None, [8, 8], [1], [0], [1], 2)),
    ("conv_grad_weight", (Y, X, [3, 4], [1], [0], [1], 2)),
    ("conv_grad_weight", (Y, X, [3], [1], [0], [1], 2)),
    ("conv_grad_weight", (Y, X, [0, 3], [1], [0], [1], 2)),
    ("conv_grad_weight", (Y, X, [3, 3], [1], [0], [1], 3)),
    ("conv_grad_weight", (Y, X, [3, 3], [1], [0], [1], 0)),
    ("conv_grad_weight", (Y, X, [3, 3], [0], [0], [1], 2)),
    ("conv_grad_weight", (Y, X, [3, 3], [1], [-1], [1], 2)),
    ("conv_grad_weight", (Y[:1], X, [3, 3], [1], [0], [1], 2)),
    ("conv_grad_weight", (Y, X[0], [3, 3], [1], [0], [1], 2)),
    ("conv_grad_weight", (Y[0], X, [3, 3], [1], [0], [1], 2)),
    ("conv_grad_bias", (torch.ones(()),)),
    ("conv_grad_bias", (torch.ones(3),)),
]


@pytest.mark.parametrize("case", range(len(INVALID)), ids=lambda i: f"{INVALID[i][0]}-{i}")
def test_invalid_sizes_are_refused(case: int) -> None:
    name, arguments = INVALID[case]
    with pytest.raises(RuntimeError, match=f"^{name}: expected "):
        getattr(ops, name)(*arguments)
    with pytest.raises(RuntimeError, match=f"^{name}: expected "):
        getattr(ops, name)(*(each.to("meta") if isinstance(each, Tensor) else each for each in arguments))


@pytest.mark.parametrize(
    ("name", "arguments", "cause"),
    [
        ("conv_grad_input", (Y, W, None, [8], [1], [0], [1], 2), "input and weight of as many dimensions, 3 to 5"),
        ("conv_grad_input", (Y, W, None, [8, 8], [0], [0], [1], 2), "a stride of 1 to .* stride [0, 0]"),
        ("conv_grad_input", (Y, W, None, [8, 8], [1, 1, 1], [0], [1], 2), "a stride of 1 .* stride [1, 1, 1]"),
        ("conv_grad_input", (Y, W, None, [8, 8], [1], [-1], [1], 2), "a padding of 0 to .* padding [-1, -1]"),
        ("conv_grad_input", (Y, W, None, [8, 8], [1], [0], [0], 2), "a dilation of 1 to .* dilation [0, 0]"),
        ("conv_grad_input", (Y, W, None, [8, 8], [1], [0], [1], -2), "1 group or more, .* groups -2"),
        ("conv_grad_input", (Y, W, None, [8, 8], [1], [0], [1], 4), "output channels that the groups divide"),
        ("conv_grad_input", (Y, W, None, [2, 8], [1], [0], [1], 2), "a kernel that fits into the padded input"),
        ("conv_grad_input", (Y, W, None, [8, 9], [1], [0], [1], 2), "grad_output of size [2, 6, 6, 7]"),
        ("conv_grad_weight", (Y, X, [3, 3], [1], [0], [1], 3), "input of as many channels as weight has in all groups"),
        ("conv_grad_weight", (Y, X, [0, 3], [1], [0], [1], 2), "a kernel of 1 or more along each axis"),
    ],
)
def test_refusals_name_their_cause(name: str, arguments: tuple[Any, ...], cause: str) -> None:
    message = f"{name}: expected {cause}".replace("[", r"\[")
    for device in ("cpu", "meta"):
        with pytest.raises(RuntimeError, match=message):
            getattr(ops, name)(*(each.to(device) if isinstance(each, Tensor) else each for each in arguments))


def test_lists_of_other_lengths_are_refused_under_vmap() -> None:
    with pytest.raises(RuntimeError, match=r"conv_grad_input: expected a stride of 1 or 2 numbers, .* \[1, 1, 1\]"):
        torch.func.vmap(lambda y: ops.conv_grad_input(y, W, None, [8, 8], [1, 1, 1], [0], [1], 2))(Y[None])
    with pytest.raises(RuntimeError, match=r"conv_grad_weight: expected a padding of 1 or 2 numbers, but got \[\]"):
        torch.func.vmap(lambda y: ops.conv_grad_weight(y, X, [3, 3], [1], [], [1], 2))(Y[None])
