"""All figures of a run, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from matplotlib.figure import Figure

from specbench_kangaroo.record.errors import look_up
from specbench_kangaroo.record.writer import Run
from specbench_kangaroo.report.figures import acceptance, calibration, speedups, times
from specbench_kangaroo.report.figures.paired_steps import PairedSteps, paired_steps
from specbench_kangaroo.stats.summary import Summary


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """What a figure is drawn from."""

    run: Run
    summary: Summary
    parts: Mapping[str, PairedSteps]


FIGURES: Mapping[str, Callable[[Subject], Figure | None]] = {
    "speedup_by_task": lambda of: speedups.speedup_by_task(of.summary),
    "acceptance_by_position": lambda of: acceptance.acceptance_by_position(of.summary),
    "step_time": lambda of: times.step_time(of.summary, of.parts),
    "accepted_lengths": lambda of: acceptance.accepted_lengths(of.summary),
    "calibration": lambda of: calibration.calibration(of.summary, of.run.manifest, of.parts),
    "context_length": lambda of: times.context_length(of.summary, of.parts),
    "realised_over_ideal": lambda of: speedups.realised_over_ideal(of.summary),
}


def check_names(names: Iterable[str]) -> None:
    """Refuse what is no figure, before a run is read.

    Raises:
        UsageError: a name that is none of :data:`FIGURES`; the message lists them.
    """
    for name in names:
        look_up("figure", name, FIGURES)


def figures_of(run: Run, summary: Summary, names: Iterable[str] | None = None) -> dict[str, Figure]:
    """Every figure that the run has data for, by name.

    One that has nothing to show, such as ``calibration`` where no entry logs confidences, is left
    out.

    Args:
        run: as :func:`~specbench_kangaroo.record.writer.read_run` gives it.
        summary: of the same run.
        names: the figures to draw, in the order of the result; None means all of :data:`FIGURES`.

    Raises:
        UsageError: a name that is none of :data:`FIGURES`; the message lists them.
    """
    wanted = list(FIGURES if names is None else names)
    check_names(wanted)
    subject = Subject(run, summary, paired_steps(run))
    drawn = {name: FIGURES[name](subject) for name in wanted}
    return {name: figure for name, figure in drawn.items() if figure is not None}
