"""``cnnext.profile``: any model, as a whole and layer by layer, beside torch."""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

import cnnext
from cnnext._explain import _channels_last, check_sizes
from cnnext.backends import uncounted_fallbacks

from . import environment, layer_bench, network, tables
from .layers import LAYOUTS, collect
from .timing import Machine, Steps, peak_memory

_SAME = 1e-2  # relative difference of two runs of one model, as kernels that sum in any order may have


class Profile:
    """What `profile` found. Prints as tables; `save_html` writes the report."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document

    def to_dict(self) -> dict[str, Any]:
        """Everything measured, and where: the same as in the JSON of ``cnnext bench``."""
        return self._document

    @property
    def speedup(self) -> float:
        """torch's median time for the whole model over ours; NaN where torch's result is wrong."""
        return float(self._document["networks"][0]["speedup"].get("best", "nan"))

    @property
    def layers(self) -> list[dict[str, Any]]:
        """One entry per distinct layer and direction: times, errors and kernel of each backend."""
        return list(self._document["layers"])

    @property
    def fallbacks(self) -> dict[str, int]:
        """How many calls of one run went to torch instead of our kernels, under "operator: reason"."""
        return dict(self._document["networks"][0]["fallbacks"])

    @property
    def disturbed(self) -> bool:
        """Whether other programs took the CPU away while this was measured, so that the times say little."""
        return bool(self._disturbance())

    def _disturbance(self) -> str:
        return tables.disturbance(self._document["networks"] + self._document["layers"])

    def html(self) -> str:
        """The report: one page that needs nothing else.

        Raises:
            ModuleNotFoundError: jinja2 or matplotlib is not installed (``pip install 'cnnext[report]'``).
        """
        try:
            from .page import render
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            raise ModuleNotFoundError(f"the report needs {package}: run `pip install 'cnnext[report]'`") from None
        return render(self._document)

    def save_html(self, path: str | Path) -> Path:
        """Writes the report to a file and returns its path."""
        path = Path(path)
        path.write_text(self.html(), encoding="utf-8")
        return path

    def __str__(self) -> str:
        console = Console(width=100, highlight=False, color_system=None)
        with console.capture() as capture:
            console.print(*self._parts(100), sep="\n")
        return "\n".join(line.rstrip() for line in capture.get().splitlines()).strip("\n")

    __repr__ = __str__

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self._parts(options.max_width)

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{escape(self.html())}" style="width: 100%; height: 50em; border: 0"></iframe>'

    def _parts(self, width: int) -> Iterator[RenderableType]:
        networks, layers = self._document["networks"], self._document["layers"]
        for result in networks:
            yield tables.network(result, width)
            yield Text(tables.network_notes(result), style="dim")
        yield from tables.layers(layers, width)
        for warning in tables.warnings(networks + layers):
            yield Text(warning, style="yellow")
        if layers:
            yield Text(tables.peaks(self._document["machine"]), style="dim")
            yield Text(tables.LAYER_NOTES, style="dim")


class _Exact(TorchFunctionMode):
    """Puts float64 where a model names an element type, so that no part of a reference is coarser."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        def exact(value: Any) -> Any:
            return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value

        func = Tensor.double if func in (Tensor.float, Tensor.half, Tensor.bfloat16) else func
        return func(*map(exact, args), **{name: exact(value) for name, value in (kwargs or {}).items()})


