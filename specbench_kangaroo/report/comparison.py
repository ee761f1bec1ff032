"""Entries side by side: one row each, why some are slow, and their speedups by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from specbench_kangaroo.report.sheets import (
    ABSENT,
    Cell,
    Column,
    Note,
    Section,
    Sheet,
    differing_options,
    folded,
    interval_cell,
    rate_text,
    speedup_cell,
    value_text,
)
from specbench_kangaroo.report.verdicts import problem, verdict_cell
from specbench_kangaroo.stats.bootstrap import INTERVAL_NAME, Estimate
from specbench_kangaroo.stats.summary import OVERALL, Summary

# Names are folded at underscores to these widths: six entries then fit side by side in 80 columns.
_NAME_WIDTH = 15
_HEADING_WIDTH = 9

_HEADINGS = (
    ("speedup",),
    ("mean", "accepted"),
    ("acc.", "rate"),
    ("draft", "cost"),
    ("verify", "cost"),
    ("tok/s",),
)


def others(summary: Summary) -> list[str]:
    """All entries but the baseline, the fastest first; one without a figure comes last."""

    def slowness(name: str) -> float:
        speedup = _overall(summary, name).get("speedup")
        return float("inf") if speedup is None else -speedup.value

    return sorted((name for name in summary.entries if name != summary.baseline), key=slowness)


def captions(summary: Summary) -> tuple[str, ...]:
    """What the columns of both sheets mean."""
    base = summary.baseline
    lines = (
        f"intervals: {INTERVAL_NAME}; mean accepted: with bonus token",
        f"draft cost, verify cost: of a step, in {base} passes; nodes: tokens scored in it",
        "mean accepted / (draft cost + verify cost): about the speedup after the prefill",
    )
    if all(entry.sampling is None for entry in summary.entries.values()):
        return lines
    return (*lines, "p: how likely a lossless method's token frequencies are to differ as much")


def overview(summary: Summary) -> Section:
    """A row per entry, the baseline at its speedup of 1; below, what is wrong and why."""
    names = others(summary)
    (options,) = differing_options([summary])
    entries = [_entry_row(summary, name, options[name]) for name in names]
    faster = sum(_is_faster(summary, name) for name in names)
    rows = (*entries[:faster], _baseline_row(summary), *entries[faster:])
    columns = (
        Column(Cell("entry"), left=True),
        *(Column(Cell(" ".join(lines), lines)) for lines in _HEADINGS),
        Column(Cell("verdict"), left=True),
    )
    told = [
        *(reason(summary, name) for name in names),
        *(problem(summary.label(n), summary.entries[n], summary.baseline) for n in names),
    ]
    return Section(
        title=f"{len(names)} entries against {summary.baseline}, {summary.model}, "
        f"{summary.questions}",
        sheet=Sheet(columns, rows, stacked=True),
        notes=tuple(note for note in told if note is not None),
    )


def by_task(summary: Summary) -> Section:
    """Speedups: a row per task, a column per entry."""
    names = others(summary)
    columns = [Column(Cell("task"), left=True)]
    columns += [Column(name_cell(summary.label(name), _HEADING_WIDTH)) for name in names]
    tasks = summary.entries[summary.baseline].tasks
    rows = tuple(
        (_task(task, part.n), *(speedup_cell(_estimates(summary, name, task)) for name in names))
        for task, part in tasks.items()
    )
    return Section(
        title=f"speedup over {summary.baseline} by task",
        sheet=Sheet(tuple(columns), rows, bold=rows[0][0].text if rows else None, stacked=True),
    )


def reason(summary: Summary, entry: str) -> Note | None:
    """Why an entry is not faster than the baseline; None if it is, or was not measured."""
    estimates = _overall(summary, entry)
    speedup = estimates.get("speedup")
    if speedup is None or speedup.value >= 1:
        return None
    slower = speedup.high is not None and speedup.high < 1
    claim = f"{summary.label(entry)} is {'slower' if slower else 'not faster'} than"
    return Note(f"{claim} {summary.baseline}: {_because(estimates, summary)}.")


def _because(estimates: Mapping[str, Estimate], summary: Summary) -> str:
    names = ("speedup_decode", "draft_cost", "verify_cost", "tokens_per_step")
    if not all(name in estimates for name in names):
        return (
            "it drafted nothing"
            if "verify_share_of_time" in estimates
            else "its own loop's steps are not known"
        )
    decode, draft, verify, tokens = (estimates[name].value for name in names)
    if decode >= 1:
        theirs = value_text(_overall(summary, summary.baseline), "ttft_ms", ".1f")
        return (
            f"its decoding is {decode:.2f} times as fast, but its first token takes "
            f"{value_text(estimates, 'ttft_ms', '.1f')} ms instead of {theirs}"
        )
    nodes = value_text(estimates, "nodes_per_step", ".1f")
    costs = f"{draft:.2f} (draft) + {verify:.2f} (verifying {nodes} nodes)"
    if draft + verify < tokens:  # then what lies between the phases is the reason
        costs += f" + {tokens / decode - draft - verify:.2f} (all else)"
    return f"a step costs {costs} {summary.baseline} passes and yields {tokens:.2f} tokens"


def _entry_row(summary: Summary, name: str, options: Sequence[str]) -> tuple[Cell, ...]:
    estimates = _overall(summary, name)
    return (
        name_cell(summary.label(name), _NAME_WIDTH, options),
        speedup_cell(estimates),
        interval_cell(estimates, "mean_accepted_tokens"),
        Cell(value_text(estimates, "acceptance_rate")),
        Cell(value_text(estimates, "draft_cost")),
        _verify_cell(estimates),
        Cell(rate_text(estimates)),
        verdict_cell(summary.entries[name]),
    )


def _baseline_row(summary: Summary) -> tuple[Cell, ...]:
    estimates = _overall(summary, summary.baseline)
    absent = Cell(ABSENT)
    return (
        Cell(summary.baseline),
        Cell("1.00"),
        *(absent, absent, absent),
        Cell("1.00"),
        Cell(rate_text(estimates)),
        Cell("baseline"),
    )


def _verify_cell(estimates: Mapping[str, Estimate]) -> Cell:
    cost = value_text(estimates, "verify_cost")
    nodes = value_text(estimates, "nodes_per_step", ".1f")
    if nodes == ABSENT:
        return Cell(cost)
    return Cell(f"{cost} ({nodes} nodes)", (cost, f"{nodes} nodes"))


def _is_faster(summary: Summary, name: str) -> bool:
    speedup = _overall(summary, name).get("speedup")
    return speedup is not None and speedup.value >= 1


def _overall(summary: Summary, entry: str) -> Mapping[str, Estimate]:
    return _estimates(summary, entry, OVERALL)


def _estimates(summary: Summary, entry: str, task: str) -> Mapping[str, Estimate]:
    part = summary.entries[entry].tasks.get(task)
    return {} if part is None else part.estimates


def _task(task: str, questions: int) -> Cell:
    return Cell(f"{task} (n = {questions})", (task, f"n = {questions}"))


def name_cell(label: str, width: int, options: Sequence[str] = ()) -> Cell:
    """A name, and options that it does not say itself, in lines no wider where that can be."""
    swept = label.partition("[")[2].partition("]")[0].split(",")
    more = ", ".join(text for text in options if text not in swept)
    name = folded(label, width)
    if not more:
        return name
    return Cell(f"{label}: {more}", (*name.lines, *folded(more, width).lines))
