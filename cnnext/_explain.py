"""What would run for a layer, a function or a whole model: kernels and why, shapes, FLOPs, bytes, fallbacks."""

from __future__ import annotations

import html
import logging
import math
import textwrap
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from threading import get_ident
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.jit._script import RecursiveScriptModule
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from . import _C, backends
from ._arguments import per_axis
from ._decompositions import IN_ATEN
from ._override import override

_SPATIAL = {1: "W", 2: "HW", 3: "DHW"}
_OUTPUT = {1: "Q", 2: "PQ", 3: "OPQ"}
_KERNEL = {1: "S", 2: "RS", 3: "TRS"}


@dataclass(frozen=True)
class Direction:
    """One kernel's work: the forward pass or one of the gradients."""

    name: str
    op: str
    kernel: str
    reason: str
    refused: dict[str, str]  # candidates that do not take this problem, and why
    flops: int
    bytes: int  # read and written, each element once
    workspace_bytes: int


@dataclass(frozen=True)
class Layer:
    """One call of an operator."""

    name: str
    op: str
    shape: str
    dtype: str
    layout: str
    fallback: str | None = None  # why torch computes it
    directions: list[Direction] = field(default_factory=list)


class Explanation:
    """What `explain` found: `layers`, one entry per call of an operator. Prints as a table, in a notebook too."""

    def __init__(self, layers: list[Layer], arch: int = 0) -> None:
        self.layers = layers
        self.target = f"sm_{arch}" if arch else _C.cpu_capability()

    def to_dict(self) -> dict[str, Any]:
        """The same as plain numbers, strings, lists and dictionaries, fit for JSON."""
        return {
            "cpu_capability": _C.cpu_capability(),
            "target": self.target,
            "layers": [asdict(layer) for layer in self.layers],
        }

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        head = ["layer", "shape", "direction", "kernel", "why", "GFLOP", "MB", "workspace MB"]
        rows = []
        for layer in self.layers:
            what = [f"{layer.name} {layer.op}".strip(), layer.shape]
            if layer.fallback is not None:
                rows.append([*what, "all", "torch", layer.fallback, "", "", ""])
            for each in layer.directions:
                numbers = [f"{each.flops / 1e9:.3f}", f"{each.bytes / 1e6:.2f}", f"{each.workspace_bytes / 1e6:.2f}"]
                rows.append([*what, each.name, each.kernel, each.reason, *numbers])
                what = ["", ""]
        return head, rows

    def __str__(self) -> str:
        if not self.layers:
            return "no convolution or pooling was called"
        blocks = [f"cnnext on {self.target}"]
        for layer in self.layers:
            blocks.append(f"{layer.name} {layer.op}".strip() + f", {layer.dtype}, {layer.layout}: {layer.shape}")
            if layer.fallback is not None:
                blocks.append(f"  left to torch: {layer.fallback}")
            for each in layer.directions:
                numbers = f"{each.flops / 1e9:9.3f} GFLOP {each.bytes / 1e6:8.2f} MB"
                scratch = f" + {each.workspace_bytes / 1e6:.2f} MB workspace" if each.workspace_bytes else ""
                why = f": {each.reason}" if each.reason else ""
                blocks.append(f"  {each.name:<11} {each.kernel:<15} {numbers}{scratch}{why}")
            if refusals := _refusals(layer.directions):
                blocks.append("  not used: " + "; ".join(refusals))
        if len(self.layers) > 1:
            forward = [layer.directions[0] for layer in self.layers if layer.directions]
            flops, traffic = sum(each.flops for each in forward), sum(each.bytes for each in forward)
            work = f"{flops / 1e9:.3f} GFLOP, {traffic / 1e6:.2f} MB"
            left = sum(layer.fallback is not None for layer in self.layers)
            blocks.append(f"{len(self.layers)} layers: {work} forward; {left} left to torch")
        return "\n".join(textwrap.fill(block, 100, subsequent_indent=" " * 14) for block in blocks)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head, rows = self._rows()
        cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
        body = "".join(f"<tr>{row}</tr>" for row in cells)
        return f"<table><thead><tr>{''.join(f'<th>{h}</th>' for h in head)}</tr></thead><tbody>{body}</tbody></table>"


