"""Pooling beside its arithmetic: formats, derivatives, torch's other machinery, threads, accuracy, offsets, errors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accuracy import capped
from kernels import DTYPES, forced, layout
from pooling import TABLE, Pool, adaptive, avg_pool, max_pool
from torch import Tensor, library
from torch.autograd import gradcheck, gradgradcheck

from cnnext import backends

ops = torch.ops.cnnext
USUAL = [
    max_pool((2, 3, 11), 3, 2, 1),
    max_pool((2, 3, 9, 8), 3, 2, 1),
    max_pool((2, 1, 9, 8), 3, 2, 1),
    max_pool((2, 3, 9, 8), (2, 3), 1, 0, (2, 1), True),
    max_pool((1, 2, 6, 5, 7), 2, 2, 1, 1, True),
    avg_pool((2, 3, 11), 3, 2, 1, True),
    avg_pool((2, 3, 9, 8), 3, 2, 1, True, False),
    avg_pool((2, 3, 9, 8), (3, 2), 1, 1, False, True, -5),
    avg_pool((1, 2, 6, 5, 7), 2, 2, 1),
    adaptive("max_pool", (2, 3, 11), 4),
    adaptive("max_pool", (2, 3, 9, 8), (1, 3)),
    adaptive("max_pool", (1, 2, 6, 5, 7), 2),
    adaptive("avg_pool", (2, 3, 11), 4),
    adaptive("avg_pool", (2, 3, 9, 8), 1),
    adaptive("avg_pool", (1, 2, 6, 5, 7), (2, 5, 3)),
]
usual = pytest.mark.parametrize("pool", USUAL, ids=str)
LARGE = [
    max_pool((3, 70, 37, 41), 3, 2, 1),
    avg_pool((3, 70, 37, 41), 3, 1, 1, False, False),
    max_pool((2, 5, 130, 150), 13, 1, 6),
    avg_pool((1, 3, 9, 60, 61), 3, 2, 1),
    adaptive("max_pool", (40, 260, 7, 7), 1),
    adaptive("avg_pool", (1, 2500, 7, 7), 1),
    adaptive("avg_pool", (2, 33, 31, 45), (6, 7)),
]


def distinct(size: tuple[int, ...]) -> Tensor:
    """Numbers far enough from each other that a finite difference changes no maximum."""
    count = torch.Size(size).numel()
    return (torch.randperm(count).double() / 7 - count / 14).view(size)


@pytest.mark.usefixtures("one_thread", "no_fallback")
@usual
@pytest.mark.parametrize("last", [False, True])
def test_formats(pool: Pool, last: bool) -> None:
    """Outputs, indices and gradients come in the input's format, whatever that of the incoming gradient."""
    x = layout(torch.randn(pool.input), last).requires_grad_()
    output = pool.by_cnnext(x)
    assert layout(output, last).data_ptr() == output.data_ptr()  # in that format already
    if pool.is_max:
        with torch.no_grad():
            indices = pool.with_indices(x)[1]
        assert indices.stride() == output.stride()
        assert indices.dtype == torch.int64
    for last_grad in (False, True):
        grad = layout(torch.randn(output.shape), last_grad)
        assert torch.autograd.grad(output, x, grad, retain_graph=True)[0].stride() == x.stride()
    expanded = torch.ones(()).expand(output.shape)
    (one,) = torch.autograd.grad(output, x, expanded, retain_graph=True)
    assert torch.equal(one, torch.autograd.grad(output, x, torch.ones(output.shape))[0])


@pytest.mark.usefixtures("one_thread", "no_fallback")
@usual
def test_views_and_empty_batches(pool: Pool) -> None:
    x = torch.randn(*pool.input[:-1], 2 * pool.input[-1])[..., ::2]
    assert torch.equal(pool.by_cnnext(x), pool.by_cnnext(x.contiguous()))
    wide = torch.randn(1, 1, *pool.input[2:]).expand(pool.input)
    assert torch.equal(pool.by_cnnext(wide), pool.by_cnnext(wide.contiguous()))
    none = torch.empty(0, *pool.input[1:], requires_grad=True)
    output = pool.by_cnnext(none)
    assert output.shape == (0, *pool.by_cnnext(x).shape[1:])
    assert torch.autograd.grad(output.sum(), none)[0].shape == none.shape


