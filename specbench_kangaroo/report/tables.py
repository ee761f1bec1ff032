"""A report for the terminal, in 80 columns or more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from specbench_kangaroo.report.sections import document_of
from specbench_kangaroo.report.sheets import Cell, Column, Mark, Report, Section, Sheet
from specbench_kangaroo.stats.summary import Summary

# From this width on there is room for two blanks between columns.
_ROOMY = 88
_FIRST_WIDTH = 14  # of the first column: the longest task of Spec-Bench
_STYLES = {Mark.FASTER: "green", Mark.SLOWER: "red", Mark.ALARM: "red"}


def terminal(*summaries: Summary, details: bool = False, published: bool = False) -> Group:
    """Runs for :meth:`rich.console.Console.print`.

    ``details`` adds all tables of every entry, ``published`` what others published of them.
    """
    document = document_of(summaries, with_details=details, with_published=published)
    blocks = list(document.drawn(section=section_parts, heading=_heading, ending=_ending))
    return Group(*blocks[:-1])  # a blank line stands between blocks, and not after the last


def _heading(run: str) -> Iterator[RenderableType]:
    yield from (Text(f"run {run}", style="bold underline"), Text())


def _ending(report: Report) -> Iterator[RenderableType]:
    yield from (Text(caption, style="dim") for caption in report.captions)
    yield from (Text(note.text) for note in report.closing)
    yield Text()


def section_parts(section: Section) -> Iterator[RenderableType]:
    """A section's title, table and notes, for a :class:`rich.console.Group`."""
    yield Text(section.title, style="bold")
    yield _Fitted(section.sheet)
    if section.notes and section.sheet.stacked:
        yield Text()  # rows of several lines would run into what follows
    for note in section.notes:
        yield Text(note.text, style=_STYLES.get(note.mark, ""))
    yield Text()


@dataclass(frozen=True, slots=True)
class _Fitted:
    """A sheet as a table, or a stacked one as several where the terminal is narrow."""

    sheet: Sheet

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        gap = 2 if options.max_width >= _ROOMY else 1
        for places in _divided(self.sheet, options.max_width, gap):
            yield _table(self.sheet, places, gap=gap)


def _divided(sheet: Sheet, width: int, gap: int) -> list[list[int]]:
    """The columns of each table, the first one in all of them."""
    if not sheet.stacked:
        return [list(range(len(sheet.columns)))]
    widths = [_width(sheet, place) for place in range(len(sheet.columns))]
    tables = [[0]]
    for place in range(1, len(widths)):
        taken = sum(widths[i] + gap for i in tables[-1])
        if len(tables[-1]) > 1 and taken + widths[place] > width:
            tables.append([0])
        tables[-1].append(place)
    return tables


def _width(sheet: Sheet, place: int) -> int:
    cells = [sheet.columns[place].heading, *(row[place] for row in sheet.rows)]
    widest = max(len(line) for cell in cells for line in cell.stacked)
    return max(widest, _FIRST_WIDTH) if place == 0 else widest


def _table(sheet: Sheet, places: Sequence[int], *, gap: int) -> Table:
    # rich sets columns one apart by itself, and the padding comes on top of that.
    padding = (0, gap - 1, 0, 0)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=padding, show_edge=False)
    for place in places:
        _add_column(table, sheet.columns[place], first=place == 0)
    for row in sheet.rows:
        cells = [_text(row[place], stacked=sheet.stacked) for place in places]
        table.add_row(*cells, style="bold" if row[0].text == sheet.bold else None)
    return table


def _add_column(table: Table, column: Column, *, first: bool) -> None:
    table.add_column(
        Text("\n".join(column.heading.stacked)),  # not as markup: a label may be chain[steps=3]
        justify="left" if column.left else "right",
        no_wrap=first,
        min_width=_FIRST_WIDTH if first else None,
        overflow="fold",  # broken over lines in a narrow terminal, never cut
    )


def _text(cell: Cell, *, stacked: bool) -> Text:
    style = _STYLES.get(cell.mark, "")
    if not stacked:
        return Text(cell.text, style=style)
    first, *more = cell.stacked
    text = Text().append(first, style=style)
    for line in more:
        text.append(f"\n{line}", style=style if cell.mark is Mark.ALARM else "dim")
    return text
