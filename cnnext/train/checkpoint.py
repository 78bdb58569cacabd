"""A run's last state in one file, written whole or not at all."""

from __future__ import annotations

import os
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .errors import TrainingError
from .loop import Epoch, Trainer

NAME = "last.pt"


def save(path: Path, trainer: Trainer, about: dict[str, Any]) -> None:
    """Writes model, optimizer and history.

    Args:
        path: the file; what is there is replaced in one move, so that an interruption leaves the old one.
        trainer: its state is written.
        about: what the run is, compared when it is resumed.
    """
    state = {
        "about": about,
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "history": [asdict(epoch) for epoch in trainer.history],
    }
    unfinished = path.with_suffix(".unfinished")
    torch.save(state, unfinished)
    os.replace(unfinished, path)


def load(path: Path, trainer: Trainer, about: dict[str, Any]) -> None:
    """Puts a trainer into the state that was saved.

    Raises:
        TrainingError: there is no checkpoint, it cannot be read, or it is of another run.
    """
    try:
        state = torch.load(path, map_location=trainer.device, weights_only=True)
        saved = state["about"]
    except FileNotFoundError:
        raise TrainingError(f"there is nothing to resume: {path} does not exist") from None
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError):
        raise TrainingError(f"{path} is no checkpoint of cnnext train, or a damaged one") from None
    for key, value in about.items():
        if saved.get(key, value) != value:  # older checkpoints hold less
            raise TrainingError(f"{path} was trained with {key.replace('_', ' ')} {saved[key]}, not {value}")
    trainer.model.load_state_dict(state["model"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.history = [Epoch(**epoch) for epoch in state["history"]]
