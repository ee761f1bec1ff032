"""Several runs in one table: where each took place, and how fast its methods were overall."""

from __future__ import annotations

from collections.abc import Sequence

from specbench_kangaroo.report.comparison import name_cell
from specbench_kangaroo.report.sheets import (
    ABSENT,
    Cell,
    Column,
    Section,
    Sheet,
    folded,
    speedup_cell,
)
from specbench_kangaroo.stats.summary import OVERALL, Summary

_FACTS = ("model", "questions", "dtype", "device")
_HEADING_WIDTH = 9
_FACT_WIDTH = 14


def section(summaries: Sequence[Summary]) -> Section:
    """A row per run, a column per method; a method that a run has not got is a dash."""
    labels = list(
        dict.fromkeys(s.label(name) for s in summaries for name in s.methods if name != s.baseline)
    )
    left = (Column(Cell(name), left=True) for name in ("run", *_FACTS))
    right = (Column(name_cell(label, _HEADING_WIDTH)) for label in labels)
    return Section(
        title=f"{len(summaries)} runs: overall speedup over {_baselines(summaries)}",
        sheet=Sheet(
            (*left, *right), tuple(_row(summary, labels) for summary in summaries), stacked=True
        ),
    )


def _baselines(summaries: Sequence[Summary]) -> str:
    return " or ".join(dict.fromkeys(summary.baseline for summary in summaries))


def _row(summary: Summary, labels: Sequence[str]) -> tuple[Cell, ...]:
    names = {summary.label(name): name for name in summary.methods if name != summary.baseline}
    facts = (getattr(summary, name) or ABSENT for name in _FACTS)
    return (
        name_cell(summary.run, _FACT_WIDTH),
        *(folded(str(fact), _FACT_WIDTH) for fact in facts),
        *(_speedup(summary, names.get(label)) for label in labels),
    )


def _speedup(summary: Summary, name: str | None) -> Cell:
    part = None if name is None else summary.methods[name].tasks.get(OVERALL)
    return Cell(ABSENT) if part is None else speedup_cell(part.estimates)
