"""What the tests of `python -m cnnext train` share: few pictures, and the command's own errors."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("mlxtend", reason="needs cnnext[train]")
pytest.importorskip("sklearn", reason="needs cnnext[train]")
pytest.importorskip("rich", reason="needs cnnext[train]")
image = pytest.importorskip("PIL.Image", reason="needs cnnext[train]")

from cnnext.__main__ import main  # noqa: E402
from cnnext.train import data  # noqa: E402


def few_digits(count, channels=1, size=8, held_out=40):
    pictures = data.load("digits", channels, size)
    pictures.train.labels = pictures.train.labels[:count]
    pictures.test.labels = pictures.test.labels[:held_out]
    return pictures


def folder_of_pictures(root, classes=("dark", "light"), count=5):
    generator = torch.Generator().manual_seed(0)
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = torch.randint(100, (20 + index, 30, 3), generator=generator) + 120 * label
            image.fromarray(pixels.byte().numpy()).save(root / name / f"{index}.png")
    return root


def fails(capsys, *options):
    """The one sentence with which the command ends, with status 2."""
    command = ["train", *options]
    if "--model" not in options:
        command += ["--model", "lecture"]
    capsys.readouterr()
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("cnnext train: ")
    assert error.count("\n") == 1
    return error
