"""The models' layers by the papers: forward passes written out, dropout, auxiliary heads, and initial weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cnnext import models


def on_meta(name, **options):
    with torch.device("meta"):
        return models.build(name, **options)


# Forward passes, from the parameters in their order


def parameters_in_pairs(model):
    parameters = iter(model.parameters())
    return zip(parameters, parameters, strict=True)


def test_lecture_by_hand():
    model = models.lecture(image_size=8).eval()
    x = images = torch.randn(2, 1, 8, 8)
    pairs = list(parameters_in_pairs(model))
    for weight, bias in pairs[:2]:
        x = F.max_pool2d(F.relu(F.conv2d(x, weight, bias, padding=1)), 2)
    x = F.linear(F.relu(F.linear(x.flatten(1), *pairs[2])), *pairs[3])
    torch.testing.assert_close(model(images), x)


def test_vgg_by_hand():
    model = models.vgg16(num_classes=5, hidden=8).eval()
    x = images = torch.randn(1, 3, 40, 40)
    pairs = iter(parameters_in_pairs(model))
    for convolutions in (2, 2, 3, 3, 3):
        for _ in range(convolutions):
            x = F.relu(F.conv2d(x, *next(pairs), padding=1))
        x = F.max_pool2d(x, 2)
    x = F.adaptive_avg_pool2d(x, 7).flatten(1)
    x = F.relu(F.linear(F.relu(F.linear(x, *next(pairs))), *next(pairs)))
    torch.testing.assert_close(model(images), F.linear(x, *next(pairs)))


def test_yolo_by_hand():
    model = models.yolo_v1(num_classes=4, boxes=3, image_size=128, width=0.05, hidden=16).eval()
    x = images = torch.randn(1, 3, 128, 128)
    for layer, (weight, bias) in enumerate(parameters_in_pairs(model.features)):
        stride = 2 if layer in (0, 21) else 1
        x = F.leaky_relu(F.conv2d(x, weight, bias, stride, padding=weight.shape[-1] // 2), 0.1)
        if layer in (0, 1, 5, 15):
            x = F.max_pool2d(x, 2)
    first, second = parameters_in_pairs(model.head)
    x = F.linear(F.leaky_relu(F.linear(x.flatten(1), *first), 0.1), *second)
    torch.testing.assert_close(model(images), x.view(1, 2, 2, 3 * 5 + 4))


@pytest.mark.parametrize("residual", [False, True])
def test_cifar_networks_by_hand(residual):
    model = models.CifarNet(8, residual, num_classes=4)
    parameters = model.parameters()

    def convolution(x, stride=1):
        weight, scale, shift = (next(parameters) for _ in range(3))
        x = F.conv2d(x, weight, None, stride, padding=1)
        return F.batch_norm(x, None, None, scale, shift, training=True)

    images = torch.randn(3, 3, 16, 16)
    x = F.relu(convolution(images))
    for channels, stride in ((16, 1), (32, 2), (64, 2)):
        y = convolution(F.relu(convolution(x, stride)))
        shortcut = x[:, :, ::stride, ::stride]
        shortcut = torch.cat((shortcut, torch.zeros(3, channels - x.shape[1], *shortcut.shape[2:])), 1)
        x = F.relu(y + shortcut if residual else y)
    x = F.linear(x.mean((2, 3)), *parameters)
    torch.testing.assert_close(model.train()(images), x, rtol=1e-4, atol=1e-5)


# Dropout


# Probability and shape without N, in the order of the forward pass.
DROPOUT = {
    "lecture": [(0.5, (128,))],
    "vgg16": [(0.5, (4096,))] * 2,
    "mobilenet_v2": [(0.2, (1280,))],
    "googlenet": [(0.7, (1024,)), (0.7, (1024,)), (0.2, (1024,))],
    "inception_v3": [(0.5, (2048,))],
    "fcn32s": [(0.5, (4096, 7, 7))] * 2,
    "fcn8s": [(0.5, (4096, 7, 7))] * 2,
    "fcn_resnet50": [(0.1, (512, 28, 28)), (0.1, (256, 28, 28))],
    "deeplabv3_resnet50": [(0.5, (256, 28, 28)), (0.1, (256, 28, 28))],
    "yolo_v1": [(0.5, (4096,))],
    "resnet18": [],
    "resnet20": [],
}


def dropout_of(name, **options):
    model, seen = on_meta(name, **options).train(), []
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda module, args, output: seen.append((module.p, (*output.shape[1:],))))
    spec = models.SPECS[name]
    with torch.device("meta"):
        model(torch.empty(2, spec.channels, spec.size, spec.size))
    return seen


@pytest.mark.parametrize("name", DROPOUT)
def test_dropout_in_training(name):
    options = {"aux_loss": True} if name in ("fcn_resnet50", "deeplabv3_resnet50") else {}
    assert dropout_of(name, **options) == DROPOUT[name]


@pytest.mark.parametrize("name", ["lecture", "vgg16", "mobilenet_v2", "inception_v3", "fcn32s", "yolo_v1"])
def test_dropout_that_is_chosen(name):
    assert [p for p, _ in dropout_of(name, dropout=0.25)] == [0.25] * len(DROPOUT[name])


def test_dropout_of_googlenets_heads():
    assert [p for p, _ in dropout_of("googlenet", dropout=0.25, dropout_aux=0.75)] == [0.75, 0.75, 0.25]


# Auxiliary heads


def outputs_of(model, *names):
    """The output of these modules, kept as the model runs."""
    seen = {}
    for name in names:
        hook = lambda module, args, output, name=name: seen.update({name: (args[0], output)})  # noqa: E731
        model.get_submodule(name).register_forward_hook(hook)
    return seen


def test_googlenets_auxiliary_heads():
    """The first on inception 4a, the second on 4d (figure 3 of the paper); the last one's scores come first."""
    model = models.googlenet(num_classes=7)
    seen = outputs_of(model, "inception4a", "inception4d", "aux1", "aux2", "fc")
    outputs = model(torch.randn(2, 3, 64, 64))
    assert seen["aux1"][0] is seen["inception4a"][1]
    assert seen["aux2"][0] is seen["inception4d"][1]
    assert outputs.logits is outputs[0] is seen["fc"][1]
    assert outputs.aux_logits2 is outputs[1] is seen["aux2"][1]
    assert outputs.aux_logits1 is outputs[2] is seen["aux1"][1]


