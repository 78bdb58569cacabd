"""Training by several processes: the gradients, losses and weights of one."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training import few_digits

from cnnext import models
from cnnext.__main__ import main
from cnnext.train.loop import Settings, Trainer

pytestmark = pytest.mark.usefixtures("one_thread")
TESTS = Path(__file__).resolve().parent


needs_distributed = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch has no torch.distributed"
)


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    path = tmp_path_factory.mktemp("distributed") / "seen.json"
    torchrun(TESTS / "distributed_training.py", path)
    seen = json.loads(path.read_text())
    assert seen["processes"] == 2
    return seen


@needs_distributed
def test_two_processes_give_the_gradients_of_one(two_processes):
    assert two_processes["gradient_error"] < 1e-12


@needs_distributed
def test_two_processes_give_the_losses_of_one(two_processes):
    torch.manual_seed(0)
    model = models.lecture(image_size=8, dropout=0.0)
    epoch = Trainer(model, few_digits(160), Settings(epochs=1, batch_size=32)).fit()[0]
    assert two_processes["losses"] == pytest.approx(epoch.losses, rel=1e-5)


@needs_distributed
def test_held_out_pictures_count_once_for_the_first_ones_model(two_processes):
    assert two_processes["held_out"]["seen"] == pytest.approx(two_processes["held_out"]["expected"], rel=1e-6)


@needs_distributed
def test_only_the_first_reads(two_processes):
    assert two_processes["read_by_first"] == ["file of 0, error of 0"] * 2


@needs_distributed
def test_fsdp_divides_resnet50(two_processes):
    seen = two_processes["fsdp"]
    assert seen["ours"] == 53
    assert math.isclose(seen["part_held"], 0.5, abs_tol=0.01)
    assert seen["loss_error"] < 1e-5
    assert seen["gradient_error"] < 1e-4
    assert seen["loss_after_step"] < seen["loss"]


@needs_distributed
def test_command_under_torchrun(tmp_path):
    options = ("--data", "digits", "--image-size", "8", "--epochs", "2", "--out", tmp_path / "run")
    result = torchrun("-m", "cnnext", "train", "--model", "lecture", *options)
    assert result.stdout.count("of the held-out pictures right after epoch 2") == 1  # only the first process speaks
    assert "2 processes" in result.stdout
    assert "Warning" not in result.stderr
    assert (tmp_path / "run" / "curves.png").exists()
    history = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["history"]
    assert len(history[0]["losses"]) == 1438 // 64
    resumed = [str(option) for option in (*options, "--epochs", "3", "--resume")]  # by one process
    assert main(["train", "--model", "lecture", *resumed]) == 0
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["history"][:2] == history
