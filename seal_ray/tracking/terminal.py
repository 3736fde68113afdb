"""What a person sees while runs train: a progress bar on a terminal, one line an epoch elsewhere."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from seal_ray.phases.schedule import Row
from seal_ray.recipe import Job


class RunProgress:
    """Prints to standard output; a terminal also gets a progress bar under the epoch lines."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None

    def note(self, text: str) -> None:
        """A line about something other than an epoch."""
        self._console.print(text, markup=False)

    def start(self, job: Job, run_id: str, done: int) -> None:
        """A run begins, or goes on after `done` epochs."""
        total = job.recipe.budget.epochs
        resumed = f", going on after epoch {done}" if done else ""
        workers = f"{job.placement.workers} worker{'s' * (job.placement.max_workers > 1)}"
        self.note(f"{run_id}: {total} epochs on {workers}{resumed}")
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._progress.add_task("starting workers", total=total, completed=done)
        self._progress.start()

    def epoch(self, row: Row) -> None:
        """An epoch is committed."""
        self.note(epoch_line(row))
        if self._progress:
            self._progress.update(self._progress.task_ids[0], advance=1, description="training")

    def finish(self) -> None:
        """The run has ended, however."""
        if self._progress:
            self._progress.stop()
            self._progress = None
        sys.stdout.flush()


def epoch_line(row: Row) -> str:
    """One epoch in one line of at most 110 characters."""
    val = "" if row["val_top1"] is None else f"  val {row['val_loss']:.3f} {row['val_top1']:5.1f} %"
    return (
        f"g{row['generation']:<2d} e{row['epoch']:<3d} {row['phase']:<8s} "
        f"lr {row['lr_early']:+.4f} {row['lr_late']:+.4f}  "
        f"train {row['train_loss']:.3f} {row['train_top1']:5.1f} %{val}  "
        f"{row['images_per_second']:7,.0f} img/s"
    )
