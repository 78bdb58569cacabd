"""`cnnext.fuse` on blocks of networks that `cnnext.models` does not hold: what becomes of each, and its outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_fuse import calibrated, check, fused_layers
from torch import Tensor, nn


class Block(nn.Module):
    """A forward and the modules that it uses."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **modules: nn.Module) -> None:
        super().__init__()
        self.body = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def conv(channels: int, outputs: int, kernel: int = 1, act: nn.Module | None = None, **options: Any) -> nn.Sequential:
    norm = nn.BatchNorm2d(outputs)
    layer = nn.Conv2d(channels, outputs, kernel, padding=kernel // 2, bias=False, **options)
    return nn.Sequential(layer, norm) if act is None else nn.Sequential(layer, norm, act)


def csp() -> nn.Module:
    """YOLO's cross-stage partial block, and a top-down path that is upsampled and concatenated."""

    def forward(self: Any, x: Tensor) -> Tensor:
        a, b = self.enter(x).chunk(2, 1)
        b = b + self.second(self.first(b))
        y = self.leave(torch.cat((a, b), 1))
        return self.neck(torch.cat((F.interpolate(self.down(y), scale_factor=2.0), y), 1))

    act = nn.LeakyReLU(0.1, inplace=True)
    parts = {"enter": conv(4, 8, 1, act), "first": conv(4, 4, 3, act), "second": conv(4, 4, 3), "leave": conv(8, 4)}
    return Block(forward, **parts, down=conv(4, 4, 3, nn.SiLU(), stride=2), neck=conv(8, 4, 1, act))


def squeeze_excitation() -> nn.Module:
    """MobileNetV3 and EfficientNet: gates, activations that are no epilogue, dropped paths."""

    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        y = y * F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(y, 1)))))
        return self.drop(self.project(y)) + x

    parts = {"expand": conv(4, 8, 1, nn.Hardswish(True)), "depthwise": conv(8, 8, 3, nn.SiLU(True), groups=8)}
    return Block(
        forward, **parts, down=nn.Conv2d(8, 2, 1), up=nn.Conv2d(2, 8, 1), project=conv(8, 4), drop=nn.Dropout2d()
    )


def dense() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.second(F.relu(self.norm2(self.first(F.relu(self.norm1(x))))))
        return torch.cat((x, y), 1)

    parts = {"norm1": nn.BatchNorm2d(4), "norm2": nn.BatchNorm2d(8)}
    return Block(forward, **parts, first=nn.Conv2d(4, 8, 1, bias=False), second=nn.Conv2d(8, 4, 3, padding=1))


def unet() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        skip = self.left(x)
        y = self.up(self.bottom(F.max_pool2d(skip, 2)))
        return self.head(torch.cat((skip, y), 1))

    up = nn.Sequential(nn.ConvTranspose2d(8, 4, 2, 2, groups=2), nn.BatchNorm2d(4), nn.ReLU(True))
    parts = {"left": conv(4, 4, 3, nn.ReLU(True)), "bottom": conv(4, 8, 3, nn.ReLU(True)), "up": up}
    return Block(forward, **parts, head=nn.Conv2d(8, 2, 1))


def shuffle() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        y = torch.cat((a, self.last(self.depthwise(self.first(b)))), 1)
        n, c, h, w = y.size()
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, -1, h, w)

    act = nn.ReLU(inplace=True)
    return Block(forward, first=conv(2, 2, 1, act), depthwise=conv(2, 2, 3, groups=2), last=conv(2, 2, 1, act))


def convnext() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.second(F.gelu(self.first(y))).permute(0, 3, 1, 2)

    parts = {"norm": nn.LayerNorm(4), "first": nn.Linear(4, 16), "second": nn.Linear(16, 4)}
    return Block(forward, **parts, depthwise=nn.Conv2d(4, 4, 7, padding=3, groups=4))


def branches() -> nn.Module:
    """RepVGG before it is merged: 3x3, 1x1 and the identity, each with its norm."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return F.relu(self.wide(x) + self.narrow(x) + self.norm(x))

    return Block(forward, wide=conv(4, 4, 3), narrow=conv(4, 4), norm=nn.BatchNorm2d(4))


def twins() -> nn.Module:
    """One encoder for two pictures, as in stereo matching and tracking."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return (self.encoder(x) - self.encoder(x.flip(3))).abs()

    residual = Block(lambda self, x: F.relu(self.conv(x) + x), conv=conv(4, 4, 3))
    return Block(forward, encoder=nn.Sequential(conv(4, 4, 3, nn.ReLU(True)), residual, nn.Conv2d(4, 4, 1)))


def pyramid() -> nn.Module:
    """One head for several levels, as in RetinaNet and FCOS; lateral sums that write their operand."""

    def forward(self: Any, x: Tensor) -> list[Tensor]:
        fine, coarse = self.fine(x), self.coarse(F.max_pool2d(x, 2))
        kept = fine
        fine += F.interpolate(coarse, scale_factor=2.0)
        return [self.head(each) for each in (kept, fine, coarse)]

    head = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    return Block(forward, fine=nn.Conv2d(4, 4, 1), coarse=nn.Conv2d(4, 4, 1), head=head)


