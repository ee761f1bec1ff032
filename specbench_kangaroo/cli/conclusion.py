"""What the user is shown when a run has ended, and whether that is a failure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from specbench_kangaroo.cli.output import deliver, json_text, say
from specbench_kangaroo.cli.plot import save_figures
from specbench_kangaroo.record.errors import UsageError, counted

if TYPE_CHECKING:
    from specbench_kangaroo.record.writer import Run
    from specbench_kangaroo.stats.summary import Summary

SUMMARY = "summary.json"
SPEEDUP_FIGURE = "speedup_by_task"
FAILED = 1


def conclude(run_: Run) -> int:
    """Write and show what the run found; returns the exit status."""
    from specbench_kangaroo.record.files import write_whole  # noqa: PLC0415
    from specbench_kangaroo.report.tables import terminal  # noqa: PLC0415
    from specbench_kangaroo.stats.summary import summarise, to_json  # noqa: PLC0415

    summary = summarise(run_)
    deliver(terminal(summary))  # first: a full disk must not hide what hours have measured
    write_whole(run_.folder / SUMMARY, json_text(to_json(summary)))
    typer.echo(f"run folder: {run_.folder}")
    typer.echo(_draw_speedup(summary, run_.folder))
    _tell_of_errors(run_)
    failures = [*_violations(run_), *_sampling_alarms(summary)]
    for failure in failures:
        say(failure)
    return FAILED if failures else 0


def _draw_speedup(summary: Summary, folder: Path) -> str:
    """Where the figure is, or why there is none."""
    from specbench_kangaroo.report.figures.speedups import speedup_by_task  # noqa: PLC0415

    figure = speedup_by_task(summary)
    if figure is None:
        lacks = f"has no speedup to plot: nothing but {summary.baseline} ran"
        return f"no figure: run {summary.run!r} {lacks}"
    try:
        return f"figure: {save_figures({SPEEDUP_FIGURE: figure}, folder)[0]}"
    except UsageError as reason:
        return f"no figure: {reason}"


def _tell_of_errors(run_: Run) -> None:
    failed = run_.generations[run_.generations["status"] != "ok"]
    if len(failed):
        first = failed.iloc[0]
        say(
            f"{len(failed)} of {len(run_.generations)} generations failed; the first: "
            f"{first['entry']}, question {first['question_id']}, {first['error']}"
        )


def _violations(run_: Run) -> Iterator[str]:
    """Where an entry that claims to be lossless changed a greedy output."""
    lossy = {name for name, record in run_.manifest.entries.items() if record.lossy}
    found = run_.judgements
    found = found[(found["verdict"] == "violation") & ~found["entry"].isin(lossy)]
    for item in found.assign(ended=found["logit_gap"].isna()).itertuples():
        why = f"where one of the two tokens lies {item.logit_gap:.2g} below the best logit"
        if item.ended:
            why = "where one of the two texts has ended"
        yield (
            f"lossless check failed: {item.entry} differs from {run_.manifest.baseline} on "
            f"question {item.question_id}, turn {item.turn}, from token "
            f"{item.first_difference:.0f} on, {why}"
        )


def _sampling_alarms(summary: Summary) -> Iterator[str]:
    """Which entries that claim to be lossless sampled from another distribution."""
    for name, entry in summary.entries.items():
        check = entry.sampling
        if check is not None and check.alarm and not entry.lossy:
            yield (
                f"lossless check failed: {name}'s tokens have other frequencies than "
                f"{summary.baseline}'s on {counted(check.prompts, 'prompt')}, "
                f"p = {check.p_value:.2g}"
            )
