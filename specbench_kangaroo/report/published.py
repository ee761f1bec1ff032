"""What papers and the leaderboard say of the methods that a run measured.

The figures and where each was read are in ``published.csv``; its column ``key`` says which
method of ours a row is about.
"""

from __future__ import annotations

import csv
import importlib.resources
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from specbench_kangaroo.report.sheets import (
    ABSENT,
    Cell,
    Column,
    Note,
    Section,
    Sheet,
    folded,
    interval_cell,
)
from specbench_kangaroo.stats.summary import OVERALL, TASK_ORDER, Summary

CAPTION = (
    "published figures are of other models on other GPUs; the row of this run is its "
    "speedup_specbench, which is computed by the leaderboard's formula"
)
_OF_SOURCE = ("key", "method", "source", "gpu", "model", "note")  # what makes rows one item
_WIDTH = 16  # of the first two columns in a terminal
_HEADINGS = {"summarization": ("summa-", "rization"), "translation": ("trans-", "lation")}


@dataclass(frozen=True, slots=True)
class Published:
    """What one source says of one method on one model: a row of a report."""

    key: str  # the name of our method, empty for one that is not built in
    method: str  # as the source calls it
    source: str
    gpu: str  # empty where the source does not say
    model: str
    note: str
    speedups: Mapping[str, float]  # by task, ``overall`` among them
    mean_accepted_tokens: float | None  # of all tasks


@cache
def published() -> tuple[Published, ...]:
    """All that the file holds, in its order."""
    file = importlib.resources.files("specbench_kangaroo.report").joinpath("published.csv")
    found: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in csv.DictReader(file.read_text(encoding="utf-8").splitlines()):
        found.setdefault(tuple(row[name] for name in _OF_SOURCE), []).append(row)
    return tuple(_published(rows) for rows in found.values())


def _published(rows: Sequence[Mapping[str, str]]) -> Published:
    first = rows[0]
    accepted = {row["mean_accepted_tokens"] for row in rows} - {""}
    return Published(
        key=first["key"],
        method=first["method"],
        source=first["source"],
        gpu=first["gpu"],
        model=first["model"],
        note=first["note"],
        speedups={row["task"]: float(row["speedup"]) for row in rows},
        # The leaderboard gives one for all tasks, and the file repeats it in each of their rows.
        mean_accepted_tokens=float(accepted.pop()) if len(accepted) == 1 else None,
    )


def section(summary: Summary, method: str, labels: Sequence[str]) -> Section | None:
    """A method's published figures below its entries' own, each with its source; None without any.

    Args:
        summary: of the run.
        method: by its own name.
        labels: its entries.
    """
    found = [item for item in published() if item.key == method]
    if not found:
        return None
    present = {task for item in found for task in item.speedups}
    tasks = [task for task in (OVERALL, *TASK_ORDER) if task in present]
    headings = (Cell(task, _heading(task)) for task in tasks)
    columns = (
        Column(Cell("model, GPU"), left=True),
        Column(Cell("published as", ("published", "as")), left=True),
        *(Column(cell) for cell in headings),
        Column(Cell("mean accepted", ("mean", "accepted"))),
    )
    ours = [_ours(summary, label, tasks, alone=len(labels) == 1) for label in labels]
    sources = list(dict.fromkeys((item.source, item.note) for item in found))
    numbers = {source: f"[{number}]" for number, source in enumerate(sources, 1)}
    rows = (*ours, *(_row(item, tasks, numbers[item.source, item.note]) for item in found))
    name = summary.label(labels[0]) if len(labels) == 1 else method
    return Section(
        title=f"{name}: this run, and speedups published elsewhere",
        sheet=Sheet(columns, rows, bold=ours[0][0].text, stacked=True),
        notes=tuple(
            Note(f"{number} {': '.join(filter(None, source))}")
            for source, number in numbers.items()
        ),
    )


def _heading(task: str) -> tuple[str, ...]:
    return _HEADINGS.get(task) or tuple(task.replace("_", "_\n").split("\n"))


def _ours(summary: Summary, label: str, tasks: Sequence[str], *, alone: bool) -> tuple[Cell, ...]:
    name = "this run" if alone else f"this run, {summary.label(label)}"
    return (
        folded(_where(summary.model, summary.device or ""), _WIDTH),
        folded(name, _WIDTH),
        *(interval_cell(summary.estimates(label, task), "speedup_specbench") for task in tasks),
        interval_cell(summary.overall(label), "mean_accepted_tokens"),
    )


def _row(item: Published, tasks: Sequence[str], citation: str) -> tuple[Cell, ...]:
    return (
        folded(_where(item.model, item.gpu), _WIDTH),
        folded(f"{item.method} {citation}", _WIDTH),
        *(_number(item.speedups.get(task)) for task in tasks),
        _number(item.mean_accepted_tokens),
    )


def _where(model: str, device: str) -> str:
    return f"{model}, {device}" if device else model


def _number(value: float | None) -> Cell:
    return Cell(ABSENT if value is None else f"{value:.2f}")
