"""A tuning as tables for the terminal, within 80 columns, and as a document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Group
from rich.text import Text

from specbench_kangaroo.report.sheets import Cell, Column, Mark, Section, Sheet, interval_text
from specbench_kangaroo.report.tables import section_parts
from specbench_kangaroo.stats.intervals import INTERVAL_NAME
from specbench_kangaroo.stats.summary import OVERALL
from specbench_kangaroo.tuning.tuning import THRESHOLDS, Setting, Tuning

TUNING_VERSION = 2  # 1 named the method instead of the entry

_THRESHOLDS = 9  # that 80 columns hold
_HEADINGS = (
    *(("n",), ("steps",), ("threshold",), ("speedup",)),
    *(("mean", "accepted"), ("at overall's", "best")),
)


def terminal(tuning: Tuning) -> Group:
    """Tables for :meth:`rich.console.Console.print`."""
    parts = [*section_parts(_best(tuning)), Text(), *section_parts(_surface(tuning)), Text()]
    parts += (Text(line) for line in _findings(tuning))
    return Group(*parts, *(Text(line, style="dim") for line in _captions(tuning)))


def _best(tuning: Tuning) -> Section:
    """The best setting for each task."""
    run = tuning.manifest
    rows = (
        (
            task,
            str(part.n),
            str(part.best.steps),
            f"{part.best.threshold:.2f}",
            interval_text(part.estimate),
            f"{part.mean_accepted_tokens:.2f}",
            f"{tuning.at(task, tuning.best):.2f}",
        )
        for task, part in tuning.tasks.items()
    )
    first = Column(Cell("best for"), left=True)
    return Section(
        title=f"{tuning.entry} against {run.baseline}, {run.model}, {run.questions}, predicted",
        sheet=Sheet(
            columns=(first, *(Column(Cell(" ".join(lines), lines)) for lines in _HEADINGS)),
            rows=tuple(tuple(map(Cell, row)) for row in rows),
            bold=OVERALL,
        ),
    )


def _surface(tuning: Tuning) -> Section:
    """The speedup at every draft length and a few thresholds, evenly spread, the best's among."""
    best = tuning.best
    stride = -(-len(THRESHOLDS) // _THRESHOLDS)
    shown = THRESHOLDS[THRESHOLDS.index(best.threshold) % stride :: stride]
    rows = (
        (
            Cell(str(steps)),
            *(
                Cell(
                    f"{tuning.at(OVERALL, Setting(steps, threshold)):.2f}",
                    mark=Mark.FASTER if (steps, threshold) == best else Mark.NONE,
                )
                for threshold in shown
            ),
        )
        for steps in tuning.steps
    )
    columns = (Column(Cell(f"{threshold:.2f}")) for threshold in shown)
    return Section(
        title="overall, by steps (rows) and threshold",
        sheet=Sheet((Column(Cell("steps"), left=True), *columns), tuple(rows)),
    )


def _findings(tuning: Tuning) -> Iterator[str]:
    best = tuning.tasks[OVERALL]
    yield (
        f"best overall: steps {tuning.best.steps}, threshold {tuning.best.threshold:.2f}; "
        f"speedup {interval_text(best.estimate)}"
    )
    yield (
        f"at the logged setting: predicted {tuning.predicted_at_logged:.2f}, "
        f"measured {tuning.measured_at_logged:.2f}"
    )
    yield (
        f"not in the log: {tuning.unknown_share:.1%} of the positions; guessed for it: "
        f"{best.guessed_share:.1%} of the best's steps"
    )


def _captions(tuning: Tuning) -> Iterator[str]:
    yield (
        f"replayed from {tuning.answers} answers at steps {tuning.logged.steps}, threshold "
        f"{tuning.logged.threshold:g}"
    )
    yield "mean accepted: with bonus token; the best was chosen on the same questions"
    yield f"in brackets: {INTERVAL_NAME}"


def to_json(tuning: Tuning) -> dict[str, Any]:
    """The document of ``specbench tune --format json``; a surface has a row per draft length."""
    run = tuning.manifest
    return {
        "schema_version": TUNING_VERSION,
        "run": run.name,
        "entry": tuning.entry,
        **{name: getattr(run, name) for name in ("baseline", "model", "questions")},
        "logged": tuning.logged._asdict(),
        "answers": tuning.answers,
        "unknown_share": tuning.unknown_share,
        "at_logged": {
            "predicted": tuning.predicted_at_logged,
            "measured": tuning.measured_at_logged,
        },
        "steps": list(tuning.steps),
        "thresholds": list(THRESHOLDS),
        "tasks": {
            task: {
                "n": part.n,
                "best": part.best._asdict() | {"speedup": part.estimate.figures},
                "mean_accepted_tokens": part.mean_accepted_tokens,
                "guessed_share": part.guessed_share,
                "speedup_at_best_overall": tuning.at(task, tuning.best),
                "speedup": part.speedup.tolist(),
            }
            for task, part in tuning.tasks.items()
        },
    }
