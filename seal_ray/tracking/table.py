"""Tables for the terminal, whatever its width: ids, statuses and numbers are whole in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

GAP = 2
"""Cells between two columns."""


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    heading: str
    right: bool = False  # ranged right, as numbers are
    folds_to: int | None = None  # the width down to which its text is folded; None: shown on one line
    leaves: int = 0  # where columns must be left out, 1 is left out first, then 2, ...; 0 stays


@dataclass(frozen=True)
class FittedTable:
    """A table whose cells are shown as they are, without markup.

    It is as wide as its cells are. Where the console is narrower, text is folded; where that does not do,
    columns are left out; where that does not do either, all cells are folded. Nothing is cut.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it for the width of the console."""
        shown: Sequence[int] = range(len(self.columns))
        for index in sorted((i for i in shown if self.columns[i].leaves), key=self._leaves):
            if self._least(shown) <= options.max_width:
                break
            shown = [i for i in shown if i != index]
        whole = self._least(shown) <= options.max_width
        title = Text(self.title) if self.title else None
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, title=title, title_justify="left")
        table.padding = (0, GAP - 1, 0, 0)  # the other cell of a gap is the box's
        for column in (self.columns[i] for i in shown):
            table.add_column(
                Text(column.heading),
                justify="right" if column.right else "left",
                no_wrap=whole and column.folds_to is None,
                overflow="fold",
            )
        for row in self.rows:
            table.add_row(*(Text(row[i]) for i in shown))
        yield table

    def _leaves(self, index: int) -> int:
        return self.columns[index].leaves

    def _least(self, shown: Sequence[int]) -> int:
        """The width that the columns need at least."""
        return sum(map(self._least_of, shown)) + GAP * len(shown) - 1

    def _least_of(self, index: int) -> int:
        cells = [self.columns[index].heading, *(row[index] for row in self.rows)]
        needed = max(cell_len(line) for cell in cells for line in cell.split("\n"))
        folds_to = self.columns[index].folds_to
        return needed if folds_to is None else min(needed, folds_to)