def temporal_shift() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[:-1, :1] = x[1:, :1]
        y[1:, 1:2] = x[:-1, 1:2]
        y[:, 2:] = x[:, 2:]
        return F.relu(self.conv(y) + x)

    return Block(forward, conv=conv(4, 4, 3))


def weights_in_use() -> nn.Module:
    """A decoder with the encoder's weight: that weight takes in no norm."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return F.conv_transpose2d(F.relu(self.norm(self.conv(x))), self.conv.weight, padding=1)

    return Block(forward, conv=nn.Conv2d(4, 8, 3, padding=1), norm=nn.BatchNorm2d(8))


class NormAct(nn.BatchNorm2d):
    """timm's batch norm: a layer that activates too, by functions."""

    def __init__(self, channels: int, act: nn.Module | None = None) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), act or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, f"expected 4D input (got {x.ndim}D input)")
        by_batch = self.training or self.running_mean is None
        y = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, by_batch, 0.1, self.eps)
        return self.act(self.drop(y))


def norms_that_activate() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.norm2(self.second(self.norm1(self.first(x))))
        z = self.norm3(self.third(x) * 2)  # not of a convolution
        return F.relu(y + x) + F.batch_norm(self.fourth(z), self.mean(z), self.mean(z).abs())

    parts = {f"norm{i}": NormAct(4, nn.ReLU() if i == 1 else None) for i in (1, 2, 3)}
    layers = {name: nn.Conv2d(4, 4, 1) for name in ("first", "second", "third", "fourth")}
    return Block(forward, **parts, **layers, mean=Block(lambda self, x: x.mean((0, 2, 3))))


class Frozen(nn.Module):
    """torchvision's and DETR's batch norm of a detector's backbone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, mean, variance = (each.reshape(1, -1, 1, 1) for each in self.buffers())
        scale = weight * (variance + 1e-5).rsqrt()
        return x * scale + (bias - mean * scale)


def frozen() -> nn.Module:
    """Also a layer's scale alone, one before the convolution, one for each pixel, and one of another convolution."""

    def forward(self: Any, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.first(x)))
        y = F.relu(self.norm2(self.second(y)) + x)
        y = F.relu(self.third(self.norm1(y)) * self.scale)
        return F.relu(self.fourth(y) * self.pixels) + self.shared(y) * self.scale + self.shared(x) * self.other

    layers = {
        name: nn.Conv2d(4, 4, 1, bias=name == "first") for name in ("first", "second", "third", "fourth", "shared")
    }
    block = Block(forward, norm1=Frozen(4), norm2=Frozen(4), **layers)
    for name, shape in (("scale", (4, 1, 1)), ("other", (4, 1, 1)), ("pixels", (4, 8, 6))):
        block.register_parameter(name, nn.Parameter(torch.rand(shape)))
    return block


FAMILIES: dict[Callable[[], nn.Module], dict[str, int]] = {  # and layers after fusing
    csp: {"FusedConv2d": 4, "Conv2d": 2, "SiLU": 1},
    squeeze_excitation: {"FusedConv2d": 2, "Conv2d": 3, "Hardswish": 1, "SiLU": 1},
    dense: {"FusedConv2d": 1, "Conv2d": 1, "BatchNorm2d": 1},
    unet: {"FusedConv2d": 2, "Conv2d": 1, "ConvTranspose2d": 1, "ReLU": 1},
    shuffle: {"FusedConv2d": 2, "Conv2d": 1},
    convnext: {"Conv2d": 1, "LayerNorm": 1, "Linear": 2},
    branches: {"FusedConv2d": 1, "Conv2d": 1, "BatchNorm2d": 1},
    twins: {"FusedConv2d": 2, "Conv2d": 1},
    pyramid: {"FusedConv2d": 1, "Conv2d": 3},
    temporal_shift: {"FusedConv2d": 1},
    weights_in_use: {"Conv2d": 1, "BatchNorm2d": 1},
    norms_that_activate: {"FusedConv2d": 2, "Conv2d": 2},
    frozen: {"FusedConv2d": 3, "Conv2d": 2},
}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_family(family: Callable[[], nn.Module]) -> None:
    fused = check(calibrated(family()), torch.randn(2, 4, 8, 6, dtype=torch.float64))
    leaves = Counter(
        {name: count for name, count in fused_layers(fused).items() if hasattr(nn, name) or "Fused" in name}
    )
    assert leaves - Counter({"Module": leaves["Module"]}) == FAMILIES[family]
    read = {node.target for node in fused.graph.nodes if node.op == "get_attr"}
    assert {name for name in fused.state_dict() if "constant" in name} <= read