def _refusals(directions: list[Direction]) -> list[str]:
    """The refused kernels and why; and where, if a kernel runs in another direction or the reasons differ."""
    found: dict[str, dict[str, list[str]]] = {}  # directions by kernel and reason
    for each in directions:
        for kernel, why in each.refused.items():
            found.setdefault(kernel, {}).setdefault(why, []).append(each.name)
    used = {each.kernel for each in directions}
    refusals = []
    for kernel, reasons in found.items():
        anywhere = len(reasons) == 1 and kernel not in used
        for why, where in reasons.items():
            refusals.append(f"{kernel}: {why}" if anywhere else f"{kernel} in {' and '.join(where)}: {why}")
    return refusals


def _channels_last(*tensors: Tensor) -> bool:
    """Whether an operator takes one of the tensors for channels last."""
    return any(map(_C.is_channels_last, tensors))


def _bytes(*tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))


def _terms(letters: str, sizes: Any) -> str:
    return " ".join(f"{letter}={int(size)}" for letter, size in zip(letters, sizes, strict=True))


def _numbers(values: list[int]) -> str:
    return "x".join(map(str, values[:1] if len(set(values)) == 1 else values))


def _direction(name: str, op: str, flops: int, traffic: int, choice: dict[str, Any]) -> Direction:
    refused = {c["name"]: c["reason"] for c in choice["candidates"] if not c["supported"]}
    chosen = (choice["kernel"] or "none", choice["reason"], refused)
    return Direction(name, op, *chosen, flops, traffic, choice["workspace_bytes"])


def _explain_conv(name: str, op: str, args: dict[str, Any], result: Tensor, arch: int, grads: bool) -> Layer:
    weight = args["weight"]
    residual, activation = args.get("residual"), args.get("activation", "none")
    op = op.removeprefix("fused_")
    transposed = op == "conv_grad_input"
    source = args["grad_output"] if transposed else args["input"]
    dims = weight.dim() - 2
    stride, padding, dilation = (per_axis(args[key], dims) for key in ("stride", "padding", "dilation"))
    groups = int(args["groups"])
    # In the terms of the convolution, which a transposed one is the gradient of.
    small, large = (source, result) if transposed else (result, source)
    flops = 2 * math.prod(small.shape) * math.prod(weight.shape[1:])
    traffic = _bytes(source, weight, result, residual)
    names = {"conv": "forward", "conv_grad_input": "grad_input", "conv_grad_weight": "grad_weight"}
    if transposed:
        names |= {"conv": "grad_input", "conv_grad_input": "forward"}
    size = [int(n) for n in large.shape]
    geometry = (size, [int(n) for n in weight.shape], stride, padding, dilation, groups)
    last = _channels_last(source, weight)
    operands = {"forward": (source, weight), "grad_input": (result, weight), "grad_weight": (source, result)}
    directions = []
    for each in sorted(names, key=lambda kernel_op: names[kernel_op] != "forward"):
        keeps = each == op and arch == 0 and backends.packed_weights.enabled and not (grads and weight.requires_grad)
        layouts = _channels_last(*operands[names[each]]), arch, _C.is_channels_last(weight)
        choice = _C.explain_conv(each, *geometry, source.dtype, *layouts, keeps)
        directions.append(_direction(names[each], each, flops, traffic, choice))
    kernel = f"{_terms(_KERNEL[dims], weight.shape[2:])} stride {_numbers(stride)} padding {_numbers(padding)}"
    shape = f"{_terms('NC' + _SPATIAL[dims], source.shape)} → {_terms('K' + _OUTPUT[dims], result.shape[1:])}, {kernel}"
    shape += f" dilation {_numbers(dilation)}" * any(d > 1 for d in dilation) + f" groups {groups}" * (groups > 1)
    shape += " + residual" * (residual is not None) + f", {activation}" * (activation != "none")
    return _layer(name, "conv_transpose" if transposed else "conv", shape, source, last, directions)


