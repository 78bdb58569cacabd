"""One table of calls of the functional interface, which the drop-in tests run through torch and through cnnext."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SPATIAL = {1: (11,), 2: (9, 8), 3: (6, 7, 5)}


@dataclass(frozen=True)
class Call:
    """A function's name in torch.nn.functional, the shapes of its tensors and its other arguments."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        words = [f"{key}={value}".replace(" ", "") for key, value in self.kwargs.items()]
        return "-".join([self.name, "x".join(map(str, self.shapes[0])), *words])

    def tensors(self, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """Random tensors that need gradients; for unpooling a pooled tensor and its indices."""
        if self.name.startswith("max_unpool"):
            source = torch.randn(self.shapes[0], dtype=dtype)
            window = {key: self.kwargs[key] for key in ("kernel_size", "stride", "padding") if key in self.kwargs}
            pooled, indices = getattr(F, self.name.replace("un", ""))(source, **window, return_indices=True)
            return [pooled.requires_grad_(), indices]
        return [torch.randn(shape, dtype=dtype).requires_grad_() for shape in self.shapes]

    def unbatched(self) -> Call:
        return Call(self.name, (self.shapes[0][1:], *self.shapes[1:]), self.kwargs)

    def run(self, library: Any, tensors: list[Tensor]) -> Any:
        """The result by `library`, a module with torch.nn.functional's names."""
        return getattr(library, self.name)(*tensors, **self.kwargs)


def _calls() -> Iterator[Call]:
    for d, size in SPATIAL.items():

        def conv(
            channels: int, weight: tuple[int, ...], bias: bool = False, d: int = d, size: Any = size, **kwargs: Any
        ) -> Call:
            shapes = ((2, channels, *size), weight, *([weight[:1]] if bias else []))
            return Call(f"conv{d}d", shapes, kwargs)

        def transpose(weight: tuple[int, ...], bias: bool = False, d: int = d, size: Any = size, **kwargs: Any) -> Call:
            outputs = weight[1] * kwargs.get("groups", 1)
            shapes = ((2, weight[0], *size), weight, *([(outputs,)] if bias else []))
            return Call(f"conv_transpose{d}d", shapes, kwargs)

        def pool(name: str, d: int = d, size: Any = size, **kwargs: Any) -> Call:
            return Call(f"{name}{d}d", ((2, 3, *size),), kwargs)

        batch = {"running_mean": None, "running_var": None, "training": True}
        yield Call("batch_norm", ((2, 3, *size),), batch)
        yield Call("linear", ((2, 3, *size), (4, size[-1]), (4,)))
        k3, k2, uneven = (3,) * d, (2,) * d, (3, 2, 1)[:d]
        yield conv(3, (4, 3, *k3))
        yield conv(3, (4, 3, *uneven), bias=True, stride=2, padding=1)
        yield conv(4, (6, 2, *k3), bias=True, groups=2, dilation=2, padding=uneven)
        yield conv(3, (6, 1, *k3), groups=3, stride=(1, 2, 3)[:d], padding=[1])
        yield conv(3, (4, 3, *k2), bias=True, padding="same")
        yield conv(3, (4, 3, *uneven), padding="same", dilation=(2, 3, 1)[:d])
        yield conv(3, (4, 3, *k2), padding="valid", stride=2)
        yield Call(f"conv{d}d", ((3, *size), (4, 3, *k3), (4,)), {"padding": 1})
        yield Call(f"conv{d}d", ((3, *size), (4, 3, *k2)), {"padding": "same"})
        yield Call(f"conv{d}d", ((0, 3, *size), (4, 3, *k3)))
        yield transpose((3, 4, *k3))
        yield transpose((3, 4, *uneven), bias=True, stride=2, padding=1, output_padding=1)
        yield transpose((4, 2, *k2), bias=True, groups=2, dilation=2, stride=(2, 1, 3)[:d])
        yield transpose((3, 4, *k2), stride=2, dilation=3, output_padding=2)
        yield Call(f"conv_transpose{d}d", ((3, *size), (3, 4, *k3), (4,)), {"stride": 2})
        yield pool("max_pool", kernel_size=2)
        yield pool("max_pool", kernel_size=uneven, stride=2, padding=(1, 1, 0)[:d])
        yield pool("max_pool", kernel_size=3, stride=2, ceil_mode=True)
        yield pool("max_pool", kernel_size=2, stride=1, dilation=2, return_indices=True)
        yield pool("max_pool", kernel_size=[3], padding=[1], return_indices=True)
        yield pool("max_pool", kernel_size=3, stride=2).unbatched()
        yield pool("max_pool", kernel_size=3, stride=2, return_indices=True).unbatched()
        yield Call(f"max_pool{d}d_with_indices", ((2, 3, *size),), {"kernel_size": 2})
        yield pool("avg_pool", kernel_size=2)
        yield pool("avg_pool", kernel_size=3, stride=2, padding=1, ceil_mode=True)
        yield pool("avg_pool", kernel_size=uneven, stride=1, padding=(1, 1, 0)[:d], count_include_pad=False)
        yield pool("avg_pool", kernel_size=3, stride=2).unbatched()
        if d > 1:
            yield pool("avg_pool", kernel_size=3, padding=1, divisor_override=-5)
            yield pool("adaptive_avg_pool", output_size=(None, 2, 3)[:d])
            yield pool("adaptive_max_pool", output_size=(3, None, 2)[:d], return_indices=True)
        for name in ("adaptive_avg_pool", "adaptive_max_pool"):
            yield pool(name, output_size=1)
            yield pool(name, output_size=(4, 3, 2)[:d])
            yield pool(name, output_size=3).unbatched()
        yield pool("adaptive_max_pool", output_size=3, return_indices=True)
        yield Call(f"adaptive_max_pool{d}d_with_indices", ((2, 3, *size),), {"output_size": 2})
        if d < 3:  # by default the result is too small for the indices of our odd sizes in three dimensions
            yield pool("max_unpool", kernel_size=2)
            yield pool("max_unpool", kernel_size=2).unbatched()
        yield pool("max_unpool", kernel_size=3, stride=2, padding=1, output_size=size)
        yield pool("max_unpool", kernel_size=(2,) * d, stride=2, output_size=size)
        yield pool("max_unpool", kernel_size=(2,) * d, stride=2, output_size=[2, 3, *size])
        yield pool("max_unpool", kernel_size=2, output_size=size).unbatched()
        yield pool("lp_pool", norm_type=2, kernel_size=2)
        yield pool("lp_pool", norm_type=4.0, kernel_size=2, stride=1, ceil_mode=True)
        yield pool("lp_pool", norm_type=float("inf"), kernel_size=2)
        yield pool("lp_pool", norm_type=-float("inf"), kernel_size=3, stride=2)


CALLS = list(_calls())
# One call of each function, with a batch axis.
BY_NAME = {call.name: call for call in reversed(CALLS) if call.shapes[0][0] == 2 and "norm_type" not in call.kwargs}


def evaluate(run: Callable[[], Any], inputs: list[Tensor]) -> list[Tensor]:
    """The outputs of `run` and the gradients of a fixed mix of them for the inputs that need one."""
    result = run()
    outputs = [result] if isinstance(result, Tensor) else list(result)
    needing = [each for each in inputs if each.requires_grad]
    mixes = [
        torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape)
        for out in outputs
        if out.is_floating_point()
    ]
    return outputs + list(torch.autograd.grad([out for out in outputs if out.requires_grad], needing, mixes))
