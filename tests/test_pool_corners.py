"""Pooling at the edge: empty tensors, windows and strides of any size, operators called without functions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import cnnext
from cnnext import backends, functional

ops = torch.ops.cnnext


@pytest.mark.parametrize("size", [(2, 0, 4, 4), (0, 4, 4), (2, 3, 0, 0), (2, 0, 4), (1, 0, 2, 3, 4)], ids=str)
def test_averages_of_nothing_have_gradients_as_torchs(size: tuple[int, ...]) -> None:
    dims = {3: 2 if size[0] == 0 else 1, 4: 2, 5: 3}[len(size)]
    results = []
    for module in (functional, F):
        x = torch.zeros(size, requires_grad=True)
        output = getattr(module, f"adaptive_avg_pool{dims}d")(x, 1)
        output.sum().backward()
        assert x.grad is not None
        results.append((output.shape, x.grad.shape))
    assert results[0] == results[1]


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_an_image_without_channels_has_an_empty_maximum(dims: int) -> None:
    x = torch.zeros(0, *[4] * dims, requires_grad=True)
    ours, torchs = (getattr(module, f"adaptive_max_pool{dims}d")(x, 1) for module in (functional, F))
    assert ours.shape == torchs.shape
    ours.sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape


# A table of who reads what would take 6 GB and 960 MB.
@pytest.mark.parametrize(("size", "kernel", "format"), [
    ((1, 1, 1, 200_000), (1, 2001), torch.contiguous_format),
    ((1, 1, 20_000, 1), (3001, 1), torch.contiguous_format),
    ((1, 2, 20_000, 2), (3001, 1), torch.channels_last),
])  # fmt: skip
def test_wide_windows_take_little_memory(
    size: tuple[int, ...], kernel: tuple[int, int], format: torch.memory_format
) -> None:
    x = torch.randn(size).to(memory_format=format).requires_grad_()
    wide = cnnext.nn.AvgPool2d(kernel, stride=1)
    (layer,) = cnnext.explain(wide, x).layers
    assert max(each.workspace_bytes for each in layer.directions) < 64 << 20
    output = wide(x)
    grad = torch.randn_like(output)
    (ours,) = torch.autograd.grad(output, x, grad)
    (exact,) = torch.autograd.grad(F.avg_pool2d(x.double(), kernel, stride=1), x, grad.double())
    torch.testing.assert_close(ours.double(), exact.double(), rtol=1e-4, atol=1e-7)


def test_memory_does_not_grow_with_the_stride() -> None:
    x = torch.randn(1, 1, 128, 128)
    pool = cnnext.nn.MaxPool2d(2, stride=10**6)
    assert torch.equal(pool(x), F.max_pool2d(x, 2, 10**6))
    conv = torch.nn.Conv2d(128, 128, 3, stride=(1, 10**6), padding=1, groups=4)
    for layer, input in ((pool, x), (conv, torch.randn(1, 128, 9, 64))):
        for each in cnnext.explain(layer, input.to(memory_format=torch.channels_last)).layers[0].directions:
            assert each.workspace_bytes < 8 << 20
        for each in cnnext.explain(layer, input).layers[0].directions:
            assert each.workspace_bytes < 8 << 20


def test_a_gradients_work_does_not_grow_with_the_stride() -> None:
    # The phases of a stride of 10 million, tried one by one against each other, would take days.
    x = torch.randn(1, 2, 600, 600, requires_grad=True)
    (ours,) = torch.autograd.grad(functional.avg_pool2d(x, 3, 10_000_000).sum(), x)
    (torchs,) = torch.autograd.grad(F.avg_pool2d(x, 3, 10_000_000).sum(), x)
    assert torch.equal(ours, torchs)


def test_the_gradient_of_two_averages_takes_as_long_as_the_row() -> None:
    # A search for the first tap of each of a million phases would take hours.
    x = torch.randn(1, 1, 2_000_000, requires_grad=True)
    (ours,) = torch.autograd.grad(functional.adaptive_avg_pool1d(x, 2).sum(), x)
    (torchs,) = torch.autograd.grad(F.adaptive_avg_pool1d(x, 2).sum(), x)
    torch.testing.assert_close(ours, torchs)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("size", "layer"), [
    ((1, 64, 112, 112), cnnext.nn.AdaptiveAvgPool2d((112, 1))),
    ((1, 64, 112, 112), cnnext.nn.AdaptiveMaxPool2d((112, 1))),
    ((1, 4, 512, 512), cnnext.nn.MaxPool2d((1, 512))),
    ((1, 4, 512, 512), cnnext.nn.MaxPool2d(256)),
    ((1, 4, 512, 512), cnnext.nn.AvgPool2d(256)),
    ((1, 1, 20000), cnnext.nn.MaxPool1d(2, 10**9, dilation=10**8, ceil_mode=True)),
], ids=str)  # fmt: skip
def test_windows_wide_apart_take_little_memory(size: tuple[int, ...], layer: torch.nn.Module) -> None:
    (explained,) = cnnext.explain(layer, torch.randn(size, requires_grad=True)).layers
    assert len(explained.directions) == 2
    for each in explained.directions:
        assert each.workspace_bytes < 512 << 10, each


# A table of all taps would take 34 to 172 GB, a loop over them two minutes.
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("axis", [2, 3])
def test_windows_beyond_the_input_take_little_memory(axis: int, format: torch.memory_format) -> None:
    kernel, padding = [1, 1], [0, 0]
    kernel[axis - 2], padding[axis - 2] = 2**31 - 1, 2**30 - 1
    x = torch.randn(1, 2, 4, 5).to(memory_format=format).requires_grad_()
    most = cnnext.nn.MaxPool2d(kernel, 1, padding)
    mean = cnnext.nn.AvgPool2d(kernel, 1, padding)
    for layer in (most, mean):
        (explained,) = cnnext.explain(layer, x).layers
        for each in explained.directions:
            assert each.workspace_bytes < 512 << 10, each
    assert torch.equal(most(x), x.amax(axis, keepdim=True).expand_as(x))
    (grad,) = torch.autograd.grad(most(x).sum(), x)
    assert torch.equal(grad, (x == x.amax(axis, keepdim=True)) * float(x.shape[axis]))
    torchs = F.avg_pool2d(x, kernel, 1, padding)
    torch.testing.assert_close(mean(x), torchs, rtol=1e-4, atol=0)
    ours = torch.autograd.grad(mean(x).sum(), x)
    torch.testing.assert_close(ours, torch.autograd.grad(torchs.sum(), x), rtol=1e-4, atol=0)


@pytest.mark.usefixtures("one_thread")
def test_rows_leave_out_what_lies_beyond_them() -> None:
    x = torch.randn(1, 2, 4, 5, requires_grad=True)
    window = ((1, 2**31 - 1), 1, (0, 2**30 - 1))
    most, mean = cnnext.nn.MaxPool2d(*window), cnnext.nn.AvgPool2d(*window)
    torchs = F.avg_pool2d(x, *window)
    with backends.force_kernel("max_pool", "rows"), torch.no_grad():
        assert torch.equal(most(x), x.amax(3, keepdim=True).expand_as(x))
    with backends.force_kernel("avg_pool", "rows"), backends.force_kernel("avg_pool_grad_input", "rows"):
        ours = mean(x)
        (grad,) = torch.autograd.grad(ours.sum(), x)
    torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=0)
    torch.testing.assert_close(grad, torch.autograd.grad(torchs.sum(), x)[0], rtol=1e-4, atol=0)


@pytest.mark.usefixtures("one_thread")
def test_a_dilation_beyond_the_input_takes_one_tap() -> None:
    x = torch.randn(1, 1, 20000, requires_grad=True)
    for module in (functional, F):
        output, index = module.max_pool1d(x, 2, 10**9, 0, 10**8, True, True)
        assert (output.item(), index.item()) == (x[0, 0, 0].item(), 0)
        (grad,) = torch.autograd.grad(output, x)
        assert grad[0, 0, 0] == 1 and grad.count_nonzero() == 1


@pytest.mark.usefixtures("one_thread")
def test_scattered_planes_are_their_own_workspace() -> None:
    x = torch.randn(1, 1, 1024, 1024, requires_grad=True)
    (layer,) = cnnext.explain(cnnext.nn.MaxPool2d(64, 32), x).layers
    (backward,) = (each for each in layer.directions if each.op == "max_pool_grad_input")
    assert backward.kernel == "scatter"
    assert backward.workspace_bytes < 64 << 10  # the plane has 4 MiB


def test_an_index_takes_no_table_of_the_window() -> None:
    # 1.6 billion taps: a table of them would take 13 GB.
    last = 40_000**2 - 1
    offsets = torch.tensor([0, 40_000, last], dtype=torch.int32).view(1, 3, 1, 1)
    assert ops.max_pool_indices(offsets, [40_000, 40_000], [], [], [], []).flatten().tolist() == [0, 40_000, last]
    windows = torch.randint(0, 20 * 30 * 40, (2, 2, 1, 1, 1), dtype=torch.int32)
    indices = ops.max_pool_indices(windows, [50, 60, 70], [20, 30, 40], [2**20] * 3, [9, 8, 7], [2, 2, 1])
    depth, row, column = windows // 1200, windows // 40 % 30, windows % 40
    assert torch.equal(indices, ((depth * 2 - 9) * 60 + row * 2 - 8) * 70 + column - 7)


def test_one_channel_has_no_format_of_its_own() -> None:
    x = torch.randn(2, 1, 112, 112, requires_grad=True)
    last = torch.empty_strided(x.shape, (112 * 112, 1, 112, 1)).copy_(x.detach()).requires_grad_()
    for layer in (cnnext.nn.MaxPool2d(3, 1, 1), cnnext.nn.AvgPool2d(3, 1, 1), cnnext.nn.AdaptiveAvgPool2d(1)):
        of_first, of_last = (cnnext.explain(layer, each).layers[0].directions for each in (x, last))
        assert [each.kernel for each in of_last] == [each.kernel for each in of_first]
        assert torch.equal(layer(last), layer(x))


def test_windows_beyond_32_bits_are_left_to_torch() -> None:
    x = torch.randn(1, 2, 4, 5, requires_grad=True)
    backends.reset_fallbacks()
    ours, indices = functional.max_pool2d(x, 100_000, 1, 50_000, return_indices=True)
    assert backends.fallbacks()
    torchs, expected = F.max_pool2d(x, 100_000, 1, 50_000, return_indices=True)
    assert torch.equal(ours, torchs) and torch.equal(indices, expected)
    (grad,) = torch.autograd.grad(ours.sum(), x)
    assert torch.equal(grad, torch.autograd.grad(torchs.sum(), x)[0])


def test_the_gradient_of_averages_under_vmap_expands_its_lists() -> None:
    grad = torch.randn(2, 1, 1, 2)

    def run(kernel: list[int], stride: list[int], padding: list[int]) -> torch.Tensor:
        def one(g: torch.Tensor) -> torch.Tensor:
            return ops.avg_pool_grad_input(g, [4], kernel, stride, padding, False, True, None)

        return torch.func.vmap(one)(grad)

    assert torch.equal(run([2], [], []), run([2], [2], [0]))
    with pytest.raises(RuntimeError, match="expected a kernel_size, but got an empty one"):
        run([], [], [0])


@pytest.mark.parametrize("size", [(), (3,), (2, 3)], ids=str)
def test_indices_of_no_batch_are_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError, match="expected a batched input of 3 to 5 dimensions"):
        ops.max_pool_with_indices(torch.zeros(size), [2])


def test_no_index_is_valid_in_an_empty_plane() -> None:
    with pytest.raises(RuntimeError, match="does not fit indices of size"):
        ops.max_unpool_grad_input(torch.zeros(1, 1, 0, 0), torch.zeros(1, 1, 2, 2, dtype=torch.long))


def test_exported_adaptive_maxima_take_other_sizes_than_the_example() -> None:
    from torch.export import Dim

    layers = torch.nn.Sequential(cnnext.nn.Conv2d(3, 4, 3, padding=1), cnnext.nn.AdaptiveMaxPool2d(2))
    sizes = {2: Dim("h", min=4, max=512), 3: Dim("w", min=4, max=512)}
    program = torch.export.export(layers, (torch.randn(1, 3, 16, 16),), dynamic_shapes=(sizes,))
    for size in (9, 64, 100):  # offsets of a byte, and of more
        x = torch.randn(1, 3, size, size)
        assert torch.equal(program.module()(x), layers(x))
