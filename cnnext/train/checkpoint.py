"""A run's last state in one file, written whole or not at all."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .errors import TrainingError
from .loop import Epoch, Trainer

NAME = "last.pt"
State = dict[str, Any]
_PARTS = {"about": dict, "model": dict, "optimizer": dict, "history": list}


def save(path: Path, trainer: Trainer, about: dict[str, Any]) -> None:
    """Writes model, optimizer and history.

    Args:
        path: the file; what is there is replaced in one move, so that an interruption leaves the old one.
        trainer: its state is written.
        about: what the run is, compared when it is resumed.

    Raises:
        TrainingError: it cannot be written, as on a full disk; what was there stays.
    """
    state = {
        "about": about,
        "epochs": trainer.settings.epochs,
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "history": [asdict(epoch) for epoch in trainer.history],
    }
    unfinished = path.with_suffix(".unfinished")
    try:
        with open(unfinished, "wb") as file:  # with a path instead, torch would hide why it failed
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())  # else the move could reach the disk before the contents
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise TrainingError(f"cannot write {path}, which holds the epoch before if any: {error.strerror}") from None


def load(path: Path) -> State:
    """What :func:`save` wrote, and ``epochs`` of None where an older version did.

    Raises:
        TrainingError: there is no checkpoint, or it cannot be read.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise TrainingError(f"there is nothing to resume: {path} does not exist") from None
    except OSError as error:
        raise TrainingError(f"cannot read {path}: {error.strerror}") from None
    except Exception:  # of damaged bytes comes nearly any
        state = None
    if not isinstance(state, dict) or any(not isinstance(state.get(part), kind) for part, kind in _PARTS.items()):
        raise TrainingError(f"{path} is no checkpoint of cnnext train, or a damaged one")
    return {"epochs": None} | state


def restore(path: Path, state: State, trainer: Trainer, about: dict[str, Any]) -> None:
    """Puts a trainer into the state that was loaded from ``path``.

    Raises:
        TrainingError: it is of another run.
    """
    saved = state["about"]
    for key, value in about.items():
        if saved.get(key, value) != value:  # older checkpoints hold less
            raise TrainingError(f"{path} was trained with {key.replace('_', ' ')} {saved[key]}, not {value}")
    trainer.model.load_state_dict(state["model"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.history = [Epoch(**epoch) for epoch in state["history"]]
