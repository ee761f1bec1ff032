"""Several runs in one table: where each took place, and how fast its entries were overall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from specbench_kangaroo.report.comparison import name_cell
from specbench_kangaroo.report.sheets import (
    ABSENT,
    Cell,
    Column,
    Section,
    Sheet,
    differing_options,
    folded,
    speedup_cell,
)
from specbench_kangaroo.stats.summary import OVERALL, Summary

_FACTS = ("model", "questions", "dtype", "device")
_HEADING_WIDTH = 9
_FACT_WIDTH = 14


def section(summaries: Sequence[Summary]) -> Section:
    """A row per run, a column per entry; an entry that a run has not got is a dash.

    The same label with other options is another entry.
    """
    options = differing_options(summaries)
    found = [_entries(summary, of) for summary, of in zip(summaries, options, strict=True)]
    columns = dict.fromkeys(column for entries in found for column in entries)
    left = (Column(Cell(name), left=True) for name in ("run", *_FACTS))
    right = (Column(name_cell(label, _HEADING_WIDTH, of)) for label, of in columns)
    rows = (
        (*_facts(summary), *(_speedup(summary, entries.get(column)) for column in columns))
        for summary, entries in zip(summaries, found, strict=True)
    )
    return Section(
        title=f"{len(summaries)} runs: overall speedup over {_baselines(summaries)}",
        sheet=Sheet((*left, *right), tuple(rows), stacked=True),
    )


def _baselines(summaries: Sequence[Summary]) -> str:
    return " or ".join(dict.fromkeys(summary.baseline for summary in summaries))


_Shown = tuple[str, tuple[str, ...]]  # a label, and options of the entry


def _entries(summary: Summary, options: Mapping[str, tuple[str, ...]]) -> dict[_Shown, str]:
    """All but the baseline, by what is shown of them: their label and options."""
    return {
        (summary.label(name), options[name]): name
        for name in summary.entries
        if name != summary.baseline
    }


def _facts(summary: Summary) -> tuple[Cell, ...]:
    facts = (getattr(summary, name) or ABSENT for name in _FACTS)
    return name_cell(summary.run, _FACT_WIDTH), *(folded(str(f), _FACT_WIDTH) for f in facts)


def _speedup(summary: Summary, name: str | None) -> Cell:
    part = None if name is None else summary.entries[name].tasks.get(OVERALL)
    return Cell(ABSENT) if part is None else speedup_cell(part.estimates)
