"""What tests/test_train_processes.py runs under torchrun, each process alike; the first writes what it saw as JSON."""

from __future__ import annotations

import copy
import json
import sys
import warnings

import torch
import torch.nn.functional as F
from torch import distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import cnnext
from cnnext import models
from cnnext.train import data, distributed
from cnnext.train.errors import TrainingError
from cnnext.train.loop import Settings, Trainer


def batch(count: int, *shape: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """The pictures of all processes together."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, *shape, dtype=dtype, generator=generator), torch.arange(count) % 10


def own(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part."""
    return tensor.chunk(distributed.world_size())[distributed.rank()]


def relative_error(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    errors = [(a - e).norm() / e.norm() for a, e in zip(actual, expected, strict=True)]
    return float(torch.stack(errors).max())


def gradients_of_two_and_of_one() -> float:
    """The largest error of a gradient of DistributedDataParallel, to that of one process with all pictures."""
    torch.manual_seed(0)
    one = models.lecture(dropout=0.0).double().to(memory_format=torch.channels_last)
    parallel = DistributedDataParallel(copy.deepcopy(one))
    images, labels = batch(8, 1, 28, 28)
    images = images.to(memory_format=torch.channels_last)
    F.cross_entropy(one(images), labels).backward()
    F.cross_entropy(parallel(own(images)), own(labels)).backward()
    return relative_error([p.grad for p in parallel.parameters()], [p.grad for p in one.parameters()])


def train(steps_of: int) -> list[float]:
    """The losses of an epoch."""
    torch.manual_seed(0)
    pictures = data.load("digits", channels=1, size=8)
    pictures.train.labels = pictures.train.labels[:steps_of]
    model = models.lecture(image_size=8, dropout=0.0)
    return Trainer(model, pictures, Settings(epochs=1, batch_size=32)).fit()[0].losses


def held_out() -> dict[str, list[float]]:
    """Loss and accuracy on an odd number of held-out pictures; those of the first process's model on all of them."""
    torch.manual_seed(0)
    pictures = data.load("digits", channels=3, size=8)
    pictures.train.labels, pictures.test.labels = pictures.train.labels[:64], pictures.test.labels[:41]
    trainer = Trainer(models.resnet20(), pictures, Settings(epochs=1, batch_size=32))
    (epoch,) = trainer.fit()
    with torch.no_grad():
        scores = trainer.model.eval()(torch.stack([image for image, _ in map(pictures.test.__getitem__, range(41))]))
    right = (scores.argmax(1) == pictures.test.labels).double().mean()
    return {
        "seen": [epoch.test_loss, epoch.test_accuracy],
        "expected": [float(F.cross_entropy(scores, pictures.test.labels)), float(right)],
    }


def read_by_first() -> list[str]:
    """What every process gets of a file, or of an error, of the first one."""

    def fails() -> str:
        raise TrainingError(f"error of {distributed.rank()}")

    got = distributed.read_by_first(lambda: f"file of {distributed.rank()}")
    try:
        distributed.read_by_first(fails)
    except TrainingError as error:
        got += f", {error}"
    everyones = [""] * distributed.world_size()
    dist.all_gather_object(everyones, got)
    return everyones


def fsdp_resnet50() -> dict[str, float]:
    """ResNet-50 with parameters divided among the processes beside copies that exchange their gradients."""
    torch.manual_seed(0)
    whole = models.resnet50(num_classes=10)
    sharded = copy.deepcopy(whole)
    for stage in (sharded.layer1, sharded.layer2, sharded.layer3, sharded.layer4, sharded):
        fully_shard(stage)
    images, labels = (own(tensor) for tensor in batch(4, 3, 64, 64, dtype=torch.float32))
    losses = []
    for model in (whole, sharded):
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        losses.append(float(loss.detach()))
    # Each process looks at the part of each gradient that it holds.
    expected = [own(distributed.total(p.grad)) / distributed.world_size() for p in whole.parameters()]
    gradients = [p.grad.to_local() for p in sharded.parameters()]
    error = torch.tensor(relative_error(gradients, expected))
    dist.all_reduce(error, dist.ReduceOp.MAX)
    held = sum(p.to_local().numel() for p in sharded.parameters())
    torch.optim.SGD(sharded.parameters(), 0.01).step()
    with torch.no_grad():
        after = F.cross_entropy(sharded(images), labels)
    return {
        "loss": losses[1],
        "loss_error": abs(losses[1] - losses[0]),
        "gradient_error": float(error),
        "loss_after_step": float(distributed.total(after.detach())) / distributed.world_size(),
        "part_held": held / sum(p.numel() for p in whole.parameters()),
        "ours": sum(type(m) is cnnext.nn.Conv2d for m in sharded.modules()),
    }


def main() -> None:
    with distributed.process_group("cpu"), warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*[Ss]trides")
        seen = {
            "processes": dist.get_world_size(),
            "gradient_error": gradients_of_two_and_of_one(),
            "losses": train(160),
            "held_out": held_out(),
            "read_by_first": read_by_first(),
            "fsdp": fsdp_resnet50(),
        }
        if distributed.rank() == 0:
            with open(sys.argv[1], "w") as file:
                json.dump(seen, file)


if __name__ == "__main__":
    main()
