"""`cnnext.fuse`: the same outputs with fewer layers, and nothing moved over what it must not pass."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import cnnext
from cnnext import models

IMAGES = {"lecture": (2, 1, 28, 28), "inception_v3": (2, 3, 107, 107), "yolo_v1": (1, 3, 448, 448)}


def calibrated(model: nn.Module) -> nn.Module:
    """In eval mode and float64, with batch norms that are no identity."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.double().eval()


def fused_layers(model: nn.Module) -> Counter[str]:
    return Counter(type(module).__name__ for module in model.modules())


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        found = model(x)
    found = found.values() if isinstance(found, dict) else found
    return [found] if isinstance(found, Tensor) else list(found)


def check(model: nn.Module, x: Tensor) -> torch.fx.GraphModule:
    """Fuses a model and compares it with the model, whose state stays as it was."""
    given, before = x.clone(), {name: value.clone() for name, value in model.state_dict().items()}
    expected = outputs(model, x.clone())
    fused = cnnext.fuse(model)
    torch.testing.assert_close(outputs(fused, x), expected)
    assert torch.equal(x, given)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(after[name], value) for name, value in before.items())
    return fused


@pytest.mark.parametrize("name", models.names())
def test_models(name: str) -> None:
    model = calibrated(models.build(name))
    fused = check(model, torch.randn(IMAGES.get(name, (2, 3, 64, 64)), dtype=torch.float64))
    run = [
        each for each, module in model.named_modules() if isinstance(module, nn.Conv2d) and "aux" not in each.lower()
    ]
    assert sum(isinstance(module, nn.Conv2d) for module in fused.modules()) == len(run)
    assert not any(isinstance(module, _BatchNorm) for module in fused.modules())


def test_a_resnet_is_convolutions_and_pooling() -> None:
    model = calibrated(cnnext.revert(models.build("resnet18")))
    fused = check(model, torch.randn(1, 3, 64, 64, dtype=torch.float64))
    ops = Counter(str(node.op) for node in fused.graph.nodes)
    assert ops["call_function"] == 1  # flatten
    assert fused_layers(fused)["FusedConv2d"] == 17 and fused_layers(fused)["Conv2d"] == 3
    assert sum(len(node.args) == 2 for node in fused.graph.nodes if node.op == "call_module") == 8
    assert type(fused).__name__ == "ResNet" and type(model.conv1) is nn.Conv2d


class Net(nn.Module):
    """Two convolutions of as many channels, and what a test makes of them."""

    def __init__(self, body: str) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.norm, self.relu, self.add = nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Sigmoid()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.body)(x)

    def every_kind(self, x: Tensor) -> Tensor:
        return F.leaky_relu(torch.relu(F.relu6(self.relu(self.norm(self.a(x)))) + x) + self.b(x), 0.2)

    def written_input(self, x: Tensor) -> Tensor:  # the second convolution reads x before it is written
        x = x + 1
        y = self.b(x)
        x = x.relu_()
        return torch.relu(y + x)

    def written_shortcut(self, x: Tensor) -> Tensor:
        x = x + 1
        shortcut = self.a(x)
        x += self.b(shortcut)
        return torch.relu(self.a(x) + x)

    def read_twice(self, x: Tensor) -> Tensor:
        y = self.b(x)
        return F.relu(y) + y

    def read_after_norm(self, x: Tensor) -> Tensor:
        y = self.norm(self.b(x))
        return F.relu(y).sum() + y

    def called_twice(self, x: Tensor) -> Tensor:
        return F.relu(self.a(F.relu(self.a(x))))

    def named_as_functions(self, x: Tensor) -> Tensor:
        return self.add(self.b(x))

    def broadcast(self, x: Tensor) -> Tensor:
        return F.relu(self.b(x) + x.mean((2, 3), keepdim=True))

    def number(self, x: Tensor) -> Tensor:
        return F.relu(self.b(x) + 1.0)

    def scaled(self, x: Tensor) -> Tensor:
        return F.relu(torch.add(self.b(x), x, alpha=2))

    def itself(self, x: Tensor) -> Tensor:
        y = self.b(x)
        return F.relu(y + y)

    def size(self, x: Tensor) -> Tensor:
        return F.relu(self.b(x) + x.shape[0])


