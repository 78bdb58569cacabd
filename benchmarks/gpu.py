"""What benchmarks/gpu.sh measures on a GPU: torch's kernels (cuDNN, benchmark mode) beside ours.

    python benchmarks/gpu.py ceilings
    python benchmarks/gpu.py layers --suite resnet50 --modes bf16 tf32 --layouts channels_last --json resnet50.json
    python benchmarks/gpu.py layers --suite pooling --seconds 120
    python benchmarks/gpu.py networks --batch 64
    python benchmarks/gpu.py cases        # a short list of calls, for compute-sanitizer

Times are medians of GPU events, each call with its operands out of the L2 cache; data is random. Every result of ours
is compared with torch's before it is timed; one that differs is marked WRONG, a call that raises an error FAILED, and
the program ends with status 1. Results are in the file from the first one on: time may be up before the last.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import cnnext
import cnnext.models
from cnnext import backends, functional
from cnnext.bench.environment import facts
from cnnext.bench.layer_bench import Tensors, in_layout, kernel_name, our_call, torch_call
from cnnext.bench.layers import LAYOUTS, Layer
from cnnext.bench.suites import SUITES, suite

DEVICE = torch.device("cuda")
TIMES = 15
CONV_OPS = ("conv", "conv_grad_input", "conv_grad_weight")
Save = Callable[[], None]


class Mode(NamedTuple):
    """How a layer is computed. kernel: what of ours is forced in place of tensor cores; tolerance: of the relative
    L2 difference between torch's result and ours, each rounded to the type."""

    dtype: torch.dtype
    tolerance: float
    tf32: bool = False
    kernel: str | None = None


MODES = {
    "bf16": Mode(torch.bfloat16, 2e-2),
    "fp16": Mode(torch.float16, 3e-3),
    "tf32": Mode(torch.float32, 3e-3, tf32=True),
    "fp32": Mode(torch.float32, 3e-5),  # as accurate as float32, ours on tensor cores
    "ffma": Mode(torch.float32, 3e-5, kernel="direct"),  # multiply-adds alone
}
POOLING_MODES = ("bf16", "fp16", "tf32")  # TF32 is nothing to pooling: float32


@contextmanager
def setting(mode: Mode, force: bool = False) -> Iterator[None]:
    """torch's and our settings of a mode; `force`: with the mode's kernel."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = mode.tf32
    with ExitStack() as forced:
        for op in CONV_OPS if force and mode.kernel else ():
            forced.enter_context(backends.force_kernel(op, str(mode.kernel), device="cuda"))
        yield


class Clock:
    """Times calls on the GPU in milliseconds."""

    def __init__(self) -> None:
        self.other_data = torch.ones(128 << 20, device=DEVICE)  # 512 MB, more than any L2 cache holds

    def __call__(self, run: Callable[[], object], times: int = TIMES) -> float:
        for _ in range(3):
            run()
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(times)]
        for start, end in events:
            self.other_data.sum()  # read, not written: nothing waits in the cache to be written back
            torch.cuda._sleep(500_000)  # the host queues the call meanwhile, so that its time is not the call's
            start.record()
            run()
            end.record()
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(end) for start, end in events)


def ceilings(found: dict[str, float], clock: Clock, save: Save) -> None:
    """What this GPU reaches at best: GB/s read and written by a copy, TFLOP/s of matrix products of random numbers."""

    def add(name: str, value: float) -> None:
        found[name] = value
        print(f"{name}: {value:.1f}")
        save()

    source = torch.randn(1 << 28, device=DEVICE)
    target = torch.empty_like(source)
    add("copy_gbs", 2 * source.numel() * 4 / clock(lambda: target.copy_(source)) / 1e6)
    size = 8192
    for name in ("bf16", "fp16", "tf32", "fp32"):
        a, b = (torch.randn(size, size, device=DEVICE).to(MODES[name].dtype) for _ in range(2))
        with setting(MODES[name]):
            add(f"{name}_tflops", 2 * size**3 / clock(lambda a=a, b=b: a @ b) / 1e9)


def layers_of(name: str, batch: int) -> list[Layer]:
    """The distinct convolutions of a network, or of a suite of several; "pooling": all pooling layers."""
    uses = suite(name, batch, training=batch > 1)  # batch norms refuse single numbers
    return list(dict.fromkeys(use.layer for use in uses if use.layer.is_conv != (name == "pooling")))


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Relative, in the L2 norm."""
    scale = float(theirs.float().norm())
    return float((ours.float() - theirs.float()).norm()) / (scale or 1.0)


