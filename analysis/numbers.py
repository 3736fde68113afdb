"""What analyses found, for the terminal: a table each, with a row for each moment."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from seal_ray.analysis.moments import RunSet
from seal_ray.analysis.scores import MADE
from seal_ray.analysis.tasks import TaskOutcome, read_result
from seal_ray.analysis.track import scalars_in
from seal_ray.recipe import ANALYSES

MOST_MOMENTS = 24
MOST_COLUMNS = 6


def numbers_tables(run_set: RunSet, outcomes: Sequence[TaskOutcome]) -> Iterator[Table]:
    """Of each analysis the scalars that W&B's panels show, in their order; of a plugin's all that it names.

    No more than fit a terminal; the title says how many moments are left out.
    """
    made = {(one.run_id, one.moment, one.what) for one in outcomes if one.status in MADE}
    moments = [moment for run in run_set.runs for moment in run.moments()]
    for what in dict.fromkeys(one.what for one in outcomes):
        rows = []
        for moment in moments:
            held = read_result(moment, what) if (moment.run.name, moment.label, what) in made else None
            if held is not None:
                rows.append((moment.run.name, moment.label, scalars_in(what, held)))
        if rows:
            yield _table(what, rows)


def _table(what: str, rows: Sequence[tuple[str, str, Mapping[str, float | None]]]) -> Table:
    there = dict.fromkeys(name for _, _, found in rows for name, value in found.items() if value is not None)
    shown = [name for pattern in _patterns(what) for name in there if re.fullmatch(pattern, name)]
    columns = list(dict.fromkeys(shown))[:MOST_COLUMNS]
    left = len(rows) - MOST_MOMENTS
    title = what + (f" ({left} more moments: see `seal-ray report`)" if left > 0 else "")
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, title=Text(title), title_justify="left")
    for heading in ("run", "moment"):
        table.add_column(heading, no_wrap=True)
    for name in columns:
        table.add_column(Text(name.removeprefix(f"{what}/")), justify="right", overflow="fold")
    for run, moment, found in rows[:MOST_MOMENTS]:
        values = [found.get(name) for name in columns]
        table.add_row(run, moment, *("-" if value is None else f"{value:.4g}" for value in values))
    return table


def _patterns(what: str) -> list[str]:
    """Of the names of scalars to show, in order; a <placeholder> stands for any text."""
    kind: Any = ANALYSES.get(what)
    if kind is None or kind.section is None:
        return [".*"]
    names = [name for panel in kind.section.panels for name in panel.metrics]
    return [re.sub("<.*?>", ".*", re.escape(name).replace("\\<", "<").replace("\\>", ">")) for name in names]
