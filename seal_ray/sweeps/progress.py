"""What a person sees while a sweep trains: a live table on a terminal, a line a generation elsewhere."""

from __future__ import annotations

import time
from collections.abc import Container, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from seal_ray.distributed.launch import Planned
from seal_ray.errors import CheckpointError, StorageError
from seal_ray.phases.schedule import Row
from seal_ray.runs.folder import ENDED
from seal_ray.storage.paths import folders_in
from seal_ray.tracking.table import Column, FittedTable

MOST_ROWS = 24
"""Runs in the live table; those that have ended the longest ago go first."""
COLUMNS = (
    *(Column("run"), Column("setting", folds_to=14), Column("epoch"), Column("phase")),
    *(Column("top1 %"), Column("images/s", leaves=1), Column("left")),
)
"""Of the live table; `_cells` fills them."""


class Watched:
    """One run as it was last seen."""

    def __init__(self, planned: Planned, name: str, begun: bool) -> None:
        self.planned, self.name = planned, name
        self.status = "new"
        self.rows: list[Row] = []
        self.warned = 0
        self._size = -1
        if begun:
            self.status = planned.store.status().get("status", "new")
            self.look()
        self.told = len(self.rows)
        self._first = self.told

    @property
    def left(self) -> int:
        """Epochs to go, of a run that may go on."""
        return 0 if self.ended else self.planned.job.recipe.budget.epochs - len(self.rows)

    @property
    def trained(self) -> int:
        """Epochs that it has trained itself since it was first seen."""
        return sum(row["trained_by"] == self.planned.run_id for row in self.rows[self._first :])

    @property
    def ended(self) -> bool:
        """Whether the run will not be trained any further."""
        return self.status in (*ENDED, "pruned", "failed")

    def look(self) -> bool:
        """Read what has changed; returns whether anything has."""
        if self.rows and self.status in ENDED:
            return False
        store, before = self.planned.store, (self.status, len(self.rows))
        try:
            size = store.metrics_size()
            if size != self._size:
                self.rows, self._size = store.rows(), size
            self.status = store.status().get("status", "new")
        except (CheckpointError, StorageError):
            return False  # being rewritten, or out of reach; the next look finds it whole
        return (self.status, len(self.rows)) != before


class SweepProgress:
    """Shows what the run folders say.

    share: what runs have in common is trained once. searching: more runs are suggested as results come.
    """

    def __init__(
        self,
        planned: Sequence[Planned],
        names: dict[str, tuple[str, int]],
        rich: Console,
        *,
        share: bool,
        searching: bool,
    ) -> None:
        self._rich, self._share = rich, share
        self._what = "epochs of suggested runs left" if searching else "epochs left"
        self._runs: list[Watched] = []
        self.add(planned, names)
        self._started = time.monotonic()
        self._live = Live(console=rich, auto_refresh=False, transient=True) if rich.is_terminal else None
        if self._live:
            self._live.start()

    def add(self, planned: Sequence[Planned], names: dict[str, tuple[str, int]]) -> None:
        """More runs to watch, and what they are called."""
        begun = folders_in(planned[0].store.folder.parent) if planned else ()
        self._runs += [
            Watched(one, f"{names[one.run_id][0]} s{names[one.run_id][1]}", one.run_id in begun)
            for one in planned
        ]

    def forget(self, run_ids: Container[str]) -> None:
        """Of these runs, those that have not begun will not be trained."""
        self._runs = [run for run in self._runs if run.status != "new" or run.planned.run_id not in run_ids]

    def note(self, text: str) -> None:
        """A line about something other than an epoch."""
        self._rich.print(text, markup=False)

    def refresh(self, run_ids: Container[str] | None = None) -> None:
        """Show what has changed since the last look, of these runs or, for None, of all."""
        asked = [run for run in self._runs if run_ids is None or run.planned.run_id in run_ids]
        changed = [run for run in asked if run.look()]
        for run in changed:
            self._tell(run)
        if self._live:
            self._live.update(self._table(), refresh=True)

    def close(self) -> None:
        """The sweep has ended, however."""
        if self._live:
            self._live.stop()

    def _tell(self, run: Watched) -> None:
        run_id, budget = run.planned.run_id, run.planned.job.recipe.budget
        for text in run.planned.store.warnings()[run.warned :]:
            self.note(f"{run_id}: warning: {text}")
            run.warned += 1
        for row in run.rows[run.told :]:
            if row["epoch"] + 1 == budget.length and row["trained_by"] == run_id:
                generation = f"generation {row['generation'] + 1} of {budget.generations}"
                scores = f"top1 {row['val_top1']:5.1f} %  val loss {row['val_loss']:.3f}"
                speed = f"{row['images_per_second']:,.0f} img/s"
                self.note(f"{run_id}: {generation}  {scores}  {speed}  {self._left()}")
        run.told = max(run.told, len(run.rows))
        if run.status in ("diverged", "failed", "pruned", "stopped"):
            self.note(f"{run_id}: {run.status}: {run.planned.store.status().get('reason', '')}")

    def _left(self) -> str:
        """How much of the sweep is left, and how long that may take."""
        done, wanted = dict[tuple[str, str], int](), dict[tuple[str, str], int]()
        for run in self._runs:
            length, whose = run.planned.job.recipe.budget.length, "" if self._share else run.planned.run_id
            for generation, key in enumerate(run.planned.keys):
                here = min(length, max(0, len(run.rows) - generation * length))
                if not run.ended:
                    wanted[whose, key] = length
                elif here < length:
                    here = 0  # nobody takes over a part of a generation
                done[whose, key] = max(here, done.get((whose, key), 0))
        left = sum(length - done[which] for which, length in wanted.items())
        trained = sum(run.trained for run in self._runs)
        eta = (time.monotonic() - self._started) / trained * left if trained else 0.0
        return f"sweep: {left} {self._what}" + (f", about {clock(eta)}" if left and trained else "")

    def _table(self) -> Group:
        begun = [run for run in self._runs if run.rows or run.status != "new"]
        ended = [run for run in begun if run.ended]
        going = [run for run in begun if not run.ended]
        shown = [*ended[-max(0, MOST_ROWS - len(going)) :], *going][-MOST_ROWS:]
        table = FittedTable("", COLUMNS, list(map(_cells, shown)))
        waiting = len(self._runs) - len(begun)
        return Group(table, Text(f"{self._left()}; {len(ended)} runs ended, {waiting} not begun"))


def _cells(run: Watched) -> list[str]:
    total, done = run.planned.job.recipe.budget.epochs, len(run.rows)
    row: Row = run.rows[-1] if run.rows else {}
    scores = [r["val_top1"] for r in run.rows if r["val_top1"] is not None]
    seconds = row.get("seconds_data", 0) + row.get("seconds_compute", 0) + row.get("seconds_eval", 0)
    return [
        run.planned.run_id,
        run.name,
        f"{done}/{total}",
        run.status if run.status != "running" else row.get("phase", "starting"),
        f"{scores[-1]:.1f}" if scores else "-",
        f"{row['images_per_second']:,.0f}" if row else "-",
        clock(seconds * run.left) if row and run.left else "",
    ]


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
