"""explain for a GPU, with none at hand: its kernels by architecture, type, layout and size; and who is asked."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import cnnext


@pytest.mark.parametrize(
    ("arch", "dtype", "last", "expected"),
    [
        ((7, 5), torch.float16, True, "direct"),
        ((8, 0), torch.float16, True, "gemm_sm80"),
        ((8, 9), torch.bfloat16, False, "gemm_sm80_packed"),
        ((9, 0), torch.bfloat16, True, "gemm_sm90"),
        ((8, 6), torch.float32, True, "gemm_tf32_sm80"),
        ((9, 0), torch.float32, True, "gemm_tf32_sm90"),
        ((10, 0), torch.float32, True, "gemm_tf32_sm80"),
        ((10, 0), torch.float64, True, "direct"),
    ],
)
def test_kernels_of_a_gpu(arch: tuple[int, int], dtype: torch.dtype, last: bool, expected: str) -> None:
    """Without a GPU, and whatever the tensors are on."""
    memory_format = [torch.contiguous_format, torch.channels_last][last]
    x, w = (torch.ones(*size, dtype=dtype).to(memory_format=memory_format) for size in ((2, 32, 9, 9), (64, 32, 3, 3)))
    found = cnnext.explain(F.conv2d, x, w, arch=arch)
    assert [each.kernel for each in found.layers[0].directions] == [expected] * 3
    assert str(found).startswith(f"cnnext on sm_{arch[0]}{arch[1]}")
    assert found.to_dict()["target"] == f"sm_{arch[0]}{arch[1]}"


def test_kernels_of_a_gpu_count_in_32_bits() -> None:
    """Two bytes for each of 2^28 taps, padded to 8 channels: more numbers than matrix products count."""
    wide = torch.ones(1, dtype=torch.bfloat16).expand(1, 1, 2**28)
    for size, expected in ((2**27, "gemm_sm80_packed"), (2**28, "direct")):
        [layer] = cnnext.explain(F.conv1d, wide[..., :size], wide[..., :size], arch=(8, 0)).layers
        assert {each.kernel for each in layer.directions} == {expected}


def test_kernels_of_a_gpu_by_settings() -> None:
    x, w = torch.ones(2, 32, 9, 9), torch.ones(32, 1, 3, 3)
    [depthwise] = cnnext.explain(F.conv2d, x, w, groups=32, device="cuda", arch=(8, 0)).layers
    assert {each.kernel for each in depthwise.directions} == {"depthwise"}
    [pool] = cnnext.explain(F.max_pool2d, x, 2, device="cuda", arch=(8, 0)).layers
    assert [each.kernel for each in pool.directions] == ["gather", "gather"]
    dense = torch.ones(64, 32, 3, 3)
    before = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = False
        [accurate] = cnnext.explain(F.conv2d, x, dense, arch=(8, 0)).layers
    finally:
        torch.backends.cudnn.allow_tf32 = before
    assert {each.kernel for each in accurate.directions} == {"gemm_3xtf32_sm80_packed"}
    with cnnext.backends.force_kernel("conv", "direct", device="cuda"):
        assert cnnext.explain(F.conv2d, x, dense, arch=(8, 0)).layers[0].directions[0].kernel == "direct"
        assert cnnext.explain(F.conv2d, x, dense).layers[0].directions[0].kernel != "direct"


def conv_of_a_gpu(op: str, size: list[int], weight: list[int], dtype: torch.dtype, last: bool, padding: int = 0) -> str:
    dims = len(size) - 2
    geometry = ([1] * dims, [padding] * dims, [1] * dims, size[1] // weight[1])
    return cnnext._C.explain_conv(op, size, weight, *geometry, dtype, last, 80)["kernel"]


def pool_of_a_gpu(op: str, size: list[int], kernel: int, stride: int) -> str:
    dims = len(size) - 2
    output = [*size[:2], *((extent - kernel) // stride + 1 for extent in size[2:])]
    window = [[value] * dims for value in (kernel, stride, 0, 1)]
    return cnnext._C.explain_pool(op, size, output, *window, torch.float32, False, 80)["kernel"]


@pytest.mark.parametrize("op", ["conv", "conv_grad_input", "conv_grad_weight"])
def test_large_tensors_on_a_gpu(op: str) -> None:
    """More than 2^31 elements in all; in an image, the kernels that number them in 32 bits give way."""
    half = torch.bfloat16
    assert conv_of_a_gpu(op, [1 << 12, 64, 1 << 7, 1 << 7], [64, 64, 3, 3], half, True) == "gemm_sm80"
    assert conv_of_a_gpu(op, [1, 64, 1 << 13, 1 << 13], [64, 64, 3, 3], half, True) == "direct"
    assert conv_of_a_gpu(op, [1, 64, 1 << 13, 1 << 13], [64, 1, 3, 3], half, True) == "depthwise"
    refused = r"no kernel takes this problem \(depthwise: .*; direct: an (image|axis) of more than"
    for size, padding in (([1, 1, 1 << 16, 1 << 15], 0), ([1, 1, (1 << 30) + 1], 0), ([1, 1, 8], 1 << 29)):
        with pytest.raises(RuntimeError, match=refused):
            conv_of_a_gpu(op, size, [1, 1, *[3] * (len(size) - 2)], half, False, padding)


@pytest.mark.parametrize("op", ["conv", "conv_grad_input", "conv_grad_weight"])
def test_many_groups_and_taps_on_a_gpu(op: str) -> None:
    """More groups than a grid has rows are several launches; but taps and a group's channels are numbered."""
    half = torch.bfloat16
    for last in (False, True):
        assert conv_of_a_gpu(op, [2, 1 << 17, 9, 9], [1 << 17, 1, 3, 3], half, last) == "depthwise"
        assert conv_of_a_gpu(op, [2, 1 << 18, 9, 9], [1 << 18, 2, 3, 3], half, last) == "direct"
    with pytest.raises(RuntimeError, match=r"direct: a window of more than 2\^31 taps"):
        conv_of_a_gpu(op, [1, 1, 1, 1], [1, 1, 46341, 46341], half, False, 23170)
    with pytest.raises(RuntimeError, match=r"direct: more than 2\^20 channels in a group"):
        conv_of_a_gpu(op, [1, 1 << 21, 1], [1, 1 << 21, 1], torch.float64, False)