def _explain_pool(name: str, op: str, args: dict[str, Any], results: list[Tensor], arch: int) -> Layer:
    source, output = args["input"], results[0]
    dims = source.dim() - 2
    adaptive = "kernel_size" not in args
    size, out_size = [int(n) for n in source.shape], [int(n) for n in output.shape]
    axes = range(2, 2 + dims)
    kernel = (
        [math.ceil(size[a] / max(out_size[a], 1)) for a in axes] if adaptive else per_axis(args["kernel_size"], dims)
    )
    ones, zeros = [1] * dims, [0] * dims
    stride = kernel if adaptive or not args["stride"] else per_axis(args["stride"], dims)
    padding = zeros if adaptive else per_axis(args["padding"], dims)
    dilation = per_axis(args.get("dilation", [1]), dims) if not adaptive else ones
    operations = math.prod(out_size) * math.prod(kernel)
    last = _channels_last(source)
    directions = []
    family = op.removesuffix("_with_indices").removesuffix("_with_offsets")
    for direction, each in (("forward", op), ("grad_input", f"{family}_grad_input")):
        geometry = (size, out_size, kernel, stride, padding, dilation)
        choice = _C.explain_pool(each, *geometry, source.dtype, last, arch)
        directions.append(_direction(direction, each, operations, _bytes(source, *results), choice))
    window = f"{_terms(_KERNEL[dims], kernel)} stride {_numbers(stride)} padding {_numbers(padding)}"
    window += f" dilation {_numbers(dilation)}" * any(d > 1 for d in dilation)
    shape = f"{_terms('NC' + _SPATIAL[dims], size)} → {_terms(_OUTPUT[dims], out_size[2:])}"
    return _layer(name, family, shape if adaptive else f"{shape}, {window}", source, last, directions)


def _explain_unpool(name: str, op: str, args: dict[str, Any], result: Tensor, arch: int) -> Layer:
    source = args["input"]
    size, out_size = [int(n) for n in source.shape], [int(n) for n in result.shape]
    dims = len(size) - 2
    traffic = _bytes(source, args["indices"], result)
    last = _channels_last(source)
    # Unpooling knows planes of pixels and no windows; adaptive ones fit any two planes.
    geometry = ([*size[:2], math.prod(out_size[2:])], [*size[:2], math.prod(size[2:])], [1], [1], [0], [1])
    directions = []
    for direction, each in (("forward", op), ("grad_input", f"{op}_grad_input")):
        choice = _C.explain_pool(f"adaptive_{each}", *geometry, source.dtype, last, arch)
        directions.append(_direction(direction, each, 0, traffic, choice))
    shape = f"{_terms('NC' + _SPATIAL[dims], size)} → {_terms(_OUTPUT[dims], out_size[2:])}"
    return _layer(name, op, shape, source, last, directions)


def _layer(name: str, op: str, shape: str, source: Tensor, last: bool, directions: list[Direction]) -> Layer:
    layout = "channels last" if last else "channels first"
    return Layer(name, op, shape, str(source.dtype).removeprefix("torch."), layout, None, directions)


def _fallback(name: str, op: str, args: Any, reason: str) -> Layer:
    sizes = " ".join("x".join(map(str, arg.shape)) for arg in args if isinstance(arg, Tensor))
    return replace(_layer(name, op, sizes, args[0], _channels_last(args[0]), []), fallback=reason)


@contextmanager
def module_path(model: Any) -> Iterator[list[str]]:
    """While a model runs inside the block: names of the modules it is in, the innermost last. Empty for a function."""
    path: list[str] = []
    handles = []
    if isinstance(model, torch.nn.Module):
        for name, module in model.named_modules():
            if isinstance(module, RecursiveScriptModule):  # takes no hooks
                continue
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: path.append(name)))
            handles.append(module.register_forward_hook(lambda *_: path.pop() and None, always_call=True))
    try:
        yield path
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _without_log() -> Iterator[None]:
    """Inside the block, nothing of this thread is logged by FakeTensor, which prints a traceback of what it raises."""
    log, thread = logging.getLogger(FakeTensorMode.__module__), get_ident()

    def of_others(record: logging.LogRecord) -> bool:
        return record.thread != thread

    log.addFilter(of_others)
    try:
        yield
    finally:
        log.removeFilter(of_others)


