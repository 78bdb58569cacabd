"""Whole networks: the same model and photograph with torch's layers and with ours."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Generator
from typing import Any, Protocol

import torch
import torch.fx.experimental.optimization
import torch.nn.functional as F
from torch import Tensor, nn

import cnnext
from cnnext import models
from cnnext.backends import fallbacks

from . import layers
from .layer_bench import Mismatch, check, epsilon, errors, in_layout
from .layer_bench import compare as compare_backends
from .photo import photograph
from .timing import Machine, Steps, interleave, peak_memory

_AUXILIARY = ("googlenet", "inception_v3")  # with heads for training only
_CALIBRATION_CROPS = 4
_LEARNING_RATE = 1e-3
# A last-digit difference can put an activation on the other side of a ReLU, or choose another maximum, and then a
# gradient differs for good: by this much at most here (relative L2). Layers are checked with no such allowance.
FLIPS = 0.05
# Rounding errors grow from layer to layer, to 2^20 epsilons here, until a gradient in 16 bits has only the size of
# the exact one: errors of 1.9. They do on both sides alike; where ours is far smaller, torch's is wrong.
_GROWTH, _SIZE = 2**22, 4.0
_TIMES_OURS, _BESIDE_OURS = 64, 0.25


def _torchs_model(name: str, training: bool) -> nn.Module:
    """A model with torch's layers and random weights.

    Dropout is off: its masks are random, and outputs are compared. Auxiliary heads are built for training only.
    """
    model = cnnext.revert(models.build(name, **({"aux_logits": training} if name in _AUXILIARY else {})))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train(training)


def prepared_model(name: str, size: int, training: bool) -> nn.Module:
    """A float32 model of torch's layers whose random weights behave as trained ones do: no activation vanishes or
    explodes. Convolutions get Kaiming's initialisation, batch norms the statistics of some crops of the photograph.
    """
    torch.manual_seed(0)
    model = _torchs_model(name, training)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the average over all crops seen
    with torch.no_grad():
        model.train()(photograph(_CALIBRATION_CROPS, size, seed=1))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return model.train(training)


class Runnable(Protocol):
    """One copy of a model and what is done with it."""

    model: nn.Module

    def __call__(self) -> None:
        """What is timed."""

    def results(self) -> dict[str, Tensor]:
        """What is compared, by name."""


def converted(model: nn.Module, library: str, layout: str, dtype: torch.dtype | None, fuse: bool = False) -> nn.Module:
    """A copy of a model with the layers of ``torch`` or ``cnnext``, its weights in a layout and an element type; None
    keeps their own. Fused, if wanted, by what each library has for that; torch has nothing for training."""
    model = copy.deepcopy(model).to(dtype=dtype)
    for parameter in model.parameters():
        parameter.data = in_layout(parameter.data, layout)
    if library == "cnnext":
        return cnnext.fuse(model) if fuse else cnnext.convert(model)
    return torch.fx.experimental.optimization.fuse(model) if fuse and not model.training else model


class Step:
    """One inference or one training step of one copy of a model."""

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor | None, torch_memory: bool) -> None:
        self.model = model
        self.torch_memory = torch_memory  # torch's own tensors from our pool
        self.images = images
        self.labels = labels
        self.optimizer = torch.optim.SGD(model.parameters(), lr=_LEARNING_RATE, momentum=0.9)

    def heads(self) -> tuple[Tensor, ...]:
        """What the model returns, always as a tuple."""
        outputs = self.model(self.images)
        if isinstance(outputs, dict):
            return tuple(outputs.values())
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def _labels_of(self, head: Tensor) -> Tensor:
        """For a head that scores pixels, the image's label at every pixel."""
        assert self.labels is not None
        labels = (self.labels % head.shape[1]).view(-1, *(1,) * (head.dim() - 2))
        return labels.expand(len(head), *head.shape[2:])

    def gradients(self) -> Tensor:
        """Forward and backward; returns the logits."""
        heads = self.heads()
        weights = (1.0, 0.3, 0.3)  # of the loss of GoogLeNet's heads, as in the paper
        losses = [w * F.cross_entropy(head, self._labels_of(head)) for w, head in zip(weights, heads, strict=False)]
        torch.stack(losses).sum().backward()
        return heads[0].detach()

    def __call__(self) -> None:
        with cnnext.backends.torch_memory(self.torch_memory):
            if self.labels is None:
                with torch.no_grad():
                    self.model(self.images)
            else:
                self.optimizer.zero_grad(set_to_none=True)
                self.gradients()
                self.optimizer.step()

    def results(self) -> dict[str, Tensor]:
        """What is compared: the logits, and in training all parameters' gradients as one vector."""
        if self.labels is None:
            self()  # what is timed finds what the first run has kept
            with torch.no_grad():
                return {"output": self.heads()[0]}
        output = self.gradients()
        parameters = [p for _, p in sorted(self.model.named_parameters())]  # a fused model has another order
        gradients = torch.cat([p.grad.double().flatten() for p in parameters if p.grad is not None])
        self.optimizer.zero_grad(set_to_none=True)
        return {"output": output, "gradient": gradients}


