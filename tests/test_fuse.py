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

# Heads of 4096 numbers, which nothing is fused into, would take most of the time.
HEADS = {name: {"hidden": 64} for name in ("vgg16", "vgg16_bn", "fcn32s", "fcn16s", "fcn8s", "yolo_v1")}
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
    """Fuses a model and compares it with the model, which stays as it was."""
    given, before = x.clone(), {name: value.clone() for name, value in model.state_dict().items()}
    expected = outputs(model, x.clone())
    fused = cnnext.fuse(model)
    torch.testing.assert_close(outputs(fused, x), expected)
    assert torch.equal(x, given)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(after[name], value) for name, value in before.items())
    torch.testing.assert_close(outputs(model, x.clone()), expected)
    return fused


@pytest.mark.parametrize("name", models.names())
def test_models(name: str) -> None:
    model = calibrated(models.build(name, **HEADS.get(name, {})))
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


@torch.fx.wrap
def double(x: Tensor) -> None:
    x.mul_(2)


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

    def written_by_another_name(self, x: Tensor) -> Tensor:
        y = x = x + 1
        y += self.b(x)
        return torch.relu(self.a(x) + y)

    def scaled_by_another_name(self, x: Tensor) -> Tensor:
        y = x = x + 1
        y *= 2
        y -= 1
        y /= 3
        return torch.relu(self.b(x))

    def numbers_have_no_other_name(self, x: Tensor) -> Tensor:
        height = bottom = x.shape[2]
        bottom += 1
        return torch.relu(self.b(x)) * height + bottom

    def written_items(self, x: Tensor) -> Tensor:
        x = x + 1
        y = self.b(x)
        x[:, 1:3] = x[:, :2]
        return torch.relu(y + x)

    def written_by_an_operator(self, x: Tensor) -> Tensor:
        x = x + 1
        y = self.b(x)
        torch.ops.aten.relu_.default(x)
        return torch.relu(y + x)

    def written_by_a_wrapped_function(self, x: Tensor) -> Tensor:
        x = x + 1
        y = self.b(x)
        double(x)
        return torch.relu(y + x)

    def weight_read(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.b(x))) + F.conv2d(x, self.b.weight)

    def called_with_another_end(self, x: Tensor) -> Tensor:
        return F.relu(self.b(x)) + self.b(x)

    def summed_with_itself(self, x: Tensor) -> Tensor:
        return F.relu(self.b(x) + self.b(x + 1))

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
    "written_shortcut": 0,
    "read_twice": 0,
    "read_after_norm": 0,
    "called_twice": 1,
    "named_as_functions": 0,
    "broadcast": 1,
    "written_by_another_name": 1,
    "scaled_by_another_name": 1,
    "numbers_have_no_other_name": 1,
    "written_items": 0,
    "written_by_an_operator": 0,
    "written_by_a_wrapped_function": 0,
    "weight_read": 0,
    "called_with_another_end": 0,
    "summed_with_itself": 0,
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


def test_layers_with_a_forward_of_their_own_stay() -> None:
    model = calibrated(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.ReLU()))
    model[1].forward = lambda x: x * 3
    model[3].forward = lambda x: x - 1
    check(model, torch.randn(1, 3, 4, 4, dtype=torch.float64))


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


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_norms_of_transposed_convolutions(dims: int, groups: int) -> None:
    conv, norm = getattr(nn, f"ConvTranspose{dims}d"), getattr(nn, f"BatchNorm{dims}d")
    model = calibrated(nn.Sequential(conv(4, 6, 3, 2, groups=groups, bias=groups == 1), norm(6), nn.ReLU()))
    fused = check(model, torch.randn(2, 4, *[5] * dims, dtype=torch.float64))
    assert [type(each).__name__ for each in fused.children()] == [f"ConvTranspose{dims}d", "ReLU"]


def test_an_output_size_stays() -> None:
    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.ConvTranspose2d(4, 4, 2, 2), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x, output_size=[2 * x.shape[2] + 1, 2 * x.shape[3]]))

    fused = check(calibrated(Up()), torch.randn(1, 4, 3, 5, dtype=torch.float64))
    assert fused_layers(fused)["BatchNorm2d"] == 0


def test_identities_dropout_and_synchronised_norms_go() -> None:
    between = [nn.SyncBatchNorm(4), nn.Dropout2d(), nn.Identity(), nn.LeakyReLU(0.1)]
    model = calibrated(nn.Sequential(nn.Conv2d(3, 4, 3), *between, nn.Conv2d(4, 4, 1), nn.Dropout(), nn.ReLU()))
    fused = check(model, torch.randn(2, 3, 5, 5, dtype=torch.float64))
    assert [type(each).__name__ for each in fused.children()] == ["FusedConv2d", "FusedConv2d"]
    model[6].train()  # dropout that is meant
    assert [type(each).__name__ for each in cnnext.fuse(model).children()] == [
        "FusedConv2d",
        "Conv2d",
        "Dropout",
        "ReLU",
    ]


