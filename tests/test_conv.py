"""Convolution on odd tensors: memory formats, strides, guard zones, used memory, NaN."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from convolutions import (
    INEXACT,
    KERNELS,
    OPS,
    Conv,
    Operands,
    by_cnnext,
    by_kernel,
    by_torch,
    integers,
    normals,
    problem,
    takes_bfloat16_only,
)
from kernels import DTYPES, bits, is_last, layout
from torch import Tensor

from cnnext import _C, backends

pytestmark = pytest.mark.usefixtures("one_thread")
ops = torch.ops.cnnext

USUAL = [
    problem((2, 5, 30), (6, 5, 3), padding=1),
    problem((2, 5, 9, 8), (6, 5, 3, 2), stride=2, padding=1),
    problem((2, 40, 13, 14), (36, 40, 3, 3), padding=1),
    problem((2, 6, 9, 8), (6, 1, 3, 3), padding=(1, 2), groups=6),
    problem((2, 5, 9, 8), (6, 5, 1, 1)),
    problem((2, 4, 6, 5, 7), (6, 2, 3, 2, 3), padding=1, dilation=(1, 2, 1), groups=2),
]
WITH_FORMAT = [conv for conv in USUAL if conv.dims > 1]
EITHER = [False, True]


def is_marked(tensor: Tensor) -> bool:
    """Whether the tensor is channels_last, and not contiguous as well for having one channel or one pixel."""
    return is_last(tensor) and not tensor.is_contiguous()


def same_integers(result: Tensor, expected: Tensor) -> bool:
    """Equality, for results that kernels with other arithmetic compute almost."""
    return torch.equal(result.double().round(), expected) and bool(((result.double() - expected).abs() < 0.01).all())


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(bits(a), bits(b))


@pytest.mark.parametrize("conv", WITH_FORMAT, ids=str)
@pytest.mark.parametrize("last", EITHER)
@pytest.mark.parametrize("weight_last", EITHER)
def test_output_format(conv: Conv, last: bool, weight_last: bool) -> None:
    t = normals(conv).to(torch.float32, last, weight_last)
    for op in ("conv", "conv_grad_input"):
        result = by_cnnext(op, conv, t)
        assert is_last(result) == (is_marked(t.input) or is_marked(t.weight))
        assert is_last(result) or result.is_contiguous()
    for wanted in EITHER:
        result = by_cnnext("conv_grad_weight", conv, t, wanted)
        assert result.stride() == layout(result, wanted).stride()
    if conv.dims == 2:
        torchs = F.conv2d(t.input, t.weight, t.bias, *conv.parameters)
        assert by_cnnext("conv", conv, t).stride() == torchs.stride()


GRADIENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda y: torch.ones_like(y),
    "channels_last": lambda y: layout(torch.ones_like(y), True),
    "contiguous": lambda y: torch.ones_like(y, memory_format=torch.contiguous_format),
    "expanded": lambda y: torch.ones((), dtype=y.dtype).expand_as(y),
    "row": lambda y: torch.ones(y.shape[-1], dtype=y.dtype).expand_as(y),
}


@pytest.mark.parametrize(
    "conv", [*USUAL, problem((1, 1, 1, 1), (1, 1, 1, 1)), problem((2, 4, 3, 3), (1, 4, 3, 3))], ids=str
)
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_weight_gradient_has_the_weights_strides(conv: Conv, gradient: str) -> None:
    for last, weight_last in itertools.product(EITHER, EITHER):
        t = integers(conv).to(torch.float32, last, weight_last)
        t.shift = None
        leaves = [each.requires_grad_() for each in (t.input, t.weight, t.bias)]
        output = by_cnnext("conv", conv, t)
        grad_output = GRADIENTS[gradient](output)
        gradients = torch.autograd.grad(output, leaves, grad_output)
        t.grad_output = grad_output
        expected = by_torch(conv, t.to(torch.float64))
        for result, op in zip(gradients, OPS[1:], strict=True):
            assert same_integers(result, expected[op])
        assert gradients[1].stride() == t.weight.stride()
        if conv in USUAL:
            assert is_last(gradients[0]) == (is_marked(t.input) or is_marked(t.weight))


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "every_second": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "channels_of_more": lambda t: torch.cat((t, t + 1), 1)[:, : t.shape[1]],
    "channels_of_more_last": lambda t: layout(torch.cat((t, t + 1), 1), True)[:, : t.shape[1]],
    "cropped": lambda t: F.pad(t, (1, 2), value=7)[..., 1:-2],
    "cropped_last": lambda t: layout(F.pad(t, (1, 2), value=7), True)[..., 1:-2],
    "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "transposed_axes": lambda t: t.transpose(1, -1).contiguous().transpose(1, -1),
    "expanded_batch": lambda t: t[:1].expand_as(t),
    "expanded_channels": lambda t: t[:, :1].expand_as(t),
    "expanded_axis": lambda t: t[..., :1].expand_as(t),
    "one_number": lambda t: t.flatten()[3].expand_as(t),
    "shifted": lambda t: torch.cat((torch.zeros(1, dtype=t.dtype), t.flatten()))[1:].view(t.shape),
}


@pytest.mark.parametrize("conv", USUAL, ids=str)
@pytest.mark.parametrize("view", VIEWS)
def test_strided(conv: Conv, view: str) -> None:
    t = integers(conv)
    for name in ("input", "weight", "grad_output"):
        setattr(t, name, VIEWS[view](getattr(t, name)).float())
    t.bias, t.shift = (torch.stack((each, each), 1)[:, 0].float() for each in (t.bias, t.shift))
    for name in ("input", "weight", "grad_output"):  # the conversion may have made it dense
        setattr(t, name, VIEWS[view](getattr(t, name)))
    expected = by_torch(conv, t.to(torch.float64))
    for op in OPS:
        result = by_cnnext(op, conv, t)
        assert same_integers(result, expected[op])
        assert result.is_contiguous() or is_last(result)


MARGIN = 67  # elements, odd: vectors are then not aligned


def guarded(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """A copy with the same strides inside a storage of NaN, and that storage."""
    storage = torch.full((tensor.numel() + 2 * MARGIN,), float("nan"), dtype=tensor.dtype)
    inside = storage.as_strided(tensor.size(), tensor.stride(), MARGIN)
    return inside.copy_(tensor), storage


@pytest.mark.parametrize("conv", [*USUAL, problem((1, 3, 1, 1), (2, 3, 1, 1)), problem((1, 1, 17), (1, 1, 4))], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_guard_zones(conv: Conv, dtype: torch.dtype) -> None:
    """Neither NaN around the tensors nor their alignment changes a bit of the results; nothing is written there."""
    for last, weight_last in itertools.product(EITHER, EITHER):
        t = normals(conv).to(dtype, last, weight_last)
        pairs = {name: guarded(tensor) for name, tensor in vars(t).items()}
        before = {name: storage.clone() for name, (_, storage) in pairs.items()}
        inside = Operands(**{name: tensor for name, (tensor, _) in pairs.items()})
        for op, kernel in KERNELS:
            expected, result = (by_kernel(op, kernel, conv, each, weight_last) for each in (t, inside))
            assert (result is None) == (expected is None)
            if expected is not None:
                assert not result.isnan().any()
                assert same_bits(result, expected), f"{op} by {kernel}"
        assert all(same_bits(storage, before[name]) for name, (_, storage) in pairs.items())


@pytest.mark.parametrize("op", OPS[:3])
def test_used_memory_changes_nothing(op: str) -> None:
    """Large results and workspaces lie in memory that earlier ones have left: here full of NaN."""
    conv = problem((2, 64, 50, 50), (256, 64, 3, 3), padding=1)
    t = normals(conv, torch.float32)
    expected = by_cnnext(op, conv, t)
    for _ in range(3):
        first = by_cnnext(op, conv, t)
        first.fill_(float("nan"))
        reused = backends.memory_stats()["reused"]
        del first
        second = by_cnnext(op, conv, t)
        assert backends.memory_stats()["reused"] > reused
        assert same_bits(second, expected)
    before = backends.memory_stats()
    kept = [by_cnnext(op, conv, t) for _ in range(3)]
    assert len({each.data_ptr() for each in kept}) == 3
    assert all(same_bits(each, expected) for each in kept)
    del kept, second
    assert backends.memory_stats()["in_use_bytes"] <= before["in_use_bytes"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["input", "weight", "grad_output", "zero"])
@pytest.mark.parametrize("last", EITHER)
def test_not_finite(value: float, name: str, last: bool) -> None:
    """One such number shows in just the results that use it, also where it is multiplied by zero."""
    for conv in (
        problem((2, 3, 9, 8), (6, 3, 3, 2)),
        problem((2, 20, 7, 8), (17, 20, 3, 3)),
        problem((2, 6, 9), (6, 1, 3), groups=6),
    ):
        t = integers(conv)
        if name == "zero":
            t.weight.zero_()
            t.grad_output.zero_()
        center = tuple(extent // 2 for extent in getattr(t, "input" if name == "zero" else name).shape)
        getattr(t, "input" if name == "zero" else name)[center] = value
        expected = by_torch(conv, t)
        given = t.to(torch.float32, last, last)
        for op, kernel in KERNELS:
            if kernel in INEXACT or (op == "conv_grad_input" and name == "weight"):
                continue
            result = by_kernel(op, kernel, conv, given)
            if result is not None:
                assert torch.equal(result.isnan(), expected[op].isnan()), f"{op} by {kernel}"
                assert torch.equal(result.double().nan_to_num(), expected[op].float().double().nan_to_num())


@pytest.mark.parametrize("kernel", [kernel for op, kernel in KERNELS if op == "conv" and kernel not in INEXACT])
def test_padding_is_no_value(kernel: str) -> None:
    """Where the padding is read beside a NaN of the input, only the windows that hold the NaN show it."""
    channels, groups = {"depthwise": (8, 8), "grouped": (16, 8), "group_tiles": (64, 4)}.get(
        kernel.removesuffix("_bf16"), (2, 1)
    )
    weight = (2 * channels, channels // groups, 3, 3)
    conv = problem((1, channels, 5, 5), weight, padding=2, dilation=(1, 2), groups=groups)
    if kernel.startswith("thin"):
        conv = problem((1, 2, 5, 14), (16, 2, 3, 3), padding=2, dilation=(2, 1))
    if kernel == "rows":
        conv = problem((1, 2, 5, 14), (4, 2, 3, 3), padding=2, dilation=(2, 1))
    if kernel == "depthwise_rows":
        conv = problem((1, 3, 5, 14), (3, 1, 3, 3), padding=2, groups=3)
    if kernel == "col2im":
        conv = problem((1, 32, 5, 14), (2, 32, 3, 3), padding=2, dilation=(2, 1))
    if kernel == "rows_amx":
        conv = problem((1, 96, 9, 14), (96, 96, 3, 3), padding=2, dilation=(2, 1))
    t = integers(conv)
    t.input[0, 1, 0, 4] = float("nan")
    dtype = torch.bfloat16 if takes_bfloat16_only(kernel) else torch.float32
    last = kernel not in ("rows", "depthwise_rows")
    result = by_kernel("conv", kernel, conv, t.to(dtype, last, last))
    assert torch.equal(result.isnan(), by_torch(conv, t)["conv"].isnan())
    assert 0 < result.isnan().sum() < result.numel() / 2


@pytest.mark.parametrize(
    ("conv", "taken"),
    [
        (problem((1, 2, 9, 40), (3, 2, 3, 3), padding=1), True),
        (problem((1, 2, 9, 40), (3, 2, 3, 3), padding=(10**9, 1), dilation=(10**9, 1)), False),
        (problem((1, 2, 9, 40), (3, 2, 3, 3), padding=(1, 10**9), dilation=(1, 10**9)), False),
        (problem((1, 2, 16000), (3, 2, 5)), True),
        (problem((1, 2, 10**6), (3, 2, 5)), False),
    ],
    ids=str,
)
def test_rows_are_copied_where_they_fit_the_cache(conv: Conv, taken: bool) -> None:
    parameters = [list(values) for values in conv.parameters[:3]]
    for op in ("conv", "conv_grad_input"):
        choice = _C.explain_conv(
            op, list(conv.input), list(conv.weight), *parameters, 1, torch.float32, channels_last=False
        )
        assert (choice["kernel"] == "rows") == taken


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_transposed(dims: int, stride: int) -> None:
    """conv_grad_input with a bias is transposed convolution, for every output_padding below the stride."""
    x, w, bias = integers(problem((2, 4, *(5, 4, 3)[:dims]), (4, 3, *(3, 2, 2)[:dims]))), None, None
    x, w = x.input, torch.randint(-3, 4, (4, 3, *(3, 2, 2)[:dims])).double()
    bias = torch.arange(6.0).double()
    transposed = getattr(F, f"conv_transpose{dims}d")
    for extra, groups in itertools.product(range(stride), (1, 2)):
        b = bias[: 3 * groups]
        expected = transposed(x, w, b, stride, 1, extra, groups, 1)
        for last in EITHER:
            given = (layout(x.float(), last), w.float(), b.float())
            result = ops.conv_grad_input(*given, expected.shape[2:], [stride], [1], [1], groups)
            assert torch.equal(result.double(), expected)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_one_number_stands_for_all_axes(dims: int) -> None:
    conv = problem((2, 4, *[9] * dims), (6, 2, *[2] * dims), 2, 1, 3, 2)
    t = integers(conv)
    expected = ops.conv(t.input, t.weight, None, *conv.parameters)
    assert torch.equal(ops.conv(t.input, t.weight, None, [2], [1], [3], 2), expected)
    t = integers(problem(conv.input, (6, 4, *[2] * dims)))
    assert torch.equal(
        ops.conv(t.input, t.weight), ops.conv(t.input, t.weight, None, [1] * dims, [0] * dims, [1] * dims, 1)
    )