def _step(
    model: nn.Module,
    library: str,
    layout: str,
    dtype: torch.dtype,
    images: Tensor,
    labels: Tensor | None,
    torch_memory: bool,
    fuse: bool = False,
) -> Step:
    images = in_layout(images.to(dtype), layout)
    return Step(converted(model, library, layout, dtype, fuse), images, labels, torch_memory and library == "cnnext")


def replaced(model: nn.Module) -> dict[str, int]:
    """How many layers of a converted model are ours, of each kind that convert exchanges.

    Raises:
        Mismatch: one is still torch's, so that the comparison would be torch against torch.
    """
    counts = {"convolution": 0, "batch_norm": 0, "pooling": 0}
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            kind = "convolution"
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            kind = "batch_norm"
        elif type(module).__name__.endswith(("Pool1d", "Pool2d", "Pool3d")):
            kind = "pooling"
        else:
            continue
        if not type(module).__module__.startswith("cnnext"):
            raise Mismatch(f"convert left {name} as {type(module).__module__}.{type(module).__name__}")
        counts[kind] += 1
    return counts


def step_memory(
    name: str,
    mode: str,
    batch: int,
    dtype: torch.dtype,
    library: str,
    layout: str,
    size: int = 224,
    torch_memory: bool = False,
    packed_weights: bool = False,
    fuse: bool = False,
) -> int | None:
    """Bytes that two steps of one backend need at their peak on top of the model and the images.

    For a fresh process: what a library keeps from step to step is part of what it needs, and would be there already
    had it run before. See ``environment.MAPPED_ALLOCATOR`` too. Values do not matter here, so they are random.
    """
    training = mode == "train"
    model = _torchs_model(name, training)

    def step(images: Tensor) -> Step:
        labels = _labels(len(images)) if training else None
        return _step(model, library, layout, dtype, images, labels, torch_memory, fuse)

    small = 64 if models.SPECS[name].size == 224 else size
    step(torch.randn(2, 3, small, small))()  # pages in the libraries' code
    cnnext.empty_cache()
    measured = step(torch.randn(batch, 3, size, size))

    def twice() -> None:
        measured()
        measured()

    with cnnext.backends.packed_weights(packed_weights and library == "cnnext"):
        return peak_memory(twice)


def _labels(batch: int) -> Tensor:
    return torch.randint(0, 1000, (batch,), generator=torch.Generator().manual_seed(0))


