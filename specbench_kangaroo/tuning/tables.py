"""A tuning as tables for the terminal, within 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from specbench_kangaroo.report.sheets import interval_text
from specbench_kangaroo.stats.bootstrap import INTERVAL_NAME
from specbench_kangaroo.stats.summary import OVERALL
from specbench_kangaroo.tuning.tuning import Tuning

_COLUMNS = 9  # thresholds that 80 columns hold


def terminal(tuning: Tuning) -> Group:
    """Tables for :meth:`rich.console.Console.print`."""
    title = (
        f"{tuning.entry} against {tuning.baseline}, {tuning.model}, {tuning.questions}, predicted"
    )
    parts: list[RenderableType] = [Text(title, style="bold"), _best(tuning), Text()]
    parts += [Text("overall, by steps (rows) and threshold", style="bold"), _surface(tuning)]
    parts += [Text(), *(Text(line) for line in _findings(tuning))]
    return Group(*parts, *(Text(line, style="dim") for line in _captions(tuning)))


def _best(tuning: Tuning) -> Table:
    table = _table()
    table.add_column("best for", no_wrap=True)
    headings = ("n", "steps", "threshold", "speedup", "mean\naccepted", "at overall's\nbest")
    for name in headings:
        table.add_column(name, justify="right")
    for task, part in tuning.tasks.items():
        table.add_row(
            task,
            str(part.n),
            str(part.best.steps),
            f"{part.best.threshold:.2f}",
            interval_text(part.estimate),
            f"{part.mean_accepted_tokens:.2f}",
            f"{tuning.at(task, tuning.best):.2f}",
            style="bold" if task == OVERALL else None,
        )
    return table


def _surface(tuning: Tuning) -> Table:
    columns = _shown(tuning.thresholds, tuning.thresholds.index(tuning.best.threshold))
    table = _table()
    table.add_column("steps", justify="right")
    for column in columns:
        table.add_column(f"{tuning.thresholds[column]:.2f}", justify="right")
    best = tuning.best
    for steps, values in zip(tuning.steps, tuning.tasks[OVERALL].speedup, strict=True):
        cells = [
            Text(
                f"{values[column]:.2f}",
                style="bold green" if (steps, tuning.thresholds[column]) == best else "",
            )
            for column in columns
        ]
        table.add_row(str(steps), *cells)
    return table


def _shown(thresholds: Sequence[float], best: int) -> list[int]:
    """A few columns, evenly spread, and that of the best setting among them."""
    stride = -(-len(thresholds) // _COLUMNS)
    return [place for place in range(len(thresholds)) if place % stride == best % stride]


def _findings(tuning: Tuning) -> Iterator[str]:
    guessed = tuning.tasks[OVERALL].guessed_share
    yield (
        f"best overall: steps {tuning.best.steps}, threshold {tuning.best.threshold:.2f}; "
        f"speedup {interval_text(tuning.tasks[OVERALL].estimate)}"
    )
    yield (
        f"at the logged setting: predicted {tuning.predicted_at_logged:.2f}, "
        f"measured {tuning.measured_at_logged:.2f}"
    )
    yield (
        f"not in the log: {tuning.unknown_share:.1%} of the positions; guessed for it: "
        f"{guessed:.1%} of the best's steps"
    )


def _captions(tuning: Tuning) -> Iterator[str]:
    yield (
        f"replayed from {tuning.answers} answers at steps {tuning.logged.steps}, threshold "
        f"{tuning.logged.threshold:g}"
    )
    yield "mean accepted: with bonus token; the best was chosen on the same questions"
    yield f"in brackets: {INTERVAL_NAME}"


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
