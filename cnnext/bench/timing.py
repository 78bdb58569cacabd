"""Timing, peak memory and the machine's own limits.

``torch.utils.benchmark`` times one function to the end and then the next, so that a machine that slows down
halfway makes the second look worse. Here the functions take turns (A B C D A B C D ...) and drift hits all alike.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

_BLOCK_SECONDS = 0.002  # short calls are timed in blocks of at least this long, clock and call cost vanish in it
_FEWEST_ROUNDS = 5
_MOST_ROUNDS = 200
_LEAST_WATCHED = 0.1  # seconds; that a measurement of milliseconds was interrupted once tells no rate
_CPU = torch.device("cpu")
_LONG_CALL = 0.3  # seconds; in such a call a first one's extra work is little, and one is warm-up enough

_Step = TypeVar("_Step")
_Result = TypeVar("_Result")


@dataclass
class Timing:
    """Seconds per call, one entry per round."""

    calls: int  # per entry
    seconds: list[float] = field(default_factory=list)
    preemptions: float = 0.0  # a second: how often another program took the CPU away while this was timed

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.seconds) < 2:
            return self.median, self.median
        q1, _, q3 = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return q1, q3

    def as_json(self) -> dict[str, Any]:
        q1, q3 = self.quartiles
        return {
            "median": self.median,
            "q1": q1,
            "q3": q3,
            "min": min(self.seconds),
            "max": max(self.seconds),
            "calls": self.calls,
            "rounds": len(self.seconds),
            "preemptions": self.preemptions,
        }


def interleave(
    functions: Mapping[str, Callable[[], object]],
    min_time: float,
    repeats: int | None = None,
    device: torch.device = _CPU,
    before: Mapping[str, Callable[[], object]] | None = None,
) -> Generator[float, None, dict[str, Timing]]:
    """Times functions in turns, after a warm-up; a generator that yields the fraction done and returns the times.

    Args:
        functions: what to time, by name.
        min_time: seconds each function should be timed for, in total; at least five rounds are made anyway.
        repeats: this many rounds exactly, whatever ``min_time`` says.
        device: where they run. On a GPU, events in its stream are the clock.
        before: called before each call of the function of the same name, outside of the time, which is then taken of
            every call by itself.
    """
    timings = {}
    rounds = 1
    for name, function in functions.items():
        elapsed = _block(function, 1, device)  # the first call allocates and builds primitives
        if elapsed < _LONG_CALL:
            elapsed = _block(function, 1, device)
        calls = 1
        while elapsed < _BLOCK_SECONDS and before is None:
            calls = max(calls + 1, min(calls * 10, int(calls * 1.2 * _BLOCK_SECONDS / max(elapsed, 1e-9))))
            elapsed = _block(function, calls, device)
        timings[name] = Timing(calls)
        rounds = max(rounds, int(min_time / elapsed))
    rounds = repeats or min(max(rounds, _FEWEST_ROUNDS), _MOST_ROUNDS)
    begun, switches = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    deadline = begun + min_time * len(functions)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for done in range(rounds):
            yield done / rounds
            if repeats is None and done >= _FEWEST_ROUNDS and time.perf_counter() > deadline:
                break
            for name, function in functions.items():
                if before is not None:
                    before[name]()
                calls = timings[name].calls
                timings[name].seconds.append(_block(function, calls, device) / calls)
    finally:
        if collecting:
            gc.enable()
    switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - switches
    elapsed = max(time.perf_counter() - begun, _LEAST_WATCHED)
    for timing in timings.values():
        timing.preemptions = switches / elapsed
    return timings


class Steps(Generic[_Step, _Result]):
    """A generator to loop over; once it has ended, ``result`` is what it returned."""

    result: _Result

    def __init__(self, generator: Generator[_Step, None, _Result]) -> None:
        self._generator = generator

    def __iter__(self) -> Iterator[_Step]:
        self.result = yield from self._generator


def finish(generator: Generator[Any, None, _Result]) -> _Result:
    """Runs a generator such as :func:`interleave` to its end without looking at its progress."""
    steps = Steps(generator)
    for _ in steps:
        pass
    return steps.result


def _block(function: Callable[[], object], calls: int, device: torch.device) -> float:
    if device.type == "cuda":
        with torch.cuda.device(device):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(calls):
                function()
            end.record()
            end.synchronize()
        return float(begin.elapsed_time(end)) * 1e-3
    start = time.perf_counter_ns()
    for _ in range(calls):
        function()
    return (time.perf_counter_ns() - start) * 1e-9


def _status_bytes(key: str) -> int:
    with open("/proc/self/status") as lines:
        for line in lines:
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


def peak_memory(step: Callable[[], object], device: torch.device = _CPU) -> int | None:
    """Bytes that ``step`` needs at its peak on top of what is resident before it; None where Linux is not below.

    On a GPU, what torch's allocator counts.

    The kernel's own high-water mark (VmHWM) sees every allocation, torch's, oneDNN's and ours; writing 5 to
    clear_refs resets it. Holes that earlier work left in glibc's heap can move the figure by a tenth: see
    ``environment.MAPPED_ALLOCATOR``.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as clear:
            clear.write("5")
        before = _status_bytes("VmRSS")
        step()
        return max(_status_bytes("VmHWM") - before, 0)
    except (OSError, AttributeError):
        return None


