"""What a report says, before anyone draws it: cells, sheets, and the sections of a report.

Every format draws the same :class:`Report`, so that none says more or less than another.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # scipy takes 0.3 s to import, which a run would wait for before it starts
    from specbench_kangaroo.stats.bootstrap import Estimate
    from specbench_kangaroo.stats.summary import Summary

ABSENT = "–"
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


class Part(Enum):
    """What a section is for; a page may fold what not every reader wants."""

    MAIN = "main"
    DETAIL = "detail"
    PUBLISHED = "published"


@dataclass(frozen=True, slots=True)
class Section:
    """A sheet with its title, and what is to be said under it.

    ``subject`` is the entry that a section of :attr:`Part.DETAIL` is about.
    """

    title: str
    sheet: Sheet
    notes: tuple[Note, ...] = ()
    part: Part = Part.MAIN
    subject: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All of a run, in order: sections, then what their columns mean, then what is wrong."""

    run: str
    sections: tuple[Section, ...]
    captions: tuple[str, ...]
    closing: tuple[Note, ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """Any number of runs: first side by side if there are several, then each for itself."""

    side_by_side: Section | None
    reports: tuple[Report, ...]


def value_text(estimates: Mapping[str, Estimate], name: str, form: str = ".2f") -> str:
    """An estimate without its interval."""
    return format(estimates[name].value, form) if name in estimates else ABSENT


def interval_text(estimate: Estimate, form: str = ".2f") -> str:
    """``1.27 (1.20–1.35)``; without bounds the value alone."""
    value = format(estimate.value, form)
    interval = _bounds(estimate, form)
    return f"{value} ({interval})" if interval else value


def interval_cell(
    estimates: Mapping[str, Estimate], name: str, form: str = ".2f", mark: Mark = Mark.NONE
) -> Cell:
    """A figure with its interval: ``1.27 (1.20–1.35)``, or the two under one another."""
    estimate = estimates.get(name)
    if estimate is None:
        return Cell(ABSENT, mark=mark)
    interval = _bounds(estimate, form)
    lines = (format(estimate.value, form), interval) if interval else ()
    return Cell(interval_text(estimate, form), lines, mark)


def _bounds(estimate: Estimate, form: str) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{estimate.low:{form}}–{estimate.high:{form}}"


def speedup_cell(estimates: Mapping[str, Estimate]) -> Cell:
    """The speedup; only an interval that lies wholly on one side of 1 says faster or slower."""
    speedup = estimates.get("speedup")
    mark = Mark.NONE
    if speedup is not None and speedup.low is not None and speedup.low > 1:
        mark = Mark.FASTER
    elif speedup is not None and speedup.high is not None and speedup.high < 1:
        mark = Mark.SLOWER
    return interval_cell(estimates, "speedup", mark=mark)


def rate_text(estimates: Mapping[str, Estimate]) -> str:
    """Tokens per second, in three or four digits."""
    rate = estimates.get("tokens_per_second")
    return ABSENT if rate is None else f"{rate.value:.{1 if rate.value < 99.95 else 0}f}"


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


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """``1 error``, ``2 errors``."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"
