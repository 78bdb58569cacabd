"""What benchmarks/gpu.sh measures on a GPU, with torch's kernels (cuDNN, benchmark mode) beside ours.

    python benchmarks/gpu.py ceilings
    python benchmarks/gpu.py layers --suite resnet50 --modes bf16 tf32 --json resnet50.json
    python benchmarks/gpu.py networks --batch 64
    python benchmarks/gpu.py cases        # a short list of calls, for compute-sanitizer

Times are medians of GPU events, with the L2 cache cleared before each call; data is random.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import cnnext
import cnnext.models
from cnnext import backends, functional
from cnnext.bench.layers import Layer, suite

# How layers are compared: type, layout, whether TF32 is allowed, and a kernel of ours to force.
MODES: dict[str, tuple[torch.dtype, bool, bool, str | None]] = {
    "bf16": (torch.bfloat16, True, True, None),
    "fp16": (torch.float16, True, True, None),
    "bf16_nchw": (torch.bfloat16, False, True, None),
    "tf32": (torch.float32, True, True, None),
    "fp32": (torch.float32, True, False, None),  # as accurate as float32; ours on tensor cores
    "ffma": (torch.float32, True, False, "direct"),  # multiply-adds alone
}
# Depthwise layers of MobileNet-V2 at 224, and ones with large and dilated kernels.
DEPTHWISE = [(32, 112, 3, 1, 1), (96, 112, 3, 2, 1), (144, 56, 3, 1, 1), (192, 28, 3, 1, 1), (384, 14, 3, 1, 1),
             (960, 7, 3, 1, 1), (192, 28, 5, 1, 1), (384, 14, 7, 1, 1), (256, 28, 3, 1, 2)]  # fmt: skip
POOLING_MODES = ("bf16", "bf16_nchw", "tf32")
TIMES = 15


@contextmanager
def setting(tf32: bool, kernel: str | None = None) -> Iterator[None]:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    for op in ("conv", "conv_grad_input", "conv_grad_weight"):
        cnnext._C.force_kernel(op, kernel, True)
    try:
        yield
    finally:
        for op in ("conv", "conv_grad_input", "conv_grad_weight"):
            cnnext._C.force_kernel(op, None, True)


class Clock:
    """Times calls on the GPU in milliseconds."""

    def __init__(self) -> None:
        self.other_data = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")  # more than any L2 cache holds

    def __call__(self, run: Callable[[], object], times: int = TIMES) -> float:
        for _ in range(3):
            run()
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(times)]
        for start, end in events:
            self.other_data.zero_()
            start.record()
            run()
            end.record()
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(end) for start, end in events)


def ceilings(clock: Clock) -> dict[str, float]:
    """What this GPU reaches at best: GB/s of a copy, TFLOP/s of matrix products."""
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    found = {"copy_gbs": 2 * source.numel() * 4 / clock(lambda: target.copy_(source)) / 1e6}
    size = 8192
    for name, dtype, tf32 in (
        ("bf16", torch.bfloat16, True),
        ("tf32", torch.float32, True),
        ("fp32", torch.float32, False),
    ):
        a, b = (torch.randn(size, size, device="cuda").to(dtype) for _ in range(2))
        with setting(tf32):
            found[f"{name}_tflops"] = 2 * size**3 / clock(lambda a=a, b=b: a @ b) / 1e9
    return found


def layers_of(name: str, batch: int) -> list[Layer]:
    if name == "depthwise":
        return [
            Layer("conv2d", (batch, c, size, size), (c, 1, k, k), stride=(s, s), padding=(d * (k // 2),) * 2,
                  dilation=(d, d), groups=c)
            for c, size, k, s, d in DEPTHWISE
        ]  # fmt: skip
    size = 299 if name.startswith("inception") else 224
    return [use.layer for use in suite(name, batch, size, training=True)]


def conv_calls(layer: Layer, x: Tensor, w: Tensor, grad: Tensor) -> dict[str, tuple[Any, Any]]:
    """Torch's call and ours for each direction."""
    window = (layer.stride, layer.padding, layer.dilation)

    def backward(mask: list[bool]) -> Callable[[], Any]:
        rest = (*window, False, [0] * layer.dims, layer.groups, mask)
        return lambda: torch.ops.aten.convolution_backward(grad, x, w, None, *rest)

    ours, parameters = torch.ops.cnnext, (*window, layer.groups)
    last = w.is_contiguous(memory_format=torch.channels_last)
    return {
        "forward": (lambda: F.conv2d(x, w, None, *parameters), lambda: ours.conv(x, w, None, *parameters)),
        "grad_input": (
            backward([True, False, False]),
            lambda: ours.conv_grad_input(grad, w, None, list(x.shape[2:]), *parameters),
        ),
        "grad_weight": (
            backward([False, True, False]),
            lambda: ours.conv_grad_weight(grad, x, list(w.shape[2:]), *parameters, last),
        ),
    }


def pool_calls(layer: Layer, x: Tensor) -> dict[str, tuple[Any, Any]]:
    """Forward as training runs it, and backward."""
    x.requires_grad_()
    outputs = [layer.call(library, x) for library in (F, functional)]
    grad = torch.randn_like(outputs[0])
    forward = tuple(lambda library=library: layer.call(library, x) for library in (F, functional))
    backward = tuple(lambda y=y: torch.autograd.grad(y, x, grad, retain_graph=True) for y in outputs)
    return {"forward": forward, "backward": backward}  # type: ignore[dict-item]


