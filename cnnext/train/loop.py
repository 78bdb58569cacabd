"""Epochs of stochastic gradient descent, on one process or on several."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from .data import Data, Example
from .distributed import rank, take_from_first, total, world_size
from .errors import TrainingError
from .interrupt import ignore_interrupt

_AUX_WEIGHT = 0.3  # of the auxiliary heads' losses
_WARM_UP = 0.05  # part of all steps


@dataclass(frozen=True)
class Settings:
    """How to train. batch_size counts the pictures of all processes together."""

    epochs: int
    batch_size: int = 64
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0
    workers: int = 0


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to. losses: of its steps; images_per_second: while training, all processes together."""

    losses: list[float]
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float
    images_per_second: float


@dataclass(frozen=True)
class Progress:
    """Where an epoch is: after how many of its steps, with the means so far of this process."""

    epoch: int
    step: int
    steps: int
    loss: float
    accuracy: float
    images_per_second: float


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Rises linearly in the first twentieth of all steps, then falls to zero as a cosine."""
    rise = max(1, round(steps * _WARM_UP))
    if step < rise:
        return peak * (step + 1) / rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def loss_of(outputs: Tensor | Sequence[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of a model's outputs, with auxiliary heads or without, and the scores of its main head."""
    heads = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
    losses = [F.cross_entropy(head, labels) * (_AUX_WEIGHT if index else 1) for index, head in enumerate(heads)]
    return torch.stack(losses).sum(), heads[0].detach()


def _check_finite(loss: float, where: str) -> None:
    if not math.isfinite(loss):
        raise TrainingError(f"the loss became {loss} {where}: try a lower --lr")


class Trainer:
    """Trains a model; the same seed gives the same pictures in the same order on any number of processes.

    Args:
        model: takes pictures, returns scores ``[N, classes]`` or a tuple of which they are the first.
        data: what :func:`cnnext.train.data.load` returns.
        settings: see there.
        device: where to train.

    Raises:
        TrainingError: the batch size does not fit the number of processes or of pictures.

    Example::

        trainer = Trainer(cnnext.models.lecture(), load("mnist5k", channels=1, size=28), Settings(epochs=12))
        history = trainer.fit(on_epoch=print)
    """

    def __init__(self, model: nn.Module, data: Data, settings: Settings, device: torch.device | str = "cpu") -> None:
        processes = world_size()
        if settings.batch_size % processes:
            raise TrainingError(f"a batch of {settings.batch_size} cannot be divided among {processes} processes")
        if len(data.train) < settings.batch_size:
            raise TrainingError(
                f"a batch of {settings.batch_size} is more than the {len(data.train)} training pictures"
            )
        self.device = torch.device(device)
        self.model = model.to(self.device)
        self.parallel = DistributedDataParallel(self.model) if processes > 1 else self.model
        self.data, self.settings = data, settings
        self.optimizer = torch.optim.SGD(
            model.parameters(), settings.lr, settings.momentum, weight_decay=settings.weight_decay, nesterov=True
        )
        self.history: list[Epoch] = []
        self._sampler: DistributedSampler[int] = DistributedSampler(
            data.train, processes, rank(), seed=settings.seed, drop_last=True
        )
        self._train = self._loader(data.train, self._sampler, settings.batch_size // processes)
        held_out = range(rank(), len(data.test), processes)
        self._test = self._loader(data.test, held_out, settings.batch_size, drop_last=False)

    def _loader(
        self,
        dataset: torch.utils.data.Dataset[Example],
        sampler: torch.utils.data.Sampler[int] | Sequence[int],
        batch_size: int,
        drop_last: bool = True,
    ) -> DataLoader[Example]:
        workers = self.settings.workers
        return DataLoader(
            dataset,
            batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=ignore_interrupt,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else workers' seeds come from the model's, which a resumed run restores
        )

    def fit(
        self,
        on_step: Callable[[Progress], None] = lambda progress: None,
        on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    ) -> list[Epoch]:
        """Trains until ``settings.epochs`` epochs are in ``history``; resumes where that is not empty."""
        while len(self.history) < self.settings.epochs:
            epoch = self._epoch(len(self.history), on_step)
            self.history.append(epoch)
            on_epoch(epoch)
        return self.history

    def _epoch(self, number: int, on_step: Callable[[Progress], None]) -> Epoch:
        begun = time.perf_counter()
        # Dropout's masks depend on the epoch and not on what ran before, so that a resumed run is the same run.
        torch.manual_seed((self.settings.seed * 1_000_003 + number) * 1009 + rank())
        self._sampler.set_epoch(number)
        self.parallel.train()
        steps, processes = len(self._train), world_size()
        losses: list[float] = []
        correct = seen = 0
        for step, (images, labels) in enumerate(self._train):
            lr = learning_rate(number * steps + step, self.settings.epochs * steps, self.settings.lr)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            images, labels = images.to(self.device), labels.to(self.device)
            self.optimizer.zero_grad(set_to_none=True)
            loss, scores = loss_of(self.parallel(images), labels)
            loss.backward()
            self.optimizer.step()
            losses.append(float(loss.detach()))
            _check_finite(losses[-1], f"in epoch {number + 1}, step {step + 1}")
            correct += int((scores.argmax(1) == labels).sum())
            seen += len(labels)
            speed = seen * processes / (time.perf_counter() - begun)
            on_step(Progress(number, step + 1, steps, sum(losses) / len(losses), correct / seen, speed))
        trained = time.perf_counter() - begun
        counts = total(torch.tensor([*losses, correct, seen], dtype=torch.float64, device=self.device)).tolist()
        losses = [loss / processes for loss in counts[:-2]]
        test_loss, test_accuracy = self.evaluate()
        _check_finite(test_loss, f"on the held-out pictures after epoch {number + 1}")
        return Epoch(
            losses,
            sum(losses) / len(losses),
            counts[-2] / counts[-1],
            test_loss,
            test_accuracy,
            time.perf_counter() - begun,
            counts[-1] / trained,
        )

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Mean loss and accuracy on the held-out pictures, each of which counts once.

        Of several processes each takes a part, all with the first one's running means and variances of batch norm,
        which a checkpoint holds too: each process has its own from its own pictures.
        """
        self.model.eval()
        take_from_first(self.model.buffers())
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        for images, labels in self._test:
            images, labels = images.to(self.device), labels.to(self.device)
            scores = self.model(images)
            sums[0] += F.cross_entropy(scores, labels, reduction="sum")
            sums[1] += (scores.argmax(1) == labels).sum()
            sums[2] += len(labels)
        loss, correct, count = total(sums).tolist()
        return loss / count, correct / count
