"""The depth problem (He et al., 2015): a plain network gets worse with depth, its residual twin does not.

Trains 20 and 56 layers, plain and residual, on 4,000 real digits of MNIST (halved to 14x14 pixels, which makes it a
matter of minutes on a CPU) and draws the curves::

    pip install 'cnnext[train]'
    python examples/depth_problem.py --out depth_problem.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

from cnnext import models
from cnnext.train.data import load
from cnnext.train.loop import Epoch, Settings, Trainer

COLOURS = {"plain": "#c44e52", "residual": "#4c72b0"}


def train(builder: str, settings: Settings) -> list[Epoch]:
    """The history of one network."""
    torch.manual_seed(settings.seed)
    model = models.build(builder, in_channels=1)
    trainer = Trainer(model, load("mnist5k", channels=1, size=14), settings)

    def show(epoch: Epoch) -> None:
        print(
            f"{builder:9} epoch {len(trainer.history):2}: training loss {epoch.train_loss:.3f}, "
            f"held-out accuracy {epoch.test_accuracy:.1%}, {epoch.seconds:.0f} s",
            flush=True,
        )

    return trainer.fit(on_epoch=show)


def draw(path: Path, runs: dict[str, list[Epoch]]) -> None:
    """Training loss and held-out error of plain (left) and residual (right) networks."""
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey="row")
    for column, kind in enumerate(("plain", "residual")):
        loss, error = panels[:, column]
        for depth, style in ((20, "--"), (56, "-")):
            history = runs[f"{'plain' if kind == 'plain' else 'resnet'}{depth}"]
            epochs = range(1, len(history) + 1)
            look = {
                "linestyle": style,
                "color": COLOURS[kind],
                "linewidth": 1.0 + (depth == 56),
                "label": f"{depth} layers",
            }
            loss.plot(epochs, [epoch.train_loss for epoch in history], **look)
            error.plot(epochs, [100 - 100 * epoch.test_accuracy for epoch in history], **look)
            last = 100 - 100 * history[-1].test_accuracy
            # one label above the curve's end, one below: where both end at one place they stay apart
            look = {"textcoords": "offset points", "va": "bottom" if depth == 56 else "top", "color": COLOURS[kind]}
            error.annotate(f"{last:.1f} %", (len(history), last), xytext=(4, 0), **look)
        loss.set_title(f"{kind}: {'without' if kind == 'plain' else 'with'} shortcuts")
        loss.set(yscale="log")
        error.set(yscale="log", xlabel="epoch", yticks=(1, 2, 5, 10, 20, 50, 100), ylim=(1, 100))
        error.yaxis.set_major_formatter("{x:g}")
        error.yaxis.set_minor_formatter("")
        loss.legend(frameon=False)
    panels[0, 0].set_ylabel("training loss")
    panels[1, 0].set_ylabel("error on held-out digits in %")
    for panel in panels.flat:
        panel.grid(True, which="both", alpha=0.2)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--out", type=Path, default=Path("depth_problem.png"))
    args = parser.parse_args()
    settings = Settings(args.epochs, batch_size=64, lr=args.lr, weight_decay=1e-4)
    runs = {name: train(name, settings) for name in ("plain20", "plain56", "resnet20", "resnet56")}
    draw(args.out, runs)


if __name__ == "__main__":
    main()
