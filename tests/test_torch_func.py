"""torch.func, batched gradients and forward mode, which C++ autograd Functions cannot pass: left to torch, counted."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as fwAD
import torch.nn.functional as F
from calls import BY_NAME, Call
from kernels import layout
from torch import Tensor

import cnnext
from cnnext import functional

PLAIN = [call for call in BY_NAME.values() if "indices" not in call.name and "unpool" not in call.name]
PLAIN = [call for call in PLAIN if not call.kwargs.get("return_indices")]


def scalar(library: Any, call: Call) -> Callable[..., Tensor]:
    return lambda *tensors: call.run(library, list(tensors)).pow(3).sum()


@pytest.mark.parametrize("call", PLAIN, ids=str)
def test_func_transforms(call: Call) -> None:
    tensors = [each.detach() for each in call.tensors()]
    argnums = tuple(range(len(tensors)))
    tangents = tuple(torch.randn_like(each) for each in tensors)
    ours, torchs = scalar(functional, call), scalar(F, call)
    close = torch.testing.assert_close
    close(torch.func.grad(ours, argnums)(*tensors), torch.func.grad(torchs, argnums)(*tensors))
    close(torch.func.jvp(ours, tuple(tensors), tangents), torch.func.jvp(torchs, tuple(tensors), tangents))
    batch = [torch.stack([each, each + 1, each - 1]) for each in tensors]
    run = lambda library: lambda *given: call.run(library, list(given))  # noqa: E731
    close(torch.func.vmap(run(functional))(*batch), torch.func.vmap(run(F))(*batch))
    dims = (0, *[None] * (len(tensors) - 1))
    per_sample = lambda f: torch.func.vmap(torch.func.grad(f, argnums), dims)  # noqa: E731
    given = (batch[0], *tensors[1:])
    close(per_sample(ours)(*given), per_sample(torchs)(*given))


@pytest.mark.parametrize("name", ["conv1d", "conv_transpose2d", "avg_pool2d"])
def test_jacobian_and_hessian(name: str) -> None:
    call = BY_NAME[name]
    tensors = [each.detach()[..., :4] for each in call.tensors()]
    tensors[0] = tensors[0][:1]
    run = lambda library: lambda x: call.run(library, [x, *tensors[1:]])  # noqa: E731
    torch.testing.assert_close(torch.func.jacrev(run(functional))(tensors[0]), torch.func.jacrev(run(F))(tensors[0]))
    torch.testing.assert_close(torch.func.jacfwd(run(functional))(tensors[0]), torch.func.jacfwd(run(F))(tensors[0]))
    square = lambda library: lambda x: run(library)(x).pow(3).sum()  # noqa: E731
    actual, expected = (torch.func.hessian(square(library))(tensors[0]) for library in (functional, F))
    torch.testing.assert_close(actual, expected)
    assert expected.abs().sum() > 0


@pytest.mark.parametrize("name", ["conv2d", "conv3d", "conv_transpose2d"])
def test_batched_gradients_in_channels_last(name: str) -> None:
    """A gradient of a batch of them has no memory format."""
    call = BY_NAME[name]
    tensors = [layout(t.detach(), True).requires_grad_() for t in call.tensors()]
    ours, torchs = call.run(functional, tensors), call.run(F, tensors)
    grads = torch.randn(3, *ours.shape, dtype=ours.dtype)
    found = [torch.autograd.grad(output, tensors, grads, is_grads_batched=True) for output in (ours, torchs)]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("call", PLAIN, ids=str)
def test_forward_mode(call: Call) -> None:
    tensors = [each.detach() for each in call.tensors()]
    tangents = [torch.randn_like(each) for each in tensors]
    found = []
    for namespace in (functional, F):
        with fwAD.dual_level():
            duals = [fwAD.make_dual(*pair) for pair in zip(tensors, tangents, strict=True)]
            found.append(fwAD.unpack_dual(call.run(namespace, duals)).tangent)
    assert found[0] is not None
    torch.testing.assert_close(found[0], found[1])


def test_fallback_to_aten_is_recorded() -> None:
    cnnext.reset_fallbacks()
    weight = torch.randn(2, 2, 3, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as of a missing batching rule
        torch.func.vmap(lambda x: functional.avg_pool2d(x, 2))(torch.randn(3, 1, 2, 4, 4))
        torch.func.vmap(lambda x: functional.conv_transpose2d(x, weight))(torch.randn(3, 1, 2, 4, 4))
    with fwAD.dual_level():
        functional.conv1d(fwAD.make_dual(torch.randn(1, 2, 5), torch.randn(1, 2, 5)), torch.randn(2, 2, 3))
        x = fwAD.make_dual(torch.randn(1, 2, 4, 4), torch.randn(1, 2, 4, 4))
        functional.adaptive_max_pool2d(x, 2)
        functional.adaptive_max_pool2d_with_indices(x, 2)
    reasons = cnnext.fallbacks()
    maxima = ("adaptive_max_pool", "adaptive_max_pool_with_indices")
    assert len(reasons) == 5
    assert {key.partition(":")[0] for key in reasons} == {"avg_pool", "conv", "conv_transpose", *maxima}


@pytest.mark.parametrize("batched", ["b", "wb", "xb", "xwb"])
@pytest.mark.parametrize("groups", [1, 2])
def test_vmap_of_a_bias_with_one_number_for_all_axes(batched: str, groups: int) -> None:
    """The output is as high as it has channels: a bias along the wrong axis would fit."""
    torch.manual_seed(0)
    shapes = {"x": (2, 4, 6, 5), "w": (6, 4 // groups, 3, 3), "b": (6,)}
    tensors = {k: torch.randn(3, *s) if k in batched else torch.randn(s) for k, s in shapes.items()}
    dims = tuple(0 if k in batched else None for k in shapes)
    ours, torchs = (
        torch.vmap(lambda x, w, b, f=f: f(x, w, b, padding=1, groups=groups), dims)(*tensors.values())
        for f in (functional.conv2d, F.conv2d)
    )
    torch.testing.assert_close(ours, torchs)
    fused = torch.vmap(
        lambda x, w, b: functional.fused_conv2d(x, w, b, padding=1, groups=groups, activation="relu"), dims
    )
    torch.testing.assert_close(fused(*tensors.values()), torchs.relu())
    operator = torch.vmap(lambda x, w, b: torch.ops.cnnext.conv(x, w, b, [1], [1], [1], groups), dims)
    torch.testing.assert_close(operator(*tensors.values()), torchs)
    tensors["w"] = tensors["w"].transpose(-4, -3) if groups == 1 else torch.randn(*tensors["w"].shape[:-4], 4, 3, 3, 3)
    ours, torchs = (
        torch.vmap(lambda x, w, b, f=f: f(x, w, b, padding=1, groups=groups), dims)(*tensors.values())
        for f in (functional.conv_transpose2d, F.conv_transpose2d)
    )
    torch.testing.assert_close(ours, torchs)