def compare(
    what: str,
    make: Callable[[str, str, torch.dtype | None], Runnable],
    dtype: torch.dtype,
    layouts: tuple[str, ...],
    machine: Machine,
    min_time: float,
    repeats: int | None = None,
) -> Generator[tuple[str, float], None, dict[str, Any]]:
    """Checks, then times one thing to do with a whole model, by each library in each layout.

    Args:
        what: its name in an error.
        make: builds the model's copy for a library, a layout and an element type, None for its own.
        dtype: the coarsest of the model's own.

    Yields what is being done and the fraction done; returns the part of the result that the model does not matter for.

    Raises:
        Mismatch: outputs or gradients of ours are wrong. Nothing has been timed then.
    """
    yield "float64 reference", 0.0
    reference = make("torch", layouts[0], torch.float64).results()
    left_to_torch: dict[str, int] = {}
    steps: dict[str, Runnable] = {}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for library in ("torch", "cnnext"):
        for layout in layouts:
            key = f"{library} {layout}"
            yield f"comparing {key}", 0.0
            steps[key] = make(library, layout, None)
            before = Counter(fallbacks())
            for name, result in steps[key].results().items():
                found.setdefault(name, {})[key] = errors(result, reference[name])
            left_to_torch = dict(Counter(fallbacks()) - before)  # of one run of ours, the last
    wrong: dict[str, float | None] = {}
    for name, errors_of in found.items():
        ours = max(error["relative"] for key, error in errors_of.items() if key.startswith("cnnext"))
        most = min(_GROWTH * epsilon(dtype, machine.device), _SIZE, max(_BESIDE_OURS, _TIMES_OURS * ours))
        wrong |= check(errors_of, f"{what} {name}", dtype, most, FLIPS if name == "gradient" else 0.0)
    del reference

    functions: dict[str, Callable[[], object]] = {key: step for key, step in steps.items() if key not in wrong}
    rounds = Steps(interleave(functions, min_time, repeats, machine.device))
    for done in rounds:
        yield f"timing, {len(functions)} backends in turns", done
    timings = rounds.result
    backends = {
        key: {**timings[key].as_json(), "error": {name: errors_of[key] for name, errors_of in found.items()}}
        for key in functions
    }
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "fallbacks": left_to_torch,
        "wrong": wrong,
        "backends": backends,
        **compare_backends(backends),
    }


def measure(
    name: str,
    mode: str,
    batch: int,
    dtype: torch.dtype,
    layouts: tuple[str, ...],
    machine: Machine,
    min_time: float,
    repeats: int | None = None,
    size: int = 224,
    torch_memory: bool = False,
    packed_weights: bool = False,
    fuse: bool = False,
) -> Generator[tuple[str, float], None, dict[str, Any]]:
    """Checks and times one network in one mode (``infer`` or ``train``), ours with settings of ``backends`` if wanted.

    Yields what is being done and the fraction done; returns the result. A training step is forward,
    cross-entropy, backward and an SGD step on identical copies of the model.

    Raises:
        Mismatch: outputs or gradients of ours are wrong, or a layer is still torch's. Nothing has been timed then.
    """
    training = mode == "train"
    yield "preparing the model", 0.0
    model = prepared_model(name, size, training)
    images = photograph(batch, size)
    labels = _labels(batch) if training else None
    counts = replaced(cnnext.convert(copy.deepcopy(model)))

    def make(library: str, layout: str, exact: torch.dtype | None) -> Step:
        return _step(model, library, layout, exact or dtype, images, labels, torch_memory, fuse)

    with cnnext.backends.packed_weights(packed_weights):
        result = yield from compare(f"{name} {mode}", make, dtype, layouts, machine, min_time, repeats)
    uses = layers.collect(model.to("meta"), torch.empty(batch, 3, size, size, device="meta"))
    flops = sum(use.flops(training) for use in uses)
    return {
        "model": name,
        "mode": mode,
        "batch": batch,
        "input": f"3x{size}x{size}",
        "torch_memory": torch_memory,
        "packed_weights": packed_weights,
        "fused": fuse,
        "replaced": counts,
        "conv_flops": flops,
        "limit": flops / machine.flops(dtype),
        **result,
    }
