"""Batch normalisation beside torch's: layers, accuracy, derivatives, threads, and what goes to torch."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kernels import DTYPES, bits, layout
from test_batch_norm_exact import ACTIVATIONS, SLOPE
from torch import Tensor

import cnnext
from cnnext import functional, nn

ops = torch.ops.cnnext

LAYERS = {1: (4, 6, 11), 2: (4, 6, 9, 8), 3: (2, 6, 5, 4, 3)}
OPTIONS = [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}]
LARGE = (3, 64, 152, 150)  # 17 MB: results pass the caches


@pytest.mark.usefixtures("no_fallback")
@pytest.mark.parametrize(
    "options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}], ids=str
)
@pytest.mark.parametrize("d", LAYERS)
def test_layers_train_as_torchs(d: int, options: dict[str, Any]) -> None:
    theirs = getattr(torch.nn, f"BatchNorm{d}d")(6, **options).double()
    ours = cnnext.convert(copy.deepcopy(theirs))
    assert type(ours) is getattr(nn, f"BatchNorm{d}d") and repr(ours) == repr(theirs)
    for step in range(6):
        x = (torch.randn(LAYERS[d]).double() * 3 + 2).requires_grad_()
        for layer in (ours, theirs):
            layer.train(step not in (2, 5))
        outputs = [layer(x) for layer in (ours, theirs)]
        mix = torch.randn_like(outputs[0])
        found, expected = (
            torch.autograd.grad(y, [x, *layer.parameters()], mix)
            for y, layer in zip(outputs, (ours, theirs), strict=True)
        )
        torch.testing.assert_close(outputs[0], outputs[1])
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@pytest.mark.usefixtures("no_fallback")
def test_rows_without_pixels() -> None:
    theirs, x = torch.nn.BatchNorm1d(70), torch.randn(33, 70)
    ours = cnnext.convert(copy.deepcopy(theirs))
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.running_var, theirs.running_var)


def results(x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor, batch_norm: Any) -> list[Tensor]:
    leaves = [each.detach().requires_grad_() for each in (x, weight, bias)]
    running = [torch.zeros_like(weight), torch.ones_like(weight)]
    y = batch_norm(leaves[0], *running, *leaves[1:], True, 1.0, 1e-5)
    return [each.detach() for each in (y, *torch.autograd.grad(y, leaves, grad), *running)]


@pytest.mark.usefixtures("no_fallback")
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("mean", [0, 3, 1000])
@pytest.mark.parametrize("shape", [(8, 20, 31, 30), (2, 130, 7, 7), (300, 64), LARGE], ids=str)
def test_errors_are_torchs_at_most(shape: tuple[int, ...], mean: float, last: bool) -> None:
    generator = torch.Generator().manual_seed(len(shape))
    x = layout(torch.randn(shape, generator=generator) + mean, last)
    grad = layout(torch.randn(shape, generator=generator) + 0.5, last)
    weight, bias = torch.rand(2, shape[1], generator=generator)
    exact = results(*(each.double() for each in (x, weight, bias, grad)), F.batch_norm)
    ours, torchs = (results(x, weight, bias, grad, each) for each in (functional.batch_norm, F.batch_norm))
    for name, a, b, e in zip(("y", "x", "weight", "bias", "mean", "var"), ours, torchs, exact, strict=True):
        error, theirs = ((each - e).abs().max().item() for each in (a.double(), b.double()))
        # An ulp or two of the largest number, or of deviations of one, are nobody's fault.
        assert error <= 1.25 * theirs + 4e-7 * max(1, e.abs().max().item()), (name, error, theirs)


@pytest.mark.usefixtures("no_fallback")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("last", [False, True])
def test_16_bits(dtype: torch.dtype, last: bool) -> None:
    """Numbers of a channel in float32, as under autocast, or of the elements' type."""
    x, grad = (layout(torch.randn(3, 40, 9, 10).to(dtype), last) for _ in range(2))
    for of_channels in (torch.float32, dtype):
        weight, bias = torch.rand(2, 40).to(of_channels)
        ours, torchs = (results(x, weight, bias, grad, each) for each in (functional.batch_norm, F.batch_norm))
        exact = results(*(each.double() for each in (x, weight, bias, grad)), F.batch_norm)
        assert [each.dtype for each in ours] == [each.dtype for each in torchs]
        for a, b, e in zip(ours, torchs, exact, strict=True):
            error, theirs = ((each.double() - e).abs().max().item() for each in (a, b))
            assert error <= theirs + 2 * torch.finfo(a.dtype).eps * max(1, e.abs().max().item())