class Machine:
    """What this machine reaches with the current number of threads, measured when first asked for."""

    def __init__(self, seconds: float = 0.3, device: torch.device = _CPU) -> None:
        self.device = device
        self._seconds = seconds
        self._flops: dict[torch.dtype, float] = {}
        self._bandwidth: dict[int, float] = {}

    def flops(self, dtype: torch.dtype) -> float:
        """FLOP/s of the best large matrix product. A 16-bit kernel may convert and use float32, so may we here."""
        if dtype not in self._flops:
            candidates = [dtype] if dtype.itemsize > 2 else [dtype, torch.float32]
            rates = {candidate: self._matmul(256, candidate) for candidate in candidates}
            worth = [candidate for candidate in candidates if rates[candidate] > 0.25 * max(rates.values())]
            sizes = (1024, 2048) if self._seconds > 0.1 else (512,)
            self._flops[dtype] = max(self._matmul(size, candidate) for candidate in worth for size in sizes)
        return self._flops[dtype]

    def _matmul(self, size: int, dtype: torch.dtype) -> float:
        a, b = (torch.randn(size, size, dtype=dtype, device=self.device) for _ in range(2))
        # a matrix product as F.linear and as 1x1 convolution: torch takes them to different libraries
        image = b.view(1, size, 32, size // 32).contiguous(memory_format=torch.channels_last)
        kernel = a.view(size, size, 1, 1).contiguous(memory_format=torch.channels_last)
        functions = {
            "mm": lambda: torch.mm(a, b),
            "conv": lambda: torch.nn.functional.conv2d(image, kernel),
        }
        return 2.0 * size**3 / self._fastest(functions)

    def bandwidth(self, size: int) -> float:
        """Bytes read and written a second by a copy that touches about ``size`` bytes in all."""
        bucket = 1 << min(max(size - 1, 1 << 14).bit_length(), 28)
        if bucket not in self._bandwidth:
            source = torch.ones(bucket // 8, device=self.device)
            target = torch.empty_like(source)
            calls = max(1, (1 << 22) // bucket)  # the clock and the call vanish in a block of some megabytes
            seconds = self._fastest({"copy": lambda: [target.copy_(source) for _ in range(calls)]})
            self._bandwidth[bucket] = bucket * calls / seconds
        # what a larger copy reaches, a smaller one does too
        return max(rate for size, rate in self._bandwidth.items() if size >= bucket)

    def _fastest(self, functions: Mapping[str, Callable[[], object]]) -> float:
        fastest = float("inf")
        with torch.no_grad():
            for function in functions.values():
                function()
                deadline = time.perf_counter() + self._seconds / 4
                tries = 0
                while tries < 5 or time.perf_counter() < deadline:
                    fastest = min(fastest, _block(function, 1, self.device))
                    tries += 1
        return fastest

    def as_json(self) -> dict[str, Any]:
        return {
            "flops": {str(dtype).removeprefix("torch."): rate for dtype, rate in self._flops.items()},
            "bandwidth": {str(size): rate for size, rate in sorted(self._bandwidth.items())},
        }