def test_arguments_by_name() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.act = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.LeakyReLU(0.3)

        def forward(self, x: Tensor) -> Tensor:
            return self.act(input=self.norm(input=self.conv(x)))

    fused = check(calibrated(Named()), torch.randn(1, 3, 4, 4, dtype=torch.float64))
    assert [type(each).__name__ for each in fused.children()] == ["FusedConv2d"]


@pytest.mark.parametrize("body", ["written_by_another_name", "scaled_by_another_name", "written_items"])
def test_writes_are_saved(body: str, tmp_path: object) -> None:
    fused, x = cnnext.fuse(calibrated(Net(body))), torch.randn(2, 4, 6, 5, dtype=torch.float64)
    torch.save(fused, f"{tmp_path}/fused.pt")
    again = torch.load(f"{tmp_path}/fused.pt", weights_only=False)
    assert torch.equal(again(x), fused(x))
    torch.testing.assert_close(torch.export.export(fused, (x,)).module()(x), fused(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_are_rounded_once(dtype: torch.dtype) -> None:
    model = calibrated(nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16))).to(dtype)
    conv, norm = model.double()
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    fused = next(cnnext.fuse(model.to(dtype)).children())
    expected = (conv.double().weight * scale.view(-1, 1, 1, 1)).to(dtype)
    assert (fused.weight == expected).float().mean() > 0.99
    norm.to(dtype).running_var.fill_(0)
    norm.eps = 1e-9  # none at all in float16
    assert all(each.isfinite().all() for each in cnnext.fuse(model.to(dtype)).parameters())


@pytest.mark.parametrize("trained", [True, False])
def test_parametrized_weights_are_computed_once(trained: bool) -> None:
    layers = [nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 3), nn.Conv2d(4, 4, 1), nn.ReLU()]
    nn.utils.parametrizations.weight_norm(layers[0])
    nn.utils.parametrizations.spectral_norm(layers[1])
    nn.utils.parametrize.register_parametrization(layers[2], "bias", nn.Softplus())
    model = calibrated(nn.Sequential(*layers)).requires_grad_(trained)
    fused = check(model, torch.randn(1, 3, 5, 5, dtype=torch.float64))
    assert [type(each).__name__ for each in fused.children()] == ["Conv2d", "ConvTranspose2d", "FusedConv2d"]
    assert fused.state_dict().keys() == {f"{i}.{name}" for i in range(3) for name in ("weight", "bias")}


def test_calls_of_functions_become_ours(tmp_path: object, no_fallback: None) -> None:
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4, 3, 3))

        def forward(self, x: Tensor) -> list[Tensor]:
            y = F.conv_transpose2d(F.conv2d(x, self.weight, padding="same"), self.weight)
            y, indices = F.max_pool2d(F.max_pool2d(y, 2, ceil_mode=True), 2, return_indices=True)
            y = F.avg_pool2d(F.max_unpool2d(y, indices, 2), 2, count_include_pad=False)
            largest, where = F.adaptive_max_pool2d(y, 2, return_indices=True)
            return [F.adaptive_avg_pool2d(y, 1), largest, where, F.max_pool1d(y[0], 2)]

    x = torch.randn(2, 4, 10, 10, dtype=torch.float64)
    fused = check(calibrated(Calls()), x)
    targets = [node.target for node in fused.graph.nodes if node.op == "call_function"]
    assert sum(getattr(each, "__module__", "") == "cnnext.functional" for each in targets) == 9
    torch.save(fused, f"{tmp_path}/fused.pt")
    torch.testing.assert_close(torch.load(f"{tmp_path}/fused.pt", weights_only=False)(x), fused(x))


def test_fused_in_inference_mode() -> None:
    model = calibrated(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()))
    with torch.inference_mode():
        fused = cnnext.fuse(model)
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    fused(x).sum().backward()
    assert x.grad is not None


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
    model = nn.Sequential(nn.Dropout(), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model.eval()[0].train()
    model[2].train()
    with pytest.raises(ValueError, match="in eval mode, but its batch norm 2 in training mode"):
        cnnext.fuse(model)
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got function"):
        cnnext.fuse(F.relu)  # type: ignore[arg-type]


@pytest.mark.parametrize("lazy", [0, 1])
def test_lazy_layers_are_to_run_first(lazy: int) -> None:
    layers = [nn.LazyConv2d(4, 1), nn.BatchNorm2d(4)] if lazy == 0 else [nn.Conv2d(3, 4, 1), nn.LazyBatchNorm2d()]
    model = nn.Sequential(*layers).eval()
    with pytest.raises(ValueError, match=rf"the size of {lazy}\.weight is not known yet: run the model once first"):
        cnnext.fuse(model)
    model(torch.randn(1, 3, 4, 4))
    assert "BatchNorm2d" not in fused_layers(cnnext.fuse(model))


def test_profile_of_a_fused_model() -> None:
    pytest.importorskip("rich")
    fused = cnnext.fuse(nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2)).eval())
    found = cnnext.profile(fused, torch.randn(1, 3, 20, 20), min_time=0.01)
    assert [layer["label"] for layer in found.layers] == ["3→8 3x3/2 @20", "max 2x2/2 8 @9"]