def test_inceptions_auxiliary_head():
    model = on_meta("inception_v3", num_classes=7)
    seen = outputs_of(model, "Mixed_6e", "AuxLogits", "fc")
    with torch.device("meta"):
        outputs = model(torch.empty(2, 3, 299, 299))
    assert seen["AuxLogits"][0] is seen["Mixed_6e"][1]
    assert outputs.logits is seen["fc"][1]
    assert outputs.aux_logits is seen["AuxLogits"][1]


@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_resnet50"])
def test_segmentations_auxiliary_head(name):
    model = on_meta(name, aux_loss=True)
    seen = outputs_of(model, "backbone.layer3", "backbone.layer4", "classifier", "aux_classifier")
    with torch.device("meta"):
        assert list(model(torch.empty(2, 3, 32, 32))) == ["out", "aux"]
    assert seen["aux_classifier"][0] is seen["backbone.layer3"][1]
    assert seen["classifier"][0] is seen["backbone.layer4"][1]


# Initial weights


def fan_in(weight):
    return weight[0].numel()


def fan_out(weight):
    return weight.shape[0] * weight[0, 0].numel()


def torchs(weight):
    """The deviation of torch's own start, uniform."""
    return (1 / (3 * fan_in(weight))) ** 0.5


def he(fan, slope=0.0):
    """The deviation of He et al. (https://arxiv.org/abs/1502.01852), normal."""
    return lambda weight: (2 / (1 + slope**2) / fan(weight)) ** 0.5


def fixed(deviation):
    return lambda weight: deviation


# Options, deviations of convolutions' and fully connected layers' weights, whether their biases are zero.
INITIAL = {
    "lecture": ({}, torchs, torchs, False),
    "resnet20": ({}, he(fan_out), torchs, False),
    "resnet18": ({}, he(fan_out), torchs, False),
    "googlenet": ({}, fixed(0.01), fixed(0.01), False),
    "inception_v3": ({}, fixed(0.1), fixed(0.1), False),
    "mobilenet_v2": ({}, he(fan_out), fixed(0.01), True),
    "vgg16": ({"hidden": 64}, he(fan_out), fixed(0.01), True),
    "fcn32s": ({"hidden": 32}, he(fan_in), None, True),
    "yolo_v1": ({"width": 0.25, "hidden": 64, "image_size": 64}, he(fan_in, 0.1), torchs, False),
}
# Layers that start otherwise.
OTHERS = {
    "inception_v3": {"AuxLogits.conv1.conv": fixed(0.01), "AuxLogits.fc": fixed(0.001)},
    "fcn32s": {"classifier.6": fixed(0.0), "upsample": None},  # bilinear: see test_models_fcn.py
}


@pytest.mark.parametrize("name", INITIAL)
def test_initial_weights(name):
    options, convolution, linear, no_bias = INITIAL[name]
    torch.manual_seed(0)
    standard = []
    for path, module in models.build(name, **options).named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and not module.bias.any()
        if not isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            continue
        kind = linear if isinstance(module, nn.Linear) else convolution
        rule = OTHERS.get(name, {}).get(path, kind)
        if rule is None:
            continue
        weight, expected = module.weight.detach().flatten(), rule(module.weight)
        assert abs(float(weight.std()) - expected) <= 4 * expected / (2 * len(weight)) ** 0.5, path
        assert abs(float(weight.mean())) <= 4 * expected / len(weight) ** 0.5, path
        if expected and len(weight) > 1000:
            far = float((weight.abs() > 2 * expected).float().mean())  # a uniform distribution ends at 1.73
            assert far == 0 if rule is torchs else far > 0.02, path
        if expected and kind is convolution and rule is kind:
            standard.append(weight / expected)
        if module.bias is not None:
            bound = 0 if no_bias else fan_in(module.weight) ** -0.5
            assert bound / 3 <= module.bias.abs().max() <= bound, path
    everything = torch.cat(standard)
    assert abs(float(everything.std()) - 1) <= 4 / (2 * len(everything)) ** 0.5


def test_fcn8s_scores_start_at_zero():
    model = models.FCN(8, num_classes=3, hidden=8)
    for layer in (model.score_pool3, model.score_pool4, model.classifier[6]):
        assert not layer.weight.any() and not layer.bias.any()
