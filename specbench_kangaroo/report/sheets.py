"""What a report says, before anyone draws it: cells, sheets, and the sections of a report.

Every format draws the same :class:`Report`, so that none says more or less than another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # scipy takes 0.3 s to import, which a run would wait for before it starts
    from specbench_kangaroo.stats.intervals import Estimate
    from specbench_kangaroo.stats.summary import Summary, TaskSummary

Block = TypeVar("Block")
Key = TypeVar("Key", bound=Hashable)

ABSENT = "–"
SPEEDUP = "speedup"
LEAST_MARKED = 6  # questions; fewer show too little for a reader's eye to be drawn to them
_ALARM_LEVEL = 0.05
_BREAKS = re.compile(r"(?<=[_ ])|(?<=\w\[)")


class Mark(Enum):
    """What a reader's eye is drawn to; a format shows it in its own way, or not at all."""

    NONE = "none"
    FASTER = "faster"
    SLOWER = "slower"
    LOSSLESS = "lossless"
    LOSSY = "lossy"
    ALARM = "alarm"


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell in one line, and the same broken over lines for where there is little room."""

    text: str
    lines: tuple[str, ...] = ()
    mark: Mark = Mark.NONE

    @property
    def stacked(self) -> tuple[str, ...]:
        """The lines to be drawn under one another."""
        return self.lines or (self.text,)


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading, and on which side its cells stand."""

    heading: Cell
    left: bool = False


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table as cells.

    Attributes:
        columns: as many as each row has cells.
        rows: from top to bottom.
        bold: the row that sums the others up, by its first cell.
        stacked: too wide for a terminal, which is to draw the cells' lines instead of their text,
            and, if that is still too wide, several tables that each have the first column.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    bold: str | None = None
    stacked: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """A line of text."""

    text: str
    mark: Mark = Mark.NONE


@dataclass(frozen=True, slots=True)
class Section:
    """A sheet with its title, and what is to be said under it."""

    title: str
    sheet: Sheet
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """All of a run, in order: sections, then what their columns mean, then what is wrong.

    Attributes:
        run: its name.
        main: what no reader can do without.
        details: the sections about each entry, by its label; a page may fold them.
        published: what others say of the same methods.
        captions: what the columns mean.
        closing: what is wrong with the run.
    """

    run: str
    main: tuple[Section, ...]
    details: Mapping[str, tuple[Section, ...]]
    published: tuple[Section, ...]
    captions: tuple[str, ...]
    closing: tuple[Note, ...]

    @property
    def sections(self) -> tuple[Section, ...]:
        """All of them, in order."""
        return (*self.main, *chain.from_iterable(self.details.values()), *self.published)


@dataclass(frozen=True, slots=True)
class Document:
    """Any number of runs: first side by side if there are several, then each for itself."""

    side_by_side: Section | None
    reports: tuple[Report, ...]

    def drawn(
        self,
        *,
        section: Callable[[Section], Iterable[Block]],
        heading: Callable[[str], Iterable[Block]],
        ending: Callable[[Report], Iterable[Block]],
    ) -> Iterator[Block]:
        """All in order, as a format draws a section, the name of a run, and what ends a run."""
        if self.side_by_side is not None:
            yield from section(self.side_by_side)
        for report in self.reports:
            if len(self.reports) > 1:
                yield from heading(report.run)
            for item in report.sections:
                yield from section(item)
            yield from ending(report)


@dataclass(frozen=True, slots=True)
class Measure:
    """A column of estimates.

    Attributes:
        heading: broken into lines for where there is little room.
        metric: which of the estimates.
        form: of the numbers; with None a tenth counts below a hundred, and no more above.
        interval: whether it is written too.
        of_baseline: the baseline's estimates, instead of an entry's own.
    """

    heading: str
    metric: str
    form: str | None = ".2f"
    interval: bool = True
    of_baseline: bool = False

    @property
    def column(self) -> Column:
        """Its heading."""
        return Column(Cell(self.heading.replace("\n", " "), tuple(self.heading.split("\n"))))

    def cell(
        self,
        own: Mapping[str, Estimate],
        baseline: Mapping[str, Estimate],
        speedup: Mark = Mark.NONE,
    ) -> Cell:
        """Its cell in a row of estimates on the same questions; ``speedup`` is that one's mark."""
        estimates = baseline if self.of_baseline else own
        if not self.interval:
            return Cell(value_text(estimates, self.metric, self.form))
        mark = speedup if self.metric == SPEEDUP else Mark.NONE
        return interval_cell(estimates, self.metric, self.form, mark=mark)


