"""`cnnext.fuse`: arguments of a forward, what a trace can not follow or does not see, and the errors."""

from __future__ import annotations

import pytest
import test_fuse
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


class Branching(nn.Module):
    """What no trace can follow, around layers."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return y if y.sum() > 0 else -y


class Lowered(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


class Around(nn.Module):
    """Parts in the middle of what is fused. The second shares its weight with code outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.parts = nn.ModuleList(Branching(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)) for _ in range(2))
        self.side = nn.Conv2d(4, 4, 1)  # of what the part after it changes
        self.own = Own()
        self.head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for part in self.parts:
            x = x + part(x)
        side, y = self.side(x), self.own(x)
        return self.head(y * self.own.scale) + F.relu(side) + x


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((4, 1, 1), 1.5))

    def forward(self, x: Tensor) -> Tensor:
        y = x * self.scale
        x += 1  # where the trace sees it, and where it does not
        return y if y.numel() > 0 else x


def test_parts_that_can_not_be_traced_are_called(tmp_path: object) -> None:
    model = calibrated(Around())
    told = (
        r"did not look into parts that torch.fx can not trace: parts.0, parts.1 \(Branching: symbolically traced "
        r"variables .*\); own \(Own: symbolically"
    )
    with pytest.warns(UserWarning, match=told) as caught:
        fused = check(model, torch.randn(2, 3, 4, 4, dtype=torch.float64))
    assert [each.filename for each in caught] == [test_fuse.__file__]
    kinds = {name: type(module).__name__ for name, module in fused.named_modules()}
    assert kinds["stem.0"] == kinds["head.0"] == "FusedConv2d"
    assert type(fused.get_submodule("parts.1.layers.0")) is cnnext.nn.Conv2d and "stem.1" not in kinds
    torch.save(fused, f"{tmp_path}/fused.pt")
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(torch.load(f"{tmp_path}/fused.pt", weights_only=False)(x), model(x))


@pytest.mark.filterwarnings("ignore:cnnext.fuse did not look into parts")
@pytest.mark.parametrize("training", [False, True])
def test_layers_that_such_a_part_calls_too(training: bool) -> None:
    conv, norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
    model = calibrated(nn.Sequential(conv, norm, nn.ReLU(), Branching(conv, norm))).train(training)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(cnnext.fuse(model)(x), model(x))


def test_the_model_itself_can_not_be_traced() -> None:
    with pytest.raises(TraceError, match=r"cnnext.fuse: the forward of Branching can not be traced: symbolically"):
        cnnext.fuse(Branching(nn.ReLU()).eval())
    with pytest.raises(TraceError, match=r"the forward of Lowered can not be traced: it changes autocast, which would"):
        cnnext.fuse(Lowered(nn.Conv2d(3, 4, 1)).eval())


def test_autocast_inside_a_forward() -> None:
    model, x = nn.Sequential(Lowered(nn.Conv2d(3, 4, 1), nn.ReLU()), nn.ReLU()).eval(), torch.ones(1, 3, 2, 2)
    with pytest.warns(UserWarning, match=r"parts .* trace: 0 \(Lowered: it changes autocast, which would be lost\)"):
        fused = cnnext.fuse(model)
    with torch.no_grad():
        assert fused(x).dtype == torch.bfloat16 and torch.equal(fused(x), model(x))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.equal(cnnext.fuse(model)(x), model(x))


def test_subclasses_of_layers_are_fused() -> None:
    class Pointwise(nn.Conv2d):
        def __init__(self, channels: int) -> None:
            super().__init__(channels, channels, 1)

    class Norm(nn.BatchNorm2d):
        pass

    fused = check(calibrated(nn.Sequential(Pointwise(3), Norm(3), nn.ReLU())), torch.randn(2, 3, 4, 4).double())
    assert [type(module) for module in fused.children()] == [cnnext.nn.FusedConv2d]


def test_a_warning_is_the_callers() -> None:
    class Doubled(nn.Conv2d):  # its call of torch's function becomes ours
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    model = nn.Sequential(Doubled(3, 4, 1), nn.MaxPool2d(1)).eval()
    model[1].forward = lambda x: x  # type: ignore[method-assign]
    expected = r"^cnnext\.fuse left alone 1 \(MaxPool2d whose forward was replaced\)$"
    with pytest.warns(UserWarning, match=expected) as caught:
        cnnext.fuse(model)
    assert [each.filename for each in caught] == [__file__]