@pytest.mark.usefixtures("no_fallback")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(4, 6, 9, 8), (2, 17, 5), LARGE], ids=str)
def test_fused_are_the_bits_of_single_steps(shape: tuple[int, ...], training: bool) -> None:
    channels = shape[1]
    weight, bias, mean, variance = torch.rand(4, channels) + 0.1
    dtypes = (torch.float32,) if shape == LARGE else (torch.float32, torch.float64)
    for dtype, last, activation, adds in itertools.product(dtypes, (False, True), ACTIVATIONS, (False, True)):
        x, residual, grad = (layout(torch.randn(shape).to(dtype), last) for _ in range(3))
        numbers = [each.to(dtype) for each in (mean, variance, weight, bias)]
        leaves = [each.requires_grad_() for each in (x, *numbers[2:], residual)][: 4 if adds else 3]
        moments = [[each.clone() for each in numbers[:2]] for _ in range(2)]
        rest = (*numbers[2:], training, 0.1, 1e-5)
        y = functional.fused_batch_norm(x, *moments[0], *rest, residual if adds else None, activation, SLOPE)
        normal = functional.batch_norm(x, *moments[1], *rest)
        steps = ACTIVATIONS[activation](normal + residual if adds else normal)
        assert torch.equal(y, steps)
        assert all(map(torch.equal, *moments))
        found, expected = (torch.autograd.grad(each, leaves, grad) for each in (y, steps))
        where = f"{dtype}, last={last}, adds={adds}, {activation}"
        torch.testing.assert_close(
            found, expected, rtol=1e-4, atol=1e-4, msg=lambda text, where=where: f"{where}: {text}"
        )
        assert found[0].stride() == x.stride(), where


@pytest.mark.usefixtures("no_fallback")
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("activation", "adds"), [("none", False), ("none", True), ("leaky_relu", True), ("relu", False)]
)
def test_derivatives(activation: str, adds: bool, training: bool, last: bool) -> None:
    torch.manual_seed(3)
    x = layout(torch.randn(3, 2, 3, 2).double(), last).requires_grad_()
    weight, bias = (torch.rand(2).double().requires_grad_() for _ in range(2))
    residual = torch.randn(3, 2, 3, 2).double().requires_grad_()

    def run(*leaves: Tensor) -> Tensor:
        mean, variance = torch.zeros(2).double(), torch.full((2,), 0.7).double()
        added = leaves[3] if adds else None
        return functional.fused_batch_norm(
            leaves[0], mean, variance, *leaves[1:3], training, 0.1, 1e-5, added, activation, SLOPE
        )

    leaves = (x, weight, bias, residual)[: 4 if adds else 3]
    torch.autograd.gradcheck(run, leaves, fast_mode=True)
    torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


@pytest.mark.usefixtures("no_fallback")
def test_only_what_is_asked_for() -> None:
    x, residual = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
    layer = nn.FusedBatchNorm2d(3, activation="relu")
    for needing in itertools.product((False, True), repeat=3):
        given = x.clone().requires_grad_(needing[0]), residual.clone().requires_grad_(needing[1])
        layer.requires_grad_(needing[2])
        layer.zero_grad()
        y = layer(*given)
        assert y.requires_grad == any(needing)
        if any(needing):
            y.sum().backward()
        assert tuple(each.grad is not None for each in (*given, layer.weight)) == needing


@pytest.mark.usefixtures("threads", "no_fallback")
@pytest.mark.parametrize("shape", [(5, 70, 12, 13), (2, 600, 3, 3), (2, 16, 160, 161)], ids=str)
def test_same_bits_for_any_number_of_threads(shape: tuple[int, ...]) -> None:
    for dtype, last in itertools.product(DTYPES, (False, True)):
        x, grad = (layout(torch.randn(shape).to(dtype), last) for _ in range(2))
        weight, bias = torch.rand(2, shape[1]).to(dtype)
        expected = None
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found = [bits(each) for each in results(x, weight, bias, grad, functional.batch_norm)]
            expected = expected or found
            assert all(map(torch.equal, found, expected)), (dtype, last, threads)


@pytest.mark.usefixtures("no_fallback")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_channel(value: float) -> None:
    for last in (False, True):
        x = layout(torch.randn(2, 5, 6, 7), last)
        x[1, 3, 2, 2] = value
        ours, torchs = (each(x, None, None, training=True) for each in (functional.batch_norm, F.batch_norm))
        assert torch.equal(ours.isnan(), torchs.isnan())
        assert ours[:, 3].isnan().all() and ours[:, [0, 1, 2, 4]].isfinite().all()


@pytest.mark.usefixtures("no_fallback")
def test_memory_of_any_order() -> None:
    x, grad = torch.randn(7, 9, 3, 6).permute(1, 2, 3, 0), torch.randn(9, 3, 6, 14)[..., ::2]
    weight, bias = torch.rand(2, 6)[:, ::2]
    ours, torchs = (results(x, weight, bias, grad, each) for each in (functional.batch_norm, F.batch_norm))
    torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-5)
    empty = functional.batch_norm(x[:0], torch.zeros(3), torch.ones(3))
    assert empty.shape == (0, 3, 6, 7)


