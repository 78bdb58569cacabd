"""What is installed, what it will use, and whether it computes what torch computes."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

from . import _C, __version__, _build_info

_CPU = torch.device("cpu")
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
    return values.contiguous(memory_format=torch.channels_last) if channels_last else values


class _Case(NamedTuple):
    """An operator of ours, its arguments on the CPU, and what torch computes there for the same problem."""

    operator: Callable[..., Any]
    args: tuple[Any, ...]
    expected: Callable[[], Any]


def _self_test_cases(channels_last: bool) -> dict[str, _Case]:
    """Per operator a 2-d problem with stride, padding, dilation and groups."""
    ops = torch.ops.cnnext
    x = _integers(2, 4, 9, 8, channels_last=channels_last)
    weight = _integers(6, 2, 3, 2, channels_last=channels_last)
    bias = torch.arange(6.0)
    window = ([2, 1], [1, 1], [1, 2], 2)  # stride, padding, dilation, groups
    grad = _integers(2, 6, 5, 8, channels_last=channels_last)
    pooled, indices = F.max_pool2d(x, 3, 2, 1, return_indices=True)
    share = _integers(2, 4, 5, 4, channels_last=channels_last)

    def gradient(pool: Callable[..., Tensor], *args: Any) -> Callable[[Tensor, Tensor], Tensor]:
        def run(x: Tensor, grad: Tensor) -> Tensor:
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad(pool(leaf, *args), leaf, grad)[0]

        return run

    def backward(number: int) -> Tensor:
        stride, padding, dilation, groups = window
        mask = [number == i for i in range(3)]
        return torch.ops.aten.convolution_backward(
            grad, x, weight, [6], stride, padding, dilation, False, [0, 0], groups, mask
        )[number]

    return {
        "conv": _Case(ops.conv, (x, weight, bias, *window), lambda: F.conv2d(x, weight, bias, *window)),
        "conv_grad_input": _Case(ops.conv_grad_input, (grad, weight, None, [9, 8], *window), lambda: backward(0)),
        "conv_grad_weight": _Case(ops.conv_grad_weight, (grad, x, [3, 2], *window), lambda: backward(1)),
        "conv_grad_bias": _Case(ops.conv_grad_bias, (grad,), lambda: backward(2)),
        "max_pool": _Case(ops.max_pool, (x, [3], [2], [1], [1], True), lambda: F.max_pool2d(x, 3, 2, 1, 1, True)),
        "max_pool_grad_input": _Case(
            gradient(ops.max_pool, [3], [2], [1]), (x, share), lambda: gradient(F.max_pool2d, 3, 2, 1)(x, share)
        ),
        "max_pool_with_indices": _Case(ops.max_pool_with_indices, (x, [3], [2], [1]), lambda: (pooled, indices)),
        "adaptive_max_pool": _Case(ops.adaptive_max_pool, (x, [4, 3]), lambda: F.adaptive_max_pool2d(x, [4, 3])),
        "avg_pool": _Case(ops.avg_pool, (x, [4, 2], [2], [1]), lambda: F.avg_pool2d(x, [4, 2], 2, 1)),
        "avg_pool_grad_input": _Case(
            gradient(ops.avg_pool, [4, 4], [2], [1]),
            (x, share[:, :, :4]),
            lambda: gradient(F.avg_pool2d, 4, 2, 1)(x, share[:, :, :4]),
        ),
        "adaptive_avg_pool": _Case(ops.adaptive_avg_pool, (x, [9, 4]), lambda: F.adaptive_avg_pool2d(x, (9, 4))),
        "max_unpool": _Case(
            ops.max_unpool,
            (pooled, indices, [9, 8]),
            lambda: F.max_unpool2d(pooled, indices, (3, 3), (2, 2), (1, 1), (9, 8)),
        ),
    }


def _on(device: torch.device, value: Any) -> Any:
    """The value with its tensors on the device."""
    return tree_map_only(Tensor, lambda tensor: tensor.to(device), value)


def self_test(device: torch.device | str = "cpu") -> dict[str, str]:
    """Runs each operator on small whole numbers and compares with torch bit by bit.

    Args:
        device: where our operators run; torch's results come from the CPU.

    Returns:
        Per operator "ok", or "FAIL: " and the reason.
    """
    device = torch.device(device)
    present = set(_operators())
    results: dict[str, str] = {}
    for channels_last in (False, True):
        for name, case in _self_test_cases(channels_last).items():
            if name not in present or results.get(name, "ok") != "ok":
                continue
            layout = "channels_last" if channels_last else "contiguous"
            try:
                got, want = _on(_CPU, case.operator(*_on(device, case.args))), case.expected()
                pairs = zip(got, want, strict=True) if isinstance(want, tuple) else [(got, want)]
                same = all(torch.equal(a, b) for a, b in pairs)
                results[name] = "ok" if same else f"FAIL: differs from torch ({layout} input)"
            except Exception as error:
                results[name] = f"FAIL: {type(error).__name__}: {error} ({layout} input)"
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
