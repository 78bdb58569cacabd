"""`cnnext.fuse`: arguments of a forward, what a trace can not follow or does not see, and the errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_fuse import calibrated, check
from torch import Tensor, nn
from torch.fx.proxy import TraceError

import cnnext


class Options(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor, skip: Tensor | None = None, double: bool = False, scale: float = 1.0) -> Tensor:
        y = self.conv(x)
        if skip is not None:
            y = y + skip.abs()
        if double:
            y = y * 2
        return F.relu(y) * scale


def test_arguments_that_are_none_or_a_bool_by_default_stay_so(tmp_path: object) -> None:
    model = calibrated(Options())
    fused = check(model, torch.randn(1, 3, 4, 4, dtype=torch.float64))
    torch.save(fused, f"{tmp_path}/fused.pt")
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    for each in (fused, torch.load(f"{tmp_path}/fused.pt", weights_only=False)):
        torch.testing.assert_close(each(x, None, double=False, scale=3.0), model(x, scale=3.0))
        with pytest.raises(ValueError, match="expected skip=None, with which the model was traced, but got a tensor"):
            each(x, x)
        with pytest.raises(ValueError, match="expected double=False, with which the model was traced, but got True"):
            each(x, double=True)


def test_what_a_trace_does_not_see() -> None:
    hooked, replaced = nn.Sequential(nn.ReLU()).eval(), nn.Sequential(nn.ReLU()).eval()
    hooked.register_forward_hook(lambda module, args, output: output * 2)
    replaced.forward = lambda x: x  # type: ignore[method-assign]
    compiled = torch.compile(nn.Sequential(nn.ReLU()).eval(), backend="eager")
    for model in (hooked, replaced, compiled):
        with pytest.raises(ValueError, match="expected a model without hooks, whose forward is neither replaced nor"):
            cnnext.fuse(model)

    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x * self.calls

    with pytest.raises(
        TraceError, match=r"forward changes the buffer 0\.calls, which a trace would do once and for all"
    ):
        cnnext.fuse(nn.Sequential(Counted()).eval())


def test_an_error_names_the_layer() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    model = nn.Sequential(nn.Sequential(nn.ReLU(), Branching())).eval()
    with pytest.raises(
        TraceError, match=r"cnnext.fuse: the forward of Branching \(0.1\) can not be traced: symbolically"
    ):
        cnnext.fuse(model)
    with pytest.raises(TraceError, match=r"the forward of Branching can not be traced"):
        cnnext.fuse(model[0][1])


def test_autocast_inside_a_forward() -> None:
    class Lowered(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x)

    model = nn.Sequential(Lowered(nn.Conv2d(3, 4, 1), nn.ReLU())).eval()
    with pytest.raises(TraceError, match=r"Lowered \(0\) can not be traced: it changes autocast, which would be lost"):
        cnnext.fuse(model)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.equal(cnnext.fuse(model)(torch.ones(1, 3, 2, 2)), model(torch.ones(1, 3, 2, 2)))


def test_a_warning_is_the_callers() -> None:
    class Own(nn.Conv2d):
        pass

    with pytest.warns(UserWarning, match=r"cnnext\.fuse left alone 0 \(.*Own, a subclass of Conv2d\)") as caught:
        cnnext.fuse(nn.Sequential(Own(3, 4, 1)).eval())
    assert [each.filename for each in caught] == [__file__]