def measure_layer(clock: Clock, layer: Layer, name: str, layouts: list[str]) -> Iterator[dict[str, Any]]:
    """One row for each layout and direction. Pooling's forward pass is that of training."""
    mode = MODES[name]
    plain = Tensors.random(layer, device=DEVICE).to(mode.dtype, "nchw", DEVICE)
    if not layer.is_conv:
        plain.input.requires_grad_()
    for layout in layouts:
        tensors = plain.to(mode.dtype, layout, DEVICE)
        if not layer.is_conv:
            tensors.input = tensors.input.detach().requires_grad_()
        for direction in layer.directions:
            with setting(mode):
                theirs = torch_call(layer, direction, tensors)
                # torch 2.11 forgets the padding in the gradient of averages in channels last, not in channels first.
                result = (theirs if layer.is_conv else torch_call(layer, direction, plain))().detach()
                torch_ms = clock(theirs)
                kernel = kernel_name(layer, direction, mode.dtype, layout, DEVICE)
            force = mode.kernel is not None and kernel.startswith("gemm")
            with setting(mode, force):
                ours = our_call(layer, direction, tensors, layout)
                off = difference(ours().detach(), result)
                ours_ms = clock(ours)
            yield {
                "layer": layer.label(),
                "mode": name,
                "layout": layout,
                "direction": direction,
                "kernel": mode.kernel if force else kernel,
                "torch_ms": torch_ms,
                "ours_ms": ours_ms,
                "ratio": torch_ms / ours_ms,
                "tflops": layer.flops() / ours_ms / 1e9,
                "gbs": layer.bytes(mode.dtype) / ours_ms / 1e6,
                "difference": off,
                "right": off <= mode.tolerance,
            }


HEADER = (
    f"{'layer':<30} {'mode':<5} {'layout':<13} {'direction':<11} {'kernel':<28} {'torch ms':>9} {'ours ms':>9} "
    f"{'ratio':>6} {'TFLOP/s':>8} {'GB/s':>6}"
)


def line(row: dict[str, Any]) -> str:
    text = f"{row['layer']:<30} {row['mode']:<5} {row['layout']:<13} {row['direction']:<11} {row['kernel']:<28} "
    text += f"{row['torch_ms']:9.4f} {row['ours_ms']:9.4f} {row['ratio']:6.2f} {row['tflops']:8.1f} {row['gbs']:6.0f}"
    return text if row["right"] else f"{text}  WRONG: differs by {row['difference']:.1e}"