@pytest.mark.usefixtures("one_thread", "no_fallback")
@usual
@pytest.mark.parametrize("last", [False, True])
def test_derivatives(pool: Pool, last: bool) -> None:
    x = layout(distinct(pool.input), last).requires_grad_()
    assert gradcheck(pool.by_cnnext, (x,), fast_mode=True)
    assert gradgradcheck(pool.by_cnnext, (x,), fast_mode=True)
    if pool.is_max:
        assert gradcheck(lambda t: pool.with_indices(t)[0], (x,), fast_mode=True)
        assert not pool.with_indices(x)[1].requires_grad


@pytest.mark.usefixtures("one_thread", "no_fallback")
@usual
def test_a_second_backward_pass_is_refused_where_torchs_is(pool: Pool) -> None:
    def refuses(run: Callable[[Tensor], Tensor]) -> bool:
        total = run(torch.randn(pool.input, requires_grad=True)).sum()
        total.backward()
        try:
            total.backward()
        except RuntimeError as error:
            return "Trying to backward through the graph a second time" in str(error)
        return False

    assert refuses(pool.by_cnnext) == refuses(lambda x: pool.by_torch(x)[0])


@pytest.mark.usefixtures("one_thread", "no_fallback")
@pytest.mark.parametrize("pool", [pool for pool in USUAL if pool.is_max], ids=str)
def test_third_derivative_of_maxima_runs_on_our_kernels(pool: Pool) -> None:
    """Gradient and selection are each other's derivative: differentiating twice more leads back."""
    x = distinct(pool.input).requires_grad_()
    expected = pool.by_torch(x)[0]
    (g,) = torch.autograd.grad(pool.by_cnnext(x).pow(3).sum(), x, create_graph=True)
    (h,) = torch.autograd.grad(g.pow(2).sum(), x, create_graph=True)
    (third,) = torch.autograd.grad(h.sum(), x)
    (g,) = torch.autograd.grad(expected.pow(3).sum(), x, create_graph=True)
    (h,) = torch.autograd.grad(g.pow(2).sum(), x, create_graph=True)
    torch.testing.assert_close(third, torch.autograd.grad(h.sum(), x)[0])


@pytest.mark.usefixtures("one_thread", "no_fallback")
@pytest.mark.parametrize("size", [(2, 3, 9), (2, 3, 5, 6), (1, 2, 4, 3, 5)])
def test_unpool_derivatives_and_errors(size: tuple[int, ...]) -> None:
    pooled, indices = ops.max_pool_with_indices(distinct(size), [2])
    pooled.requires_grad_()
    assert gradcheck(lambda t: ops.max_unpool(t, indices, size[2:]), (pooled,), fast_mode=True)
    assert gradgradcheck(lambda t: ops.max_unpool(t, indices, size[2:]), (pooled,), fast_mode=True)
    for wrong in (10_000, -10_000):
        with pytest.raises(RuntimeError, match="Found an invalid max index"):
            ops.max_unpool(pooled.detach(), indices + wrong, size[2:])
        with pytest.raises(RuntimeError, match="Found an invalid max index"):
            ops.max_unpool_grad_input(torch.randn(size), indices + wrong)
    with pytest.raises(RuntimeError, match="int64"):
        ops.max_unpool(pooled.detach(), indices.int(), size[2:])