class _Step:
    """One run of one copy of a model, with or without its gradients; an exact one is in float64."""

    def __init__(self, model: nn.Module, inputs: Any, backward: bool, library: str, exact: bool = False) -> None:
        self.model = model
        self.exact = exact
        self.inputs = inputs
        self.backward = backward
        self.ours = library == "cnnext"
        self.redirect = self.ours and _calls_torch(model, inputs)
        self.grad_outputs: list[Tensor] = []
        leaves = [*model.parameters(), *(leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))]
        self.leaves = [leaf for leaf in leaves if leaf.requires_grad]

    def run(self) -> Tensor:
        """Returns all outputs as one vector."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(self.backward))
            stack.enter_context(cnnext.backends.flags(enabled=self.ours))
            if self.redirect:
                stack.enter_context(cnnext.override())
            if self.exact:
                stack.enter_context(_Exact())
            leaves = tree_leaves(self.model(*self.inputs))
        outputs = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        if not outputs:
            raise ValueError("the model returned no floating-point tensor to compare")
        if self.backward:
            self._forget_gradients()
            roots = [output for output in outputs if output.requires_grad]
            if not roots:
                raise ValueError(
                    "backward=True, but no output of the model depends on a parameter or input that requires a gradient"
                )
            if not self.grad_outputs:
                generator = torch.Generator().manual_seed(0)
                self.grad_outputs = [torch.randn(root.shape, generator=generator).to(root) for root in roots]
            torch.autograd.backward(roots, self.grad_outputs)
        return torch.cat([output.detach().flatten() for output in outputs])

    def _forget_gradients(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None

    def __call__(self) -> None:
        self.run()

    def results(self) -> dict[str, Tensor]:
        try:
            found = {"output": self.run().double()}
        except RuntimeError as error:
            if not self.exact:
                raise
            raise ValueError(f"the model does not run in float64, with which results are compared: {error}") from error
        gradients = [leaf.grad.double().flatten() for leaf in self.leaves if leaf.grad is not None]
        if self.backward and gradients:
            found["gradient"] = torch.cat(gradients)
        self._forget_gradients()
        return found


def _calls_torch(model: nn.Module, inputs: Any) -> bool:
    """Whether a converted model still calls torch's functions, without a layer or from a subclass of one.

    A copy runs: a model may change with each run, and those that are compared run equally often.
    """
    model = copy.deepcopy(model)
    with torch.no_grad(), cnnext.override() as redirection:
        model(*inputs)
    return bool(redirection.redirected)


def profile(
    model: nn.Module,
    input: Any,
    against: str = "torch",
    *,
    backward: bool = False,
    layouts: str | Sequence[str] | None = None,
    name: str | None = None,
    min_time: float = 0.1,
) -> Profile:
    """Measures a model with our kernels beside torch's: as a whole, then each distinct layer.

    The model itself is left as it is: copies run, one with torch's layers and one with ours; calls of functions are
    redirected as by `override`. Every result is compared with float64 before anything is timed; the two take turns.
    The whole model's gradient may differ by 5 % (relative L2), as rounding can put an activation to a ReLU's other
    side. Random layers (dropout) are off in the copies, and max unpooling is timed in the whole only. A model on a GPU
    is timed by events. Warns where other programs ran meanwhile: see `Profile.disturbed`.

    Args:
        model: any module, in the mode (`train()` or `eval()`) in which it is to run, that is not traced or scripted.
        input: its argument, or a tuple of arguments.
        against: what ours is compared with; only "torch".
        backward: run backward too, and measure the gradients of every layer that parameters or inputs require.
        layouts: "nchw", "channels_last" or both (then each side's faster one is compared); the input's by default.
        name: the model's name in tables and pictures; its class by default.
        min_time: seconds to spend on each layer with each library, and ten times that on the whole model.

    Returns:
        A `Profile`: print it, `save_html("report.html")`, or take the numbers from `to_dict()`.

    Raises:
        ValueError: if an argument is none of these, a lazy layer has not run yet, the model's output is random, no
            tensor is floating-point, the model does not run in float64, backward has nothing to compute, or
            `torch.autocast` is on.
        AssertionError: if a result of ours differs from float64 by far more than torch's does.

    Example:
        >>> import cnnext
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2))
        >>> found = cnnext.profile(model, torch.randn(1, 3, 32, 32), min_time=0.001)
        >>> [layer["label"] for layer in found.layers]
        ['3→8 3x3 @32', 'max 2x2/2 8 @30']
    """
    if against != "torch":
        raise ValueError(f"against must be 'torch', not {against!r}")
    if not 0 < min_time < math.inf:
        raise ValueError(f"min_time must be a positive number, not {min_time}")
    _check_model(model)
    inputs = input if isinstance(input, tuple) else (input,)
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    if not tensors:
        raise ValueError("the model's input holds no tensor")
    if layouts is None:
        layouts = "channels_last" if _channels_last(*tensors) else "nchw"
    device = tensors[0].device.type
    if device not in ("cpu", "cuda"):
        raise ValueError(f"expected a model and an input on the CPU or on a GPU, got an input on {device!r}")
    if torch.is_autocast_enabled(device):
        raise ValueError(
            "torch.autocast is on, and its results are not as near to float64 as those of the model's own type: call "
            "profile outside of it, with a model and an input of the type to be measured, as by .to(torch.bfloat16)"
        )
    layouts = (layouts,) if isinstance(layouts, str) else tuple(layouts)
    unknown = [layout for layout in layouts if layout not in LAYOUTS]
    if unknown or not layouts:
        raise ValueError(f"layouts are {' and '.join(LAYOUTS)}, not {', '.join(map(repr, unknown)) or 'none'}")
    steps = Steps(_measure(model, inputs, backward, layouts, name or type(model).__name__, min_time))
    progress = Progress(
        TextColumn("profile"),
        BarColumn(bar_width=24),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not Console(stderr=True).is_terminal,
    )
    with progress, uncounted_fallbacks():
        task = progress.add_task("", total=1.0)
        for text, done in steps:
            progress.update(task, description=text, completed=done)
    found = Profile(steps.result)
    if found.disturbed:
        warnings.warn(found._disturbance(), stacklevel=2)
    return found


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise ValueError(f"expected a model that is a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"{name or 'the model'} is traced or scripted: give what it was made of")
    check_sizes(model)


def _measure(
    model: nn.Module, inputs: Any, backward: bool, layouts: tuple[str, ...], name: str, min_time: float
) -> Generator[tuple[str, float], None, dict[str, Any]]:
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    floating = [t for t in [*model.parameters(), *tensors] if t.is_floating_point()]
    if not floating:
        raise ValueError("neither the model nor its input holds a floating-point tensor")
    device = tensors[0].device
    machine = Machine(seconds=min(0.5, 3 * min_time), device=device)
    facts = environment.facts(device)

    yield "preparing the model", 0.0
    with warnings.catch_warnings():  # what revert leaves alone is sent to torch by `backends.flags`
        warnings.filterwarnings("ignore", "cnnext.revert left alone")
        plain = cnnext.revert(network.converted(model, "torch", layouts[0], None))
    for module in plain.modules():
        if isinstance(module, _DropoutNd):
            module.eval()

    def make(library: str, layout: str, exact: torch.dtype | None = None) -> _Step:
        def prepared(tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor
            alone = layer_bench.in_layout(tensor.detach().to(exact or tensor.dtype), layout)
            return alone.requires_grad_(backward and tensor.requires_grad)

        with warnings.catch_warnings():  # calls of the layers that convert leaves alone are redirected
            warnings.filterwarnings("ignore", "cnnext.convert left alone")
            converted = network.converted(plain, library, layout, exact)
        return _Step(converted, tree_map_only(Tensor, prepared, inputs), backward, library, exact is not None)

    first = make("torch", layouts[0])
    uses = collect(first.model, *first.inputs)
    del first
    dtypes = [use.dtype for use in uses] or [floating[0].dtype]
    dtype = max(dtypes, key=lambda each: torch.finfo(each).eps)
    _check_repeatable(lambda library: make(library, layouts[0]).results()["output"])
    compared = network.compare(name, make, dtype, layouts, machine, 10 * min_time)
    result = yield from _within(compared, "whole model", 0.0, 0.3)
    for key, backend in result["backends"].items():
        yield f"peak memory, {key}", 0.3
        library, layout = key.split()
        step = make(library, layout)
        cnnext.empty_cache()
        backend["peak_memory"] = peak_memory(lambda step=step: (step(), step()), device)  # type: ignore[misc]
    counted = {"convolution": 0, "pooling": 0}
    for use in uses:
        counted["convolution" if use.layer.is_conv else "pooling"] += use.count
    mode = "backward" if backward else "infer"
    image = max(tensors, key=Tensor.dim)
    batch = uses[0].layer.input[0] if uses else image.shape[0] if image.dim() else 1
    whole = {
        "model": name,
        "mode": mode,
        "batch": batch,
        "input": "x".join(map(str, image.shape[1:] if image.shape[:1] == (batch,) else image.shape)),
        "allocator": "default",
        "memory_from": "in this process" if device.type == "cpu" else "counted by torch's allocator",
        "replaced": counted,
        "conv_flops": sum(use.flops(backward) for use in uses),
        "limit": sum(use.flops(backward) / machine.flops(use.dtype) for use in uses),
        **result,
    }
    measured = []
    for index, use in enumerate(uses):
        yield use.layer.label(), 0.3 + 0.7 * index / len(uses)
        directions = use.directions(use.layer.directions if backward else ("forward",))
        training = backward and use.needs_grad_input
        for found in layer_bench.measure(
            use.layer, directions, use.dtype, layouts, machine, min_time, training=training
        ):
            about = {"model": name, "mode": mode, "allocator": "default", "count": use.count, "names": use.names}
            measured.append({**about, **found})
    return {
        "environment": {"default": facts},
        "machine": machine.as_json(),
        "networks": [whole],
        "layers": measured,
        "geometric_means": tables.summary(measured),
    }


def _check_repeatable(output: Callable[[str], Tensor]) -> None:
    """Runs our layers, as some of torch's compute something else each time (grouped bfloat16 convolutions by AMX)."""
    first, second = output("cnnext"), output("cnnext")
    if not (first.isfinite().all() or output("torch").isfinite().all()):
        raise ValueError("the model's output is not finite: nothing can be compared")
    difference = layer_bench.errors(second, first)["relative"]
    if difference > _SAME:
        raise ValueError(f"the model's output is random: two runs of it differ by {difference:.1e} (relative L2)")


def _within(
    generator: Generator[tuple[str, float], None, Any], what: str, begin: float, end: float
) -> Generator[tuple[str, float], None, Any]:
    """Runs a part of the work, which takes progress from one fraction to another."""
    steps = Steps(generator)
    for text, done in steps:
        yield f"{what}: {text}", begin + (end - begin) * done
    return steps.result
