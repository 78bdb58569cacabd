"""What docs/dropin.md says of tools that need torch's layers: script, fx, quantisation, checkpoints, DTensor."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_torch_integration import r
from torch import Tensor, distributed
from torch.ao import quantization
from torch.fx.experimental import optimization
from torch.utils.checkpoint import (
    CheckpointError,
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import cnnext
from cnnext import backends, functional, nn


def test_script_takes_reverted_layers_only() -> None:
    model = cnnext.convert(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.MaxPool2d(2)))
    x = r(1, 3, 8, 8)
    expected = model(x)
    with pytest.raises(
        torch.jit.frontend.NotSupportedError, match="Compiled functions can't take variable number of arguments"
    ):
        torch.jit.script(model)
    traced = torch.jit.trace(model, x)
    assert "cnnext::conv" in str(traced.inlined_graph)
    assert torch.equal(traced(x), expected)
    scripted = torch.jit.script(cnnext.revert(model))
    with pytest.warns(UserWarning, match="left alone"):
        cnnext.convert(scripted)
    with cnnext.override() as redirection:
        torch.testing.assert_close(scripted(x), expected)
    assert redirection.redirected == {}


def test_fx_traces_and_fuses_before_convert_only() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()
    fused = cnnext.convert(optimization.fuse(model))
    assert cnnext.conversion_report(fused) == {"0": "cnnext"}
    assert not any(isinstance(each, torch.nn.BatchNorm2d) for each in fused.modules())
    late = optimization.fuse(cnnext.convert(model))
    assert "batch_norm" in late.code
    assert cnnext.conversion_report(late) == {}
    x = r(1, 3, 8, 8)
    torch.testing.assert_close(fused(x), late(x))
    backends.reset_fallbacks()
    with backends.flags(enabled=False):
        late(x)
    assert backends.fallbacks() == {f"{op}: cnnext is disabled": 1 for op in ("conv", "batch_norm")}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fusion_for_quantization_before_convert_only() -> None:
    def model() -> torch.nn.Sequential:
        return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU()).eval()

    names = ["0", "1", "2"]
    with pytest.raises(AssertionError, match="did not find fuser method for"):
        quantization.fuse_modules(cnnext.convert(model()), names)
    fused = cnnext.convert(quantization.fuse_modules(model(), names))
    assert cnnext.conversion_report(fused) == {"0.0": "cnnext"}
    reverted = quantization.fuse_modules(cnnext.revert(cnnext.convert(model())), names)
    assert type(reverted[0]) is torch.ao.nn.intrinsic.ConvReLU2d


def test_selective_checkpoint_names_our_operator() -> None:
    layer, calls = nn.Conv2d(3, 4, 3), []

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append((op, context.is_recompute))
        return CheckpointPolicy.MUST_SAVE if op == torch.ops.cnnext.conv.default else CheckpointPolicy.MUST_RECOMPUTE

    contexts = functools.partial(create_selective_checkpoint_contexts, policy)
    checkpoint(lambda x: layer(x).sin(), r(1, 3, 8, 8, grad=True), use_reentrant=False, context_fn=contexts).sum()
    assert (torch.ops.cnnext.conv.default, False) in calls
    assert not any(op.namespace == "aten" and "conv" in op._schema.name for op, _ in calls)


def test_checkpoint_needs_the_block_inside() -> None:
    model, x = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.MaxPool2d(2)), r(1, 3, 8, 8, grad=True)

    def overridden(x: Tensor) -> Tensor:
        with cnnext.override():
            return model(x)

    checkpoint(overridden, x, use_reentrant=False).sum().backward()
    with cnnext.override(), pytest.raises(CheckpointError, match="Recomputed values for the following tensors"):
        checkpoint(model, x, use_reentrant=False).sum().backward()


@pytest.mark.skipif(not distributed.is_available(), reason="torch was built without distributed")
def test_dtensors_are_left_to_torch_by_hand_only() -> None:
    from torch.distributed.tensor import Replicate, Shard, distribute_module, distribute_tensor

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = distributed.init_device_mesh("cpu", (1,))
        x, w = (distribute_tensor(each, mesh, [Shard(0)]) for each in (r(2, 4, 8, 8), r(4, 4, 3, 3)))
        w = w.redistribute(placements=[Replicate()])
        expected = F.conv2d(x, w).to_local()
        with pytest.raises(NotImplementedError, match=r"cnnext.conv.default does not have a sharding strategy"):
            functional.conv2d(x, w)
        with backends.flags(enabled=False):
            assert torch.equal(functional.conv2d(x, w).to_local(), expected)
        layer = cnnext.convert(torch.nn.Conv2d(4, 4, 3))
        module = distribute_module(cnnext.revert(layer), mesh)
        assert module(x).shape == expected.shape
    finally:
        distributed.destroy_process_group()
