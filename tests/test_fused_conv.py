"""Convolution with its epilogue: every kernel gives the bits of convolution, addition and activation one by one."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from convolutions import KERNELS, Conv, by_cnnext, convolutions, examples, normals, problem, unwritten_is_nan
from hypothesis import given
from hypothesis import strategies as st
from kernels import DTYPES, bits, forced, layout
from test_conv_exact import CASES
from torch import Tensor, library
from torch.utils.flop_counter import FlopCounterMode

import cnnext
from cnnext import functional, nn

ops = torch.ops.cnnext
SLOPE = 0.3
ACTIVATIONS = {
    "none": lambda y: y,
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": lambda y: F.leaky_relu(y, SLOPE),
}
CONV_KERNELS = [kernel for op, kernel in KERNELS if op == "conv"]
# Beside the cases of exact tests: many groups in place and in scratch memory, tiles of Winograd's algorithm that are
# cut at the image's end and streams past the caches.
WIDE = [
    problem((2, 48, 30, 31), (48, 1, 3, 3), padding=1, groups=48),
    problem((1, 50, 21, 20), (50, 1, 5, 5), padding=2, stride=2, groups=50),
    problem((1, 64, 15, 17), (40, 64, 3, 3), padding=1),
    problem((1, 64, 13, 18), (72, 64, 1, 7), padding=(0, 3)),
    problem((1, 128, 20, 14), (64, 32, 3, 3), stride=2, padding=1, groups=4),
    problem((5, 32, 330, 320), (32, 1, 3, 3), padding=1, groups=32),
]


def fused(conv: Conv, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, name: str) -> Tensor:
    return ops.fused_conv(x, weight, bias, residual, *conv.parameters, name, SLOPE)


def in_steps(y: Tensor, residual: Tensor | None, activation: str) -> Tensor:
    return ACTIVATIONS[activation](y if residual is None else y + residual)


def check(conv: Conv, dtype: torch.dtype, last: bool, adds: bool, activation: str) -> None:
    t = normals(conv).to(dtype, last, last)
    residual = t.grad_output if adds else None
    for kernel in CONV_KERNELS:
        if kernel == "reference" and conv.products > 300_000:
            continue
        y = forced("conv", kernel, lambda: by_cnnext("conv", conv, t))
        if y is None:
            continue
        with unwritten_is_nan(), cnnext.backends.force_kernel("conv", kernel):
            found = fused(conv, t.input, t.weight, t.bias, residual, activation)
        where = f"{kernel}: {conv}, {dtype}, last={last}, adds={adds}, {activation}"
        assert found.stride() == y.stride(), where
        if dtype in (torch.float32, torch.float64) and kernel != "reference":
            assert torch.equal(found, in_steps(y, residual, activation)), where
        else:  # rounded once instead of after each step
            expected = in_steps(y.double(), None if residual is None else residual.double(), activation)
            most = torch.finfo(dtype).eps * (y.double().abs() + expected.abs()) + torch.finfo(dtype).tiny
            assert ((found.double() - expected).abs() <= most).all(), where


@pytest.mark.parametrize("conv", [*CASES, *WIDE], ids=str)
def test_every_kernel_gives_the_bits_of_single_steps(conv: Conv, no_fallback: None, one_thread: None) -> None:
    variants = itertools.cycle(itertools.product(ACTIVATIONS, (True, False)))
    next(variants)
    for dtype, last in itertools.product(DTYPES if conv.products < 10**7 else DTYPES[:1], (False, True)):
        for _ in range(2):
            activation, adds = next(variants)
            check(conv, dtype, last, adds, activation)


@given(convolutions(), st.sampled_from(DTYPES), st.booleans(), st.booleans(), st.sampled_from(sorted(ACTIVATIONS)))
@examples(40)
def test_any_convolution(
    one_thread: None, conv: Conv, dtype: torch.dtype, last: bool, adds: bool, activation: str
) -> None:
    check(conv, dtype, last, adds, activation)


CONV = problem((2, 16, 9, 8), (32, 16, 3, 3), padding=1)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_numbers_that_are_none(activation: str, no_fallback: None) -> None:
    """NaN, infinities and zeros of both signs pass as they pass torch's activations."""
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e38, -1e38, 7.0])
    x, weight = torch.zeros(1, 16, 6, 8), torch.zeros(24, 16, 1, 1)
    residual = special.expand(1, 24, 6, 8).contiguous()
    for last in (False, True):
        found = ops.fused_conv(
            x, layout(weight, last), None, layout(residual, last), [1], [0], [1], 1, activation, SLOPE
        )
        torch.testing.assert_close(found, ACTIVATIONS[activation](residual), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("slope", [-0.5, -0.0, 0.0, 1.5, float("inf"), float("nan")])
def test_odd_slopes(slope: float, no_fallback: None) -> None:
    """Zeros have the sign that torch gives them."""
    residual = torch.tensor([0.0, -0.0, 2.0, -2.0, float("inf"), -float("inf")]).expand(1, 24, 6, 6).contiguous()
    x, weight = torch.zeros(1, 16, 6, 6), torch.zeros(24, 16, 1, 1)
    for last in (False, True):
        operands = (layout(x, last), layout(weight, last), None, layout(residual, last))
        found = ops.fused_conv(*operands, [1], [0], [1], 1, "leaky_relu", slope)
        expected = F.leaky_relu(0 + residual, slope)
        assert torch.equal(found.isnan(), expected.isnan())
        kept = ~expected.isnan()
        assert torch.equal(bits(found[kept]), bits(expected[kept]))


def test_a_slope_that_is_no_float() -> None:
    t = normals(CONV).to(torch.float32)
    with pytest.raises(RuntimeError, match="cannot be converted to type float without overflow"):
        ops.fused_conv(t.input, t.weight, t.bias, None, *CONV.parameters, "leaky_relu", 1e300)


@pytest.mark.parametrize("threads_now", [1, 2, 3])
def test_threads_and_batch(threads_now: int, threads: None) -> None:
    t = normals(CONV).to(torch.float32, True, True)
    torch.set_num_threads(1)
    expected = fused(CONV, t.input, t.weight, t.bias, t.grad_output, "relu")
    torch.set_num_threads(threads_now)
    found = fused(CONV, t.input, t.weight, t.bias, t.grad_output, "relu")
    assert torch.equal(bits(found), bits(expected))
    alone = fused(CONV, t.input[1:], t.weight, t.bias, t.grad_output[1:], "relu")
    assert torch.equal(bits(alone), bits(expected[1:]))


def test_operands_are_left_alone_and_may_be_laid_out_anyhow(no_fallback: None) -> None:
    t = normals(CONV).to(torch.float32)
    wide = torch.randn(2, 32, 9, 16)
    residuals = [
        t.grad_output,
        layout(t.grad_output, True),
        wide[..., ::2],
        torch.randn(1, 32, 1, 1).expand(2, -1, 9, 8),
    ]
    y = ops.conv(t.input, t.weight, t.bias, *CONV.parameters)
    for residual in residuals:
        before = residual.clone()
        found = fused(CONV, t.input, t.weight, t.bias, residual, "relu")
        assert torch.equal(found, F.relu(y + residual))
        assert torch.equal(residual, before)
        assert found.is_contiguous()
    same = problem((2, 16, 9, 8), (16, 16, 3, 3), padding=1)
    x = t.input.clone()
    y = ops.conv(x, t.weight[:16], None, *same.parameters)
    assert torch.equal(fused(same, x, t.weight[:16], None, x, "relu"), F.relu(y + x))  # the input as its residual
    assert torch.equal(x, t.input)


@pytest.mark.parametrize("residual", [torch.randn(32, 1, 1), torch.randn(1, 32, 9, 1), torch.randn(3, 2, 32, 9, 8)])
def test_a_residual_of_another_size_is_added_as_torch_adds(residual: Tensor) -> None:
    t = normals(CONV).to(torch.float32)
    found = fused(CONV, t.input, t.weight, t.bias, residual, "relu")
    assert torch.equal(found, F.relu(ops.conv(t.input, t.weight, t.bias, *CONV.parameters) + residual))


def test_a_residual_of_another_type_decides_on_the_result() -> None:
    t = normals(CONV).to(torch.bfloat16)
    found = fused(CONV, t.input, t.weight, t.bias, t.grad_output.double(), "relu")
    assert found.dtype == torch.float64


def test_errors() -> None:
    t = normals(CONV).to(torch.float32)
    with pytest.raises(ValueError, match="expected the activation none, relu, relu6 or leaky_relu, but got gelu"):
        fused(CONV, t.input, t.weight, t.bias, None, "gelu")
    with pytest.raises(ValueError, match="but got gelu"):
        functional.fused_conv2d(t.input, t.weight, activation="gelu")
    with pytest.raises(ValueError, match="but got 'gelu'"):
        functional.fused_conv2d(t.input[0], t.weight, activation="gelu")
    with pytest.raises(RuntimeError, match="must match the size of tensor"):
        fused(CONV, t.input, t.weight, t.bias, torch.ones(2, 32, 9, 7), "relu")
    with pytest.raises(RuntimeError, match="to have 16 channels, but got 15 channels instead"):
        functional.fused_conv2d(t.input[:, :15], t.weight, activation="relu")


@pytest.mark.parametrize("name", [None, "gelu", torch.relu])
def test_activations_that_are_none_of_ours(name: object) -> None:
    for call in (
        lambda: nn.FusedConv2d(1, 1, 1, activation=name),
        lambda: functional.fused_conv2d(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1), activation=name),
    ):
        with pytest.raises(ValueError, match="expected the activation none, relu, relu6 or leaky_relu, but got"):
            call()