BODIES = {  # and how many FusedConv2d are made of each
    "every_kind": 2,
    "written_input": 0,
    "written_shortcut": 1,  # in a trace x += y is x = x + y
    "read_twice": 0,
    "read_after_norm": 0,
    "called_twice": 0,
    "named_as_functions": 0,
    "broadcast": 1,
    "number": 0,
    "scaled": 0,
    "itself": 0,
    "size": 1,
}


@pytest.mark.parametrize("body", BODIES)
def test_what_follows_a_convolution(body: str) -> None:
    fused = check(calibrated(Net(body)), torch.randn(2, 4, 6, 5, dtype=torch.float64))
    assert fused_layers(fused)["FusedConv2d"] == BODIES[body]


def test_an_addition_that_writes_its_shortcut_stays() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = x * 1
            y += self.conv(x)
            return F.relu(y) + y

    check(calibrated(Written()), torch.randn(1, 4, 3, 3, dtype=torch.float64))


def test_layers_with_hooks_stay() -> None:
    model = calibrated(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU()))
    model[0].register_forward_hook(lambda module, args, output: output * 2)
    model[3].register_forward_pre_hook(lambda module, args: (args[0] - 1,))
    fused = check(model, torch.randn(1, 3, 4, 4, dtype=torch.float64))
    assert fused_layers(fused)["FusedConv2d"] == 0


@pytest.mark.parametrize("dims", [1, 3])
def test_one_and_three_dimensions(dims: int) -> None:
    conv, norm = getattr(nn, f"Conv{dims}d"), getattr(nn, f"BatchNorm{dims}d")
    model = calibrated(nn.Sequential(conv(3, 8, 3, bias=False), norm(8), nn.LeakyReLU(0.1)))
    fused = check(model, torch.randn(2, 3, *[6] * dims, dtype=torch.float64))
    assert fused_layers(fused)[f"FusedConv{dims}d"] == 1 and len(list(fused.children())) == 1


def test_norms_without_statistics_stay() -> None:
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    fused = check(nn.Sequential(nn.Conv2d(3, 4, 1), norm).double().eval(), torch.randn(2, 3, 4, 4).double())
    assert fused_layers(fused)["BatchNorm2d"] == 1


def test_gradients_pass_through_a_fused_model() -> None:
    model = calibrated(models.build("resnet18"))
    x = torch.randn(1, 3, 48, 48, dtype=torch.float64)
    grads = []
    for each in (model, cnnext.fuse(model)):
        given = x.clone().requires_grad_()
        each(given).sum().backward()
        grads.append(given.grad)
    torch.testing.assert_close(*grads)


def test_channels_last_and_float32_give_the_rounding_of_single_steps() -> None:
    model = calibrated(models.build("resnet18")).float().to(memory_format=torch.channels_last)
    fused = cnnext.fuse(model)
    x = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        exact = model.double()(x.double())
        assert (fused(x) - exact).abs().max() < 1e-5 * exact.abs().max()
        assert all(w.is_contiguous(memory_format=torch.channels_last) for w in fused.parameters() if w.dim() == 4)


def test_saved_compiled_and_exported(tmp_path: object) -> None:
    fused = cnnext.fuse(calibrated(models.build("resnet18"))).float()
    x = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        expected = fused(x)
        torch.save(fused, f"{tmp_path}/fused.pt")
        again = torch.load(f"{tmp_path}/fused.pt", weights_only=False)
        assert torch.equal(again(x), expected)
        exported = torch.export.export(fused, (x,))
        assert sum("fused_conv" in str(node.target) for node in exported.graph.nodes) == 17
        torch.testing.assert_close(exported.module()(x), expected)
        in_aten = exported.run_decompositions(cnnext.decompositions())
        assert not any("cnnext" in str(node.target) for node in in_aten.graph.nodes)
        torch.testing.assert_close(in_aten.module()(x), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(torch.compile(fused, backend="aot_eager")(x), expected)


def test_errors() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match="expected a model in eval mode, but the model is in training mode"):
        cnnext.fuse(model)
    model.eval()[1].train()
    with pytest.raises(ValueError, match="but 1 is in training mode"):
        cnnext.fuse(model)
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got function"):
        cnnext.fuse(F.relu)  # type: ignore[arg-type]


def test_profile_of_a_fused_model() -> None:
    pytest.importorskip("rich")
    fused = cnnext.fuse(nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2)).eval())
    found = cnnext.profile(fused, torch.randn(1, 3, 20, 20), min_time=0.01)
    assert [layer["label"] for layer in found.layers] == ["3→8 3x3/2 @20", "max 2x2/2 8 @9"]
