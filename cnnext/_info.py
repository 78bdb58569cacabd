"""What is installed, what it will use, and whether it computes what torch computes."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

from . import _C, __version__, _build_info, functional

_CPU = torch.device("cpu")
_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_CAPABILITIES = "default, avx2, avx512"  # the values of ATEN_CPU_CAPABILITY on x86


def _cpu_model() -> str:
    """The processor's name, as the operating system gives it."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith(("model name", "Model")):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _operators() -> list[str]:
    """Names of the registered operators, for example conv and max_pool."""
    names = torch._C._dispatch_get_all_op_names()
    return sorted(name.removeprefix("cnnext::") for name in names if name.startswith("cnnext::"))


def _gpus() -> list[torch.device]:
    """The GPUs that are tested: all that there are, if our kernels were built for GPUs."""
    count = torch.cuda.device_count() if _build_info["cuda"] and torch.cuda.is_available() else 0
    return [torch.device("cuda", index) for index in range(count)]


def _kernels(cuda: bool = False) -> dict[str, list[str]]:
    """The candidate kernels of every operator that has some, in the order in which they are tried."""
    kernels = {}
    for name in _operators():
        try:
            kernels[name] = list(_C.candidates(name, cuda))
        except ValueError:  # an operator that does not choose
            continue
    return kernels


def _integers(*size: int, channels_last: bool) -> Tensor:
    """Small whole numbers, whose sums float32 holds exactly, in an order without ties next to each other."""
    count = torch.Size(size).numel()
    values = torch.arange(count).mul(7).remainder(17).sub(8).float().reshape(size)
    format = torch.channels_last if len(size) == 4 else torch.channels_last_3d
    return values.contiguous(memory_format=format) if channels_last else values


class _Case(NamedTuple):
    """Something of ours, its arguments on the CPU in float32, and what torch computes there for the same problem."""

    operator: Callable[..., Any]
    args: tuple[Any, ...]
    expected: Callable[[], Any]


