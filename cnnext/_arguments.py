"""How the functional interface reads its arguments: what the operators take, and torch's function for the rest."""

from __future__ import annotations

import inspect
import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.jit._trace import TracerWarning, is_tracing

from . import backends

Size = int | Sequence[int]


def integer(value: Any) -> Any:
    """A number as torch's functions accept it (NumPy's too, no bool, no float), or None. Symbolic numbers pass, but
    not those of torch.jit.trace: they are tensors, and only ATen's operators take them as sizes."""
    if type(value) is int or isinstance(value, torch.SymInt):
        return value
    if isinstance(value, Tensor) and is_tracing():
        return None
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def integers(value: Any) -> list[Any] | None:
    """A number or sequence of numbers as a list, one entry standing for all axes; None if only torch can judge it."""
    entries = [integer(entry) for entry in (value if isinstance(value, (tuple, list)) else (value,))]
    return None if any(entry is None for entry in entries) else entries


def kernel_size(weight: Tensor) -> list[Any]:
    """A weight's spatial sizes, as constants in torch.jit.trace."""
    if not is_tracing():
        return list(weight.shape[2:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TracerWarning)
        return [int(size) for size in weight.shape[2:]]


def per_axis(values: Any, dims: int) -> list[Any]:
    """One value for each axis, of as many or of one."""
    return list(values) * (dims if len(values) == 1 else 1)


def are_ours(dims: int, *tensors: Any) -> bool:
    """Whether the operators take the first tensor as [N, C, *spatial] or [C, *spatial], and the others at all."""
    plain = backends.enabled and all(
        isinstance(tensor, Tensor)
        and tensor.layout is torch.strided
        and not (tensor.is_quantized or tensor.is_nested or tensor.is_complex())
        for tensor in tensors
    )
    return plain and tensors[0].dim() - dims in (1, 2)


def takes_batch_norm(
    input: Any, running_mean: Any, running_var: Any, weight: Any, bias: Any, training: Any, momentum: Any, eps: Any
) -> bool:
    """Whether the operator takes a batch normalisation; all else is torch's, GPUs' too."""
    of_channels = [each for each in (running_mean, running_var, weight, bias) if each is not None]
    numbers = isinstance(training, bool) and isinstance(momentum, (int, float)) and isinstance(eps, (int, float))
    if not numbers or not isinstance(input, Tensor) or not 2 <= input.dim() <= 5:
        return False
    if not are_ours(input.dim() - 2, input, *of_channels) or input.device.type not in ("cpu", "meta"):
        return False
    channels = input.shape[1]
    if channels == 0 or any(each.dim() != 1 or each.shape[0] != channels for each in of_channels):
        return False
    has_statistics = running_mean is not None and running_var is not None
    if training:
        return input.numel() > channels and (has_statistics or running_mean is running_var)
    return has_statistics


def takes_linear(input: Any, weight: Any, bias: Any) -> bool:
    """Whether the operator takes a linear layer; all else is torch's, GPUs' too."""
    tensors = (input, weight, *(() if bias is None else (bias,)))
    if not isinstance(input, Tensor) or input.device.type not in ("cpu", "meta"):
        return False
    return are_ours(input.dim() - 1, *tensors) and weight.dim() == 2


def attribute_of(module: Any, ours: str, name: str) -> Any:
    """A name of torch's module, asked for in ours: an error names ours."""
    try:
        return getattr(module, name)
    except AttributeError:
        raise AttributeError(f"module {ours!r} has no attribute {name!r}") from None


def all_names(module: Any, ours: list[str]) -> list[str]:
    """Our names and those that `import *` of torch's module gives, which `attribute_of` passes on."""
    return sorted({*ours, *(name for name in dir(module) if not name.startswith("_"))})


class TorchFunction:
    """torch's function of the same name, for calls that are not ours: it raises its own error or computes the result.

    It gets only what differs from the defaults, as a caller would write it: torch's errors repeat the call.
    """

    def __init__(self, ours: Callable[..., Any], op: str, name: str) -> None:
        self._op = op
        self._reference: Callable[..., Any] = getattr(F, name)
        parameters = inspect.signature(ours).parameters.values()
        self._defaults = [(each.name, each.default) for each in parameters if each.default is not each.empty]
        self._required = len(parameters) - len(self._defaults)
        self._bias_is_next = self._defaults[:1] == [("bias", None)]  # torch's convolutions are called so

    def call(self, *args: Any) -> Any:
        """Calls torch; `args` are all of the function's."""
        required, optional = args[: self._required], args[self._required :]
        given = {name: arg for (name, default), arg in zip(self._defaults, optional, strict=True) if arg is not default}
        bias = (given.pop("bias"),) if "bias" in given and self._bias_is_next else ()
        return self._reference(*required, *bias, **given)

    def fall_back(self, *args: Any, reason: str = "arguments that only torch takes") -> Any:
        """Calls torch, and records it if torch computes what our operators do not take."""
        output = self.call(*args)
        backends.record_fallback(self._op, reason if backends.enabled else "cnnext is disabled")
        return output

    def fall_back_from_cpu(self, *args: Any) -> Any:
        """The same for what our operators take on the CPU alone."""
        on_gpu = isinstance(args[0], Tensor) and args[0].is_cuda
        return self.fall_back(*args, **({"reason": "on a GPU"} if on_gpu else {}))

    def run(self, dims: int, run: Callable[..., Any], input: Tensor, rest: Sequence[Any], args: Sequence[Any]) -> Any:
        """`run(input, *rest)`, through a batch of one where input has no batch axis. If that fails for the `args` that
        the user gave, torch's function has the better words."""
        try:
            if input.dim() == dims + 2:
                return run(input, *rest)
            output = run(input.unsqueeze(0), *rest)
        except RuntimeError:
            self.call(*args)
            raise
        return output.squeeze(0) if isinstance(output, Tensor) else tuple(each.squeeze(0) for each in output)