@pytest.mark.parametrize("args", [([1.0], torch.ones(1, 1, 1, 1)), (torch.ones(1, 1, 2, 2), None)])
def test_operands_that_are_no_tensors(args: tuple[object, object]) -> None:
    with pytest.raises(TypeError, match="received an invalid combination of arguments"):
        functional.fused_conv2d(*args)


@pytest.mark.parametrize("padding", [1, (1, 0), "same", "valid"])
@pytest.mark.parametrize("kernel", [3, 2])
def test_functional(padding: int | str, kernel: int, no_fallback: None) -> None:
    x, weight, bias = torch.randn(2, 4, 9, 8), torch.randn(6, 4, kernel, kernel), torch.randn(6)
    y = F.conv2d(x, weight, bias, padding=padding)
    residual = torch.randn_like(y)
    found = functional.fused_conv2d(x, weight, bias, padding=padding, residual=residual, activation="relu")
    torch.testing.assert_close(found, F.relu(y + residual))
    found = functional.fused_conv2d(x[0], weight, bias, padding=padding, residual=residual[0], activation="relu6")
    torch.testing.assert_close(found, F.relu6(y + residual)[0])
    found = functional.fused_conv2d(x, weight, bias, padding=padding, activation="leaky_relu", negative_slope=1)
    torch.testing.assert_close(found, y)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_layers(dims: int) -> None:
    fused_layer = getattr(nn, f"FusedConv{dims}d")(3, 8, 3, padding=1, activation="leaky_relu", negative_slope=SLOPE)
    plain = getattr(torch.nn, f"Conv{dims}d")(3, 8, 3, padding=1)
    plain.load_state_dict(fused_layer.state_dict())
    x, residual = torch.randn(2, 3, *[7] * dims), torch.randn(2, 8, *[7] * dims)
    with torch.no_grad():
        torch.testing.assert_close(fused_layer(x), F.leaky_relu(plain(x), SLOPE))
        torch.testing.assert_close(fused_layer(x, residual), F.leaky_relu(plain(x) + residual, SLOPE))
    assert repr(fused_layer).endswith("activation='leaky_relu', negative_slope=0.3)")
    circular = nn.FusedConv2d(3, 8, 3, padding=1, padding_mode="circular", activation="relu")
    with torch.no_grad():
        assert circular(torch.randn(1, 3, 5, 5)).min() == 0


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients(activation: str) -> None:
    conv = problem((1, 2, 4, 5), (3, 2, 3, 3), padding=1)
    t = normals(conv)
    operands = [each.requires_grad_() for each in (t.input, t.weight, t.bias, t.grad_output)]
    run = lambda x, w, b, r: fused(conv, x, w, b, r, activation)  # noqa: E731
    assert torch.autograd.gradcheck(run, operands)
    assert torch.autograd.gradgradcheck(run, operands)


