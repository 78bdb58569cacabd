"""The memory pool of outputs and workspaces, and the switches of `cnnext.backends`."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import cnnext
from cnnext import backends

conv = torch.ops.cnnext.conv
X, W = torch.randn(4, 16, 64, 64), torch.randn(16, 16, 3, 3)  # an output of 1 MiB


def run() -> torch.Tensor:
    return conv(X, W, None, [1], [1])


@pytest.fixture(autouse=True)
def _empty_pool():
    cnnext.empty_cache()
    yield
    cnnext.empty_cache()


def test_blocks_are_reused_and_given_back():
    start = cnnext.memory_stats()
    output = run()
    in_use = cnnext.memory_stats()["in_use_bytes"]
    assert in_use - start["in_use_bytes"] >= output.nbytes
    del output
    assert cnnext.memory_stats()["in_use_bytes"] == start["in_use_bytes"]
    assert cnnext.memory_stats()["cached_bytes"] > 0
    made = cnnext.memory_stats()["allocated"]
    for _ in range(5):
        run()
    after = cnnext.memory_stats()
    assert after["reused"] >= start["reused"] + 5
    assert after["allocated"] <= made + 2  # the output of one call lives while the next is computed
    cnnext.empty_cache()
    assert cnnext.memory_stats()["cached_bytes"] == 0


# After a large block was freed, malloc takes the next ones from a heap that ends with `small`.
_GIVES_BACK = """
import torch, cnnext
from cnnext import functional

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

