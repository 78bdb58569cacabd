"""Packed weights that are kept from call to call: the same bits, never of an older weight, bounded and dropped."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from convolutions import KERNELS
from kernels import DTYPES, forced
from torch import Tensor, nn

import cnnext
from cnnext import backends
from cnnext import functional as F

pytestmark = pytest.mark.usefixtures("no_fallback", "threads")

# Late layers, of which tasks pack their weights themselves, large and strided ones.
SHAPES = [
    ((1, 96, 7, 7), (160, 96, 1, 1), {}),
    ((1, 64, 7, 7), (96, 64, 3, 3), {"padding": 1}),
    ((2, 32, 28, 28), (64, 32, 3, 3), {"padding": 1}),
    ((1, 64, 14, 14), (96, 64, 3, 3), {"padding": 1, "stride": 2}),
    ((1, 48, 9, 9), (64, 24, 3, 3), {"groups": 2}),
    ((1, 40, 30), (33, 40, 5), {"padding": 2}),
]
KEEPING = ("gemm", "gemm_bf16", "rows_amx")  # kernels


@pytest.fixture(autouse=True)
def keeping() -> Iterator[None]:
    """By the kernel that keeps weights on every processor."""
    backends.empty_cache()
    by_gemm = [backends.force_kernel(op, "gemm") for op in ("conv", "conv_grad_input")]
    with by_gemm[0], by_gemm[1], backends.packed_weights(True), torch.no_grad():
        yield
    assert kept() == 0  # turning it off drops all


def kept() -> int:
    return cnnext.memory_stats()["packed_weights_bytes"]


def conv(x: Tensor, w: Tensor, **arguments: int) -> Tensor:
    return (F.conv1d if x.dim() == 3 else F.conv2d)(x, w, **arguments)


def tensors(x: tuple[int, ...], w: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(x, dtype=torch.float64).to(dtype), (torch.randn(w, dtype=torch.float64) / 16).to(dtype)


def unkept(x: Tensor, w: Tensor, **arguments: int) -> Tensor:
    """By a copy of the weight, of which nothing is kept."""
    return conv(x, w.clone(), **arguments)


def by_both(kernel: str, x: Tensor, w: Tensor, **arguments: int) -> Tensor | None:
    """The result where nothing is kept; None where the kernel does not take the problem with a kept weight and without:
    it takes less where another keeps the weight."""

    def run() -> Tensor:
        conv(x, w, **arguments)
        with backends.packed_weights(False):
            return conv(x, w, **arguments)

    return forced("conv", kernel, run)


@pytest.mark.parametrize("kernel", [name for op, name in KERNELS if op == "conv"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_same_bits(kernel: str, dtype: torch.dtype, last: bool) -> None:
    ran = keeps = False
    for x_size, w_size, arguments in SHAPES:
        x, w = tensors(x_size, w_size, dtype)
        if last and x.dim() == 4:
            x, w = (t.to(memory_format=torch.channels_last) for t in (x, w))
        expected = by_both(kernel, x, w, **arguments)
        if expected is None:
            continue
        ran = True
        with backends.force_kernel("conv", kernel):
            for threads in (1, 2):
                torch.set_num_threads(threads)
                for _ in range(3):
                    assert torch.equal(conv(x, w, **arguments), expected)
                keeps = keeps or kept() > 0
    assert ran or kernel != "gemm"  # which takes everything
    assert keeps == (ran and kernel in KEEPING)


def changes() -> dict[str, Callable[[nn.Conv2d], object]]:
    def step(optimizer: Callable[..., torch.optim.Optimizer], **arguments: bool) -> Callable[[nn.Conv2d], object]:
        def change(layer: nn.Conv2d) -> None:
            layer.weight.grad = torch.ones_like(layer.weight)
            optimizer(layer.parameters(), lr=0.5, **arguments).step()

        return change

    def load(layer: nn.Conv2d, assign: bool) -> None:
        layer.load_state_dict({name: value * 2 for name, value in layer.state_dict().items()}, assign=assign)

    def new_data(layer: nn.Conv2d) -> None:
        for _ in range(5):  # a tensor may get the memory of the last but one
            layer.weight.data = layer.weight.data * 2

    def new_parameter(layer: nn.Conv2d) -> None:
        layer.weight = nn.Parameter(layer.weight * 2)

    return {
        "in place": lambda layer: layer.weight.mul_(2),
        "one element": lambda layer: layer.weight[3, 2, 1, 1].fill_(7),
        "a view": lambda layer: layer.weight.view(-1)[5:9].zero_(),
        "detached": lambda layer: layer.weight.detach().mul_(2),
        "sgd": step(torch.optim.SGD, foreach=False),
        "adam": step(torch.optim.Adam, foreach=True),
        "fused adam": step(torch.optim.Adam, fused=True),
        "load_state_dict": lambda layer: load(layer, assign=False),
        "load_state_dict, assign": lambda layer: load(layer, assign=True),
        "new data": new_data,
        "new parameter": new_parameter,
        "set_": lambda layer: layer.weight.set_(layer.weight * 2),
        "copy_": lambda layer: nn.utils.vector_to_parameters(torch.ones(64 * 96 * 9), [layer.weight]),
        "memory format": lambda layer: layer.to(memory_format=torch.channels_last),
    }


@pytest.mark.parametrize("change", changes())
def test_a_change_is_seen(change: str) -> None:
    layer, x = cnnext.nn.Conv2d(64, 96, 3, padding=1, bias=False), torch.randn(1, 64, 7, 7)
    for _ in range(3):
        layer(x)
        assert kept() > 0
        changes()[change](layer)
        assert torch.equal(layer(x), unkept(x, layer.weight, padding=1))


def test_data_as_a_weight() -> None:
    """`.data` is another tensor each time, whose version says nothing."""
    w, x = nn.Parameter(torch.randn(96, 64, 3, 3)), torch.randn(1, 64, 7, 7)
    for _ in range(4):
        w.mul_(2)
        assert torch.equal(conv(x, w.data), unkept(x, w))


@pytest.mark.parametrize(
    "write",
    [
        lambda w: w.data.mul_(2),
        lambda w: w.untyped_storage().copy_((2 * w).untyped_storage()),
        lambda w: np.multiply(w.numpy(), 2, out=w.numpy()),
    ],
    ids=["data", "storage", "NumPy"],
)
def test_an_unseen_write_needs_empty_cache(write: Callable[[Tensor], object]) -> None:
    """As the documentation says."""
    w, x = torch.randn(96, 64, 3, 3), torch.randn(1, 64, 7, 7)
    before = conv(x, w)
    write(w)
    assert torch.equal(conv(x, w), before)
    cnnext.empty_cache()
    assert torch.equal(conv(x, w), unkept(x, w))
    assert not torch.equal(conv(x, w), before)


def test_each_size_has_its_own() -> None:
    w = torch.randn(96, 64, 3, 3)
    for _ in range(2):
        for size in (7, 9, 14, 30):
            x = torch.randn(2, 64, size, size)
            assert torch.equal(conv(x, w), unkept(x, w))


def test_views_of_one_memory() -> None:
    """The same memory, version and sizes, read in another order."""
    square, x = torch.randn(64, 64, 3, 3), torch.randn(1, 64, 7, 7)
    for w in (square, square.transpose(0, 1), square.transpose(2, 3), square.flip(0), square[:32], square[32:]):
        for _ in range(2):
            assert torch.equal(conv(x, w), unkept(x, w))


def test_memory_goes_with_the_weight() -> None:
    x = torch.randn(1, 64, 7, 7)
    model = [cnnext.nn.Conv2d(64, 96, 3) for _ in range(5)]
    for layer in model:
        layer(x)
    five = kept()
    for layer in model:  # an older version's is dropped
        layer.weight.add_(1)
        layer(x)
    assert kept() == five
    del model, layer
    gc.collect()
    last = cnnext.nn.Conv2d(64, 96, 3)
    last(x)
    assert kept() == five // 5
    cnnext.empty_cache()
    assert kept() == 0
    last(x)
    assert kept() == five // 5


def test_memory_is_bounded() -> None:
    """The longest unused make way."""
    x, used = torch.randn(1, 2048, 2, 2), torch.randn(2048, 2048, 1, 1)
    held = []
    for _ in range(70):
        held.append(torch.zeros(2048, 2048, 1, 1))
        conv(x, held[-1])
        conv(x, used)
    assert 2**30 * 0.9 < kept() <= 2**30
    before = kept()
    conv(x, used)
    assert kept() == before
    conv(x, held[0])  # packed anew
    assert kept() <= 2**30


def test_nothing_is_kept_in_training() -> None:
    layer, x = cnnext.nn.Conv2d(64, 96, 3), torch.randn(1, 64, 7, 7, requires_grad=True)
    with torch.enable_grad():
        layer(x).sum().backward()
    assert kept() == 0
    layer.requires_grad_(False)
    with torch.enable_grad():
        layer(x).sum().backward()
    assert kept() > 0  # a weight that is trained no more


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", [1, 3])
def test_directions_pack_for_themselves(kernel: int, dtype: torch.dtype) -> None:
    """A frozen weight is packed by the same kernel for the same problem, but otherwise for the gradient."""
    w = torch.randn(64, 64, kernel, kernel).to(dtype)
    x = torch.randn(1, 64, 9, 9).to(dtype).requires_grad_()

    def both() -> list[Tensor]:
        with torch.enable_grad():
            y = F.conv2d(x, w, padding=kernel // 2)
            return [y, *torch.autograd.grad(y.sum(), x), F.conv_transpose2d(y, w, padding=kernel // 2)]

    with backends.packed_weights(False):
        expected = both()
    for _ in range(2):
        for result, wanted in zip(both(), expected, strict=True):
            assert torch.equal(result, wanted)
    assert kept() > 0


def test_transposed() -> None:
    w, x = nn.Parameter(torch.randn(64, 32, 2, 2)), torch.randn(1, 64, 7, 7)
    for _ in range(3):
        assert torch.equal(F.conv_transpose2d(x, w, stride=2), F.conv_transpose2d(x, w.clone(), stride=2))
    assert kept() > 0


def test_inference_tensors_are_not_kept() -> None:
    """They have no version."""
    x = torch.randn(1, 64, 7, 7)
    with torch.inference_mode():
        w = torch.randn(96, 64, 3, 3)
        before = conv(x, w)
        w.mul_(2)
        assert torch.equal(conv(x, w), 2 * before)


def test_concurrent_calls() -> None:
    layers = [cnnext.nn.Conv2d(64, 96, 3, padding=1) for _ in range(4)]
    x = torch.randn(1, 64, 14, 14)
    with backends.packed_weights(False):
        expected = [layer(x) for layer in layers]

    def same(n: int) -> bool:
        if n % 16 == 5:
            cnnext.empty_cache()
        with torch.no_grad():
            return torch.equal(layers[n % 4](x), expected[n % 4])

    with ThreadPoolExecutor(4) as workers:
        assert all(workers.map(same, range(160)))
    assert kept() > 0


def test_swap_tensors_after_empty_cache_only() -> None:
    x, w = tensors((1, 64, 7, 7), (96, 64, 3, 3))
    conv(x, w)
    other = torch.randn_like(w)
    with pytest.raises(RuntimeError, match="Expected no weakrefs to"):
        torch.utils.swap_tensors(w, other)
    cnnext.empty_cache()
    torch.utils.swap_tensors(w, other)
    torch.testing.assert_close(conv(x, w), unkept(x, w))
