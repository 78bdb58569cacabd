"""The models: torchvision's parameters, the papers' shapes, and the same results after `cnnext.convert`."""

from __future__ import annotations

import copy
import hashlib

import pytest
import torch
from torch import nn

import cnnext
from cnnext import backends, models
from cnnext.models.googlenet import imagenet_to_unit_range
from cnnext.models.inception import InceptionAux

# Parameters, and the state_dict's names and shapes as `digest` has them. Where torchvision has the model, both were
# taken from torchvision 0.28.
MODELS = {
    "lecture": (421_642, "9d7b1b7814b531de"),
    "plain20": (269_722, "28a0d5e26aad4d86"),
    "plain56": (853_018, "58531dd8472cd8f1"),
    "resnet20": (269_722, "28a0d5e26aad4d86"),
    "resnet56": (853_018, "58531dd8472cd8f1"),
    "resnet18": (11_689_512, "84fb10d9c6905a1c"),
    "resnet34": (21_797_672, "28f9096d51307499"),
    "resnet50": (25_557_032, "d7e4f8bb0a536344"),
    "resnet101": (44_549_160, "02c0f34f4842751f"),
    "resnet152": (60_192_808, "685c66205bc823aa"),
    "resnext50_32x4d": (25_028_904, "e3bad165c034e60f"),
    "googlenet": (13_004_888, "7f541ca29410efb1"),
    "vgg16": (138_357_544, "35c4623e0cd4a39d"),
    "vgg16_bn": (138_365_992, "347371586a8ea365"),
    "mobilenet_v2": (3_504_872, "37bbbce8932fd0c4"),
    "inception_v3": (27_161_264, "aab0ac2cbaf84aa2"),
    "fcn32s": (136_152_917, "a09fd40d9123de59"),
    "fcn16s": (134_815_994, "f33db2f0f8a992df"),
    "fcn8s": (134_489_759, "69017a12b94a0b02"),
    "fcn_resnet50": (32_957_013, "0c41f22cc800b8ce"),
    "deeplabv3_resnet50": (39_638_869, "c1e485a49718d37e"),
    "yolo_v1": (271_703_550, "6e7e3d14b21c6218"),
}
WITH_OPTIONS = {
    ("googlenet", "aux_logits", False): 6_624_904,
    ("inception_v3", "aux_logits", False): 23_834_568,
    ("fcn_resnet50", "aux_loss", True): 35_322_218,
    ("deeplabv3_resnet50", "aux_loss", True): 42_004_074,
}


def relative_error(result, reference):
    return float(((result.double() - reference).norm() / reference.norm()).detach())


