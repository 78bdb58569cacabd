"""Interrupting and resuming `python -m cnnext train`: the same run, what may change, and damaged checkpoints."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training import fails, few_digits, folder_of_pictures

from cnnext import models
from cnnext.__main__ import main
from cnnext.train import checkpoint, data
from cnnext.train.errors import TrainingError
from cnnext.train.interrupt import between_steps
from cnnext.train.loop import Settings, Trainer, learning_rate
from cnnext.train.progress import Display

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("backend", "workers"), [("cnnext", 0), ("torch", 0), ("cnnext", 1)])
def test_resumed_run_is_the_same_run(tmp_path, capsys, monkeypatch, backend, workers):
    def command(out, *options):
        return [
            *("train", "--model", "lecture", "--data", "digits", "--image-size", "8", "--epochs", "3"),
            *("--backend", backend, "--workers", str(workers), "--out", str(tmp_path / out), *options),
        ]

    assert main(command("whole")) == 0

    step = Display.step

    def interrupt(self, progress):
        step(self, progress)
        if (progress.epoch, progress.step) == (1, 7):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Display, "step", interrupt)
        assert main(command("parts[b]:cat:")) == 130
    assert "parts[b]:cat:/last.pt holds epoch 1, go on with --resume" in capsys.readouterr().out
    assert main(command("parts[b]:cat:", "--resume")) == 0
    assert "resumed after epoch 1" in capsys.readouterr().out
    whole, parts = (torch.load(tmp_path / out / "last.pt", weights_only=True) for out in ("whole", "parts[b]:cat:"))
    assert [epoch["losses"] for epoch in whole["history"]] == [epoch["losses"] for epoch in parts["history"]]
    for name, tensor in whole["model"].items():
        assert torch.equal(tensor, parts["model"][name]), name


def test_control_c_waits_for_the_step():
    """Also where Python would drop the exception: in a destructor."""

    class Strikes:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with between_steps() as check:
        check()
        Strikes()
        with pytest.raises(KeyboardInterrupt):
            check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)  # the second one does not wait
    assert signal.getsignal(signal.SIGINT) is before


def test_control_c_does_not_end_the_readers(monkeypatch):
    take = data.Digits.__getitem__

    def struck(self, index):
        if torch.utils.data.get_worker_info() is not None:
            signal.raise_signal(signal.SIGINT)
        return take(self, index)

    monkeypatch.setattr(data.Digits, "__getitem__", struck)
    with between_steps():
        (epoch,) = Trainer(models.lecture(image_size=8), few_digits(64), Settings(epochs=1, workers=1)).fit()
    assert len(epoch.losses) == 1


def test_control_c_keeps_the_last_epoch(tmp_path):
    command = ["train", "--model", "lecture", "--data", "digits", "--image-size", "8", "--epochs", "1000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cnnext", *command, "--out", str(tmp_path / "run")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch   2/1000"):
                break
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, error
    assert re.search(r"interrupted: .*last.pt holds epoch \d+, go on with --resume", out)
    assert "Traceback" not in error
    assert len(torch.load(tmp_path / "run" / "last.pt", weights_only=True)["history"]) >= 2


def test_run_is_not_overwritten(capsys, tmp_path, monkeypatch):
    options = ("--data", "digits", "--image-size", "8", "--out", str(tmp_path))
    (tmp_path / "last.pt").write_bytes(b"damaged")
    assert "exists: go on with --resume, or choose another --out" in fails(capsys, *options)
    assert "is no checkpoint of cnnext train, or a damaged one" in fails(capsys, *options, "--resume")
    (tmp_path / "last.pt").unlink()
    assert main(["train", "--model", "lecture", "--epochs", "1", *options]) == 0
    capsys.readouterr()
    error = fails(capsys, *options, "--resume", "--model", "resnet20")
    assert "last.pt was trained with model lecture, not resnet20" in error
    monkeypatch.chdir(tmp_path)  # by default, the folder's name is part of the run's
    (default := Path("runs", f"lecture-{tmp_path.name}-cnnext")).mkdir(parents=True)
    (default / "last.pt").touch()
    assert f"{default / 'last.pt'} exists" in fails(capsys, "--data", ".")


def test_resumed_run_takes_the_same_options(capsys, tmp_path):
    options = ("--data", "digits", "--image-size", "8", "--lr", "0.01", "--out", str(tmp_path))
    assert main(["train", "--model", "lecture", "--epochs", "1", *options]) == 0
    capsys.readouterr()
    changes = [("batch-size", "64", "32"), ("lr", "0.01", "0.02"), ("seed", "0", "1"), ("backend", "cnnext", "torch")]
    for option, before, value in changes:
        error = fails(capsys, *options, "--resume", f"--{option}", value)
        assert f"last.pt was trained with {option.replace('-', ' ')} {before}, not {value}" in error
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    state["about"] = {key: state["about"][key] for key in ("model", "image_size", "classes")}  # an older one
    del state["epochs"]
    torch.save(state, tmp_path / "last.pt")
    assert main(["train", "--model", "lecture", "--epochs", "2", *options, "--resume", "--seed", "1"]) == 0
    assert "resumed after epoch 1\n" in capsys.readouterr().out


def test_resuming_another_folder(capsys, tmp_path, monkeypatch):
    """The same pictures go by any path; others are refused."""
    options = ("--batch-size", "2", "--image-size", "8", "--out", str(tmp_path / "run"))
    folder = folder_of_pictures(tmp_path / "data")
    assert main(["train", "--model", "lecture", "--data", str(folder), "--epochs", "1", *options]) == 0
    monkeypatch.chdir(tmp_path)
    for number, spelled in enumerate(("data", f"{folder}/", "./data"), start=2):
        epochs = ("--epochs", str(number), "--resume")
        assert main(["train", "--model", "lecture", "--data", spelled, *options, *epochs]) == 0
    folder_of_pictures(folder / "dark", classes=("more",), count=1)
    message = r"last.pt was trained with pictures 8 \+ 2 held out \(\w{12}\), not 9 \+ 2 held out \(\w{12}\)"
    assert re.search(message, fails(capsys, "--data", "data", *options, "--resume"))


def rates_of(monkeypatch, *options):
    """The learning rates of the steps that the command takes."""
    rates = []
    step = torch.optim.SGD.step
    with monkeypatch.context() as patch:
        patch.setattr(
            torch.optim.SGD, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or step(self), raising=True
        )
        command = ("train", "--model", "lecture", "--data", "digits", "--image-size", "8", "--batch-size", "256")
        assert main([*command, *options]) == 0
    return rates


def test_epochs_of_a_resumed_run(capsys, tmp_path, monkeypatch):
    """Those it was started with, unless others are asked for; the learning rate follows, and this is said."""
    out = ("--out", str(tmp_path))
    keep = checkpoint.save

    def interrupted(*arguments):
        keep(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", interrupted)
        command = ("train", "--model", "lecture", "--data", "digits", "--image-size", "8", "--batch-size", "256")
        assert main([*command, "--epochs", "3", *out]) == 130
    shutil.copy(tmp_path / "last.pt", tmp_path / "first.pt")
    steps = 1438 // 256

    def planned(epochs, first):
        return [learning_rate(step, epochs * steps, 0.02) for step in range(first * steps, epochs * steps)]

    capsys.readouterr()
    assert rates_of(monkeypatch, *out, "--resume") == planned(3, 1)
    assert "resumed after epoch 1\n" in capsys.readouterr().out
    assert rates_of(monkeypatch, *out, "--resume") == []
    assert "resumed after epoch 3, the last: more --epochs would train on\n" in capsys.readouterr().out
    assert rates_of(monkeypatch, *out, "--resume", "--epochs", "4") == planned(4, 3)
    said = "resumed after epoch 3 of 3; the learning rate goes on as in a run of 4\n"
    assert said in capsys.readouterr().out
    message = "last.pt holds 4 epochs already: --epochs should be 4 or more, not 2"
    assert message in fails(capsys, "--data", "digits", "--resume", "--epochs", "2", *out)
    shutil.copy(tmp_path / "first.pt", tmp_path / "last.pt")
    assert rates_of(monkeypatch, *out, "--resume", "--epochs", "2") == planned(2, 1)
    assert "resumed after epoch 1 of 3; the learning rate goes on as in a run of 2\n" in capsys.readouterr().out


DAMAGED = {
    "tensor": torch.ones(3),
    "list": [1],
    "weights": {"conv1.weight": torch.ones(3)},
    "about": {"about": 3, "model": {}, "optimizer": {}, "history": []},
    "parts": {"about": {}, "model": {}},
}


@pytest.mark.parametrize("kind", [*DAMAGED, "text", "truncated", "folder", "loop"])
def test_what_is_no_checkpoint(capsys, tmp_path, kind):
    last = tmp_path / "last.pt"
    if kind in DAMAGED:
        torch.save(DAMAGED[kind], last)
    elif kind == "folder":
        last.mkdir()
    elif kind == "loop":
        last.symlink_to(last)
    elif kind == "text":
        last.write_text("text")
    else:
        trainer = Trainer(models.lecture(image_size=8), few_digits(64), Settings(epochs=1))
        checkpoint.save(last, trainer, {})
        last.write_bytes(last.read_bytes()[:-100])
    error = fails(capsys, "--data", "digits", "--resume", "--out", str(tmp_path))
    reasons = {"folder": "cannot read {}: Is a directory", "loop": "cannot read {}: Too many levels of symbolic links"}
    assert reasons.get(kind, "{} is no checkpoint of cnnext train, or a damaged one").format(last) in error


@pytest.fixture
def saved(tmp_path):
    """A trainer, its checkpoint, and what that holds."""
    trainer = Trainer(models.lecture(image_size=8), few_digits(64), Settings(epochs=2))
    checkpoint.save(tmp_path / "last.pt", trainer, {"seed": 0})
    return trainer, tmp_path / "last.pt", (tmp_path / "last.pt").read_bytes()


def test_full_disk_keeps_the_checkpoint(saved):
    trainer, last, before = saved
    last.with_suffix(".unfinished").symlink_to("/dev/full")
    with pytest.raises(TrainingError, match=r"cannot write .*last\.pt, .*: No space left on device"):
        checkpoint.save(last, trainer, {"seed": 1})
    assert last.read_bytes() == before
    assert os.listdir(last.parent) == ["last.pt"]  # the part that was written takes no room


def test_killed_while_saving_keeps_the_checkpoint(saved, monkeypatch):
    trainer, last, before = saved

    def killed(state, file):
        file.write(b"a part")
        file.flush()
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", killed)
        with pytest.raises(SystemExit):
            checkpoint.save(last, trainer, {"seed": 1})
    assert last.read_bytes() == before
    assert checkpoint.load(last)["about"] == {"seed": 0}
    checkpoint.save(last, trainer, {"seed": 2})
    assert checkpoint.load(last)["about"] == {"seed": 2}
    assert os.listdir(last.parent) == ["last.pt"]