def _torchs_error(func: Any, args: Any, kwargs: Any) -> RuntimeError | None:
    """What ATen says of a call that one of our operators has rejected: of fake tensors, ours knows less to say."""
    torchs = IN_ATEN.get(func)
    try:
        if torchs is not None:
            torchs(*args, **kwargs)
    except RuntimeError as error:
        return error
    return None


class _Recorder(TorchDispatchMode):
    """Notes every convolution and pooling operator below autograd; one of ATen's is a call that was left to torch."""

    def __init__(self, path: list[str], arch: int) -> None:
        super().__init__()
        self.arch = arch
        self.grads = torch.is_grad_enabled()
        self.layers: list[Layer] = []
        self.path = path
        self.fallbacks = backends.fallbacks()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            result = func(*args, **(kwargs or {}))
        except RuntimeError as error:
            raise _torchs_error(func, args, kwargs or {}) or error from None
        layer = self._layer_of(func, args, kwargs or {}, result)
        if layer is not None:
            self.resolve()
            self.layers.append(layer)
        return result

    def _layer_of(self, func: Any, args: Any, kwargs: Any, result: Any) -> Layer | None:
        op = func._schema.name.split("::")[1]
        name = self.path[-1] if self.path else ""
        if func.namespace == "aten" and ("conv" in op or "pool" in op):
            return _fallback(name, op, args, "")
        if func.namespace != "cnnext":
            return None
        named = {a.name: a.default_value for a in func._schema.arguments}
        named |= dict(zip(named, args, strict=False)) | kwargs
        if op.startswith("batch_norm"):  # one kernel for all
            return None
        if "weight" in named:
            if any(isinstance(arg, Tensor) and arg.numel() == 0 for arg in args):
                return _fallback(name, op, args, f"{op}: empty tensor")
            return _explain_conv(name, op, named, result, self.arch, self.grads)
        source = named.get("input")
        if not isinstance(source, Tensor) or op in ("conv_grad_weight", "max_pool_select"):  # of a gradient
            return None
        if 0 in source.shape[1:]:
            return _fallback(name, op, [source], f"{op}: invalid or empty size")
        if op == "max_unpool":
            return _explain_unpool(name, op, named, result, self.arch)
        results = [result] if isinstance(result, Tensor) else list(result)
        return _explain_pool(name, op, named, results, self.arch)

    def resolve(self) -> None:
        """Looks up why the last layer was left to torch: it is recorded once torch is done, maybe by several calls."""
        if self.layers and self.layers[-1].fallback == "":
            now = backends.fallbacks()
            new = [key for key in now if now[key] > self.fallbacks.get(key, 0)]
            self.layers[-1] = replace(self.layers[-1], fallback=new[0] if new else "not an operator of ours")
            self.fallbacks = now


_CONTAINERS = (dict, OrderedDict, defaultdict, list, deque, set)


@contextmanager
def _unchanged(model: torch.nn.Module) -> Iterator[None]:
    """Afterwards, the modules' attributes are those of before, and so is what is in lists, dictionaries and sets there,
    at any depth: what the block has put into them is fake."""
    before: list[tuple[Any, Any]] = []
    found: list[Any] = [vars(module) for module in model.modules()]
    seen = set()  # by identity: containers may hold each other
    while found:
        each = found.pop()
        if id(each) in seen or type(each) not in (*_CONTAINERS, tuple):
            continue
        seen.add(id(each))
        if type(each) is not tuple:
            before.append((each, copy(each)))
        found.extend(each.values() if isinstance(each, dict) else each)
    try:
        yield
    finally:
        for each, entries in before:
            each.clear()
            (each.extend if isinstance(each, (list, deque)) else each.update)(entries)


