"""YOLO v1 finds circles, squares and triangles.

Trains a small YOLO v1 (all 24 convolutions, an eighth of the channels) on drawn pictures, new ones at every step, then
counts what it finds in pictures that it has not seen, and draws its boxes into some of them::

    pip install 'cnnext[train]'
    python examples/yolo_shapes.py --out yolo_shapes.png
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from cnnext.models.yolo import YOLO, Detections, Target, draw, iou, yolo_loss
from cnnext.train.shapes import NAMES, drawn_shapes

SIZE = 192
TEST_SEED = 1_000_000


def train(steps: int, batch_size: int, lr: float) -> YOLO:
    """A network trained from random weights."""
    torch.manual_seed(0)
    model = YOLO(num_classes=len(NAMES), image_size=SIZE, width=0.125, hidden=512, batch_norm=True, dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    begun = time.perf_counter()
    for step in range(steps):
        images, targets = drawn_shapes(batch_size, SIZE, seed=step)
        optimizer.zero_grad()
        loss = yolo_loss(model(images), targets, len(NAMES))
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            seconds = time.perf_counter() - begun
            print(f"step {step + 1:4}/{steps}: loss {loss.detach():.3f}, {seconds:.0f} s", flush=True)
    return model.eval()


def count(found: Sequence[Detections], targets: Sequence[Target]) -> tuple[int, int, int]:
    """Right detections (class right, overlap above one half), all detections, all objects."""
    right = 0
    for detections, target in zip(found, targets, strict=True):
        same = detections.labels[:, None] == target.labels[None]
        right += int((same & (iou(detections.boxes[:, None], target.boxes[None]) > 0.5)).any(0).sum())
    return right, sum(len(d.boxes) for d in found), sum(len(t.boxes) for t in targets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--out", type=Path, default=Path("yolo_shapes.png"))
    args = parser.parse_args()
    model = train(args.steps, args.batch_size, args.lr)

    images, targets = drawn_shapes(64, SIZE, seed=TEST_SEED)
    found = model.detect(images)
    right, detections, objects = count(found, targets)
    print(f"unseen pictures: {right} of {objects} objects found, {right} of {detections} detections right")

    sheet = Image.new("RGB", (4 * (SIZE + 8) - 8, 2 * (SIZE + 8) - 8), "white")
    for index in range(8):
        place = (index % 4 * (SIZE + 8), index // 4 * (SIZE + 8))
        sheet.paste(draw(images[index], found[index], NAMES), place)
    sheet.quantize(128).save(args.out, optimize=True)


if __name__ == "__main__":
    main()
