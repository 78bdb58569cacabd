"""Drawn shapes with their boxes: a detection task that needs no files."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cnnext.models.yolo import Target

NAMES = ("circle", "square", "triangle")
_COLOURS = ("#d62728", "#2ca02c", "#1f77b4", "#ff7f0e", "#9467bd", "#17becf")


def drawn_shapes(count: int, size: int, most: int = 3, seed: int = 0) -> tuple[Tensor, list[Target]]:
    """Pictures of one to ``most`` circles, squares and triangles that do not overlap.

    Args:
        count: number of pictures, N.
        size: height and width in pixels.
        most: objects in one picture, at most.
        seed: chooses the pictures.

    Returns:
        images float32 ``[N, 3, size, size]`` from 0 to 1, and the objects of each; labels index :data:`NAMES`.
    """
    from PIL import Image, ImageDraw

    random = np.random.default_rng(seed)
    images, targets = [], []
    for _ in range(count):
        picture = Image.fromarray(random.integers(200, 250, (size, size, 3), dtype=np.uint8))
        canvas = ImageDraw.Draw(picture)
        boxes: list[tuple[float, float, float, float]] = []
        labels: list[int] = []
        wanted = random.integers(1, most + 1)
        while len(boxes) < wanted:
            extent = random.uniform(0.2, 0.4)
            left, top = random.uniform(0.02, 0.98 - extent, 2)
            box = (left, top, left + extent, top + extent)
            if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in boxes):
                if random.random() < 0.05:  # there may be no room for another
                    break
                continue
            boxes.append(box)
            labels.append(int(random.integers(len(NAMES))))
            pixels = tuple(edge * size for edge in box)
            colour = _COLOURS[random.integers(len(_COLOURS))]
            if NAMES[labels[-1]] == "circle":
                canvas.ellipse(pixels, fill=colour)
            elif NAMES[labels[-1]] == "square":
                canvas.rectangle(pixels, fill=colour)
            else:
                canvas.polygon(
                    [(pixels[0], pixels[3]), (pixels[2], pixels[3]), (sum(pixels[::2]) / 2, pixels[1])], colour
                )
        images.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255)
        targets.append(Target(torch.tensor(boxes), torch.tensor(labels)))
    return torch.stack(images), targets