def _arch_number(device: str | torch.device | None, arch: tuple[int, int] | None, tensors: Any) -> int:
    """10 * major + minor of the GPU that is meant, or 0 for the CPU."""
    given = [each.device for each in tree_leaves(tensors) if isinstance(each, Tensor) and each.is_cuda]
    usual = given[0] if given else "cpu" if arch is None else "cuda"
    target = torch.device(usual if device is None else device)
    if target.type not in ("cpu", "cuda"):
        raise ValueError(f"explain: expected device 'cpu' or 'cuda', but got '{target}'")
    if target.type == "cpu":
        if arch is not None:
            raise ValueError(f"explain: expected no arch for device 'cpu', but got {arch!r}")
        return 0
    if arch is None:
        if not torch.cuda.is_available():
            raise ValueError("explain: there is no GPU here to ask; say which one you mean, for example arch=(8, 0)")
        arch = torch.cuda.get_device_capability(target)
    match arch:
        case (int(major), int(minor)) if (major, minor) >= (7, 5) and 0 <= minor < 10:
            return 10 * major + minor
    raise ValueError(f"explain: expected arch as (major, minor), (7, 5) or newer, but got {arch!r}")


def _check(model: torch.nn.Module) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("explain: expected a model in Python, but got one that torch.jit traced or scripted")
    if isinstance(model, torch.nn.DataParallel):
        raise TypeError("explain: expected the model inside of DataParallel, its .module")
    check_sizes(model)


def check_sizes(model: torch.nn.Module) -> None:
    """Raises a ValueError for a lazy layer that has not run yet."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(f"the size of {name} is not known yet: run the model once first")


def explain(
    layer_or_function: Callable[..., Any],
    *tensors: Any,
    device: str | torch.device | None = None,
    arch: tuple[int, int] | None = None,
    **kwargs: Any,
) -> Explanation:
    """Says which kernels a call would run and why, and how much work it is, without computing it.

    Args:
        layer_or_function: a layer or whole model, of cnnext or torch (then: what would run after `convert`), or a
            function such as `cnnext.functional.conv2d` or `torch.nn.functional.conv2d`.
        tensors, kwargs: its arguments; only their shapes, types and layouts matter. A model is left as it was; its
            hooks and its code get tensors without numbers (torch's FakeTensor).
        device: "cpu" or "cuda"; by default where the tensors are.
        arch: the compute capability of a GPU, (7, 5) or newer; by default that of the GPU at hand. No GPU is needed to
            ask for one.

    Returns:
        An `Explanation`: print it, or use its `layers` or `to_dict()`. Each layer lists its directions (forward,
        grad_input, grad_weight) with kernel, reason, FLOPs, bytes and workspace; or why torch computes it.

    Example:
        >>> import cnnext
        >>> found = cnnext.explain(torch.nn.Conv2d(3, 8, 3), torch.ones(1, 3, 10, 10))
        >>> found.layers[0].shape
        'N=1 C=3 H=10 W=10 → K=8 P=8 Q=8, R=3 S=3 stride 1 padding 0'
    """
    given: Any = (tensors, kwargs)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    run: Callable[..., Any] = layer_or_function
    state: Any = ()
    unchanged: AbstractContextManager[None] = nullcontext()
    if isinstance(layer_or_function, torch.nn.Module):
        _check(layer_or_function)
        given = (given, list(layer_or_function.parameters()))
        # Parameters and buffers are replaced too, or a batch norm would count this call.
        state = [dict(layer_or_function.named_parameters()), dict(layer_or_function.named_buffers())]
        unchanged = _unchanged(layer_or_function)

        def run(*args: Any, **kwargs: Any) -> Any:
            return torch.func.functional_call(layer_or_function, state, args, kwargs)

    elif not callable(layer_or_function):
        came = type(layer_or_function).__name__
        raise ValueError(f"explain: expected a layer, a model or a function, but got {came}")
    arch_number = _arch_number(device, arch, given)
    with unchanged, module_path(layer_or_function) as path, backends.uncounted_fallbacks():
        recorder = _Recorder(path, arch_number)
        with fake:
            state, tensors, kwargs = tree_map_only(Tensor, fake.from_tensor, (state, tensors, kwargs))
        # Dynamo would meet the recorder's mode in a compiled model's frames and skip them for good.
        with torch.compiler.set_stance("force_eager"), fake, recorder, override(), _without_log():
            try:
                run(*tensors, **kwargs)
            except (DataDependentOutputException, DynamicOutputShapeException) as error:
                words = "explain computes no numbers, but what it was given needs them, as .item() or a mask does"
                raise RuntimeError(f"{words}: {error}") from error
        recorder.resolve()
    return Explanation(recorder.layers, arch_number)
