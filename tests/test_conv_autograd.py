"""Derivatives of convolution: first and second order, which gradients are computed, and what the graph keeps."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from convolutions import Conv, by_torch, convolutions, examples, integers, normals, problem
from hypothesis import given
from hypothesis import strategies as st
from kernels import layout
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.usefixtures("no_fallback", "one_thread")
ops = torch.ops.cnnext

SMALL = [
    problem((2, 2, 5), (3, 2, 3), padding=1),
    problem((1, 2, 7), (2, 1, 2), stride=3, dilation=2, padding=1, groups=2),
    problem((2, 2, 4, 3), (2, 2, 2, 3), padding=1),
    problem((1, 4, 5, 4), (4, 2, 2, 1), stride=2, padding=(1, 0), groups=2),
    problem((1, 2, 5, 5), (4, 1, 3, 2), dilation=2, padding=2, groups=2),
    problem((1, 1, 4, 4), (2, 1, 1, 1), stride=3),
    problem((1, 2, 3, 3, 4), (2, 2, 2, 1, 2), stride=(1, 2, 2), padding=(0, 1, 1)),
]


def cases(conv: Conv) -> dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]]:
    """The four operators as functions of the tensors that they are differentiated by, with and without biases."""
    t = normals(conv)
    for each in vars(t).values():
        each.requires_grad_()
    spatial, kernel = conv.input[2:], conv.weight[2:]
    return {
        "conv": (lambda x, w, b: ops.conv(x, w, b, *conv.parameters), (t.input, t.weight, t.bias)),
        "conv_no_bias": (lambda x, w: ops.conv(x, w, None, *conv.parameters), (t.input, t.weight)),
        "conv_grad_input": (
            lambda g, w, b: ops.conv_grad_input(g, w, b, spatial, *conv.parameters),
            (t.grad_output, t.weight, t.shift),
        ),
        "conv_grad_input_no_bias": (
            lambda g, w: ops.conv_grad_input(g, w, None, spatial, *conv.parameters),
            (t.grad_output, t.weight),
        ),
        "conv_grad_weight": (
            lambda g, x: ops.conv_grad_weight(g, x, kernel, *conv.parameters),
            (t.grad_output, t.input),
        ),
        "conv_grad_bias": (ops.conv_grad_bias, (t.grad_output,)),
    }


NAMES = list(cases(SMALL[0]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("conv", SMALL, ids=str)
def test_gradcheck(conv: Conv, name: str) -> None:
    function, inputs = cases(conv)[name]
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("conv", [conv for conv in SMALL if conv.dims > 1], ids=str)
def test_gradcheck_channels_last(conv: Conv, name: str) -> None:
    function, inputs = cases(conv)[name]
    inputs = tuple(layout(each.detach(), True).requires_grad_() for each in inputs)
    assert gradcheck(function, inputs, fast_mode=True)
    assert gradgradcheck(function, inputs, fast_mode=True)


@examples(60)
@given(conv=convolutions(most_products=60_000), last=st.booleans(), bias=st.booleans(), seed=st.integers(0, 99))
def test_second_derivatives_equal_torchs(conv: Conv, last: bool, bias: bool, seed: int) -> None:
    """Exactly, on integers: the gradients of the gradients that torch's own operators have in float64."""
    t = integers(conv, bias, seed, most=2).to(torch.float64, last)

    def derivatives(run: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [each.detach().requires_grad_() for each in (t.input, t.weight, *([t.bias] if bias else []))]
        grad_output = t.grad_output.detach().requires_grad_()
        output = run(*leaves)
        first = torch.autograd.grad(output, leaves, grad_output, create_graph=True)
        mixes = [
            torch.randint(-2, 3, each.shape, generator=torch.Generator().manual_seed(seed)).to(each) for each in first
        ]
        second = torch.autograd.grad(first, [*leaves[:2], grad_output], mixes)
        return [output, *first, *second]

    rest = (*conv.parameters[:3], False, [0] * conv.dims, conv.groups)
    ours = derivatives(lambda x, w, b=None: ops.conv(x, w, b, *conv.parameters))
    theirs = derivatives(lambda x, w, b=None: torch.convolution(x, w, b, *rest))
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.equal(a, b), f"result {number}"


class Recorded(TorchDispatchMode):
    """Names of cnnext's operators in the order in which they run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "cnnext":
            self.names.append(func._schema.name.removeprefix("cnnext::"))
        return func(*args, **(kwargs or {}))


CONV = problem((2, 4, 6, 5), (6, 2, 3, 2), stride=(1, 2), padding=1, groups=2)
GRADIENTS = ("conv_grad_input", "conv_grad_weight", "conv_grad_bias")


@pytest.mark.parametrize(
    "needed", list(itertools.product((False, True), repeat=3)), ids=lambda mask: "".join("-x"[n] for n in mask)
)
def test_only_needed_gradients_are_computed(needed: tuple[bool, ...]) -> None:
    t = normals(CONV)
    leaves = [each.requires_grad_(wanted) for each, wanted in zip((t.input, t.weight, t.bias), needed, strict=True)]
    with Recorded() as recorded:
        output = ops.conv(*leaves, *CONV.parameters)
    assert recorded.names == ["conv"]
    assert output.requires_grad == any(needed)
    if any(needed):
        with Recorded() as recorded:
            output.backward(t.grad_output)
        assert recorded.names == [name for name, wanted in zip(GRADIENTS, needed, strict=True) if wanted]
    expected = by_torch(CONV, t)
    for leaf, name, wanted in zip(leaves, GRADIENTS, needed, strict=True):
        assert (leaf.grad is not None) == wanted
        if wanted and name != "conv_grad_input":
            torch.testing.assert_close(leaf.grad, expected[name])


@pytest.mark.parametrize(
    ("name", "by_operand"),
    [
        ("conv_grad_input", ("conv", "conv_grad_weight", "conv_grad_bias")),
        ("conv_grad_weight", ("conv", "conv_grad_input")),
    ],
)
def test_derivatives_of_gradients_are_the_other_operators(name: str, by_operand: tuple[str, ...]) -> None:
    function, inputs = cases(CONV)[name]
    for wanted, operator in enumerate(by_operand):
        output = function(*(each if n == wanted else each.detach() for n, each in enumerate(inputs)))
        with Recorded() as recorded:
            output.sum().backward()
        assert recorded.names == [operator]


def test_only_the_asked_gradient_of_one_graph_is_computed() -> None:
    t = normals(CONV)
    leaves = [each.requires_grad_() for each in (t.input, t.weight, t.bias)]
    output = ops.conv(*leaves, *CONV.parameters)
    for leaf, name in zip(leaves, GRADIENTS, strict=True):
        with Recorded() as recorded:
            torch.autograd.grad(output, leaf, t.grad_output, retain_graph=True)
        assert recorded.names == [name]


def leaves_and_output() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    t = normals(CONV)
    x, w, b = (each.requires_grad_() for each in (t.input, t.weight, t.bias))
    return x, w, b, ops.conv(x, w, b, *CONV.parameters)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_graph_where_no_gradient_is_wanted(mode: Callable[[], Any]) -> None:
    x, w, b, output = leaves_and_output()
    saved: list[Tensor] = []
    with mode(), torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t), lambda t: t):
        plain = ops.conv(x, w, b, *CONV.parameters)
        gradient = ops.conv_grad_input(plain, w, None, CONV.input[2:], *CONV.parameters)
        assert torch.equal(plain, output)
        assert not plain.requires_grad
        assert not gradient.requires_grad
        assert plain.is_inference() == (mode is torch.inference_mode)
    assert not saved


def test_inference_tensors_can_be_used_without_a_graph_only() -> None:
    with torch.inference_mode():
        x = torch.randn(CONV.input)
    w = torch.randn(CONV.weight, requires_grad=True)
    with torch.no_grad():
        ops.conv(x, w, None, *CONV.parameters)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        ops.conv(x, w, None, *CONV.parameters)


def test_graph_keeps_input_and_weight_and_frees_them() -> None:
    """Nothing else is kept, no copy in another format either, and nothing after the backward pass."""

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    for last in (False, True):
        x, w = (layout(each, last).requires_grad_() for each in (torch.randn(CONV.input), torch.randn(CONV.weight)))
        kept: list[weakref.ref[Kept]] = []
        pointers = []

        def pack(tensor: Tensor, kept: list[Any] = kept, pointers: list[int] = pointers) -> Kept:
            one = Kept(tensor)
            kept.append(weakref.ref(one))
            pointers.append(tensor.data_ptr())
            return one

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one.tensor):
            output = ops.conv(x, w, torch.randn(6, requires_grad=True), *CONV.parameters)
        assert pointers == [x.data_ptr(), w.data_ptr()]
        assert all(one() is not None for one in kept)
        output.sum().backward()
        assert all(one() is None for one in kept)


def test_second_backward_needs_the_graph() -> None:
    x, *_, output = leaves_and_output()
    output.sum().backward(retain_graph=True)
    first = x.grad.clone()
    output.sum().backward()
    assert torch.equal(x.grad, 2 * first)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        output.sum().backward()


@pytest.mark.parametrize("changed", ["input", "weight"])
def test_changing_a_kept_tensor_is_an_error(changed: str) -> None:
    t = normals(CONV)
    x, w = (each.requires_grad_().clone() for each in (t.input, t.weight))
    output = ops.conv(x, w, None, *CONV.parameters)
    (x if changed == "input" else w).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_changing_the_output_is_fine() -> None:
    x, w, b, output = leaves_and_output()
    gradients = torch.autograd.grad(output.mul_(2).relu_().sum(), (x, w, b))
    torchs = torch.convolution(x, w, b, *CONV.parameters[:3], False, [0] * CONV.dims, CONV.groups)
    torch.testing.assert_close(gradients, torch.autograd.grad((2 * torchs).relu().sum(), (x, w, b)))


def test_penalty_on_a_gradient() -> None:
    """The usual double backward (a gradient penalty) is not zero in silence and equals torch's."""
    results = []
    for run in (lambda x, w: ops.conv(x, w, None, [1], [1]), lambda x, w: F.conv2d(x, w, None, 1, 1)):
        t = normals(problem((2, 3, 6, 6), (4, 3, 3, 3)))
        x, w = t.input.requires_grad_(), t.weight.requires_grad_()
        [slope] = torch.autograd.grad(run(x, w).square().sum(), x, create_graph=True)
        (slope.norm() - 1).square().backward()
        results.append((x.grad, w.grad))
    assert all(each.abs().max() > 1 for each in results[0])
    torch.testing.assert_close(results[0], results[1])


def test_constant_gradients_are_in_the_graph() -> None:
    """As torch's: a gradient that depends on nothing has no derivative, which is no error."""
    results = []
    for run in (lambda *t: ops.conv(*t, [1], [1]), lambda *t: F.conv2d(*t, 1, 1)):
        t = normals(problem((2, 3, 6, 6), (4, 3, 3, 3)))
        leaves = [each.requires_grad_() for each in (t.input, t.weight, t.bias)]
        gradients = torch.autograd.grad(run(*leaves).sum(), leaves, create_graph=True)
        again = torch.autograd.grad(gradients, leaves, [torch.ones_like(each) for each in gradients], allow_unused=True)
        assert again[2] is None
        results.append(again[:2])
    torch.testing.assert_close(results[0], results[1])


def test_frozen_operands_leave_a_graph_to_the_others() -> None:
    for run in (lambda *t: ops.conv(*t, [1], [1]), lambda *t: F.conv2d(*t, 1, 1)):
        t = normals(problem((2, 3, 6, 6), (4, 3, 3, 3)))
        weight, bias = t.weight.requires_grad_(), t.bias.requires_grad_()
        gradients = torch.autograd.grad(run(t.input, weight, bias).sum(), (weight, bias), create_graph=True)
        assert all(each.requires_grad for each in gradients)
