"""FCN: bilinear start, VGG's weights, sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cnnext import models
from cnnext.models.fcn import bilinear_kernel

SMALL = {"num_classes": 3, "hidden": 8}


@pytest.mark.parametrize("factor", [2, 8, 16, 32])
def test_transposed_convolution_starts_as_bilinear_interpolation(factor):
    x = torch.rand(1, 3, 5, 6)
    upsampled = F.conv_transpose2d(x, bilinear_kernel(3, factor), stride=factor, padding=factor // 2)
    expected = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    inside = (..., slice(factor, -factor), slice(factor, -factor))  # interpolate repeats the edge, we see zeros there
    torch.testing.assert_close(upsampled[inside], expected[inside], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_every_upsampling_layer_starts_bilinear(stride):
    model = models.FCN(stride, **SMALL)
    layers = {name: layer for name, layer in model.named_children() if name.startswith("upsample")}
    factors = {"upsample": stride, "upsample_pool5": 2, "upsample_pool4": 2}
    assert len(layers) == {32: 1, 16: 2, 8: 3}[stride]
    for name, layer in layers.items():
        assert torch.equal(layer.weight, bilinear_kernel(3, factors[name]))


@pytest.mark.parametrize("stride", [32, 16, 8])
@pytest.mark.parametrize("size", [(32, 32), (33, 50), (5, 64)])
def test_scores_every_pixel(stride, size):
    model = models.FCN(stride, **SMALL)
    scores = model(torch.rand(1, 3, *size))
    assert scores.shape == (1, 3, *size)
    assert not scores.any()  # undecided at first
    scores.square().sum().backward()


def test_finer_scores_join():
    """A change of a fine score moves only pixels near it: 8x8 with the two bilinear steps around them."""
    model = models.FCN(8, **SMALL).eval()
    with torch.no_grad():
        before = model(torch.zeros(1, 3, 64, 64))
        seen = {}
        model.score_pool3.register_forward_hook(lambda module, args, output: seen.update(output=output))
        model(torch.zeros(1, 3, 64, 64))
        assert seen["output"].shape == (1, 3, 8, 8)

        def nudge(module, args, output):
            output = output.clone()
            output[0, 1, 4, 4] += 1
            return output

        model.score_pool3.register_forward_hook(nudge)
        difference = model(torch.zeros(1, 3, 64, 64)) - before
    rows, columns = difference[0, 1].nonzero(as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (28, 43, 28, 43)
    assert not difference[0, [0, 2]].any()


def test_takes_the_weights_of_vgg():
    """In the middle of its padded 7x7 input the first layer of the head sees what VGG's fully connected layer does."""
    vgg = models.vgg16(num_classes=3, hidden=8, dropout=0.0).eval()
    model = models.FCN(32, **SMALL).eval()
    model.load_vgg(vgg)
    with torch.no_grad():
        features = torch.rand(1, 512, 7, 7)
        expected = vgg.classifier[:5](features.flatten(1))
        torch.testing.assert_close(model.classifier[:5](features)[:, :, 3, 3], expected)
        x = torch.rand(1, 3, 32, 32)
        torch.testing.assert_close(model.features(x), vgg.features(x))
    with pytest.raises(RuntimeError, match="size mismatch"):
        models.FCN(32, hidden=16).load_vgg(vgg)


def test_rejects_other_strides():
    with pytest.raises(ValueError, match="stride should be 32, 16 or 8, got 4"):
        models.FCN(4)
