"""`cnnext.fuse` of models in training mode: the same steps with fewer passes, under the same names."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from test_fuse import calibrated
from torch import Tensor, nn
from torch.fx.proxy import TraceError
from torch.nn.modules.batchnorm import _BatchNorm

import cnnext
from cnnext import models

# How many batch norms take something in, and how many of these an addition.
FUSED = {"resnet18": (17, 8), "resnet50": (49, 16), "resnext50_32x4d": (49, 16), "mobilenet_v2": (45, 10)}


def counted(model: nn.Module) -> Counter[str]:
    return Counter(type(module).__name__ for module in model.modules())


def in_double(name: str) -> nn.Module:
    model = models.build(name, num_classes=5).double().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, _BatchNorm):  # zeros would stop the gradients of whole branches
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


@pytest.mark.usefixtures("no_fallback")
@pytest.mark.parametrize("name", FUSED)
def test_models_train_as_before(name: str) -> None:
    model = in_double(name)
    expected = copy.deepcopy(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fused = cnnext.fuse(model)
    assert fused.training and fused.state_dict().keys() == before.keys()
    assert counted(fused)["FusedBatchNorm2d"] == FUSED[name][0]
    called = [node for node in fused.graph.nodes if node.op == "call_module"]
    assert sum(len(node.args) == 2 for node in called) == FUSED[name][1]
    assert not any("relu" in str(node.target).rpartition(".")[2] for node in called)
    x = torch.randn(3, 3, 48, 48).double()
    for training in (True, False, True):
        losses = []
        for each in (fused, expected):
            each.train(training)
            each.zero_grad()
            losses.append(each(x).square().sum())
            losses[-1].backward()
        torch.testing.assert_close(losses[0], losses[1])
        for key, found in fused.named_parameters():
            other = expected.get_parameter(key)
            torch.testing.assert_close(found.grad, other.grad, msg=lambda text, key=key: f"{key}: {text}")
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(fused.state_dict()[key], value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    model.load_state_dict(fused.state_dict())
    inference = [cnnext.fuse(each.eval()) for each in (fused, model)]  # what was trained, and what it is loaded into
    with torch.no_grad():
        outputs = [each(x) for each in (expected.eval(), *inference)]
    torch.testing.assert_close(outputs[1:], [outputs[0]] * 2)
    assert not any(isinstance(module, _BatchNorm) for each in inference for module in each.modules())


class Net(nn.Module):
    def __init__(self, body: str) -> None:
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.drop, self.body = nn.Dropout(0.0), body

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.body)(x)

    def leaky(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)) + x, 0.2)

    def two_norms(self, x: Tensor) -> Tensor:  # the second takes the first's result in
        y = self.norm(self.conv(x))
        return torch.relu(self.other(x) + y)

    def read_before(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return F.relu(y) + y

    def called_twice(self, x: Tensor) -> Tensor:
        return self.norm(F.relu(self.norm(x)))

    def written(self, x: Tensor) -> Tensor:
        x = x * 1
        y = self.norm(x)
        x += 1
        return F.relu(y + x)

    def in_place(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        y += x
        return F.relu_(y)

    def dropped(self, x: Tensor) -> Tensor:
        return self.drop(F.relu6(self.norm(x)))

    def by_mode(self, x: Tensor) -> Tensor:
        return self.norm(x) if self.training else x

    def by_argument(self, x: Tensor) -> Tensor:
        return F.dropout(F.relu(self.norm(x)), 0.5, self.training)


FOUND = {"leaky": 1, "two_norms": 1, "read_before": 0, "called_twice": 0, "written": 0, "in_place": 1, "dropped": 1}


@pytest.mark.parametrize("body", FOUND)
def test_what_is_fused(body: str) -> None:
    model = calibrated(Net(body)).train()
    fused, x = cnnext.fuse(model), torch.randn(3, 4, 6, 5).double()
    assert counted(fused)["FusedBatchNorm2d"] == FOUND[body]
    for training in (True, False):
        leaves = [x.clone().requires_grad_(body != "written") for _ in range(2)]
        with torch.set_grad_enabled(body != "written"):  # batch norms keep their input
            outputs = [each.train(training)(leaf) for each, leaf in zip((fused, model), leaves, strict=True)]
        torch.testing.assert_close(*outputs)
        for y in outputs:
            if y.requires_grad:
                y.sum().backward()
        torch.testing.assert_close(leaves[0].grad, leaves[1].grad)
    assert fused.state_dict().keys() <= model.state_dict().keys()
    for key, value in fused.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[key])


@pytest.mark.parametrize("body", ["by_mode", "by_argument"])
def test_a_forward_that_asks_for_its_mode(body: str) -> None:
    model = Net(body).train()
    with pytest.raises(TraceError, match="another one in training than in evaluation"):
        cnnext.fuse(model)
    assert all(module.training for module in model.modules())


class Dropped(nn.Module):
    """Keeps an image's branch or not, as in networks of stochastic depth."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand(len(x), 1, 1, 1).round().to(x) * 2 if self.training else x


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), Dropped())

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + x


def test_parts_that_ask_for_their_mode() -> None:
    model = calibrated(nn.Sequential(Block(), Block(), nn.BatchNorm2d(4), nn.ReLU())).train()
    told = r"trace: 0.branch.3, 1.branch.3 \(Dropped: another forward in training than in evaluation\)$"
    with pytest.warns(UserWarning, match=told):
        fused = cnnext.fuse(model)
    assert counted(fused)["FusedBatchNorm2d"] == 3 and all(module.training for module in fused.modules())
    x = torch.randn(6, 4, 5, 6).double()
    for training in (True, False, True):
        outputs = []
        for each in (fused, model):
            torch.manual_seed(1)
            outputs.append(each.train(training)(x))
        torch.testing.assert_close(*outputs)
    torch.testing.assert_close(dict(fused.named_buffers()), dict(model.named_buffers()))


def test_batch_norms_that_stay_as_they_are() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3), nn.ReLU())
    model[2].eval()  # frozen, as where a detector is trained
    model[4].register_forward_hook(lambda *_: None)
    fused = cnnext.fuse(model)
    assert [type(fused.get_submodule(str(i))).__name__ for i in (0, 2, 4)] == [
        "FusedBatchNorm2d",
        "FusedBatchNorm2d",
        "BatchNorm2d",
    ]
    assert fused.get_submodule("0").training and not fused.get_submodule("2").training
    x = torch.randn(2, 3, 4, 5) + 2
    torch.testing.assert_close(fused(x), model(x))
    assert torch.equal(fused.get_submodule("2").running_mean, torch.zeros(3))
