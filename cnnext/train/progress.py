"""What is seen while a model trains."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from .loop import Epoch, Progress


class Display:
    """A bar with loss, accuracy and images per second, and a line for each epoch that is done."""

    def __init__(self, console: Console, epochs: int) -> None:
        self.console = console
        self.epochs = epochs
        self._done = 0
        self._bar = Bar(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", epoch=1, epochs=epochs)

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self, progress: Progress) -> None:
        """After a step."""
        text = (
            f"loss {progress.loss:.4f}  accuracy {progress.accuracy:6.2%}  {progress.images_per_second:6.0f} images/s"
        )
        self._bar.update(
            self._task, epoch=progress.epoch + 1, completed=progress.step, total=progress.steps, description=text
        )

    def epoch(self, number: int, epoch: Epoch) -> None:
        """After an epoch; ``number`` counts from 1."""
        self.console.print(
            f"epoch {number:3}/{self.epochs}  "
            f"training: loss {epoch.train_loss:.4f}, accuracy {epoch.train_accuracy:.2%}  "
            f"held out: loss {epoch.test_loss:.4f}, accuracy [bold]{epoch.test_accuracy:.2%}[/]  "
            f"[dim]{epoch.images_per_second:.0f} images/s, {epoch.seconds:.1f} s[/]",
            soft_wrap=True,
        )