def time_layer(clock: Clock, layer: Layer, mode: str) -> Iterator[tuple[str, float, float]]:
    """Direction, torch's time and ours, in milliseconds."""
    dtype, last, tf32, kernel = MODES[mode]
    layout = torch.channels_last if last else torch.contiguous_format

    def random(size: tuple[int, ...]) -> Tensor:
        return torch.randn(size, device="cuda").to(dtype, memory_format=layout)

    with setting(tf32, kernel):
        x = random(layer.input)
        if layer.is_conv:
            calls = conv_calls(layer, x, random(layer.weight), random(layer.output()))
        else:
            calls = pool_calls(layer, x)
        for direction, (theirs, ours) in calls.items():
            yield direction, clock(theirs), clock(ours)


def measure_layers(clock: Clock, names: list[str], modes: list[str], batch: int) -> list[dict[str, Any]]:
    torch.backends.cudnn.benchmark = True
    rows = []
    print(f"{'layer':<34} {'mode':<10} {'direction':<12} {'torch ms':>9} {'ours ms':>9}", end="")
    print(f" {'ratio':>6} {'TFLOP/s':>8} {'GB/s':>7}")
    for name in names:
        try:
            layers = layers_of(name, batch)
        except ValueError as error:
            print(f"{name}: {error}")
            continue
        for layer in layers:
            for mode in modes if layer.is_conv else [mode for mode in modes if mode in POOLING_MODES]:
                for direction, theirs, ours in time_layer(clock, layer, mode):
                    work = {"ratio": theirs / ours, "tflops": layer.flops() / ours / 1e9}
                    work["gbs"] = layer.bytes(MODES[mode][0]) / ours / 1e6
                    what = {"suite": name, "layer": layer.label(), "mode": mode, "direction": direction}
                    rows.append({**what, "torch_ms": theirs, "ours_ms": ours, **work})
                    print(f"{layer.label():<34} {mode:<10} {direction:<12} {theirs:9.4f} {ours:9.4f}", end="")
                    print(f" {work['ratio']:6.2f} {work['tflops']:8.1f} {work['gbs']:7.0f}")
    for mode, direction in sorted({(row["mode"], row["direction"]) for row in rows}):
        ratios = [row["ratio"] for row in rows if (row["mode"], row["direction"]) == (mode, direction)]
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        print(f"{mode} {direction}: {mean:.2f}x torch (geometric mean of {len(ratios)}), least {min(ratios):.2f}x")
    return rows


def measure_networks(batch: int) -> list[dict[str, Any]]:
    """Images per second of ResNet-50, trained and run, in bfloat16 and channels last."""
    torch.backends.cudnn.benchmark = True
    rows = []
    x = torch.randn(batch, 3, 224, 224, device="cuda").to(memory_format=torch.channels_last)
    target = torch.randint(0, 1000, (batch,), device="cuda")
    for training in (False, True):
        for ours in (False, True):
            model = cnnext.models.build("resnet50").to("cuda", memory_format=torch.channels_last).train(training)

            def step(model: Any = model, training: bool = training) -> None:
                with torch.autocast("cuda", dtype=torch.bfloat16), torch.set_grad_enabled(training):
                    output = model(x)
                    if training:
                        F.cross_entropy(output, target).backward()

            with backends.flags(enabled=ours):
                for _ in range(3):
                    step()
                torch.cuda.synchronize()
                start = time.perf_counter()
                for _ in range(10):
                    step()
                torch.cuda.synchronize()
            rate = 10 * batch / (time.perf_counter() - start)
            rows.append({"network": "resnet50", "training": training, "ours": ours, "images_per_s": rate})
            task, whose = "training" if training else "inference", "cnnext" if ours else "torch"
            print(f"resnet50 {task} by {whose}: {rate:.0f} images/s")
    return rows


def cases() -> None:
    """Every kernel once or twice, on small shapes: for compute-sanitizer."""
    shapes = [((2, 24, 9, 11), (72, 24, 3, 2), 2, 1, 1), ((2, 64, 8, 8), (64, 1, 3, 3), 1, 1, 64),
              ((1, 3, 12, 13), (24, 3, 5, 5), 2, 2, 1), ((2, 72, 5, 7), (136, 72, 1, 1), 1, 1, 1)]  # fmt: skip
    for size, weight, stride, padding, groups in shapes:
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            for layout in (torch.channels_last, torch.contiguous_format):
                x = torch.randn(size, device="cuda").to(dtype, memory_format=layout).requires_grad_()
                w = torch.randn(weight, device="cuda").to(dtype, memory_format=layout).requires_grad_()
                b = torch.randn(weight[0], device="cuda").to(dtype).requires_grad_()
                for tf32 in (True, False):
                    with setting(tf32):
                        y = functional.conv2d(x, w, b, stride, padding, 1, groups)
                        functional.max_pool2d(y, 2, ceil_mode=True).sum().backward()
                        functional.avg_pool2d(y.detach().requires_grad_(), 3, 2, 1).sum().backward()
    with setting(False, "direct"):
        functional.conv2d(x, w, b, stride, padding, 1, groups).sum().backward()
    torch.cuda.synchronize()
    print("cases ran")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["ceilings", "layers", "networks", "cases"])
    parser.add_argument("--suite", nargs="+", default=["resnet50"])
    parser.add_argument("--modes", nargs="+", default=["bf16", "tf32", "fp32", "bf16_nchw", "ffma"], choices=MODES)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.what == "cases":
        cases()
        return 0
    results: Any
    if args.what == "ceilings":
        results = ceilings(Clock())
        print("\n".join(f"{name}: {value:.1f}" for name, value in results.items()))
    elif args.what == "layers":
        results = measure_layers(Clock(), args.suite, args.modes, args.batch)
    else:
        results = measure_networks(args.batch)
    if args.json:
        facts = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda}
        facts |= {
            "cudnn": torch.backends.cudnn.version(),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(),
        }
        args.json.write_text(json.dumps({"facts": facts, args.what: results}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
