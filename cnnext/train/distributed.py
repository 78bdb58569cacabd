"""Several processes, started by torchrun: who we are among them, and sums over all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from .errors import TrainingError

T = TypeVar("T")


@contextmanager
def process_group(device: str) -> Iterator[torch.device]:
    """Joins the processes that torchrun started, if it did: over nccl for ``cuda``, over gloo for ``cpu``.

    Yields:
        this process's device.
    """
    if "WORLD_SIZE" not in os.environ:
        yield torch.device(device)
        return
    own = torch.device(device, int(os.environ["LOCAL_RANK"])) if device == "cuda" else torch.device(device)
    if device == "cuda":
        torch.cuda.set_device(own)
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield own
        if device == "cpu":
            # A thread of gloo's that lets go of a sum's tensor needs the interpreter, and aborts the process where
            # that has ended: nobody ends before all are here.
            dist.barrier()
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """This process's number; 0 where there is only one."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def total(values: Tensor) -> Tensor:
    """The sum of every process's values, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def take_from_first(tensors: Iterable[Tensor]) -> None:
    """Gives every process the first one's values, in place."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def read_by_first(read: Callable[[], T]) -> T:
    """Gives every process what a function returns in the first one, or its TrainingError; only there is it called."""
    if not dist.is_initialized():
        return read()
    results: list[T | TrainingError | None] = [None]
    if rank() == 0:
        try:
            results = [read()]
        except TrainingError as error:
            results = [error]
    dist.broadcast_object_list(results)
    if isinstance(results[0], TrainingError):
        raise results[0]
    return results[0]  # type: ignore[return-value]
