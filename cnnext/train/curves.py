"""Loss and accuracy over the epochs, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .loop import Epoch


def save(path: Path, runs: Mapping[str, Sequence[Epoch]], title: str = "") -> None:
    """Draws the curves of one or several runs.

    Args:
        path: the picture; its suffix says which kind.
        runs: the history of each, by name.
        title: above the picture.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for number, (name, history) in enumerate(runs.items()):
        colour = f"C{number}"
        prefix = f"{name}, " if len(runs) > 1 else ""
        epochs = range(1, len(history) + 1)
        for panel, what, scale in ((loss, "loss", 1), (accuracy, "accuracy", 100)):
            train = [getattr(epoch, f"train_{what}") * scale for epoch in history]
            test = [getattr(epoch, f"test_{what}") * scale for epoch in history]
            panel.plot(epochs, train, "--", color=colour, linewidth=1.2, label=f"{prefix}training")
            panel.plot(epochs, test, "-o", color=colour, linewidth=1.8, markersize=3.5, label=f"{prefix}held out")
    loss.set(xlabel="epoch", ylabel="loss", yscale="log")
    loss.yaxis.set_major_formatter("{x:g}")
    loss.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
    accuracy.set(xlabel="epoch", ylabel="accuracy in %")
    for panel in (loss, accuracy):
        panel.grid(True, which="both", alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        panel.xaxis.get_major_locator().set_params(integer=True)
    accuracy.legend(frameon=False, loc="lower right")
    figure.suptitle(title, parse_math=False)  # a folder's name may hold dollars
    figure.savefig(path, dpi=110)
