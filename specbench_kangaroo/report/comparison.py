"""Entries side by side: one row each, why some are slow, and their speedups by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from specbench_kangaroo.report.sheets import (
    ABSENT,
    LEAST_MARKED,
    SPEEDUP,
    Cell,
    Column,
    Mark,
    Measure,
    Note,
    Section,
    Sheet,
    differing_options,
    interval_cell,
    name_cell,
    speedup_marks,
    value_text,
)
from specbench_kangaroo.report.verdicts import problem, verdict_cell
from specbench_kangaroo.stats.intervals import INTERVAL_NAME, Estimate
from specbench_kangaroo.stats.summary import OVERALL, Summary

INTERVAL_CAPTION = f"in brackets: {INTERVAL_NAME}"
MARK_CAPTION = (
    f"marked faster or slower: from {LEAST_MARKED} questions, Holm-corrected over a table's cells"
)
# Names are folded at underscores to these widths: six entries then fit side by side in 80 columns.
_NAME_WIDTH = 15
_HEADING_WIDTH = 9

_VERIFY = Measure("verify\ncost", "verify_cost", interval=False)
_MEASURES = (
    Measure("speedup", "speedup"),
    Measure("mean\naccepted", "mean_accepted_tokens"),
    Measure("acc.\nrate", "acceptance_rate", interval=False),
    Measure("draft\ncost", "draft_cost", interval=False),
    _VERIFY,
    Measure("tok/s", "tokens_per_second", None, interval=False),
)
# Of the baseline by definition, and so no metric of it.
_OF_BASELINE = dict.fromkeys(("speedup", "verify_cost"), Estimate(1.0, None, None))


def others(summary: Summary) -> list[str]:
    """All entries but the baseline, the fastest first; one without a figure comes last."""

    def slowness(name: str) -> float:
        speedup = summary.overall(name).get("speedup")
        return float("inf") if speedup is None else -speedup.value

    return sorted((name for name in summary.entries if name != summary.baseline), key=slowness)


def captions(summary: Summary) -> tuple[str, ...]:
    """What the columns of both sheets mean."""
    base = summary.baseline
    lines = (
        f"{INTERVAL_CAPTION}; mean accepted: with bonus token",
        MARK_CAPTION,
        f"draft cost, verify cost: of a step, in {base} passes; nodes: tokens scored in it",
        "mean accepted / (draft cost + verify cost): about the speedup after the prefill",
    )
    if all(entry.sampling is None for entry in summary.entries.values()):
        return lines
    return (*lines, "p: how likely a lossless method's token frequencies are to differ as much")


def overview(summary: Summary) -> Section:
    """A row per entry, the baseline at its speedup of 1; below, what is wrong and why."""
    names = others(summary)
    faster = sum(_is_faster(summary, name) for name in names)
    (options,) = differing_options([summary])
    tasks = {name: summary.entries[name].tasks for name in names}
    marks = speedup_marks({name: of[OVERALL] for name, of in tasks.items() if OVERALL in of})
    columns = (
        Column(Cell("entry"), left=True),
        *(measure.column for measure in _MEASURES),
        Column(Cell("verdict"), left=True),
    )
    told = [
        *(reason(summary, name, marks.get(name)) for name in names),
        *(problem(summary.label(n), summary.entries[n], summary.baseline) for n in names),
    ]
    rows = (
        _row(summary, name, options.get(name, ()), marks.get(name, Mark.NONE))
        for name in (*names[:faster], summary.baseline, *names[faster:])
    )
    return Section(
        title=f"{len(names)} entries against {summary.baseline}, {summary.model}, "
        f"{summary.questions}",
        sheet=Sheet(columns, tuple(rows), stacked=True),
        notes=tuple(note for note in told if note is not None),
    )


def by_task(summary: Summary) -> Section:
    """Speedups: a row per task, a column per entry."""
    names = others(summary)
    columns = [Column(Cell("task"), left=True)]
    columns += [Column(name_cell(summary.label(name), _HEADING_WIDTH)) for name in names]
    marks = speedup_marks(
        {(name, task): part for name in names for task, part in summary.entries[name].tasks.items()}
    )
    rows = tuple(
        (
            Cell(f"{task} (n = {part.n})", (task, f"n = {part.n}")),
            *(
                interval_cell(
                    summary.estimates(name, task),
                    SPEEDUP,
                    mark=marks.get((name, task), Mark.NONE),
                )
                for name in names
            ),
        )
        for task, part in summary.entries[summary.baseline].tasks.items()
    )
    return Section(
        title=f"speedup over {summary.baseline} by task",
        sheet=Sheet(tuple(columns), rows, bold=rows[0][0].text if rows else None, stacked=True),
    )


def reason(summary: Summary, entry: str, mark: Mark | None) -> Note | None:
    """Why an entry is not faster than the baseline; None if it is, or was not measured.

    It is called slower where its overall speedup has that ``mark``.
    """
    estimates = summary.overall(entry)
    speedup = estimates.get(SPEEDUP)
    if speedup is None or speedup.value >= 1:
        return None
    claim = f"{summary.label(entry)} is {'slower' if mark is Mark.SLOWER else 'not faster'} than"
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
        theirs = value_text(summary.overall(summary.baseline), "ttft_ms", ".1f")
        return (
            f"its decoding is {decode:.2f} times as fast, but its first token takes "
            f"{value_text(estimates, 'ttft_ms', '.1f')} ms instead of {theirs}"
        )
    nodes = value_text(estimates, "nodes_per_step", ".1f")
    costs = f"{draft:.2f} (draft) + {verify:.2f} (verifying {nodes} nodes)"
    if draft + verify < tokens:  # then what lies between the phases is the reason
        costs += f" + {tokens / decode - draft - verify:.2f} (all else)"
    return f"a step costs {costs} {summary.baseline} passes and yields {tokens:.2f} tokens"


def _row(summary: Summary, name: str, options: Sequence[str], mark: Mark) -> tuple[Cell, ...]:
    own, base = summary.overall(name), summary.overall(summary.baseline)
    is_baseline = name == summary.baseline
    if is_baseline:
        own = {**own, **_OF_BASELINE}
    return (
        name_cell(summary.label(name), _NAME_WIDTH, options),
        *(
            _verify_cell(own) if item is _VERIFY else item.cell(own, base, mark)
            for item in _MEASURES
        ),
        Cell("baseline") if is_baseline else verdict_cell(summary.entries[name]),
    )


def _verify_cell(estimates: Mapping[str, Estimate]) -> Cell:
    cost = value_text(estimates, _VERIFY.metric)
    nodes = value_text(estimates, "nodes_per_step", ".1f")
    if nodes == ABSENT:
        return Cell(cost)
    return Cell(f"{cost} ({nodes} nodes)", (cost, f"{nodes} nodes"))


def _is_faster(summary: Summary, name: str) -> bool:
    speedup = summary.overall(name).get("speedup")
    return speedup is not None and speedup.value >= 1
