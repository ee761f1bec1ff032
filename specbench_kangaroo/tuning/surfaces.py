"""The speedup of every draft length and threshold, by task, and where it is largest.

The speedup is the report's own, with the method's times replaced by predicted ones: the steps that
:mod:`replay` finds, at the price of :mod:`step_costs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from specbench_kangaroo.stats.bootstrap import Estimate, Floats, estimates
from specbench_kangaroo.stats.metrics import METRICS
from specbench_kangaroo.stats.summary import by_task
from specbench_kangaroo.tuning.replay import DraftLog, Ints, Walk, walks
from specbench_kangaroo.tuning.step_costs import StepCosts

THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(21))
_SPEEDUP = METRICS["speedup"].ratio
_MEASURED = tuple({*_SPEEDUP.over, *_SPEEDUP.under} - {"total_ms"})


class Setting(NamedTuple):
    """A draft length γ and a threshold η."""

    steps: int
    threshold: float


@dataclass(frozen=True, slots=True, eq=False)
class TaskTuning:
    """One task, or all.

    Attributes:
        n: questions.
        speedup: (Γ, E) predicted, a row per draft length.
        best: where it is largest.
        figure: the speedup there; its interval is over questions at that setting, and knows nothing
            of its having been chosen as the best.
        mean_accepted_tokens: there, the bonus token included.
        guessed_share: steps there that rest on what the log does not know.
    """

    n: int
    speedup: Floats
    best: Setting
    estimate: Estimate
    mean_accepted_tokens: float
    guessed_share: float


@dataclass(frozen=True, slots=True, eq=False)
class _Replays:
    """Every setting on every answer, (Γ, E, A) each."""

    total_ms: Floats
    steps: Floats
    accepted: Floats
    guessed: Floats


def tune_tasks(
    answers: pd.DataFrame, log: DraftLog, costs: StepCosts, grid: Sequence[int]
) -> dict[str, TaskTuning]:
    """Every setting on every task, all of them together first.

    Args:
        answers: a row per answer, with the columns of :func:`totals.paired`.
        log: of the same answers, in the same order.
        costs: theirs too.
        grid: the draft lengths; the thresholds are :data:`THRESHOLDS`.
    """
    replays = _replay(log, costs, grid)
    numbered = answers.reset_index(drop=True)
    return {
        task: _task(part, replays, grid, part.index.to_numpy())
        for task, part in by_task(numbered).items()
    }


def predicted_speedup(
    answers: pd.DataFrame, log: DraftLog, costs: StepCosts, setting: Setting
) -> float:
    """The speedup over all answers at one setting, which need not be of the grid."""
    (walk,) = walks(log, [min(setting.steps, log.deepest)], setting.threshold)
    return float(_speedups(answers, np.asarray(_total_ms(log, costs, walk).mean())))


def measured_speedup(answers: pd.DataFrame) -> float:
    """The speedup over all answers, as the run measured it."""
    return float(_speedups(answers, np.asarray(answers["total_ms"].mean())))


def _replay(log: DraftLog, costs: StepCosts, grid: Sequence[int]) -> _Replays:
    answers = len(log.starts)
    found = _Replays(*(np.zeros((len(grid), len(THRESHOLDS), answers)) for _ in range(4)))
    for column, threshold in enumerate(THRESHOLDS):
        for row, walk in enumerate(walks(log, grid, threshold)):
            place = row, column
            found.total_ms[place] = _total_ms(log, costs, walk)
            found.steps[place] = np.bincount(walk.answer, minlength=answers)
            found.accepted[place] = np.bincount(walk.answer, walk.accepted, minlength=answers)
            found.guessed[place] = np.bincount(walk.answer, walk.guessed, minlength=answers)
    return found


def _total_ms(log: DraftLog, costs: StepCosts, walk: Walk) -> Floats:
    return costs.total_ms(walk.steps_by_depth(len(log.starts), log.deepest))


def _task(own: pd.DataFrame, replays: _Replays, grid: Sequence[int], part: Ints) -> TaskTuning:
    """``part`` are the places of the task's ``own`` answers among all."""
    total_ms = replays.total_ms[:, :, part]
    surface = _speedups(own, total_ms.mean(axis=2))
    # The first of equals: the shortest draft, and the lowest threshold.
    row, column = (int(place) for place in np.unravel_index(surface.argmax(), surface.shape))
    steps = max(float(replays.steps[row, column, part].sum()), 1.0)
    return TaskTuning(
        n=int(own["question_id"].nunique()),
        speedup=surface,
        best=Setting(grid[row], THRESHOLDS[column]),
        estimate=_estimate(own, total_ms[row, column]),
        mean_accepted_tokens=1.0 + float(replays.accepted[row, column, part].sum()) / steps,
        guessed_share=float(replays.guessed[row, column, part].sum()) / steps,
    )


def _estimate(answers: pd.DataFrame, total_ms: Floats) -> Estimate:
    """The speedup with its interval; questions are the clusters, as in every report."""
    predicted = answers[["question_id", *_MEASURED]].assign(total_ms=total_ms)
    sums = predicted.groupby("question_id").sum()
    columns = {str(name): sums[name].to_numpy(dtype=np.float64) for name in sums.columns}
    return estimates({"speedup": _SPEEDUP}, columns)["speedup"]


def _speedups(answers: pd.DataFrame, mean_ms: Floats) -> Floats:
    """The speedup for every mean time of an answer, in whatever shape these come."""
    means = {name: np.full(mean_ms.shape, answers[name].mean()) for name in _MEASURED}
    return _SPEEDUP.of(means | {"total_ms": mean_ms})
