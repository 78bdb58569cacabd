"""Fixtures that every test file shares."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from cnnext import backends


def pytest_configure() -> None:
    """Tests that run side by side share the cores: threads that wait for each other take a third more time."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same random data whichever tests run before."""
    torch.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores the number of threads that a test changes."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(threads: None) -> None:
    """Keeps tests of many small calls from waiting for each other's threads where they run side by side."""
    torch.set_num_threads(1)


@pytest.fixture
def no_fallback() -> Iterator[None]:
    """Fails the test if any call in it went to torch instead of our kernels."""
    backends.reset_fallbacks()
    yield
    assert backends.fallbacks() == {}