def _self_test_cases(dims: int, channels_last: bool) -> dict[str, _Case]:
    """Per operator a problem with stride, padding, dilation and groups in one, two or three dimensions.

    All sums and quotients are exact in bfloat16, those of convolutions but for the last rounding.
    """
    ops, size = torch.ops.cnnext, [6, 9, 8][-dims:]

    def torchs(name: str) -> Callable[..., Any]:
        return getattr(F, f"{name}{dims}d")

    def numbers(*size: int) -> Tensor:
        return _integers(*size, channels_last=channels_last)

    def case(ours: Callable[..., Any], theirs: Callable[..., Any], *args: Any) -> _Case:
        return _Case(ours, args, partial(theirs, *args))

    def gradient(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], input: Tensor, *args: Any) -> _Case:
        """The gradient of a pool or a batch norm for its input."""

        def run(function: Callable[..., Tensor], input: Tensor, grad: Tensor, *args: Any) -> Tensor:
            leaf = input.detach().requires_grad_()
            return torch.autograd.grad(function(leaf, *args), leaf, grad)[0]

        grad = numbers(*theirs(input, *args).shape)
        return case(partial(run, ours), partial(run, theirs), input, grad, *args)

    x, weight = numbers(2, 4, *size), numbers(6, 2, *[2, 3, 2][-dims:])
    stride, padding, dilation = [1, 2, 1][-dims:], [0, 1, 1][-dims:], [1, 1, 2][-dims:]
    window = (stride, padding, dilation, 2)
    grad = numbers(*torchs("conv")(x, weight, None, *window).shape)

    def conv_gradient(number: int) -> Callable[..., Tensor]:
        rest = ([6], stride, padding, dilation, False, [0] * dims, 2, [number == i for i in range(3)])
        return lambda *_: torch.ops.aten.convolution_backward(grad, x, weight, *rest)[number]

    def conv_steps(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, *rest: Any) -> Tensor:
        return F.relu(torchs("conv")(x, weight, bias, *rest[:-1]) + residual)

    def unpool(input: Tensor, indices: Tensor) -> Tensor:
        return ops.max_unpool(input, indices, size)

    unpools = (unpool, partial(torchs("max_unpool"), kernel_size=3, stride=2, padding=1, output_size=size))
    pooled = torchs("max_pool")(x, 3, 2, 1, return_indices=True)
    maxima, averages = (ops.max_pool, torchs("max_pool")), (ops.avg_pool, torchs("avg_pool"))
    adaptive = (ops.adaptive_max_pool, torchs("adaptive_max_pool"))
    means = (ops.adaptive_avg_pool, torchs("adaptive_avg_pool"))
    # Deviations of 1, 2, 1/2 and 1.
    of_channels = (*torch.tensor([[1.0, 2, 1, -1], [3.0, 0, -2, 1], [-1.0, 2, 0, 3], [1, 4, 0.25, 1]]), 0.0)

    def normalised(x: Tensor, *numbers: Any) -> Tensor:
        output: Tensor = ops.batch_norm(x, *numbers)[0]
        return output

    def torchs_normalised(
        x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float
    ) -> Tensor:
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps)

    thirds, halves = [4, 4, 3][-dims:], [3, 9, 4][-dims:]
    spread = (stride, padding, [0, 1, 0][-dims:], 2, dilation)  # of a transposed convolution
    return {
        "conv": case(ops.conv, torchs("conv"), x, weight, torch.arange(6.0), *window),
        "fused_conv": case(ops.fused_conv, conv_steps, x, weight, torch.arange(6.0), grad, *window, "relu"),
        "conv_grad_input": case(ops.conv_grad_input, conv_gradient(0), grad, weight, None, size, *window),
        "conv_grad_weight": case(ops.conv_grad_weight, conv_gradient(1), grad, x, list(weight.shape[2:]), *window),
        "conv_grad_bias": case(ops.conv_grad_bias, conv_gradient(2), grad),
        "conv_transpose": case(ops.conv_transpose, torchs("conv_transpose"), grad, weight, torch.arange(4.0), *spread),
        "linear": case(ops.linear, F.linear, x, _integers(6, size[-1], channels_last=False), torch.arange(6.0)),
        "batch_norm": case(normalised, torchs_normalised, x, *of_channels),
        "batch_norm_grad": gradient(normalised, torchs_normalised, x, *of_channels),
        "max_pool": case(*maxima, x, [3], [2], [1], [1], True),
        "max_pool_grad_input": gradient(*maxima, x, [3], [2], [1]),
        "max_pool_with_indices": _Case(ops.max_pool_with_indices, (x, [3], [2], [1]), lambda: pooled),
        "adaptive_max_pool": case(*adaptive, x, thirds),
        "adaptive_max_pool_grad_input": gradient(*adaptive, x, thirds),
        "adaptive_max_pool_with_indices": case(
            ops.adaptive_max_pool_with_indices, partial(adaptive[1], return_indices=True), x, thirds
        ),
        "avg_pool": case(*averages, x, [2, 4, 2][-dims:], [2], [1]),
        "avg_pool_grad_input": gradient(*averages, x, [2, 4, 4][-dims:], [2], [1]),
        "adaptive_avg_pool": case(*means, x, halves),
        "adaptive_avg_pool_grad_input": gradient(*means, x, halves),
        "lp_pool": case(getattr(functional, f"lp_pool{dims}d"), torchs("lp_pool"), x, 1, 2),
        "max_unpool": case(*unpools, *pooled),
        "max_unpool_grad_input": gradient(*unpools, *pooled),
    }