@pytest.mark.parametrize(
    "call",
    [
        lambda lib: lib.batch_norm(torch.randn(1, 3), None, None, training=True),  # one element for a channel
        lambda lib: lib.batch_norm(torch.randn(2, 3), torch.zeros(4), torch.ones(4)),
        lambda lib: lib.batch_norm(torch.randn(2, 3), torch.zeros(3), torch.ones(3), torch.ones(2)),
        lambda lib: lib.batch_norm(torch.randn(2, 3), None, None),
        lambda lib: lib.batch_norm(torch.randn(3), torch.zeros(3), torch.ones(3)),
        lambda lib: lib.batch_norm(torch.randn(2, 3), torch.zeros(3).double(), torch.ones(3).double()),
        lambda lib: lib.batch_norm(torch.randint(5, (2, 3)), torch.zeros(3), torch.ones(3)),
    ],
)
def test_errors_are_torchs(call: Any) -> None:
    raised = []
    for library in (F, functional):
        with pytest.raises((ValueError, RuntimeError, TypeError, IndexError)) as error:
            call(library)
        raised.append((type(error.value), str(error.value).partition("\n")[0]))
    assert raised[0] == raised[1]


def test_errors_of_our_own() -> None:
    x = torch.randn(2, 3, 4, 4)
    with pytest.raises(ValueError, match="none, relu, relu6 or leaky_relu, but got 'tanh'"):
        functional.fused_batch_norm(x, None, None, training=True, activation="tanh")
    with pytest.raises(ValueError, match="expected 4D input"):
        nn.BatchNorm2d(3)(x[0])
    for args, words in [
        ((x, torch.ones(2), None, None, None), "weight to have one element for each of 3 channels"),
        ((x, None, None, torch.ones(3), None), "both mean and variance"),
        ((x, None, None, None, None, 1e-5, x[:1]), "residual of the input's size"),
        ((x[:0], None, None, None, None), "expected elements to normalise by"),
        ((x[0, 0, 0], None, None, None, None), "2 to 5 dimensions"),
    ]:
        with pytest.raises(RuntimeError, match=words):
            ops.batch_norm(*args)


def test_what_is_left_to_torch_is_recorded() -> None:
    x = torch.randn(2, 3, 4, 4)
    cnnext.reset_fallbacks()
    with cnnext.backends.flags(enabled=False):
        torch.testing.assert_close(
            functional.fused_batch_norm(x, None, None, training=True, residual=x, activation="relu6"),
            F.relu6(F.batch_norm(x, None, None, training=True) + x),
        )
    assert cnnext.fallbacks() == {"batch_norm: cnnext is disabled": 1}


def test_torch_func() -> None:
    x, weight, bias = torch.randn(2, 3, 4, 4).double(), *torch.rand(2, 3).double()

    def loss(library: Any, x: Tensor) -> Tensor:
        return library.batch_norm(x, None, None, weight, bias, True).square().mul(x).sum()

    for transform in (torch.func.grad, torch.func.jacrev):
        torch.testing.assert_close(transform(lambda x: loss(functional, x))(x), transform(lambda x: loss(F, x))(x))
    mean, variance = torch.rand(2, 3).double() + 0.5
    many = torch.randn(5, 2, 3, 4, 4).double()
    mapped = [torch.vmap(lambda x, lib=lib: lib.batch_norm(x, mean, variance))(many) for lib in (functional, F)]
    torch.testing.assert_close(*mapped)
    tangents = torch.func.jvp(lambda x: loss(functional, x), (x,), (x,))
    torch.testing.assert_close(tangents, torch.func.jvp(lambda x: loss(F, x), (x,), (x,)))
    y = functional.fused_batch_norm(x.requires_grad_(), None, None, weight, bias, True, activation="relu")
    grads = torch.randn(3, *y.shape).double()
    batched = torch.autograd.grad(y, x, grads, is_grads_batched=True, retain_graph=True)[0]
    torch.testing.assert_close(
        batched, torch.stack([torch.autograd.grad(y, x, g, retain_graph=True)[0] for g in grads])
    )


def test_compiled_training() -> None:
    layer = nn.FusedBatchNorm2d(6, activation="relu")
    twin, x, residual = copy.deepcopy(layer), torch.randn(2, 6, 5, 4), torch.randn(2, 6, 5, 4)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        found, expected = (each(x, residual).square().sum() for each in (compiled, twin))
        torch.testing.assert_close(found, expected)
        found.backward()
        expected.backward()
    torch.testing.assert_close(layer.weight.grad, twin.weight.grad)
    torch.testing.assert_close(layer.state_dict(), twin.state_dict())
