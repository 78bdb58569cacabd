"""YOLO v1 (Redmon et al., https://arxiv.org/abs/1506.02640): all objects of an image in one pass.

The image is divided into S x S cells. For each the network predicts B boxes and one distribution over the classes;
the cell in which an object's centre lies is responsible for it. A cell's numbers are, in this order, B times
(x, y, w, h, confidence), then the C classes: x and y are the centre within the cell, w and h the square roots of the
box's width and height as parts of the image's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import nn

# Channels and kernel of the 24 convolutions (figure 3 of the paper), "/2" is a stride of 2; between the stages
# stands 2x2 max pooling.
_STAGES = (
    "64x7/2",
    "192x3",
    "128x1 256x3 256x1 512x3",
    "256x1 512x3 256x1 512x3 256x1 512x3 256x1 512x3 512x1 1024x3",
    "512x1 1024x3 512x1 1024x3 1024x3 1024x3/2 1024x3 1024x3",
)
_DOWNSAMPLING = 64
_ROUNDING = 1e-3  # by which a box that was computed may leave the image, as a part of it


class Target(NamedTuple):
    """The objects of one image. boxes: ``[n, 4]``, left, top, right, bottom as parts of the image (0 to 1);
    labels: int64 ``[n]``."""

    boxes: Tensor
    labels: Tensor


class Detections(NamedTuple):
    """What was found in one image, best first; boxes and labels as in :class:`Target`, scores ``[n]``."""

    boxes: Tensor
    labels: Tensor
    scores: Tensor


class YOLO(nn.Module):
    """YOLO v1.

    Args:
        num_classes: C.
        boxes: B, boxes per cell.
        image_size: height and width of the images, a multiple of 64; S is a 64th of it.
        width: factor of the convolutions' channels, for small variants.
        hidden: width of the fully connected layer.
        batch_norm: after every convolution. The paper has none and pretrains on ImageNet; without pretraining it helps.
        dropout: probability after the fully connected layer.

    Shape:
        input ``[N, 3, image_size, image_size]``, output ``[N, S, S, B * 5 + C]``.

    Raises:
        ValueError: ``image_size`` is no positive multiple of 64.
    """

    def __init__(
        self,
        num_classes: int = 20,
        boxes: int = 2,
        image_size: int = 448,
        width: float = 1.0,
        hidden: int = 4096,
        batch_norm: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if image_size < _DOWNSAMPLING or image_size % _DOWNSAMPLING:
            raise ValueError(f"image_size should be a positive multiple of {_DOWNSAMPLING}, got {image_size}")
        self.num_classes = num_classes
        self.boxes = boxes
        self.grid = image_size // _DOWNSAMPLING
        layers: list[nn.Module] = []
        in_channels = 3
        for stage in _STAGES:
            for layer in stage.split():
                shape, _, stride = layer.partition("/")
                channels, kernel = (int(number) for number in shape.split("x"))
                channels = max(8, round(channels * width))
                layers.append(
                    nn.Conv2d(in_channels, channels, kernel, int(stride or 1), kernel // 2, bias=not batch_norm)
                )
                if batch_norm:
                    layers.append(nn.BatchNorm2d(channels))
                layers.append(nn.LeakyReLU(0.1, inplace=True))
                in_channels = channels
            layers.append(nn.MaxPool2d(2))
        del layers[-1]  # none after the last stage
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(in_channels * self.grid**2, hidden),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, self.grid**2 * (boxes * 5 + num_classes)),
        )
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)).view(x.shape[0], self.grid, self.grid, self.boxes * 5 + self.num_classes)

    @torch.no_grad()
    def detect(self, images: Tensor, threshold: float = 0.2, iou_threshold: float = 0.5) -> list[Detections]:
        """The objects in images ``[N, 3, image_size, image_size]``, in evaluation mode; see :func:`decode`."""
        training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            return decode(self(images), self.num_classes, threshold, iou_threshold)
        finally:
            for module in training:
                module.training = True


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes ``[..., 4]`` (left, top, right, bottom), broadcast; 0 for two empty ones.

    Of boxes in 16 bits, whose areas would underflow, in float32.
    """
    a, b = (box.to(torch.promote_types(box.dtype, torch.float32)) for box in (a, b))
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    area_a, area_b = ((box[..., 2:] - box[..., :2]).prod(-1) for box in (a, b))
    union = area_a + area_b - overlap
    return overlap / torch.where(union > 0, union, 1)  # where the union is empty, so is the overlap