def measure_layers(
    rows: list[dict[str, Any]],
    clock: Clock,
    names: list[str],
    modes: list[str],
    layouts: list[str],
    batch: int,
    until: float,
    save: Save,
) -> int:
    """Prints and adds a row for each layer, mode, layout and direction. Stops before a layer when time is up.

    Returns:
        How many times a layer in a mode failed.
    """
    torch.backends.cudnn.benchmark = True
    print(HEADER)
    failed = 0
    for name in names:
        layers = layers_of(name, batch)
        for number, layer in enumerate(layers):
            if time.monotonic() > until:
                print(
                    f"time is up: the last {len(layers) - number} of {len(layers)} layers of {name} were not measured"
                )
                break
            for mode in modes if layer.is_conv else [mode for mode in modes if mode in POOLING_MODES]:
                try:
                    for row in measure_layer(clock, layer, mode, layouts):
                        rows.append({"suite": name, "number": number, **row})
                        print(line(row))
                except RuntimeError as error:
                    print(f"{layer.label():<30} {mode:<5} FAILED: {error}")
                    if "CUDA error" in str(error):  # this process can not use the GPU any more
                        raise
                    failed += 1
                finally:
                    save()
            torch.cuda.empty_cache()
    return failed


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Geometric means of torch's time over ours, by mode and direction: in each layout, and best against best."""
    groups: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    calls: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        times = (row["torch_ms"], row["ours_ms"])
        groups.setdefault((row["mode"], row["direction"], row["layout"]), []).append(times)
        calls.setdefault((row["suite"], row["number"], row["mode"], row["direction"]), []).append(row)
    for (_, _, mode, direction), found in calls.items():
        best = min(row["torch_ms"] for row in found), min(row["ours_ms"] for row in found)
        groups.setdefault((mode, direction, "best layout"), []).append(best)
    lines = []
    for (mode, direction, layout), pairs in sorted(groups.items()):
        ratios = [theirs / ours for theirs, ours in pairs]
        mean = math.exp(statistics.fmean(map(math.log, ratios)))
        total = sum(theirs for theirs, _ in pairs) / sum(ours for _, ours in pairs)
        lines.append(
            f"{mode:<5} {direction:<11} {layout:<13} {mean:6.2f}x torch (geometric mean of {len(ratios)}), "
            f"{min(ratios):.2f}x to {max(ratios):.2f}x, all together {total:.2f}x"
        )
    return lines


def measure_networks(rows: list[dict[str, Any]], batch: int, until: float, save: Save) -> None:
    """Images per second of ResNet-50, trained and run, in channels last: by autocast to bfloat16, and with TF32."""
    torch.backends.cudnn.benchmark = True
    x = torch.randn(batch, 3, 224, 224, device=DEVICE).to(memory_format=torch.channels_last)
    target = torch.randint(0, 1000, (batch,), device=DEVICE)
    for mode in ("bf16", "tf32"):
        for training in (False, True):
            for ours in (False, True):
                if time.monotonic() > until:
                    print("time is up: the other networks were not measured")
                    return
                with setting(MODES[mode]), backends.flags(enabled=ours):
                    step = network_step(x, target, training, mode == "bf16")
                    rate = batch / seconds_of(step)
                found = {"network": "resnet50", "mode": mode, "training": training, "ours": ours, "images_per_s": rate}
                rows.append(found)
                save()
                task, whose = "training" if training else "inference", "cnnext" if ours else "torch"
                print(f"resnet50 {mode} {task:<9} by {whose:<6}: {rate:7.0f} images/s, N = {batch}")


def network_step(x: Tensor, target: Tensor, training: bool, autocast: bool) -> Callable[[], None]:
    torch.manual_seed(0)
    model = cnnext.models.build("resnet50").to(DEVICE, memory_format=torch.channels_last).train(training)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=autocast), torch.set_grad_enabled(training):
            output = model(x)
            loss = F.cross_entropy(output, target)
        if training:
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return step


def seconds_of(step: Callable[[], None]) -> float:
    """The median of five runs of four steps, after a warm-up."""
    for _ in range(4):
        step()
    times = []
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(4):
            step()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / 4)
    return statistics.median(times)


def differentiate(result: Tensor) -> None:
    result.backward(torch.ones_like(result))