@pytest.mark.parametrize("op", ["max_pool", "max_pool_with_indices", "avg_pool", "avg_pool_grad_input"])
def test_large_planes_are_pooled_on_a_gpu(op: str) -> None:
    """Planes of more than 2^31 pixels too, but not axes of more than 2^30, nor windows of more than 2^31 taps."""
    assert pool_of_a_gpu(op, [1, 2, 1 << 17, 1 << 16], 3, 2) == "gather"
    refused = r"no kernel takes this problem \(gather: an axis of more than 2\^30 pixels\)"
    with pytest.raises(RuntimeError, match=refused):
        pool_of_a_gpu(op, [1, 1, (1 << 30) + 1], 2, 2)
    with pytest.raises(RuntimeError, match="do not make a tensor"):  # they are torch's
        pool_of_a_gpu(op, [1, 1, 1 << 16, 1 << 16], 1 << 16, 2)


def test_a_gpu_that_nobody_names() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU to ask")
    x, w = torch.ones(1, 3, 9, 9), torch.ones(4, 3, 3, 3)
    with pytest.raises(ValueError, match="say which one you mean"):
        cnnext.explain(F.conv2d, x, w, device="cuda")
    with pytest.raises(ValueError, match="expected device 'cpu' or 'cuda'"):
        cnnext.explain(F.conv2d, x, w, device="meta")


@pytest.mark.parametrize("arch", [(1, 0), (8, 12), (8,), 80, "80", (8.0, 0), ()])
def test_arch_that_no_gpu_has(arch: Any) -> None:
    with pytest.raises(
        ValueError, match=re.escape(f"expected arch as (major, minor), (7, 5) or newer, but got {arch!r}")
    ):
        cnnext.explain(F.max_pool2d, torch.ones(1, 1, 4, 4), 2, arch=arch)


def test_arch_of_the_cpu() -> None:
    with pytest.raises(ValueError, match="expected no arch for device 'cpu', but got"):
        cnnext.explain(F.max_pool2d, torch.ones(1, 1, 4, 4), 2, device="cpu", arch=(8, 0))
