"""Invalid calls: the same exception type and the same words as torch's, from functions and, in short, from layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import cnnext
from cnnext import functional, nn


def r(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=dtype)


X, W = r(1, 3, 8, 8), r(4, 3, 3, 3)
XT, WT = r(1, 3, 5, 5), r(3, 4, 3, 3)
P = r(1, 3, 8, 8)
I = torch.zeros(1, 1, 2, 2, dtype=torch.int64)  # noqa: E741

INVALID: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    # convolution: sizes
    ("conv2d", (r(1, 4, 8, 8), W), {}),
    ("conv2d", (r(4, 8, 8), W), {}),
    ("conv2d", (r(1, 3, 2, 2), W), {}),
    ("conv2d", (r(3, 2, 2), W), {}),
    ("conv2d", (X, W), {"dilation": 4}),
    ("conv2d", (r(1, 3, 0, 8), W), {}),
    ("conv2d", (r(8, 8), W), {}),
    ("conv2d", (r(1, 1, 3, 8, 8), W), {}),
    ("conv2d", (X, r(4, 3, 3)), {}),
    ("conv2d", (X, r(4, 3, 3, 3, 3)), {}),
    ("conv2d", (X, W, r(3)), {}),
    ("conv2d", (X, W, r(4, 1)), {}),
    ("conv2d", (X, r(4, 3, 0, 3)), {}),
    ("conv1d", (r(1, 3, 2), r(4, 3, 3)), {}),
    ("conv1d", (r(1, 2, 8), r(4, 3, 3)), {}),
    ("conv1d", (r(8), r(4, 3, 3)), {}),
    ("conv3d", (r(1, 3, 2, 5, 5), r(4, 3, 3, 3, 3)), {}),
    ("conv3d", (r(1, 2, 5, 5, 5), r(4, 3, 3, 3, 3)), {}),
    # convolution: parameters
    ("conv2d", (X, W), {"stride": 0}),
    ("conv2d", (X, W), {"stride": -1}),
    ("conv2d", (X, W), {"stride": (1, 2, 3)}),
    ("conv2d", (X, W), {"stride": ()}),
    ("conv2d", (X, W), {"padding": -1}),
    ("conv2d", (X, W), {"padding": (1, 2, 3)}),
    ("conv2d", (X, W), {"padding": 2**63 - 1}),
    ("conv2d", (X, W), {"padding": "same", "stride": 2}),
    ("conv2d", (X, W), {"padding": "full"}),
    ("conv2d", (r(1, 2, 8, 8), W), {"padding": "same"}),
    ("conv2d", (X, W), {"padding": "same", "dilation": (1, 2, 3)}),
    ("conv2d", (X, W), {"dilation": 0}),
    ("conv2d", (X, W), {"dilation": -1}),
    ("conv2d", (X, W), {"dilation": (1, 1, 1)}),
    ("conv2d", (X, W), {"groups": 0}),
    ("conv2d", (X, W), {"groups": -1}),
    ("conv2d", (X, W), {"groups": 2}),
    ("conv2d", (X, r(4, 1, 3, 3)), {"groups": 3}),
    # convolution: types
    ("conv2d", (X.double(), W), {}),
    ("conv2d", (X, W, r(4).double()), {}),
    ("conv2d", (X.to(torch.bfloat16), W), {}),
    ("conv2d", ([1.0], W), {}),
    ("conv2d", (X, None), {}),
    ("conv2d", (None, W), {}),
    ("conv2d", (X, W, 1.0), {}),
    ("conv2d", (X, W), {"stride": 1.5}),
    ("conv2d", (X, W), {"stride": True}),
    ("conv2d", (X, W), {"stride": "1"}),
    ("conv2d", (X, W), {"stride": None}),
    ("conv2d", (X, W), {"padding": (1, 0.5)}),
    ("conv2d", (X, W), {"groups": 1.0}),
    ("conv2d", (X, W.to("meta")), {}),
    ("conv2d", (X.to_sparse(), W), {}),
    # transposed convolution
    ("conv_transpose2d", (r(1, 4, 5, 5), WT), {}),
    ("conv_transpose2d", (r(4, 5, 5), WT), {}),
    ("conv_transpose2d", (XT, WT, r(3)), {}),
    ("conv_transpose2d", (XT, r(3, 4, 3)), {}),
    ("conv_transpose2d", (r(5, 5), WT), {}),
    ("conv_transpose2d", (r(1, 3, 1, 1), WT), {"padding": 2}),
    ("conv_transpose2d", (XT, WT), {"stride": 0}),
    ("conv_transpose2d", (XT, WT), {"padding": -1}),
    ("conv_transpose2d", (XT, WT), {"dilation": 0}),
    ("conv_transpose2d", (XT, WT), {"output_padding": -1}),
    ("conv_transpose2d", (XT, WT), {"output_padding": 1}),
    ("conv_transpose2d", (XT, WT), {"output_padding": 2, "stride": 2}),
    ("conv_transpose2d", (XT, WT), {"output_padding": (0, 0, 0)}),
    ("conv_transpose2d", (XT, WT), {"groups": 2}),
    ("conv_transpose2d", (XT, WT), {"groups": 0}),
    ("conv_transpose2d", (XT, WT), {"padding": "same"}),
    ("conv_transpose2d", (XT.double(), WT), {}),
    ("conv_transpose1d", (r(1, 3, 5), r(3, 4, 3)), {"output_padding": 1}),
    ("conv_transpose3d", (r(1, 2, 4, 4, 4), r(3, 4, 3, 3, 3)), {}),
    # max pooling
    ("max_pool2d", (P, 3), {"padding": 2}),
    ("max_pool2d", (P, 3), {"padding": -1}),
    ("max_pool2d", (P, 0), {}),
    ("max_pool2d", (P, -1), {}),
    ("max_pool2d", (P, 2), {"stride": 0}),
    ("max_pool2d", (P, 2), {"stride": (1, 2, 3)}),
    ("max_pool2d", (P, 2), {"dilation": 0}),
    ("max_pool2d", (P, (2, 2, 2)), {}),
    ("max_pool2d", (P, ()), {}),
    ("max_pool2d", (r(3, 2, 2), 3), {}),
    ("max_pool2d", (r(1, 3, 2, 2), 3), {}),
    ("max_pool2d", (r(1, 3, 2, 2), 3), {"return_indices": True}),
    ("max_pool2d", (r(8, 8), 2), {}),
    ("max_pool2d", (r(1, 1, 3, 8, 8), 2), {}),
    ("max_pool2d", (r(1, 0, 8, 8), 2), {}),
    ("max_pool2d", (r(1, 3, 0, 8), 2), {}),
    ("max_pool2d", (P, 1.5), {}),
    ("max_pool2d", (P, None), {}),
    ("max_pool2d", (P, 2), {"ceil_mode": 2}),
    ("max_pool2d", ("x", 2), {}),
    ("max_pool2d", (P.bool(), 2), {}),
    ("max_pool2d", (P.to(torch.complex64), 2), {}),
    ("max_pool1d", (r(1, 3, 2), 3), {}),
    ("max_pool1d", (r(3, 2), 3), {}),
    ("max_pool1d", (r(1, 3, 8), 3), {"padding": 2}),
    ("max_pool1d", (r(1, 3, 8), 2), {"stride": 0}),
    ("max_pool1d", (r(1, 3, 8), (2, 2)), {}),
    ("max_pool1d", (r(8), 2), {}),
    ("max_pool1d", (r(1, 3, 2), 3), {"return_indices": True}),
    ("max_pool3d", (r(1, 3, 2, 5, 5), 3), {}),
    ("max_pool3d", (r(1, 3, 5, 5, 5), 3), {"padding": 2}),
    ("max_pool3d", (r(5, 5, 5), 3), {}),
    # average pooling
    ("avg_pool2d", (P, 3), {"padding": 2}),
    ("avg_pool2d", (P, 3), {"padding": -1}),
    ("avg_pool2d", (P, 0), {}),
    ("avg_pool2d", (P, 2), {"stride": 0}),
    ("avg_pool2d", (P, 2), {"divisor_override": 0}),
    ("avg_pool2d", (P, 2), {"divisor_override": 1.5}),
    ("avg_pool2d", (r(3, 2, 2), 3), {}),
    ("avg_pool2d", (r(1, 3, 2, 2), 3), {}),
    ("avg_pool2d", (r(8, 8), 2), {}),
    ("avg_pool2d", (P, (2, 2, 2)), {}),
    ("avg_pool2d", (r(1, 3, 0, 8), 2), {}),
    ("avg_pool1d", (r(1, 3, 2), 3), {}),
    ("avg_pool1d", (r(1, 3, 8), 3), {"padding": 2}),
    ("avg_pool1d", (r(8), 2), {}),
    ("avg_pool1d", (r(1, 3, 8), (2, 2)), {}),
    ("avg_pool3d", (r(1, 3, 2, 5, 5), 3), {}),
    ("avg_pool3d", (r(1, 3, 5, 5, 5), 3), {"padding": 2}),
    ("avg_pool3d", (r(1, 3, 5, 5, 5), 3), {"divisor_override": 0}),
    # adaptive pooling
    ("adaptive_avg_pool2d", (P, -1), {}),
    ("adaptive_avg_pool2d", (P, (2, 2, 2)), {}),
    ("adaptive_avg_pool2d", (P, (2,)), {}),
    ("adaptive_avg_pool2d", (P, None), {}),
    ("adaptive_avg_pool2d", (P, 1.5), {}),
    ("adaptive_avg_pool2d", (r(8, 8), 2), {}),
    ("adaptive_avg_pool2d", (r(8), (2, None)), {}),
    ("adaptive_avg_pool2d", (r(1, 3, 0, 8), 2), {}),
    ("adaptive_avg_pool2d", (r(3, 0, 8), 2), {}),
    ("adaptive_avg_pool1d", (r(1, 3, 8), None), {}),
    ("adaptive_avg_pool1d", (r(1, 3, 8), (2, 2)), {}),
    ("adaptive_avg_pool1d", (r(8), 2), {}),
    ("adaptive_avg_pool3d", (r(1, 3, 4, 0, 4), 2), {}),
    ("adaptive_max_pool2d", (P, -1), {}),
    ("adaptive_max_pool2d", (P, (2, 2, 2)), {}),
    ("adaptive_max_pool2d", (P, (2,)), {}),
    ("adaptive_max_pool2d", (P, 2), {"return_indices": "yes"}),
    ("adaptive_max_pool2d", (r(8, 8), 2), {}),
    ("adaptive_max_pool2d", (r(3, 0, 8), 2), {}),
    ("adaptive_max_pool1d", (r(1, 3, 8), (None,)), {}),
    ("adaptive_max_pool1d", (r(1, 3, 0), 2), {}),
    ("adaptive_max_pool3d", (r(1, 3, 4, 0, 4), 2), {}),
    ("adaptive_max_pool3d", (r(4, 4, 4), 2), {}),
    # unpooling
    ("max_unpool2d", (r(1, 1, 2, 2), I, 2), {"output_size": (9, 9)}),
    ("max_unpool2d", (r(1, 1, 2, 2), I, 2), {"output_size": (4,)}),
    ("max_unpool2d", (r(1, 1, 2, 2), I, 2), {"output_size": []}),
    ("max_unpool2d", (r(1, 1, 2, 2), I, [2]), {}),
    ("max_unpool2d", (r(1, 1, 2, 2), I, 2), {"stride": (2,)}),
    ("max_unpool2d", (r(1, 1, 2, 2), I, 2), {"padding": [0]}),
    ("max_unpool2d", (r(1, 1, 2, 2), I, 2), {"padding": 4}),
    ("max_unpool2d", (r(1, 1, 2, 2), I.int(), 2), {}),
    ("max_unpool2d", (r(1, 1, 2, 2), I[..., :1], 2), {}),
    ("max_unpool2d", (r(1, 1, 2, 2), I + 16, 2), {}),
    ("max_unpool2d", (r(1, 1, 2, 2), I - 1, 2), {}),
    ("max_unpool2d", (r(2, 2), I[0, 0], 2), {}),
    ("max_unpool2d", (r(1, 1, 2, 2), I, 1.5), {}),
    ("max_unpool1d", (r(1, 1, 2), I[0, :, 0], 2), {}),
    ("max_unpool1d", (r(1, 1, 2), I[0, :, :1] + 4, 2), {}),
    ("max_unpool3d", (r(1, 1, 2, 2, 2), I.expand(1, 2, 2, 2)[None] + 64, 2), {}),
    # power-average pooling
    ("lp_pool2d", (P, 2, (2,)), {}),
    ("lp_pool2d", (P, 2, (2, 2, 2)), {}),
    ("lp_pool2d", (r(1, 3, 2, 2), 2, 3), {}),
    ("lp_pool2d", (P, 2, 2), {"stride": 0}),
    ("lp_pool1d", (r(1, 3, 8), 2, (2,)), {}),
    ("lp_pool2d", (P, "2", 2), {}),
]


def failure(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[type[BaseException], str] | None:
    try:
        function(*args, **kwargs)
    except Exception as error:
        return type(error), str(error)
    return None


def identify(case: tuple[str, tuple[Any, ...], dict[str, Any]]) -> str:
    name, args, kwargs = case
    words = ["x".join(map(str, each.shape)) if isinstance(each, Tensor) else str(each) for each in args]
    return "-".join([name, *words, *(f"{key}={value}" for key, value in kwargs.items())]).replace(" ", "")


@pytest.mark.parametrize("case", INVALID, ids=identify)
def test_same_error_as_torch(case: tuple[str, tuple[Any, ...], dict[str, Any]]) -> None:
    name, args, kwargs = case
    cnnext.reset_fallbacks()
    expected = failure(getattr(F, name), args, kwargs)
    actual = failure(getattr(functional, name), args, kwargs)
    assert actual == expected
    if expected is not None:  # a few of these torch accepts in some versions: then so must we
        assert cnnext.fallbacks() == {}  # a call that failed was no fallback


def test_the_table_is_of_invalid_calls() -> None:
    accepted = [identify(case) for case in INVALID if failure(getattr(F, case[0]), *case[1:]) is None]
    assert len(accepted) <= 6, accepted


@pytest.mark.parametrize("case", [case for case in INVALID if isinstance(case[1][0], Tensor)], ids=identify)
def test_same_error_where_gradients_are_needed(case: tuple[str, tuple[Any, ...], dict[str, Any]]) -> None:
    name, args, kwargs = case
    args = tuple(
        each.detach().requires_grad_() if isinstance(each, Tensor) and each.is_floating_point() else each
        for each in args
    )
    assert failure(getattr(functional, name), args, kwargs) == failure(getattr(F, name), args, kwargs)


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda library: library.Conv2d(3, 4, 3), (1, 2, 8, 8)),
        (lambda library: library.Conv2d(3, 4, 3, padding=2, padding_mode="circular"), (1, 3, 1, 1)),
        (lambda library: library.Conv2d(3, 4, 3, padding="same", padding_mode="reflect"), (3, 1, 1)),
        (lambda library: library.ConvTranspose2d(3, 4, 3, output_padding=1), (1, 3, 5, 5)),
        (lambda library: library.MaxPool2d(3, padding=2), (1, 3, 8, 8)),
        (lambda library: library.AvgPool3d(9), (1, 3, 8, 8, 8)),
        (lambda library: library.AdaptiveAvgPool2d(2), (8,)),
    ],
)
def test_layers(build: Any, shape: tuple[int, ...]) -> None:
    expected = failure(build(torch.nn), (r(*shape),), {})
    assert expected is not None
    assert failure(build(nn), (r(*shape),), {}) == expected


@pytest.mark.parametrize("name", ["conv", "max_pool"])
def test_unknown_kernel(name: str) -> None:
    message = f"{name} has no kernel 'fastest' for device 'cpu'; there are .*reference$"
    with pytest.raises(ValueError, match=message), cnnext.backends.force_kernel(name, "fastest"):
        pass


def test_unknown_operator() -> None:
    with pytest.raises(ValueError, match=r"there is no operator 'conv2d'; there are conv, .*, max_unpool_grad_input"):
        cnnext.backends.kernels("conv2d")