x = torch.ones(1, 1, 512, 512 * 16)
y = functional.max_pool2d(torch.ones(1, 1, 512, 512 * 31), 1)
del y
cnnext.empty_cache()
start = resident()
ys = [functional.max_pool2d(x, 1) for _ in range(8)]
bytes = sum(y.nbytes for y in ys)
assert resident() - start > 0.9 * bytes
small = torch.ones(20000)
del ys
cnnext.empty_cache()
assert resident() - start < 0.1 * bytes, (resident() - start, bytes)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's count of a process's pages")
def test_the_system_gets_its_memory_back():
    done = subprocess.run([sys.executable, "-c", _GIVES_BACK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_live_outputs_are_not_overwritten():
    outputs = [run() for _ in range(6)]
    expected = outputs[0].clone()
    for _ in range(6):
        run()
    assert all(torch.equal(output, expected) for output in outputs)
    assert len({output.data_ptr() for output in outputs}) == 6


def test_hardly_holds_more_than_was_in_use_at_once():
    for size in (256, 384, 512, 320, 256, 448):  # outputs of up to 16 MiB
        conv(torch.randn(1, 16, size, size), W, None, [1], [1])
        stats = cnnext.memory_stats()
        assert stats["in_use_bytes"] + stats["cached_bytes"] <= 9 / 8 * stats["peak_in_use_bytes"] + 8 * 2**20


def test_a_small_network_does_not_wait_for_the_system():
    sizes = (64, 32, 60, 28, 48, 24, 56, 20)
    for _ in range(2):
        before = cnnext.memory_stats()["allocated"]
        for size in sizes:
            conv(torch.randn(2, 16, size, size), W, None, [1], [1])
    assert cnnext.memory_stats()["allocated"] == before


def test_memory_that_lives_long_among_outputs_does_not_make_them_wait():
    model = cnnext.convert(cnnext.models.resnet50().eval())  # its packed weights tie segments up
    counts = []
    with backends.packed_weights(True), torch.inference_mode():
        for _ in range(14):
            model(torch.ones(1, 3, 224, 224))
            counts.append(cnnext.memory_stats()["allocated"])
    assert counts[-1] == counts[-4], counts


def test_outputs_can_be_resized_and_shared():
    output = run()
    output.resize_(8, 16, 64, 64)
    output.fill_(1)
    assert output.sum() == output.numel()
    view = run().view(-1)[5:]
    assert torch.equal(view, run().view(-1)[5:])
    assert run().share_memory_().is_shared()


def test_off():
    with backends.memory_pool(False):
        assert not backends.memory_pool.enabled
        before = cnnext.memory_stats()
        expected = run()
        assert cnnext.memory_stats() == before and before["cached_bytes"] == 0
    assert backends.memory_pool.enabled
    assert torch.equal(run(), expected)


def test_off_by_environment():
    code = "import cnnext; print(cnnext.backends.memory_pool.enabled)"
    environment = {**os.environ, "CNNEXT_MEMORY_POOL": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_threads_share_the_pool():
    expected = run()
    with ThreadPoolExecutor(4) as workers:
        same = workers.map(lambda _: torch.equal(run(), expected), range(80))
    assert list(same) == [True] * 80


def test_torchs_tensors_come_from_the_pool_too():
    before = cnnext.memory_stats()["in_use_bytes"]
    with backends.torch_memory(True):
        assert backends.torch_memory.enabled
        large, small = torch.arange(1 << 18), torch.arange(100)
        held = cnnext.memory_stats()["in_use_bytes"]
        assert large.nbytes <= held - before < 2 * large.nbytes
        outlives = torch.relu(large) + 1
        assert torch.equal(outlives, torch.from_numpy(large.numpy() + 1))
        assert torch.equal(small.resize_(1 << 17)[:100], torch.arange(100))
        assert large.share_memory_().is_shared()
    assert not backends.torch_memory.enabled
    assert cnnext.memory_stats()["in_use_bytes"] > before
    del large, small, outlives
    assert cnnext.memory_stats()["in_use_bytes"] == before
    other = torch.arange(1 << 18)
    assert cnnext.memory_stats()["in_use_bytes"] == before and other[-1] == (1 << 18) - 1


class _Squares(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((1, 128, 128), float(index)).square()


def test_torchs_tensors_from_the_pool_in_forked_workers():
    with backends.torch_memory(True):
        batches = list(torch.utils.data.DataLoader(_Squares(), 4, num_workers=2, multiprocessing_context="fork"))
        assert [batch[:, 0, 0, 0].tolist() for batch in batches] == [[0.0, 1.0, 4.0, 9.0], [16.0, 25.0, 36.0, 49.0]]


_FORKS = """
import os, signal, sys, threading, torch
from cnnext import backends, functional

torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
weight = torch.ones(64, 64, 1, 1)
def allocations(done):
    image = torch.ones(1, 64, 2, 2)
    while not done.is_set():
        torch.empty(1 << 16)
        functional.conv2d(image, torch.ones(64, 64, 1, 1))
def choices(done):
    y = torch.ones(1, 1, 1, requires_grad=True)
    for _ in range(1000):
        y = functional.avg_pool1d(y, 1)
    while not done.is_set():
        y.backward(retain_graph=True)  # many calls without the interpreter's lock, which a thread that forks holds
work = {"allocations": allocations, "choices": choices}[sys.argv[1]]
with (
    backends.torch_memory(True),
    backends.packed_weights(True),
    backends.force_kernel("avg_pool_grad_input", "reference"),
):
    done = threading.Event()
    threads = [threading.Thread(target=work, args=[done]) for _ in range(2)]
    for thread in threads:
        thread.start()
    ended = []
    for _ in range(100):
        child = os.fork()
        if child == 0:
            signal.alarm(5)  # ends a child that waits for a lock
            torch.empty(1 << 16)
            functional.conv2d(torch.ones(1, 64, 2, 2), weight)  # asks what is forced
            functional.conv2d(torch.ones(1, 1, 2, 2).int(), torch.ones(1, 1, 1, 1).int())  # counts a fallback
            os._exit(0)
        ended.append(os.waitpid(child, 0)[1])
        if ended[-1] != 0:
            break
    done.set()
    for thread in threads:
        thread.join()
assert not any(ended), f"fork {len(ended)}: status {ended[-1]}"
"""


@pytest.mark.parametrize("work", ["allocations", "choices"])
def test_a_fork_in_the_midst_of(work: str):
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", _FORKS, work], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_training_is_the_same_with_torchs_tensors_from_the_pool():
    def trained() -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            cnnext.nn.Conv2d(3, 16, 3, padding=1), torch.nn.BatchNorm2d(16), torch.nn.ReLU(), cnnext.nn.MaxPool2d(2)
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(4, 3, 64, 64)).square().mean().backward()
            optimizer.step()
        return list(model.parameters())

    expected = trained()
    with backends.torch_memory(True):
        assert all(torch.equal(*pair) for pair in zip(trained(), expected, strict=True))


def test_the_profiler_sees_outputs():
    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        output = run()
    (conv_event,) = (event for event in profile.key_averages() if event.key == "cnnext::conv")
    assert conv_event.self_cpu_memory_usage >= output.nbytes


def test_winograd_switch_changes_the_kernel_and_keeps_the_numbers_close():
    x, w = torch.randn(2, 64, 24, 24), torch.randn(64, 64, 3, 3)
    layer = cnnext.nn.Conv2d(64, 64, 3, padding=1, bias=False)
    assert "winograd" in str(cnnext.explain(layer, x))
    fast = conv(x, w, None, [1], [1])
    with backends.winograd(False):
        assert not backends.winograd.enabled
        kernels = {each["kernel"] for each in cnnext.explain(layer, x).to_dict()["layers"][0]["directions"]}
        assert kernels - {"rows_amx", "gemm_amx"} <= {"gemm"}
        direct = conv(x, w, None, [1], [1])
    assert backends.winograd.enabled
    assert not torch.equal(fast, direct)
    exact = torch.nn.functional.conv2d(x.double(), w.double(), padding=1)
    for output, most in ((fast, 3e-6), (direct, 1e-6)):
        assert (output - exact).norm() / exact.norm() < most