def test_only_the_residual_wants_a_gradient() -> None:
    t = normals(CONV).to(torch.float32)
    residual = t.grad_output.requires_grad_()
    fused(CONV, t.input, t.weight, t.bias, residual, "relu").sum().backward()
    assert residual.grad is not None and 0 < residual.grad.mean() < 1


def test_vmap_and_forward_mode() -> None:
    t = normals(CONV).to(torch.float32)

    def run(x: Tensor) -> Tensor:
        return fused(CONV, x, t.weight, t.bias, t.grad_output, "relu")

    stack = torch.stack([t.input, -t.input])
    torch.testing.assert_close(torch.vmap(run)(stack), torch.stack([run(each) for each in stack]))
    _, tangent = torch.func.jvp(run, (t.input,), (t.input,))
    assert tangent.abs().sum() > 0


def test_autocast() -> None:
    t = normals(CONV).to(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert fused(CONV, t.input, t.weight, t.bias, None, "relu").dtype == torch.bfloat16
        steps = ops.conv(t.input, t.weight, t.bias, *CONV.parameters) + t.grad_output
        assert fused(CONV, t.input, t.weight, t.bias, t.grad_output, "none").dtype == steps.dtype == torch.float32


@pytest.mark.parametrize("last", [False, True])
def test_opcheck(last: bool) -> None:
    t = normals(CONV).to(torch.float32, last, last)
    for grads in (False, True):
        x = t.input.clone().requires_grad_(grads)
        library.opcheck(ops.fused_conv.default, (x, t.weight, t.bias, t.grad_output, [1], [1], [1], 1, "relu", 0.0))


def test_empty_batch() -> None:
    found = functional.fused_conv2d(torch.ones(0, 4, 5, 5), torch.ones(6, 4, 3, 3), activation="relu")
    assert found.shape == (0, 6, 3, 3)


def test_kept_weights(no_fallback: None) -> None:
    t = normals(CONV).to(torch.float32, True, True)
    expected = fused(CONV, t.input, t.weight, t.bias, t.grad_output, "relu")
    with cnnext.backends.packed_weights(True):
        for _ in range(3):
            assert torch.equal(fused(CONV, t.input, t.weight, t.bias, t.grad_output, "relu"), expected)
    cnnext.empty_cache()


def test_explain_and_flops() -> None:
    layer = nn.FusedConv2d(16, 32, 3, padding=1, activation="relu")
    x, residual = torch.randn(2, 16, 9, 8), torch.randn(2, 32, 9, 8)
    with torch.no_grad():
        (found,) = cnnext.explain(layer, x, residual).layers
        (plain,) = cnnext.explain(nn.Conv2d(16, 32, 3, padding=1), x).layers
        with FlopCounterMode(display=False) as counter:
            layer(x, residual)
    assert found.op == "conv" and found.shape.endswith("padding 1 + residual, relu")
    assert found.directions[0].kernel == plain.directions[0].kernel
    assert found.directions[0].bytes == plain.directions[0].bytes + residual.nbytes
    assert counter.get_total_flops() == found.directions[0].flops == 2 * residual.numel() * 16 * 9