def _predicted(output: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Splits ``[N, S, S, B * 5 + C]`` into boxes ``[N, S, S, B, 4]``, confidences and class scores."""
    sizes = list(output.shape)
    if len(sizes) != 4 or sizes[1] != sizes[2] or sizes[3] - num_classes not in range(5, sizes[3], 5):
        raise ValueError(f"expected an output [N, S, S, B * 5 + C] with C = {num_classes}, got {sizes}")
    boxes, classes = output.split((output.shape[-1] - num_classes, num_classes), -1)
    boxes = boxes.unflatten(-1, (-1, 5))
    return boxes[..., :4], boxes[..., 4], classes


def _corners(boxes: Tensor) -> Tensor:
    """From what cells predict, ``[N, S, S, B, 4]``, to left, top, right, bottom as parts of the image."""
    grid = boxes.shape[1]
    cell = torch.arange(grid, device=boxes.device)
    origin = torch.stack((cell.expand(grid, grid), cell[:, None].expand(grid, grid)), -1)  # [S, S, (x, y)]
    centre = (boxes[..., :2] + origin[:, :, None]) / grid
    half = boxes[..., 2:].square() / 2
    return torch.cat((centre - half, centre + half), -1)


def _check(target: Target, image: int, num_classes: int | None) -> None:
    """Raises a ValueError for what would be trained on without a word, or fail without naming it."""

    def wrong(field: str, expected: str, got: object) -> ValueError:
        return ValueError(f"expected {field} of image {image} to be {expected}, got {got}")

    boxes, labels = target
    if boxes.dim() != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
        raise wrong("boxes", "floating-point numbers [n, 4]", f"{boxes.dtype} {list(boxes.shape)}")
    if labels.shape != boxes.shape[:1] or labels.dtype not in (torch.int64, torch.int32):
        raise wrong("labels", f"int64 [{len(boxes)}]", f"{labels.dtype} {list(labels.shape)}")
    for box in boxes[~(boxes[:, 2:] >= boxes[:, :2]).all(1)].tolist():
        raise wrong("boxes", "(left, top, right, bottom)", tuple(box))
    for box in boxes[~((boxes >= -_ROUNDING) & (boxes <= 1 + _ROUNDING)).all(1)].tolist():
        raise wrong("boxes", "parts of the image from 0 to 1", tuple(box))
    for label in labels.tolist():
        if label < 0 or (num_classes is not None and label >= num_classes):
            raise wrong("labels", "0 or more" if num_classes is None else f"from 0 to {num_classes - 1}", label)


def encode(targets: Sequence[Target], grid: int, num_classes: int | None = None) -> tuple[Tensor, Tensor]:
    """Gives each object to the cell of its centre; where two share a cell the later one has it.

    Returns:
        boxes ``[N, S, S, 4]`` as cells predict them, and labels ``[N, S, S]``, -1 for cells without object.

    Raises:
        ValueError: a target is not as :class:`Target` says, or has a label that is not below ``num_classes``.
    """
    device = targets[0].boxes.device
    boxes = torch.zeros(len(targets), grid, grid, 4, device=device)
    labels = torch.full((len(targets), grid, grid), -1, device=device)
    for image, target in enumerate(targets):
        _check(target, image, num_classes)
        centre = (target.boxes[:, :2] + target.boxes[:, 2:]) / 2 * grid
        cell = centre.long().clamp(0, grid - 1)
        size = (target.boxes[:, 2:] - target.boxes[:, :2]).sqrt()
        for box, label, (column, row) in zip(torch.cat((centre - cell, size), 1), target.labels, cell, strict=True):
            boxes[image, row, column] = box
            labels[image, row, column] = label
    return boxes, labels


def yolo_loss(
    output: Tensor, targets: Sequence[Target], num_classes: int, coordinates: float = 5.0, no_object: float = 0.5
) -> Tensor:
    """The paper's sum of squared errors, divided by N; 0 for no images.

    Of a cell with an object, the box that overlaps it most is responsible: it is drawn to the object, and its
    confidence to their overlap. All other confidences are drawn to 0, and the cell's classes to the object's.

    Args:
        output: of :class:`YOLO`, ``[N, S, S, B * 5 + C]``.
        targets: one per image.
        num_classes: C.
        coordinates, no_object: weights of the boxes' errors and of the confidences without object.

    Raises:
        ValueError: there is not one target per image, one is not as :class:`Target` says, or ``output`` does not hold
            ``num_classes``.

    Example::

        target = Target(torch.tensor([[0.1, 0.2, 0.5, 0.9]]), torch.tensor([3]))
        yolo_loss(model(image[None]), [target], num_classes=20).backward()
    """
    if len(targets) != len(output):
        raise ValueError(f"expected one target for each of {len(output)} images, got {len(targets)}")
    if not targets:
        return output.sum()
    boxes, confidences, classes = _predicted(output, num_classes)
    true_boxes, labels = encode(targets, output.shape[1], num_classes)
    object_here = labels >= 0
    with torch.no_grad():
        overlap = iou(_corners(boxes), _corners(true_boxes[:, :, :, None]))  # [N, S, S, B]
        responsible = F.one_hot(overlap.argmax(-1), overlap.shape[-1]).bool() & object_here[..., None]
        true_confidences = torch.where(responsible, overlap, 0.0)
    weights = torch.where(responsible, 1.0, no_object)
    box_errors = (boxes - true_boxes[:, :, :, None]).square().sum(-1)[responsible]
    confidence_errors = weights * (confidences - true_confidences).square()
    class_errors = (classes[object_here] - F.one_hot(labels[object_here], num_classes)).square()
    return (coordinates * box_errors.sum() + confidence_errors.sum() + class_errors.sum()) / len(output)


def non_maximum_suppression(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float = 0.5) -> Tensor:
    """Keeps of boxes of one class that overlap more than the threshold only the best.

    Args:
        boxes: ``[n, 4]``, left, top, right, bottom.
        scores: ``[n]``.
        labels: ``[n]``.
        iou_threshold: overlap (intersection over union) above which two boxes mean the same object.

    Returns:
        indices of the boxes that stay, best first.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes, labels = boxes[order], labels[order]
    same = (iou(boxes[:, None], boxes[None]) > iou_threshold) & (labels[:, None] == labels[None])
    keep = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    for index in range(len(boxes)):
        if keep[index]:
            keep[index + 1 :] &= ~same[index, index + 1 :]
    return order[keep]


def decode(output: Tensor, num_classes: int, threshold: float = 0.2, iou_threshold: float = 0.5) -> list[Detections]:
    """Turns the network's output into objects.

    Args:
        output: of :class:`YOLO`, ``[N, S, S, B * 5 + C]``.
        num_classes: C.
        threshold: least score (a box's confidence times the best class's score) of a detection.
        iou_threshold: of :func:`non_maximum_suppression`.

    Raises:
        ValueError: ``output`` does not hold ``num_classes``.
    """
    boxes, confidences, classes = _predicted(output.detach(), num_classes)
    best, labels = classes.max(-1)
    scores = confidences * best[..., None]
    labels = labels[..., None].expand_as(scores)
    found = []
    for image_boxes, image_scores, image_labels in zip(_corners(boxes).clamp(0, 1), scores, labels, strict=True):
        candidates = image_scores > threshold
        each = image_boxes[candidates], image_labels[candidates], image_scores[candidates]
        keep = non_maximum_suppression(each[0], each[2], each[1], iou_threshold)
        found.append(Detections(*(values[keep] for values in each)))
    return found


def draw(image: Tensor, detections: Detections, names: Sequence[str]) -> Any:
    """A picture with boxes, names and scores.

    Args:
        image: ``[3, H, W]``, values from 0 to 1.
        detections: of this image.
        names: of the classes.

    Returns:
        a ``PIL.Image.Image``.

    Raises:
        ModuleNotFoundError: Pillow is not installed.
    """
    from PIL import Image, ImageDraw

    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(pixels)
    canvas = ImageDraw.Draw(picture)
    extents = torch.tensor([picture.width, picture.height] * 2)
    colours = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")
    for box, label, score in zip(*detections, strict=True):
        colour = colours[int(label) % len(colours)]
        left, top, right, bottom = (box.cpu() * extents).tolist()
        canvas.rectangle((left, top, right, bottom), outline=colour, width=2)
        text = f"{names[int(label)]} {score:.2f}"
        width, height = canvas.textbbox((0, 0), text)[2:]
        corner = max(0.0, min(left, picture.width - width)), max(0.0, top - height)
        canvas.rectangle((*corner, corner[0] + width, corner[1] + height), fill=colour)
        canvas.text(corner, text, fill="white")
    return picture


def yolo_v1(**options: Any) -> YOLO:
    """YOLO v1, 271,703,550 parameters. ``options`` go to :class:`YOLO`.

    Example::

        model = cnnext.models.yolo_v1().eval()
        model(torch.rand(1, 3, 448, 448)).shape  # (1, 7, 7, 30)
    """
    return YOLO(**options)
