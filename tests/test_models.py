"""The models: torchvision's parameters, the papers' shapes, and the same results after `cnnext.convert`."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import cnnext
from cnnext import models

PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "googlenet": 13_004_888,
}


def relative_error(result, reference):
    return float((result.double() - reference).norm() / reference.norm())


def on_meta(name, **options):
    with torch.device("meta"):
        return models.build(name, **options)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", models.names())
def test_parameter_count(name):
    assert count(on_meta(name)) == PARAMETERS[name]


def test_parameter_count_without_aux():
    assert count(on_meta("googlenet", aux_logits=False)) == 6_624_904


# Names and sizes as in torchvision's checkpoints.
STATE = {
    "resnet18": {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.running_var": (64,),
        "bn1.num_batches_tracked": (),
        "layer1.1.conv2.weight": (64, 64, 3, 3),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "layer2.0.downsample.1.running_mean": (128,),
        "layer4.1.bn2.bias": (512,),
        "fc.weight": (1000, 512),
    },
    "resnet50": {
        "conv1.weight": (64, 3, 7, 7),
        "layer1.0.conv1.weight": (64, 64, 1, 1),
        "layer1.0.conv3.weight": (256, 64, 1, 1),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer1.2.conv1.weight": (64, 256, 1, 1),
        "layer3.5.conv2.weight": (256, 256, 3, 3),
        "layer4.0.downsample.0.weight": (2048, 1024, 1, 1),
        "layer4.2.bn3.running_var": (2048,),
        "fc.weight": (1000, 2048),
        "fc.bias": (1000,),
    },
    "resnext50_32x4d": {
        "layer1.0.conv1.weight": (128, 64, 1, 1),
        "layer1.0.conv2.weight": (128, 4, 3, 3),
        "layer4.2.conv2.weight": (1024, 32, 3, 3),
    },
    "googlenet": {
        "conv1.conv.weight": (64, 3, 7, 7),
        "conv1.bn.running_mean": (64,),
        "conv3.conv.weight": (192, 64, 3, 3),
        "inception3a.branch1.conv.weight": (64, 192, 1, 1),
        "inception3a.branch2.0.conv.weight": (96, 192, 1, 1),
        "inception3a.branch2.1.conv.weight": (128, 96, 3, 3),
        "inception3a.branch3.1.conv.weight": (32, 16, 3, 3),
        "inception3a.branch4.1.conv.weight": (32, 192, 1, 1),
        "inception3b.branch3.1.bn.weight": (96,),
        "inception4e.branch4.1.conv.weight": (128, 528, 1, 1),
        "inception5b.branch2.1.conv.weight": (384, 192, 3, 3),
        "aux1.conv.conv.weight": (128, 512, 1, 1),
        "aux1.conv.bn.num_batches_tracked": (),
        "aux2.conv.conv.weight": (128, 528, 1, 1),
        "aux1.fc1.weight": (1024, 2048),
        "aux2.fc2.bias": (1000,),
        "fc.weight": (1000, 1024),
    },
}
# Each convolution and linear layer has its entries, each batch norm five.
ENTRIES = {"resnet18": 122, "resnet50": 320, "googlenet": 59 * 6 + 2 + 2 * 4}


@pytest.mark.parametrize("name", STATE)
def test_state_dict_is_torchvisions(name):
    state = on_meta(name).state_dict()
    assert {key: tuple(state[key].shape) for key in STATE[name] if key in state} == STATE[name]
    if name in ENTRIES:
        assert len(state) == ENTRIES[name]


def test_build_names_what_there_is():
    with pytest.raises(ValueError, match=r"no model is named 'alexnet'; there are resnet18, "):
        models.build("alexnet")


@pytest.mark.parametrize(("name", "maps"), [("resnet50", {"layer1": 56, "layer4": 7}), ("googlenet", {"maxpool3": 14})])
def test_shapes_at_224(name, maps):
    model = on_meta(name).eval()
    seen = {}
    for part in maps:
        module = model.get_submodule(part)
        module.register_forward_hook(lambda module, args, output, part=part: seen.update({part: output.shape[-1]}))
    with torch.device("meta"):
        assert model(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
    assert seen == maps


def test_dilation_replaces_stride():
    model = on_meta("resnet50", replace_stride_with_dilation=(False, True, True))
    assert [model.layer4[i].conv2.dilation for i in range(3)] == [(2, 2), (4, 4), (4, 4)]
    x = torch.empty(1, 3, 224, 224, device="meta")
    features = nn.Sequential(*list(model.children())[:-2])
    assert features(x).shape == (1, 2048, 28, 28)
    with pytest.raises(ValueError, match="should have 3 entries, got 2"):
        on_meta("resnet50", replace_stride_with_dilation=(False, True))
    with pytest.raises(ValueError, match="BasicBlock only supports"):
        on_meta("resnet18", width_per_group=128)


def test_zero_init_residual_makes_blocks_the_identity():
    torch.manual_seed(0)
    block = models.resnet50(zero_init_residual=True).layer1[1].eval()
    x = torch.rand(1, 256, 5, 5)
    assert torch.equal(block(x), x)


def test_googlenet_outputs():
    model = models.googlenet(num_classes=7)
    outputs = model(torch.randn(2, 3, 64, 64))
    assert type(outputs).__name__ == "GoogLeNetOutputs"
    assert outputs._fields == ("logits", "aux_logits2", "aux_logits1")
    assert [head.shape for head in outputs] == [(2, 7)] * 3
    sum(head.sum() for head in outputs).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert isinstance(model.eval()(torch.randn(1, 3, 64, 64)), torch.Tensor)
    assert isinstance(models.googlenet(aux_logits=False)(torch.randn(2, 3, 64, 64)), torch.Tensor)


def test_googlenet_transform_input():
    image = torch.rand(1, 3, 4, 4)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    model = on_meta("googlenet", transform_input=True)
    transformed = model._transform_input((image - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))
    torch.testing.assert_close(transformed, (image - 0.5) / 0.5, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "googlenet"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_converted_model_agrees(name, layout):
    torch.manual_seed(0)
    options = {"dropout": 0.0, "dropout_aux": 0.0} if name == "googlenet" else {}
    # In float64: in float32 a last-digit difference flips ReLUs, and gradients then differ by per cents.
    theirs = models.build(name, num_classes=10, **options).double().to(memory_format=layout)
    ours = cnnext.convert(copy.deepcopy(theirs))
    kinds = (nn.Conv2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d)
    swapped = [module for module in ours.modules() if isinstance(module, kinds)]
    assert len(swapped) > 20
    assert all(type(module).__module__.startswith("cnnext") for module in swapped)
    assert list(ours.state_dict()) == list(theirs.state_dict())

    x = torch.randn(2, 3, 64, 64, dtype=torch.float64).to(memory_format=layout)
    heads = {}
    for key, model in (("theirs", theirs), ("ours", ours)):
        outputs = model(x)
        heads[key] = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.stack([head.square().sum() for head in heads[key]]).sum().backward()
    for mine, other in zip(heads["ours"], heads["theirs"], strict=True):
        assert relative_error(mine, other) < 1e-8
    for (key, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert mine.grad.stride() == other.grad.stride(), key
        assert (mine.grad - other.grad).norm() <= 1e-6 * other.grad.norm() + 1e-8, key


@pytest.mark.parametrize("name", ["resnet18", "googlenet"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_converted_float32_model_predicts_the_same(name, layout):
    torch.manual_seed(0)
    exact = models.build(name, num_classes=10).double().eval()
    theirs = copy.deepcopy(exact).float().to(memory_format=layout)
    ours = cnnext.convert(copy.deepcopy(theirs))
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        reference = exact(x.double())
        error = {
            key: relative_error(model(x.to(memory_format=layout)), reference)
            for key, model in (("theirs", theirs), ("ours", ours))
        }
    assert error["ours"] <= 4 * error["theirs"] + 1e-6