def value_text(estimates: Mapping[str, Estimate], name: str, form: str | None = ".2f") -> str:
    """An estimate without its interval."""
    if name not in estimates:
        return ABSENT
    value = estimates[name].value
    return format(value, form or _form(value))


def interval_text(estimate: Estimate, form: str = ".2f") -> str:
    """``1.27 (1.20–1.35)``; without bounds the value alone."""
    value = format(estimate.value, form)
    interval = _bounds(estimate, form)
    return f"{value} ({interval})" if interval else value


def interval_cell(
    estimates: Mapping[str, Estimate],
    name: str,
    form: str | None = ".2f",
    *,
    mark: Mark = Mark.NONE,
) -> Cell:
    """An estimate with its interval: ``1.27 (1.20–1.35)``, or the two under one another."""
    estimate = estimates.get(name)
    if estimate is None:
        return Cell(ABSENT)
    form = form or _form(estimate.value)
    interval = _bounds(estimate, form)
    lines = (format(estimate.value, form), interval) if interval else ()
    return Cell(interval_text(estimate, form), lines, mark)


def speedup_marks(cells: Mapping[Key, TaskSummary]) -> dict[Key, Mark]:
    """Faster or slower, for the cells of one table that are so for sure, all of them together.

    Twenty cells of which each is wrong once in twenty times would have a wrong one on average, so
    their p-values are corrected for how many can be marked.
    """
    from specbench_kangaroo.stats.intervals import holm  # noqa: PLC0415 (imports scipy)

    found = {
        key: part.estimates[SPEEDUP]
        for key, part in cells.items()
        if part.n >= LEAST_MARKED and SPEEDUP in part.estimates
    }
    sure = holm({key: item.p for key, item in found.items() if item.p is not None})
    return {
        key: Mark.FASTER if found[key].value > 1 else Mark.SLOWER
        for key, p in sure.items()
        if p < _ALARM_LEVEL
    }


def _form(value: float) -> str:
    return ".1f" if value < 99.95 else ".0f"


def _bounds(estimate: Estimate, form: str) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{estimate.low:{form}}–{estimate.high:{form}}"


def name_cell(label: str, width: int, options: Sequence[str] = ()) -> Cell:
    """A name, and options that it does not say itself, in lines no wider where that can be."""
    swept = label.partition("[")[2].partition("]")[0].split(",")
    more = ", ".join(text for text in options if text not in swept)
    name = folded(label, width)
    if not more:
        return name
    return Cell(f"{label}: {more}", (*name.lines, *folded(more, width).lines))


def folded(text: str, width: int) -> Cell:
    """A text, broken at blanks and underscores into lines that are no wider where it can be."""
    lines = [""]
    for part in re.split(_BREAKS, text):
        if lines[-1] and len(lines[-1] + part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return Cell(text, tuple(line.rstrip() for line in lines))


def differing_options(summaries: Sequence[Summary]) -> list[dict[str, tuple[str, ...]]]:
    """For each summary and label: the options in which entries of its method differ.

    Each as ``threshold=0.3``, with the value as used; none for a method that stands once, or always
    with the same options.
    """
    used: dict[str, list[Mapping[str, Any]]] = {}
    for summary in summaries:
        for entry in summary.entries.values():
            used.setdefault(entry.method, []).append(entry.options)
    return [
        {
            label: tuple(
                f"{name}={_option_text(value)}"
                for name, value in entry.options.items()
                if any(other.get(name, ABSENT) != value for other in used[entry.method])
            )
            for label, entry in summary.entries.items()
        }
        for summary in summaries
    ]


def _option_text(value: Any) -> str:
    """As a command line takes it."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