def on_meta(name, **options):
    with torch.device("meta"):
        return models.build(name, **options)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def digest(model):
    lines = [f"{name} {tuple(tensor.shape)}" for name, tensor in model.state_dict().items()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def test_every_model_is_listed():
    assert set(models.names()) == set(MODELS)
    by_task = [name for task in ("classification", "segmentation", "detection") for name in models.names(task)]
    assert sorted(by_task) == sorted(models.names())
    assert models.names("detection") == ["yolo_v1"]


@pytest.mark.parametrize("name", models.names())
def test_parameters_names_and_shapes(name):
    model = on_meta(name)
    assert (count(model), digest(model)) == MODELS[name]


def fill(model):
    """The same values into models with the same state_dict, of sizes that keep activations near one."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            values = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            if tensor.dim() > 1:
                values = (values - 0.5) * (24 / tensor[0].numel()) ** 0.5
            elif name.endswith(("running_mean", "bias")):
                values = (values - 0.5) / 2
            else:
                values = values + 0.5
            tensor.copy_(values)


# What torchvision 0.28's models answer, filled alike, to a picture: some scores, and the norm of all.
ANSWERS = {
    "resnet18": (-1.812279, 2.930254, 569.2997),
    "resnext50_32x4d": (467.9204, -308.7168, 47918.04),
    "googlenet": (-3.802474, 2.255466, 102.7604),
    "mobilenet_v2": (0.7395107, -0.09644785, 103.3097),
    "inception_v3": (-0.09704121, -0.8084098, 16.05056, 0.6714662, 1.306739, 28.75739),
    "fcn_resnet50": (1612.611, 1612.611, 174409.1, 57.99848, 57.99848, 72020.63),
    "deeplabv3_resnet50": (-166.7913, -166.7913, 144407.3, -196.0827, -196.0827, 81386.11),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_are_torchvisions(name):
    model = models.build(name, **({"aux_loss": True} if name in models.names("segmentation") else {})).double().eval()
    fill(model)
    size = 75 if name == "inception_v3" else 40
    picture = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        answers = [head.flatten() for head in heads(model, picture)]
        if name == "inception_v3":
            features = picture[0, 0, :17, :17].expand(1, 768, 17, 17)
            answers.append(model.AuxLogits(features).flatten())
    found = [number for answer in answers for number in (*answer[:2].tolist(), float(answer.norm()))]
    assert found == pytest.approx(ANSWERS[name], rel=1e-6)


@pytest.mark.parametrize(("name", "option", "value"), WITH_OPTIONS)
def test_parameters_with_options(name, option, value):
    assert count(on_meta(name, **{option: value})) == WITH_OPTIONS[name, option, value]


@pytest.mark.parametrize("name", models.names())
def test_shape_at_the_size_it_was_made_for(name):
    spec = models.SPECS[name]
    with torch.device("meta"):
        output = on_meta(name).eval()(torch.empty(2, spec.channels, spec.size, spec.size))
    if spec.task == "classification":
        assert output.shape == (2, 1000 if spec.size > 32 else 10)
    elif spec.task == "segmentation":
        assert (output["out"] if isinstance(output, dict) else output).shape == (2, 21, spec.size, spec.size)
    else:
        assert output.shape == (2, 7, 7, 30)


def test_build_names_what_there_is():
    with pytest.raises(ValueError, match=r"no model is named 'alexnet'; there are lecture, "):
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
    transformed = imagenet_to_unit_range((image - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))
    torch.testing.assert_close(transformed, (image - 0.5) / 0.5, rtol=1e-5, atol=1e-5)


# Small enough for float64 in a second: options, and the images' size.
SMALL = {
    "lecture": ({}, 28),
    "plain20": ({}, 16),
    "resnet20": ({}, 16),
    "resnet18": ({}, 64),
    "resnet50": ({}, 64),
    "resnext50_32x4d": ({}, 64),
    "googlenet": ({}, 64),
    "vgg16": ({"hidden": 32}, 32),
    "mobilenet_v2": ({}, 64),
    "inception_v3": ({"aux_logits": False}, 75),
    "fcn32s": ({"hidden": 16, "batch_norm": True}, 33),
    "fcn8s": ({"hidden": 16, "batch_norm": True}, 33),
    "fcn_resnet50": ({"aux_loss": True}, 24),
    "deeplabv3_resnet50": ({"aux_loss": True}, 24),
    "yolo_v1": ({"width": 0.125, "hidden": 32, "batch_norm": True, "image_size": 128}, 128),
}
BOTH_LAYOUTS = ("resnet18", "resnet50", "resnext50_32x4d", "googlenet")
OURS = tuple(getattr(cnnext.nn, name) for name in cnnext.nn._LAYERS)


def heads(model, x):
    outputs = model(x)
    if isinstance(outputs, torch.Tensor):
        return (outputs,)
    return tuple(outputs.values() if isinstance(outputs, dict) else outputs)


@pytest.mark.parametrize(
    ("name", "layout"),
    [(name, torch.contiguous_format) for name in SMALL] + [(name, torch.channels_last) for name in BOTH_LAYOUTS],
)
def test_forward_and_backward_agree_with_torchs_layers(name, layout):
    options, size = SMALL[name]
    # In float64: in float32 a last-digit difference flips ReLUs, and gradients then differ by per cents.
    ours = models.build(name, num_classes=10, **options).double().to(memory_format=layout)
    for module in ours.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # masks would depend on the order of calls
    for parameter in ours.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.01)  # scores that start at zero would let no gradient pass
    theirs = cnnext.revert(copy.deepcopy(ours))
    kinds = (nn.modules.conv._ConvNd, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
    assert all(isinstance(module, OURS) for module in ours.modules() if isinstance(module, kinds))
    assert not any(isinstance(module, OURS) for module in theirs.modules())

    x = torch.randn(2, models.SPECS[name].channels, size, size, dtype=torch.float64).to(memory_format=layout)
    backends.reset_fallbacks()
    results = {}
    for key, model in (("ours", ours), ("theirs", theirs)):
        results[key] = heads(model, x)
        torch.stack([head.square().sum() for head in results[key]]).sum().backward()
    assert backends.fallbacks() == {}
    for mine, other in zip(results["ours"], results["theirs"], strict=True):
        assert relative_error(mine, other) < 1e-8
    for (key, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert mine.grad.stride() == other.grad.stride(), key
        assert (mine.grad - other.grad).norm() <= 1e-6 * other.grad.norm() + 1e-8, key
        assert torch.isfinite(mine.grad).all(), key


@pytest.mark.parametrize("name", ["resnet18", "googlenet"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_float32_predicts_the_same(name, layout):
    exact = cnnext.revert(models.build(name, num_classes=10)).double().eval()
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


def test_inception_outputs():
    with torch.device("meta"):
        outputs = on_meta("inception_v3", num_classes=7)(torch.empty(2, 3, 299, 299))
    assert outputs._fields == ("logits", "aux_logits")
    assert [head.shape for head in outputs] == [(2, 7)] * 2
    head = InceptionAux(16, 7)
    head(torch.randn(2, 16, 17, 17)).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in head.parameters())


def test_lecture_and_cifar_options():
    assert models.lecture(in_channels=3, image_size=32)(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(ValueError, match="image_size should be a positive multiple of 4, got 30"):
        models.lecture(image_size=30)
    with pytest.raises(ValueError, match="depth should be 6n \\+ 2 such as 20 or 56, got 21"):
        models.CifarNet(21, residual=True)


def test_only_the_residual_twin_passes_its_input_on():
    plain, residual = models.plain20(in_channels=1).eval(), models.resnet20(in_channels=1).eval()
    residual.load_state_dict(plain.state_dict())  # the same layers
    x = torch.rand(1, 16, 8, 8)
    for net, passed in ((plain, False), (residual, True)):
        block = net.layer1[0]
        nn.init.zeros_(block.bn2.weight)
        assert torch.equal(block(x), x if passed else torch.zeros_like(x))
    shortcut = residual.layer2[0].shortcut(x)
    assert shortcut.shape == (1, 32, 4, 4)
    assert torch.equal(shortcut[:, :16], x[:, :, ::2, ::2])
    assert not shortcut[:, 16:].any()
