"""One layer in every direction: ours beside torch's, checked first, then timed in turns."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import cnnext
import cnnext.functional

from .layers import LAYOUTS, Layer
from .timing import Machine, finish, interleave

Call = Callable[[], Tensor]

# A right kernel may sum in another order, or in Winograd's domain; a wrong one is off by a hundred times this.
_TIMES_TORCH = 8
_ROUNDINGS = 8
_NEVER_RIGHT = 1 / 8  # relative error
_OTHER_BYTES = 128 << 20  # more than caches hold
_CPU = torch.device("cpu")


class Mismatch(AssertionError):
    """A result differs from the float64 reference by far more than torch's does."""


def memory_format(layout: str, dims: int) -> torch.memory_format:
    """torch's name of a layout for tensors of ``dims`` spatial dimensions."""
    if layout == "channels_last" and dims > 1:
        return torch.channels_last if dims == 2 else torch.channels_last_3d
    return torch.contiguous_format


def in_layout(tensor: Tensor, layout: str) -> Tensor:
    """The tensor in a layout; one that is no image or volume as it is."""
    return (
        tensor.contiguous(memory_format=memory_format(layout, tensor.dim() - 2)) if tensor.dim() in (4, 5) else tensor
    )


@dataclass
class Tensors:
    """The operands of a layer in one layout."""

    input: Tensor
    weight: Tensor | None
    bias: Tensor | None
    grad_output: Tensor

    @staticmethod
    def random(layer: Layer, device: torch.device = _CPU) -> Tensors:
        """The same random numbers every time, made on the device."""
        generator = torch.Generator(device).manual_seed(0)

        def random(size: tuple[int, ...]) -> Tensor:
            return torch.randn(size, generator=generator, device=device)

        weight = bias = None
        if layer.has_weight:
            weight = random(layer.weight) / max(1, weight_fan_in(layer)) ** 0.5
            bias = random(layer.output()[1:2]) if layer.bias else None
        return Tensors(random(layer.input), weight, bias, random(layer.output()))

    def to(self, dtype: torch.dtype, layout: str, device: torch.device) -> Tensors:
        def convert(tensor: Tensor) -> Tensor:
            return in_layout(tensor.to(device, dtype), layout)

        return Tensors(
            convert(self.input),
            None if self.weight is None else convert(self.weight),
            None if self.bias is None else self.bias.to(device, dtype),
            convert(self.grad_output),
        )

    def as_images(self) -> Tensors:
        """Of a linear layer, as its rows are seen: one image of one row of pixels, channels last."""

        def image(rows: Tensor) -> Tensor:
            return rows[None, None].permute(0, 3, 1, 2)

        weight = None if self.weight is None else self.weight[:, :, None, None]
        return Tensors(image(self.input), weight, self.bias, image(self.grad_output))


def weight_fan_in(layer: Layer) -> int:
    return layer.flops() // (2 * torch.Size(layer.output()).numel() or 1)


def torch_call(layer: Layer, direction: str, tensors: Tensors) -> Call:
    """What torch runs for one direction of a layer, as a function of no arguments."""
    if not layer.has_weight:
        return _pool_call(layer, direction, tensors, F)
    if direction == "forward":
        return lambda: layer.call(F, tensors.input, tensors.weight, tensors.bias)
    if layer.is_linear:
        grad_output, input, weight = tensors.grad_output, tensors.input, tensors.weight
        assert weight is not None
        return lambda: grad_output.mm(weight) if direction == "grad_input" else grad_output.t().mm(input)
    mask = [direction == "grad_input", direction == "grad_weight", False]
    return lambda: torch.ops.aten.convolution_backward(
        tensors.grad_output,
        tensors.input,
        tensors.weight,
        None,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.is_transposed,
        layer.output_padding or [0] * layer.dims,
        layer.groups,
        mask,
    )[mask.index(True)]


def our_call(layer: Layer, direction: str, tensors: Tensors, layout: str) -> Call:
    """What cnnext runs for the same."""
    if not layer.has_weight:
        return _pool_call(layer, direction, tensors, cnnext.functional)
    if layer.is_linear and direction != "forward":  # as autograd calls them
        gradient = our_call(layer.as_conv(), direction, tensors.as_images(), "nchw")
        if direction == "grad_input":
            return lambda: gradient()[0, :, 0].t()
        return lambda: gradient()[:, :, 0, 0]
    geometry = (list(layer.stride), list(layer.padding), list(layer.dilation), layer.groups)
    if direction == "forward":
        return lambda: layer.call(cnnext.functional, tensors.input, tensors.weight, tensors.bias)
    kernel, channels_last = list(layer.weight[2:]), layout == "channels_last"
    if layer.is_transposed:  # the gradient of a convolution, and the convolution its gradient
        if direction == "grad_input":
            return lambda: torch.ops.cnnext.conv(tensors.grad_output, tensors.weight, None, *geometry)
        return lambda: torch.ops.cnnext.conv_grad_weight(
            tensors.input, tensors.grad_output, kernel, *geometry, channels_last
        )
    if direction == "grad_input":
        size = list(layer.input[2:])
        return lambda: torch.ops.cnnext.conv_grad_input(tensors.grad_output, tensors.weight, None, size, *geometry)
    return lambda: torch.ops.cnnext.conv_grad_weight(
        tensors.grad_output, tensors.input, kernel, *geometry, channels_last
    )


