"""FCN-8s separates coins from the background, pixel by pixel.

Trains on the left of scikit-image's photograph of Roman coins and is measured on the right, which it has not seen. The
masks to learn from come from a watershed on the edges, scikit-image's own way to segment this picture. Weights start
random, so VGG-16's features have batch norm::

    pip install 'cnnext[bench,train]'
    python examples/fcn_coins.py --out fcn_coins.png
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from scipy.ndimage import binary_fill_holes
from skimage import data, filters, segmentation
from torch import Tensor

from cnnext.models import FCN, fcn8s

SPLIT = 244  # column in pixels: left of it is trained on
CROP = 96  # pixels


def coins() -> tuple[Tensor, Tensor]:
    """The photograph as float32 ``[3, H, W]``, three times the same grey, and the mask of coins, int64 ``[H, W]``."""
    photograph = data.coins()
    markers = 1 * (photograph < 30) + 2 * (photograph > 150)
    mask = binary_fill_holes(segmentation.watershed(filters.sobel(photograph), markers) == 2)
    grey = torch.from_numpy(photograph).float()
    grey = (grey - grey.mean()) / grey.std()
    return grey.expand(3, -1, -1), torch.from_numpy(mask).long()


def crops(image: Tensor, mask: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Random crops of the training part, mirrored and turned at random."""
    images, masks = [], []
    for _ in range(count):
        top = int(torch.randint(image.shape[1] - CROP + 1, ()))
        left = int(torch.randint(SPLIT - CROP + 1, ()))
        both = torch.cat((image, mask[None]))[:, top : top + CROP, left : left + CROP]
        both = both.rot90(int(torch.randint(4, ())), (1, 2))
        both = both.flip(2) if torch.rand(()) < 0.5 else both
        images.append(both[:3])
        masks.append(both[3].long())
    return torch.stack(images), torch.stack(masks)


def overlap(predicted: Tensor, mask: Tensor) -> float:
    """Intersection over union of two masks."""
    return float((predicted & mask).sum() / (predicted | mask).sum())


def train(image: Tensor, mask: Tensor, steps: int, batch_size: int, lr: float) -> FCN:
    """A network trained from random weights."""
    model = fcn8s(num_classes=2, batch_norm=True, hidden=128)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    begun = time.perf_counter()
    for step in range(steps):
        images, masks = crops(image, mask, batch_size)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), masks)
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 10 == 0:
            seconds = time.perf_counter() - begun
            print(f"step {step + 1:3}/{steps}: loss {loss.detach():.3f}, {seconds:.0f} s", flush=True)
    return model.eval()


def draw(path: Path, image: Tensor, mask: Tensor, predicted: Tensor, title: str) -> None:
    """The photograph with the outline of the predicted mask, and both masks."""
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    panels = figure.subplots(1, 3)
    panels[0].imshow(image[0], cmap="gray")
    panels[0].contour(predicted, levels=[0.5], colors="#ff7f0e", linewidths=1.2)
    panels[0].set_title("predicted outline")
    panels[1].imshow(predicted, cmap="gray")
    panels[1].set_title(title)
    panels[2].imshow(mask, cmap="gray")
    panels[2].set_title("watershed, which it learned from")
    for panel in panels:
        panel.axvline(SPLIT, color="#4c72b0", linewidth=1.2, linestyle="--")
        panel.set_axis_off()
    panels[0].text(SPLIT - 4, 14, "training", ha="right", color="#9ecbff")
    panels[0].text(SPLIT + 4, 14, "not seen", color="#9ecbff")
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--out", type=Path, default=Path("fcn_coins.png"))
    args = parser.parse_args()
    torch.manual_seed(0)
    image, mask = coins()
    model = train(image, mask, args.steps, args.batch_size, args.lr)
    with torch.no_grad():
        predicted = model(image[None])[0].argmax(0)
    seen, unseen = (
        overlap(predicted[:, part].bool(), mask[:, part].bool()) for part in (slice(SPLIT), slice(SPLIT, None))
    )
    print(
        f"overlap with the watershed (intersection over union): {seen:.1%} where trained, {unseen:.1%} where not seen"
    )
    draw(args.out, image, mask, predicted, f"predicted mask: {unseen:.0%} overlap where not seen")


if __name__ == "__main__":
    main()