def _to(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """The value with its tensors on the device, those of floating-point numbers in that type."""
    return tree_map_only(Tensor, lambda t: t.to(device, dtype if t.is_floating_point() else t.dtype), value)


def self_test(device: torch.device | str = "cpu") -> dict[str, str]:
    """Runs each operator on small whole numbers and compares with torch bit by bit.

    In one, two and three dimensions, contiguous and channels_last, in every floating-point type.

    Args:
        device: where our operators run; torch's results come from the CPU, in float32.

    Returns:
        Per operator "ok", or "FAIL: " and the reason.
    """
    device = torch.device(device)
    results: dict[str, str] = {}
    for dims, channels_last in ((1, False), (2, False), (2, True), (3, False), (3, True)):
        for name, case in _self_test_cases(dims, channels_last).items():
            want = case.expected()
            for dtype in _TYPES:
                if results.setdefault(name, "ok") != "ok":
                    break
                layout = "channels_last" if channels_last else "contiguous"
                where = f"{dims}-d {layout} {str(dtype).removeprefix('torch.')} input"
                try:
                    got = _to(case.operator(*_to(case.args, device, dtype)), _CPU, dtype)
                    right = _to(want, _CPU, dtype)
                    pairs = zip(got, right, strict=True) if isinstance(want, tuple) else [(got, right)]
                    if not all(torch.equal(a, b) for a, b in pairs):
                        results[name] = f"FAIL: differs from torch ({where})"
                except Exception as error:
                    results[name] = f"FAIL: {type(error).__name__}: {error} ({where})"
    return results


def collect() -> dict[str, Any]:
    """Everything that `python -m cnnext info` shows, as plain data."""
    gpus = {f"{torch.cuda.get_device_name(gpu)} ({gpu})": gpu for gpu in _gpus()}
    return {
        "cnnext": __version__,
        "torch": torch.__version__,
        "built_for_torch": _build_info["torch"],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "compiler": _build_info["compiler"],
        "sanitize": _build_info["sanitize"],
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "capability": _C.cpu_capability(),
        "threads": torch.get_num_threads(),
        "cuda": _build_info["cuda"],
        "cuda_reason": _build_info["cuda_reason"],
        "cuda_archs": _build_info["cuda_archs"],
        "gpus": list(gpus),
        "kernels": _kernels(),
        "self_test": self_test(),
        "kernels_gpu": _kernels(cuda=True) if gpus else {},
        "self_test_gpus": {name: self_test(gpu) for name, gpu in gpus.items()},
    }


def _print(info: dict[str, Any]) -> None:
    cuda = f"built for {info['cuda_archs']}" if info["cuda"] else "not built"
    sanitize = f" with -fsanitize={info['sanitize']}" if info["sanitize"] else ""
    rows = [
        ("cnnext", info["cnnext"]),
        ("torch", f"{info['torch']} (built for {info['built_for_torch']})"),
        ("Python", f"{info['python']} on {info['platform']}"),
        ("compiler", info["compiler"] + sanitize),
        ("CPU", f"{info['cpu']}, {info['cores']} cores"),
        ("capability", f"{info['capability']} (set ATEN_CPU_CAPABILITY to lower it: {_CAPABILITIES})"),
        ("threads", f"{info['threads']} (as torch: torch.set_num_threads, OMP_NUM_THREADS)"),
        ("CUDA", f"{cuda}: {info['cuda_reason']}"),
        ("GPU", ", ".join(info["gpus"]) or "none that cnnext can use"),
    ]
    for name, value in rows:
        print(f"{name:<12}{value}")
    tables = {"kernels, in the order tried": info["kernels"], "self-test": info["self_test"]}
    tables |= {"kernels of GPUs": info["kernels_gpu"]}
    tables |= {f"self-test on {name}": results for name, results in info["self_test_gpus"].items()}
    for title, table in tables.items():
        if not table:
            continue
        print(f"\n{title}")
        width = max(map(len, table), default=0)
        for name, value in table.items():
            print(f"  {name:<{width}}  {value if isinstance(value, str) else ', '.join(value)}")


def main(args: argparse.Namespace) -> int:
    """Prints the report; returns 1 if the self-test found a wrong result."""
    info = collect()
    if args.json:
        print(json.dumps(info, indent=2))
    else:
        _print(info)
    tests = [info["self_test"], *info["self_test_gpus"].values()]
    return int(any(result != "ok" for test in tests for result in test.values()))