def _pool_call(layer: Layer, direction: str, tensors: Tensors, functional: Any) -> Call:
    if direction == "forward":
        return lambda: layer.call(functional, tensors.input)
    # Neither side has a public function for this, so that both pass the autograd engine (some microseconds).
    input = tensors.input.detach().requires_grad_()
    with torch.enable_grad():
        output = layer.call(functional, input)
    return lambda: torch.autograd.grad(output, input, tensors.grad_output, retain_graph=True)[0]


@functools.cache
def _other_memory(device: torch.device) -> Tensor:
    return torch.ones(_OTHER_BYTES // 4, device=device)


def _as_in_a_network(read: Tensor) -> Callable[[], object]:
    """Fills the caches with other memory, and then with what a layer reads, written as by the layer before it."""
    return lambda: (_other_memory(read.device).sum(), read.detach().mul_(1))


def kernel_name(
    layer: Layer, direction: str, dtype: torch.dtype, layout: str, device: torch.device, training: bool = False
) -> str:
    """The kernel that cnnext chooses for a direction of a layer."""
    major, minor = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    how = (dtype, layer.is_linear or layout == "channels_last", 10 * major + minor)
    layer = layer.as_conv()
    if layer.is_conv:
        op = "conv" if direction == "forward" else f"conv_{direction}"
        if layer.is_transposed:
            op = {"conv": "conv_grad_input", "conv_grad_input": "conv"}.get(op, op)
        sizes = (list(layer.output() if layer.is_transposed else layer.input), list(layer.weight))
        geometry = (list(layer.stride), list(layer.padding), list(layer.dilation), layer.groups)
        return str(cnnext._C.explain_conv(op, *sizes, *geometry, *how)["kernel"])
    forward = "_with_offsets" if training and "max" in layer.op else ""
    op = layer.op[: -len("2d")] + (forward if direction == "forward" else "_grad_input")
    output = layer.output()
    ones, zeros = [1] * layer.dims, [0] * layer.dims
    window = list(layer.window)
    windows = (window, list(layer.stride) or window, list(layer.padding) or zeros, list(layer.dilation) or ones)
    return str(cnnext._C.explain_pool(op, list(layer.input), list(output), *windows, *how)["kernel"])


def errors(result: Tensor, reference: Tensor) -> dict[str, float]:
    """Largest absolute error, and relative error in the L2 norm, against float64."""
    if result.shape != reference.shape:
        raise Mismatch(f"the result has size {tuple(result.shape)}, the reference {tuple(reference.shape)}")
    difference = result.detach().double() - reference
    scale = float(reference.norm())
    largest = float(difference.abs().max()) if difference.numel() else 0.0
    return {"max": largest, "relative": float(difference.norm()) / (scale or 1.0)}


def epsilon(dtype: torch.dtype, device: torch.device) -> float:
    """That of the type torch multiplies in, which may be TF32 on a GPU."""
    tf32 = dtype == torch.float32 and device.type == "cuda" and torch.backends.cudnn.allow_tf32
    return 2**-10 if tf32 else torch.finfo(dtype).eps


def limit(dtype: torch.dtype, depth: int, device: torch.device = _CPU) -> float:
    """The largest relative error that a right sum of ``depth`` operations may have.

    One after another in the type itself, they were seen to be off by sqrt(depth) / 7 of its epsilon.
    """
    return min(epsilon(dtype, device) * (_ROUNDINGS + depth**0.5), _NEVER_RIGHT)


def check(
    found: dict[str, dict[str, float]], what: str, dtype: torch.dtype, most: float, allowed: float = 0.0
) -> dict[str, float | None]:
    """Compares our relative errors with torch's, where those are of right results.

    Args:
        found: :func:`errors` of every backend, by a name that starts with ``torch`` or ``cnnext``.
        most: the largest relative error of a right result: what torch's may be, and give to ours.
        allowed: a relative error that is right in any case.

    Returns:
        The relative errors of torch's wrong results, by backend; None where they are not finite.

    Raises:
        Mismatch: one of ours is far larger than torch's, or not finite.
    """
    torchs = {name: error["relative"] for name, error in found.items() if name.startswith("torch")}
    wrong = {name: error for name, error in torchs.items() if not error <= most}
    right = max((error for name, error in torchs.items() if name not in wrong), default=most)
    bound = max(torch.finfo(dtype).eps + min(_TIMES_TORCH * right, most), allowed)
    for name, error in found.items():
        if name.startswith("cnnext") and not error["relative"] <= bound:
            raise Mismatch(
                f"{what}: {name} differs from float64 by {error['relative']:.2e} (relative L2; "
                f"largest absolute error {error['max']:.2e}), allowed is {bound:.2e}"
            )
    return {name: error if math.isfinite(error) else None for name, error in wrong.items()}


def measure(
    layer: Layer,
    directions: tuple[str, ...],
    dtype: torch.dtype,
    layouts: tuple[str, ...],
    machine: Machine,
    min_time: float,
    repeats: int | None = None,
    training: bool = False,
    cold: bool = False,
) -> Generator[dict[str, Any], None, None]:
    """Checks and times one layer; yields one result per direction.

    Both sides get the same operands in the same layout. Times are without autograd, except the backward of pooling
    and, where it is for training, its forward, which then keeps what backward needs. ``cold`` times each call by itself
    with all but its input, or the gradient of its output, out of the caches, as in a network. A result's ``limit`` is
    the time the machine's measured peaks allow: the larger of FLOPs by peak FLOP/s and bytes by the bandwidth of a copy
    of as many bytes. Its ``wrong`` are backends of torch that are not timed because they do not compute the layer, with
    their relative errors (None: not finite).

    Raises:
        Mismatch: a result of ours is wrong. Nothing of this direction has been timed then.
    """
    layouts = layouts if layer.dims > 1 else ("nchw",)
    device = machine.device
    rounded = Tensors.random(layer).to(dtype, "nchw", device)
    operands = {layout: rounded.to(dtype, layout, device) for layout in layouts}
    exact = rounded.to(torch.float64, "nchw", device)
    records = training and not layer.has_weight
    if records:
        for layout, each in operands.items():
            operands[layout] = replace(each, input=each.input.detach().requires_grad_())
    for direction in directions:
        calls: dict[str, Call] = {}
        for layout in layouts:
            calls[f"torch {layout}"] = torch_call(layer, direction, operands[layout])
            calls[f"cnnext {layout}"] = our_call(layer, direction, operands[layout], layout)
        with torch.set_grad_enabled(records):
            reference = torch_call(layer, direction, exact)()
            found = {name: errors(call(), reference) for name, call in calls.items()}
            most = limit(dtype, layer.operations() // (reference.numel() or 1), device)
            del reference
            wrong = check(found, f"{layer.label()} {direction}", dtype, most)
            calls = {name: call for name, call in calls.items() if name not in wrong}
            before = None
            if cold:
                first = "input" if direction == "forward" else "grad_output"
                before = {name: _as_in_a_network(getattr(operands[name.split()[1]], first)) for name in calls}
            timings = finish(interleave(calls, min_time, repeats, device, before))
        backends = {}
        for name, timing in timings.items():
            library, layout = name.split()
            backends[name] = {**timing.as_json(), "error": found[name]}
            if library == "cnnext":
                backends[name]["kernel"] = kernel_name(layer, direction, dtype, layout, device, training)
        flops, size = layer.flops(), layer.bytes(dtype)
        shortest = max(flops / machine.flops(dtype) if flops else 0.0, size / machine.bandwidth(size))
        yield {
            "layer": layer.as_json(),
            "label": layer.label(),
            "kind": layer.kind(),
            "family": layer.family(),
            "direction": direction,
            "dtype": str(dtype).removeprefix("torch."),
            "batch": layer.input[0],
            "cold": cold,
            "flops": flops,
            "operations": layer.operations(),
            "bytes": size,
            "limit": shortest,
            "wrong": wrong,
            "backends": backends,
            **compare(backends),
        }


def compare(backends: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The fastest layout of each library, and torch's time over ours: best against best and by layout.

    What torch computed wrongly is not among the backends, and has no speedup.
    """
    best: dict[str, str] = {}
    for name in sorted(backends, key=lambda name: backends[name]["median"]):
        best.setdefault(name.split()[0], name)
    pairs = {"best": (best.get("torch"), best["cnnext"])}
    pairs |= {layout: (f"torch {layout}", f"cnnext {layout}") for layout in LAYOUTS}
    speedup = {
        which: backends[torchs]["median"] / backends[ours]["median"]
        for which, (torchs, ours) in pairs.items()
        if torchs in backends
    }
    return {"best": best, "speedup": speedup}
