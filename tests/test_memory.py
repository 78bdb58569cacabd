"""The memory pool of outputs and workspaces, and the switches of `cnnext.backends`."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

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
        assert stats["in_use_bytes"] + stats["cached_bytes"] <= stats["peak_in_use_bytes"] + 8 * 2**20


def test_a_small_network_does_not_wait_for_the_system():
    sizes = (64, 32, 60, 28, 48, 24, 56, 20)
    for _ in range(2):
        before = cnnext.memory_stats()["allocated"]
        for size in sizes:
            conv(torch.randn(2, 16, size, size), W, None, [1], [1])
    assert cnnext.memory_stats()["allocated"] == before


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
    expected, wrong = run(), []

    def work() -> None:
        for _ in range(20):
            if not torch.equal(run(), expected):
                wrong.append(threading.get_ident())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


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
        assert kernels == {"gemm"}
        direct = conv(x, w, None, [1], [1])
    assert backends.winograd.enabled
    assert not torch.equal(fast, direct)
    exact = torch.nn.functional.conv2d(x.double(), w.double(), padding=1)
    for output, most in ((fast, 3e-6), (direct, 1e-6)):
        assert (output - exact).norm() / exact.norm() < most