def cases() -> None:
    """Every kernel at least once, on small shapes: for compute-sanitizer."""
    shapes = [((2, 24, 9, 11), (72, 24, 3, 2), 2, 1, 1, 1), ((2, 64, 8, 8), (64, 1, 3, 3), 1, 1, 1, 64),
              ((2, 16, 9, 9), (16, 1, 5, 5), 2, 2, 1, 16), ((1, 16, 12, 9), (16, 1, 3, 3), 1, 2, 2, 16),
              ((1, 5, 9, 9), (5, 1, 7, 7), 1, 3, 1, 5), ((1, 3, 12, 13), (24, 3, 5, 5), 2, 2, 1, 1),
              ((2, 17, 6, 5), (33, 17, 2, 2), 1, 0, 1, 1), ((2, 72, 5, 7), (136, 72, 1, 1), 1, 1, 1, 1)]  # fmt: skip
    modes = [MODES["bf16"], MODES["fp16"], MODES["tf32"], MODES["fp32"], MODES["ffma"], Mode(torch.float64, 1e-12)]
    for size, weight, stride, padding, dilation, groups in shapes:
        for mode in modes:
            for layout in LAYOUTS:
                x, w = (in_layout(torch.randn(s, device=DEVICE).to(mode.dtype), layout) for s in (size, weight))
                x, w = x.requires_grad_(), w.requires_grad_()
                b = torch.randn(weight[0], device=DEVICE).to(mode.dtype).requires_grad_()
                with setting(mode, force=True):
                    y = functional.conv2d(x, w, b, stride, padding, dilation, groups)
                    differentiate(y)
                    y = y.detach().requires_grad_()
                    for kernel, step in ((2, 2), (3, 2), (3, 1), (2, 3)):
                        differentiate(functional.max_pool2d(y, kernel, step, kernel // 2, ceil_mode=True))
                        differentiate(functional.avg_pool2d(y, kernel, step, kernel // 2))
                    differentiate(functional.adaptive_avg_pool2d(y, (3, 2)))
                    pooled, indices = functional.max_pool2d(y.detach(), 2, return_indices=True)
                    differentiate(functional.max_unpool2d(pooled.requires_grad_(), indices, 2, output_size=y.shape[2:]))
    for mode in modes:
        for layout in LAYOUTS:
            x = in_layout(torch.randn(1, 8, 18, 17, device=DEVICE).to(mode.dtype), layout).requires_grad_()
            for kernel in (17, 3):  # 289 taps: offsets of four bytes; and a gradient's gradient
                y = functional.max_pool2d(x, kernel, 2, kernel // 2)
                functional.max_pool2d(x.detach(), kernel, 2, kernel // 2)
                grad = torch.ones_like(y).requires_grad_()
                differentiate(torch.autograd.grad(y, x, grad, create_graph=True)[0])
    torch.cuda.synchronize()
    print("cases ran")


def driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["ceilings", "layers", "networks", "cases"])
    networks = [*cnnext.models.names(), *SUITES]
    parser.add_argument("--suite", nargs="+", default=["resnet50"], choices=networks, metavar="SUITE")
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--layouts", nargs="+", default=list(LAYOUTS), choices=LAYOUTS)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no layer or network after this long")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    until = time.monotonic() + args.seconds
    if args.what == "cases":
        cases()
        return 0
    results: Any = {} if args.what == "ceilings" else []
    about = {**facts(DEVICE), "driver": driver(), "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}

    def save() -> None:
        if args.json:
            unfinished = args.json.with_suffix(".unfinished")
            unfinished.write_text(json.dumps({"facts": about, "batch": args.batch, args.what: results}, indent=1))
            unfinished.replace(args.json)

    save()
    if args.what == "ceilings":
        ceilings(results, Clock(), save)
    elif args.what == "networks":
        measure_networks(results, args.batch, until, save)
    else:
        failed = 1
        try:
            failed = measure_layers(results, Clock(), args.suite, args.modes, args.layouts, args.batch, until, save)
        finally:
            wrong = sum(not row["right"] for row in results)
            print("\n".join(summary(results)))
            print(f"{len(results)} results compared with torch's: {wrong or 'none'} wrong; {failed or 'no'} failures")
        return int(wrong + failed > 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