@pytest.mark.usefixtures("one_thread")
@usual
def test_opcheck(pool: Pool) -> None:
    x = distinct(pool.input)
    library.opcheck(getattr(ops, pool.op).default, (x.requires_grad_(), *pool.args))
    flags = {"channels_last": pool.dims > 1}
    if not pool.is_max:
        grad = torch.randn(pool.by_cnnext(x).shape, dtype=torch.float64).requires_grad_()
        op = getattr(ops, f"{pool.op}_grad_input").default
        args = () if "adaptive" in pool.op else pool.args
        library.opcheck(op, (grad, pool.input[2:], *args), flags)
        return
    for suffix in ("with_indices", "with_offsets"):
        source = x.detach().requires_grad_(suffix == "with_indices")
        library.opcheck(getattr(ops, f"{pool.op}_{suffix}").default, (source, *pool.args))
    output, offsets = getattr(ops, f"{pool.op}_with_offsets")(x.detach(), *pool.args)
    windows = ([], [], [], []) if "adaptive" in pool.op else pool.args[:4]
    grad = torch.randn_like(output).requires_grad_()
    library.opcheck(ops.max_pool_grad_input.default, (grad, offsets, pool.input[2:], *windows), flags)
    library.opcheck(ops.max_pool_select.default, (x, offsets, *windows))
    library.opcheck(ops.max_pool_indices.default, (offsets, pool.input[2:], *windows))


@pytest.mark.usefixtures("one_thread")
def test_opcheck_unpool() -> None:
    pooled, indices = ops.max_pool_with_indices(torch.randn(2, 3, 6, 8), [2])
    library.opcheck(ops.max_unpool.default, (pooled.requires_grad_(), indices, [6, 8]))
    grad = torch.randn(2, 3, 6, 8).requires_grad_()
    library.opcheck(ops.max_unpool_grad_input.default, (grad, indices), {"channels_last": True})


def _call(pool: Pool) -> Callable[[Tensor], Tensor]:
    return pool.by_cnnext


