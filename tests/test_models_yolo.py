"""YOLO v1: its loss term by term, boxes, suppression, and that it learns."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from cnnext import models
from cnnext.models.yolo import (
    YOLO,
    Detections,
    Target,
    decode,
    draw,
    encode,
    iou,
    non_maximum_suppression,
    yolo_loss,
)

pytest.importorskip("PIL", reason="drawn shapes need Pillow")
from cnnext.train.shapes import NAMES, drawn_shapes


def random_boxes(count):
    corners = torch.rand(count, 2, 2).sort(1).values
    return corners.flatten(1)


def output_of(*boxes, classes=2):
    """What makes one cell, the whole image, predict these boxes with confidence 1, 0.9, ... of class 0."""
    output = torch.zeros(1, 1, 1, len(boxes) * 5 + classes)
    for index, (left, top, right, bottom) in enumerate(boxes):
        size = ((right - left) ** 0.5, (bottom - top) ** 0.5)
        values = ((left + right) / 2, (top + bottom) / 2, *size, 1 - index / 10)
        output[..., 5 * index : 5 * index + 5] = torch.tensor(values)
    output[..., -classes] = 1
    return output


def test_has_the_papers_convolutions():
    with torch.device("meta"):
        model = models.yolo_v1()
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 24
    assert [conv.out_channels for conv in convolutions[:6]] == [64, 192, 128, 256, 256, 512]
    assert sum(isinstance(module, nn.MaxPool2d) for module in model.modules()) == 4
    with pytest.raises(ValueError, match="image_size should be a positive multiple of 64, got 400"):
        YOLO(image_size=400)


def test_iou():
    a = torch.tensor([[0.0, 0.0, 0.4, 0.4]])
    b = torch.tensor([[0.0, 0.0, 0.4, 0.4], [0.2, 0.2, 0.6, 0.6], [0.4, 0.0, 0.8, 0.4], [0.1, 0.1, 0.1, 0.1]])
    torch.testing.assert_close(iou(a, b), torch.tensor([1, 0.04 / 0.28, 0, 0]))
    assert iou(b[3], b[3]) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_iou_of_empty_and_of_small_boxes(dtype):
    size = 2**-11 if dtype == torch.float16 else 2**-20
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.0, 0.0, size, size]], dtype=dtype, requires_grad=True)
    overlap = iou(boxes, boxes.detach())
    assert overlap.tolist() == [0, 1]
    overlap.sum().backward()
    assert boxes.grad.isfinite().all()


def test_decoding_inverts_encoding():
    target = Target(torch.tensor([[0.05, 0.1, 0.4, 0.3], [0.5, 0.5, 1.0, 0.9]]), torch.tensor([4, 1]))
    boxes, labels = encode([target], grid=7)
    assert labels[0, 1, 1] == 4  # row 1: centre at 0.2 of the height; column 1: 0.225 of the width
    assert labels[0, 4, 5] == 1
    assert (labels >= 0).sum() == 2
    output = torch.zeros(1, 7, 7, 2 * 5 + 6)
    output[..., 5:9] = boxes  # the second box
    output[..., 9] = torch.where(labels == 4, 0.9, 0.8) * (labels >= 0)
    output[..., 10:] = nn.functional.one_hot(labels.clamp(min=0), 6)
    (found,) = decode(output, num_classes=6)
    torch.testing.assert_close(found.boxes, target.boxes)
    assert found.labels.tolist() == [4, 1]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.8]))
    assert len(decode(output, 6, threshold=0.85)[0].boxes) == 1


def loss_by_the_paper(output, targets, classes):
    """Equation 3 with loops."""
    grid = output.shape[1]
    loss = torch.zeros((), dtype=output.dtype)
    for image, target in enumerate(targets):
        owner = {}
        for number, box in enumerate(target.boxes):
            x, y = (box[:2] + box[2:]) / 2 * grid
            owner[int(y), int(x)] = number
        for row in range(grid):
            for column in range(grid):
                cell = output[image, row, column]
                predicted = [cell[5 * b : 5 * b + 5] for b in range((len(cell) - classes) // 5)]
                number = owner.get((row, column))
                if number is None:
                    loss = loss + sum(0.5 * box[4] ** 2 for box in predicted)
                    continue
                left, top, right, bottom = target.boxes[number].tolist()
                overlaps = []
                for box in predicted:
                    x, y = (box[0] + column) / grid, (box[1] + row) / grid
                    w, h = box[2] ** 2, box[3] ** 2
                    corners = torch.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2))
                    overlaps.append(float(iou(corners, target.boxes[number]).detach()))
                best = overlaps.index(max(overlaps))
                for b, box in enumerate(predicted):
                    if b != best:
                        loss = loss + 0.5 * box[4] ** 2
                        continue
                    x, y = (left + right) / 2 * grid - column, (top + bottom) / 2 * grid - row
                    loss = loss + 5 * ((box[0] - x) ** 2 + (box[1] - y) ** 2)
                    loss = loss + 5 * ((box[2] - (right - left) ** 0.5) ** 2 + (box[3] - (bottom - top) ** 0.5) ** 2)
                    loss = loss + (box[4] - overlaps[b]) ** 2
                for index in range(classes):
                    wanted = float(index == target.labels[number])
                    loss = loss + (cell[len(cell) - classes + index] - wanted) ** 2
    return loss / len(targets)


def test_loss_is_the_papers():
    output = torch.rand(3, 4, 4, 2 * 5 + 6, dtype=torch.float64, requires_grad=True)
    boxes = [random_boxes(count).double() for count in (1, 3, 5)]
    targets = [Target(each, torch.randint(6, (len(each),))) for each in boxes]
    loss, expected = yolo_loss(output, targets, 6), loss_by_the_paper(output, targets, 6)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(each, output)[0] for each in (loss, expected)))


def test_loss_without_objects():
    output = torch.ones(1, 2, 2, 7, requires_grad=True)
    loss = yolo_loss(output, [Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))], 2)
    assert loss == 4 * 0.5
    loss.backward()
    assert output.grad.count_nonzero() == 4  # the confidences alone


BOX = [0.1, 0.2, 0.5, 0.75]


EXCHANGED, PIXELS, NAN = [0.5, 0.25, 0.125, 1.0], [32.0, 64.0, 100.0, 200.0], [float("nan")] * 4


@pytest.mark.parametrize(
    ("boxes", "labels", "message"),
    [
        ([BOX, EXCHANGED], [0, 1], "boxes {} (left, top, right, bottom), got (0.5, 0.25, 0.125, 1.0)"),
        ([NAN], [0], "boxes {} (left, top, right, bottom), got (nan, nan, nan, nan)"),
        ([PIXELS], [0], "boxes {} parts of the image from 0 to 1, got (32.0, 64.0, 100.0, 200.0)"),
        (BOX, [0], "boxes {} floating-point numbers [n, 4], got torch.float32 [4]"),
        ([[0, 0, 1, 1]], [0], "boxes {} floating-point numbers [n, 4], got torch.int64 [1, 4]"),
        ([BOX], [-1], "labels {} from 0 to 1, got -1"),
        ([BOX], [2], "labels {} from 0 to 1, got 2"),
        ([BOX], [1.0], "labels {} int64 [1], got torch.float32 [1]"),
        ([BOX], [0, 1], "labels {} int64 [1], got torch.int64 [2]"),
    ],
)
def test_loss_of_wrong_targets(boxes, labels, message):
    right, wrong = Target(torch.tensor([BOX]), torch.tensor([1])), Target(torch.tensor(boxes), torch.tensor(labels))
    with pytest.raises(ValueError, match=re.escape(message.format("of image 1 to be"))):
        yolo_loss(torch.ones(2, 2, 2, 7), [right, wrong], 2)


def test_wrong_number_of_targets_and_classes():
    output, target = torch.ones(1, 2, 2, 7), Target(torch.tensor([BOX]), torch.tensor([1]))
    with pytest.raises(ValueError, match="expected one target for each of 1 images, got 2"):
        yolo_loss(output, [target, target], 2)
    message = r"expected an output \[N, S, S, B \* 5 \+ C\] with C = 3, got \[1, 2, 2, 7\]"
    for call in (lambda: yolo_loss(output, [target], 3), lambda: decode(output, 3)):
        with pytest.raises(ValueError, match=message):
            call()
    rounded = torch.tensor([[0.2, 0.3, 1.000001, 1.0]])
    assert yolo_loss(output, [Target(rounded, torch.tensor([1]))], 2).isfinite()


def test_detection_in_training_is_that_of_evaluation():
    model = YOLO(num_classes=6, image_size=64, width=0.01, hidden=8, batch_norm=True).train()
    model.features[1].eval()  # as one freezes a batch norm
    modes = {name: module.training for name, module in model.named_modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.rand(3, 3, 64, 64)
    found = model.detect(images, threshold=-100.0)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for each, expected in zip(found, model.eval().detect(images, threshold=-100.0), strict=True):
        assert torch.equal(each.scores, expected.scores)


def test_no_images():
    model = YOLO(num_classes=6, image_size=64, width=0.01, hidden=8)
    output = model(torch.zeros(0, 3, 64, 64))
    assert output.shape == (0, 1, 1, 16)
    loss = yolo_loss(output, [], 6)
    assert loss == 0
    loss.backward()
    assert model.detect(torch.zeros(0, 3, 64, 64)) == []


def test_suppression_keeps_the_best_of_each_object():
    boxes, scores, labels = random_boxes(60), torch.rand(60), torch.randint(3, (60,))
    expected = []
    for index in scores.argsort(descending=True).tolist():
        if all(labels[index] != labels[kept] or iou(boxes[index], boxes[kept]) <= 0.3 for kept in expected):
            expected.append(index)
    kept = non_maximum_suppression(boxes, scores, labels, 0.3)
    assert kept.tolist() == expected
    assert 5 < len(kept) < 55
    assert non_maximum_suppression(boxes[:0], scores[:0], labels[:0]).tolist() == []


def test_boxes_that_overlap_by_more_than_half_are_one_object(monkeypatch):
    whole, less, more = (0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 0.45, 1.0), (0.0, 0.0, 0.55, 1.0)
    model = YOLO(num_classes=2, boxes=2, image_size=64, width=0.01, hidden=8)
    for second, thresholds in ((less, ({}, {"iou_threshold": 0.4})), (more, ({"iou_threshold": 0.6}, {}))):
        output = output_of(whole, second)
        monkeypatch.setattr(model, "forward", lambda images, output=output: output)
        for count, options in zip((2, 1), thresholds, strict=True):
            assert len(decode(output, 2, **options)[0].boxes) == count
            assert len(model.detect(torch.zeros(1, 3, 64, 64), **options)[0].boxes) == count
        boxes, scores = torch.tensor([whole, second]), torch.tensor([1.0, 0.9])
        kept = non_maximum_suppression(boxes, scores, torch.zeros(2))
        assert len(kept) == len(decode(output, 2)[0].boxes)
    half = torch.tensor([whole, (0.0, 0.0, 0.5, 1.0)])
    assert len(non_maximum_suppression(half, torch.tensor([1.0, 0.9]), torch.zeros(2))) == 2  # not more than half


def test_least_score(monkeypatch):
    output = output_of((0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0))
    output[..., -2:] = torch.tensor([0.1, 0.21])  # scores of 0.21 and 0.189
    model = YOLO(num_classes=2, boxes=2, image_size=64, width=0.01, hidden=8)
    monkeypatch.setattr(model, "forward", lambda images: output)
    for found in (lambda **options: decode(output, 2, **options), lambda **options: model.detect(None, **options)):
        assert found()[0].labels.tolist() == [1]
        assert found(threshold=0.15)[0].labels.tolist() == [1, 1]
        assert found(threshold=float(output[0, 0, 0, -1]))[0].labels.tolist() == []  # not more than the least


def test_boxes_are_cut_at_the_images_edges():
    (found,) = decode(output_of((-0.5, 0.25, 0.25, 1.5)), 2)
    torch.testing.assert_close(found.boxes, torch.tensor([[0.0, 0.25, 0.25, 1.0]]))


@pytest.mark.parametrize(("corner", "cell"), [(1.0, (3, 3)), (0.0, (0, 0)), (-0.0005, (0, 0)), (1.0005, (3, 3))])
def test_objects_at_the_edge_have_a_cell(corner, cell):
    """Empty boxes in a corner, and past it by no more than rounding."""
    boxes, labels = encode([Target(torch.full((1, 4), corner), torch.tensor([1]))], grid=4)
    assert (labels[0] >= 0).nonzero().tolist() == [list(cell)]
    expected = torch.tensor([corner * 4 - cell[1], corner * 4 - cell[0], 0, 0])
    torch.testing.assert_close(boxes[0][cell], expected, rtol=0, atol=1e-5)
    beyond = torch.full((1, 4), 1.002 if corner > 0.5 else -0.002)
    with pytest.raises(ValueError, match="parts of the image from 0 to 1"):
        encode([Target(beyond, torch.tensor([1]))], grid=4)


def test_later_object_has_a_shared_cell():
    boxes = torch.tensor([[0.1, 0.1, 0.3, 0.3], [0.0, 0.0, 0.4, 0.4]])
    encoded, labels = encode([Target(boxes, torch.tensor([2, 1]))], grid=2)
    assert labels[0].tolist() == [[1, -1], [-1, -1]]
    torch.testing.assert_close(encoded[0, 0, 0], torch.tensor([0.4, 0.4, 0.4**0.5, 0.4**0.5]))


def test_narrow_variants_keep_eight_channels():
    model = YOLO(num_classes=2, image_size=64, width=0.01, hidden=8)
    channels = [module.out_channels for module in model.features if isinstance(module, nn.Conv2d)]
    assert set(channels) == {8, 10}  # of 1024: 10


def test_drawn_shapes_lie_in_their_boxes():
    images, targets = drawn_shapes(8, 64, seed=3)
    assert images.shape == (8, 3, 64, 64)
    again, _ = drawn_shapes(8, 64, seed=3)
    assert torch.equal(images, again)
    for image, target in zip(images, targets, strict=True):
        inside = torch.zeros(64, 64, dtype=torch.bool)
        for left, top, right, bottom in (target.boxes * 64).tolist():
            inside[int(top) : int(bottom) + 2, int(left) : int(right) + 2] = True
        drawn = image.min(0).values < 0.7
        assert drawn[~inside].sum() == 0
        assert drawn[inside].float().mean() > 0.4


def test_learns_drawn_shapes_by_heart(one_thread):
    images, targets = drawn_shapes(6, 192, seed=0)
    options = {"num_classes": len(NAMES), "image_size": 192, "width": 0.125, "hidden": 256}
    model = YOLO(**options, batch_norm=True, dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=60)
    for _ in range(60):
        optimizer.zero_grad()
        yolo_loss(model(images), targets, len(NAMES)).backward()
        optimizer.step()
        schedule.step()
    for found, target in zip(model.eval().detect(images), targets, strict=True):
        assert len(found.boxes) == len(target.boxes)
        overlap, index = iou(target.boxes[:, None], found.boxes[None]).max(1)
        assert overlap.min() > 0.6
        assert torch.equal(found.labels[index], target.labels)
        assert found.scores.min() > 0.6


def test_picture_with_boxes():
    found = Detections(torch.tensor([[0.25, 0.5, 0.75, 1.0]]), torch.tensor([1]), torch.tensor([0.9]))
    picture = draw(torch.ones(3, 80, 120), found, NAMES)
    assert picture.size == (120, 80)
    edge = (60, 180, 75)
    assert picture.getpixel((30, 60)) == picture.getpixel((90, 60)) == edge
    assert picture.getpixel((60, 20)) == picture.getpixel((60, 60)) == (255, 255, 255)


def test_names_stay_in_the_picture():
    """Of a box in the upper right corner; values beyond 0 to 1 are black and white."""
    images = torch.full((3, 80, 120), -0.5)
    images[:, :, :60] = 1.5
    found = Detections(torch.tensor([[0.9, 0.05, 1.0, 0.5]]), torch.tensor([8]), torch.tensor([0.5]))
    picture = draw(images, found, [""] * 8 + ["a name"])
    assert picture.getpixel((10, 70)) == (255, 255, 255)
    assert picture.getpixel((110, 70)) == (0, 0, 0)
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(80, 120, 3)
    first = torch.tensor([230, 25, 75], dtype=torch.uint8)  # the colours begin again
    assert (pixels[8, :108] == first).all(-1).any()  # below and left of where the name would begin above the box