@pytest.mark.usefixtures("one_thread")
@usual
def test_transforms(pool: Pool) -> None:
    """vmap, torch.func, forward mode and batched gradients equal torch's."""
    x = distinct(pool.input)

    def by_torch(t: Tensor) -> Tensor:
        return pool.by_torch(t)[0]

    stacked = torch.stack([x, x.flip(0) * 0.5, -x])
    torch.testing.assert_close(torch.vmap(_call(pool))(stacked), torch.vmap(by_torch)(stacked))
    cube = lambda f: lambda t: f(t).pow(3).sum()  # noqa: E731
    torch.testing.assert_close(torch.func.grad(cube(_call(pool)))(x), torch.func.grad(cube(by_torch))(x))
    tangent = torch.randn_like(x)
    for ours, theirs in zip(
        torch.func.jvp(_call(pool), (x,), (tangent,)), torch.func.jvp(by_torch, (x,), (tangent,)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    x = x.requires_grad_()
    output = pool.by_cnnext(x)
    grads = torch.randn(3, *output.shape, dtype=torch.float64)
    (batched,) = torch.autograd.grad(output, x, grads, is_grads_batched=True)
    (expected,) = torch.autograd.grad(by_torch(x), x, grads, is_grads_batched=True)
    torch.testing.assert_close(batched, expected)


@pytest.mark.usefixtures("one_thread", "no_fallback")
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "pool",
    [pool for pool in [*TABLE[::3], *LARGE[3:]] if not pool.is_max],
    ids=str,
)
def test_accuracy_of_averages(pool: Pool, dtype: torch.dtype, last: bool) -> None:
    """No further from float64 than twice torch's own error, in the largest and in the mean error."""
    if last and pool.dims == 1:
        pytest.skip("one dimension has no channels_last")
    if pool.op == "avg_pool" and pool.dims == 3 and dtype != torch.float32:
        pytest.skip("torch has no such average")
    x = layout(torch.randn(pool.input).to(dtype), last).requires_grad_()
    exact_x = x.detach().double().requires_grad_()
    exact, output, theirs = pool.by_torch(exact_x)[0], pool.by_cnnext(x), pool.by_torch(x)[0]
    grad = torch.randn(output.shape).to(dtype)
    grads = [torch.autograd.grad(y, s, grad.to(y.dtype))[0] for y, s in ((exact, exact_x), (output, x), (theirs, x))]
    tiny = torch.finfo(dtype).eps / 4
    for right, ours, torchs in ((exact, output, theirs), grads):
        error, reference = (ours.double() - right).abs(), (torchs.double() - right).abs()
        for reduce in (Tensor.max, Tensor.mean):
            scale = reduce(right.abs()).item()
            torchs_error = capped(reduce(reference).item(), scale, dtype, x[0, 0].numel())
            assert reduce(error) <= 2 * torchs_error + tiny * scale


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("pool", [*LARGE, *USUAL], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_for_any_number_of_threads(pool: Pool, dtype: torch.dtype) -> None:
    x = torch.randn(pool.input).to(dtype)
    found: list[dict[Any, Tensor]] = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results: dict[Any, Tensor] = {}
        for last in (False, True):
            source = layout(x, last).requires_grad_()
            forward, backward = pool.lists
            for kernel in backends.kernels(forward):
                if kernel != "reference":
                    with torch.no_grad():
                        results[last, kernel] = forced(forward, kernel, lambda s=source: pool.by_cnnext(s))
            output = pool.by_cnnext(source)
            results[last, "default"] = output.detach()
            grad = torch.linspace(-1, 2, output.numel()).view(output.shape).to(dtype)
            for kernel in backends.kernels(backward):
                if kernel != "reference":
                    results[last, kernel, "grad"] = forced(
                        backward, kernel, lambda o=output, s=source, g=grad: torch.autograd.grad(o, s, g, True)[0]
                    )
        found.append(results)
    for results in found[1:]:
        for key, expected in found[0].items():
            assert (results[key] is None) == (expected is None)
            assert expected is None or torch.equal(results[key], expected), key


@pytest.mark.usefixtures("one_thread", "no_fallback")
def test_offsets_are_small_and_made_only_for_gradients() -> None:
    x = torch.randn(2, 3, 40, 40)
    for kernel, dtype in ((3, torch.uint8), (16, torch.uint8), (17, torch.int32)):
        assert ops.max_pool_with_offsets(x, [kernel])[1].dtype == dtype
    with torch.profiler.profile() as profile:
        ops.max_pool(x, [3])
    assert "cnnext::max_pool_with_offsets" not in {event.name for event in profile.events()}
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ops.max_pool(x.requires_grad_(), [3])
    assert [t.dtype for t in saved] == [torch.uint8]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kernel", backends.kernels("max_pool_grad_input"))
def test_any_offsets_stay_inside(kernel: str) -> None:
    """Offsets are data: wrong ones may give a wrong gradient, but nothing is written outside of it."""
    taken = 0
    for side, windows in ((6, ([3], [1], [1], [1])), (1, ([6], [6], [0], [1]))):
        for last in (False, True):
            grad = layout(torch.ones(1, 17, side, side), last)
            offsets = layout(torch.randint(0, 256, grad.shape, dtype=torch.uint8), last)
            run = partial(ops.max_pool_grad_input, grad, offsets, [6, 6], *windows, last)
            result = forced("max_pool_grad_input", kernel, run)
            if result is not None:
                taken += 1
                assert result.isfinite().all()
                assert result.sum() <= grad.sum()
            if side == 6:
                assert ops.max_pool_select(grad, offsets, *windows).sum() <= grad.sum()
    assert taken > 0


@pytest.mark.usefixtures("one_thread", "no_fallback")
@pytest.mark.parametrize("last", [False, True])
def test_windows_without_a_tap_inside(last: bool) -> None:
    """Dilation can step over a small input altogether: the maximum is -inf and no gradient goes anywhere."""
    x = layout(torch.zeros(2, 5, 1, 8), last).requires_grad_()
    output, indices = ops.max_pool_with_indices(x, [2, 1], [5, 1], [1, 0], [3, 1], True)
    assert output.shape == (2, 5, 1, 8)
    assert output.eq(float("-inf")).all()
    assert indices.shape == output.shape
    for kernel in backends.kernels("max_pool_grad_input"):
        grad = forced(
            "max_pool_grad_input",
            kernel,
            lambda: torch.autograd.grad(output, x, torch.ones_like(output), retain_graph=True)[0],
        )
        assert grad is None or grad.eq(0).all()


@pytest.mark.usefixtures("one_thread", "no_fallback")
@pytest.mark.parametrize("kernel", backends.kernels("max_pool_grad_input"))
def test_dilation_beyond_32_bits_of_pixels(kernel: str) -> None:
    """A tap 2^31 pixels behind its window's origin is none of the plane."""
    x = torch.randn(1, 1, 2, 65536, requires_grad=True)
    output = ops.max_pool(x, [2, 1], [32768, 1], [1, 0], [32768, 1], True)
    grad = forced("max_pool_grad_input", kernel, lambda: torch.autograd.grad(output.sum(), x)[0])
    assert grad is None or grad.eq(0).all()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_autocast(dims: int) -> None:
    """One and two dimensions keep their input's type, three go to float32, as in torch."""
    x = torch.randn(2, 3, *[6] * dims)
    for dtype in (torch.float32, torch.bfloat16):
        given = x.to(dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for name, args in (("max_pool", (2,)), ("avg_pool", (2,)), ("adaptive_max_pool", (2,))):
                expected = getattr(F, f"{name}{dims}d")(given, *args)
                assert getattr(ops, name)(given, [2]).dtype == expected.dtype
            assert ops.adaptive_avg_pool(given, [2]).dtype == getattr(F, f"adaptive_avg_pool{dims}d")(given, 2).dtype
            expected, indices = getattr(F, f"max_pool{dims}d")(given, 2, return_indices=True)
            assert ops.max_pool_with_indices(given, [2])[0].dtype == expected.dtype
            expected = getattr(F, f"max_unpool{dims}d")(expected, indices, 2)
            assert ops.max_unpool(given[tuple(slice(n) for n in indices.shape)], indices, [6] * dims).dtype == (
                expected.dtype
            )


INVALID: list[tuple[str, tuple[int, ...], tuple[Any, ...]]] = [
    ("max_pool", (1, 2, 4, 4), ([5],)),
    ("max_pool", (1, 2, 4, 4), ([0],)),
    ("max_pool", (1, 2, 4, 4), ([2], [-1])),
    ("max_pool", (1, 2, 4, 4), ([2], [1], [2])),
    ("max_pool", (1, 2, 4, 4), ([3], [1], [-1])),
    ("max_pool", (1, 2, 4, 4), ([3], [1], [1], [0])),
    ("max_pool", (1, 2, 9, 9), ([3], [1], [2], [2])),
    ("max_pool", (1, 2, 4, 4), ([2, 2, 2],)),
    ("max_pool", (1, 2, 4, 4), ([],)),
    ("max_pool", (1, 0, 4, 4), ([2],)),
    ("max_pool", (1, 2, 0, 4), ([2],)),
    ("max_pool", (1, 2, 8, 8), ([5], [1], [2], [2**62])),
    ("max_pool", (1, 2, 4, 4), ([2], [2**40])),
    ("avg_pool", (1, 2, 4, 4, 4), ([2], [1, 2**31, 1])),
    ("max_pool", (1, 2, 4), ([5],)),
    ("max_pool", (1, 2, 4, 4, 4), ([5],)),
    ("avg_pool", (1, 2, 4, 4), ([5],)),
    ("avg_pool", (1, 2, 4, 4), ([2], [], [2])),
    ("avg_pool", (1, 2, 4, 4), ([2], [], [0], False, True, 0)),
    ("avg_pool", (1, 2, 4, 4, 4), ([5], [1], [2])),
    ("adaptive_max_pool", (1, 2, 4, 4), ([-1, -1],)),
    ("adaptive_avg_pool", (1, 2, 4, 4), ([-1, -1],)),
    ("adaptive_avg_pool", (1, 2, 4, 0), ([2, 2],)),
    ("adaptive_max_pool", (1, 2, 4, 4), ([1, 2, 3],)),
]


@pytest.mark.usefixtures("one_thread", "no_fallback")
@pytest.mark.parametrize(("op", "size", "args"), INVALID, ids=str)
@pytest.mark.parametrize("needs_grad", [False, True])
def test_errors_are_torchs(op: str, size: tuple[int, ...], args: tuple[Any, ...], needs_grad: bool) -> None:
    x = torch.randn(size, requires_grad=needs_grad)
    function = getattr(F, f"{op}{len(size) - 2}d")
    with pytest.raises((RuntimeError, IndexError)) as expected:
        function(x, *args)
    with pytest.raises(type(expected.value)) as error:
        getattr(ops, op)(x, *args)
    first = str(error.value).splitlines()[0]
    assert first == str(expected.value).splitlines()[0]
