"""What every draft length and threshold would have given, from one logged run.

The speedup is the report's own, with the method's times replaced by predicted ones: the steps that
:mod:`replay` finds, at the price of :mod:`step_costs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.schema import THRESHOLD, Manifest
from specbench_kangaroo.record.writer import Run
from specbench_kangaroo.stats.intervals import Estimate, Floats, estimates
from specbench_kangaroo.stats.metrics import METRICS
from specbench_kangaroo.stats.summary import OVERALL, by_task
from specbench_kangaroo.stats.totals import PROMPT, paired, per_generation
from specbench_kangaroo.tuning.replay import DraftLog, draft_log, walks
from specbench_kangaroo.tuning.step_costs import StepCosts, step_costs

STEPS = "steps"
THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(21))
_WIDTH = "tree_width"  # of methods that can draft with branches too

# Long enough that few drafts are accepted whole; only the token after such a one is not drafted.
_GENEROUS = 12
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
        estimate: the speedup there; its interval is over questions at that setting, and knows
            nothing of its having been chosen as the best.
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
class Tuning:
    """An entry's settings, and what each would have given.

    Attributes:
        manifest: of the run.
        entry: the label of the entry.
        logged: its setting in the run.
        steps: the draft lengths; the thresholds are :data:`THRESHOLDS`.
        tasks: all of them together first.
        answers: that were replayed.
        unknown_share: positions of these that no draft of the run says anything of.
        measured_at_logged: the speedup that the run measured.
    """

    manifest: Manifest
    entry: str
    logged: Setting
    steps: Sequence[int]
    tasks: Mapping[str, TaskTuning]
    answers: int
    unknown_share: float
    measured_at_logged: float

    @property
    def best(self) -> Setting:
        """The best setting over all tasks."""
        return self.tasks[OVERALL].best

    @property
    def predicted_at_logged(self) -> float:
        """The speedup that a replay of the run's own setting gives.

        The costs of its steps are scaled to the run's times, so this checks the replay and not the
        costs.
        """
        steps = min(self.logged.steps, self.steps[-1])
        return self.at(OVERALL, Setting(steps, self.logged.threshold))

    def at(self, task: str, setting: Setting) -> float:
        """The speedup predicted for a task at a setting of the grid."""
        row, column = self.steps.index(setting.steps), THRESHOLDS.index(setting.threshold)
        return float(self.tasks[task].speedup[row, column])


def tune(run: Run, entry: str | None = None) -> Tuning:
    """Replay every setting of a logged run's entry.

    Args:
        run: greedy, with η = 0, a generous γ and drafts without branches.
        entry: its label; None takes the only one that has both options.

    Raises:
        UsageError: the run has no such entry, or does not hold what a replay needs.
    """
    label, manifest = tunable_entry(run, entry), run.manifest
    answers = paired(per_generation(run), entry=label, baseline=manifest.baseline)
    steps, baseline_steps = (
        run.steps[run.steps["entry"] == name].merge(answers[PROMPT], on=PROMPT)
        for name in (label, manifest.baseline)
    )
    if reason := _why_no_replay(run, label, answers, steps):
        raise UsageError(reason)
    log = draft_log(answers, steps, max_new_tokens=manifest.request.decoding.max_new_tokens)
    grid = range(1, log.deepest + 1)
    replays = _replay(log, step_costs(answers, steps, baseline_steps), grid)
    options = manifest.entries[label].options
    return Tuning(
        manifest=manifest,
        entry=label,
        logged=Setting(int(options[STEPS]), float(options[THRESHOLD])),
        steps=grid,
        tasks={task: _task(part, replays, grid) for task, part in by_task(answers).items()},
        answers=len(answers),
        unknown_share=log.unknown_share,
        measured_at_logged=float(_speedups(answers, np.asarray(answers["total_ms"].mean()))),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Replays:
    """Every setting on every answer, (Γ, E, A) each."""

    total_ms: Floats
    steps: Floats
    accepted: Floats
    guessed: Floats


def _replay(log: DraftLog, costs: StepCosts, grid: Sequence[int]) -> _Replays:
    answers = len(log.starts)
    found = np.zeros((4, len(grid), len(THRESHOLDS), answers))
    for column, threshold in enumerate(THRESHOLDS):
        for row, walk in enumerate(walks(log, grid, threshold)):
            by_depth = walk.steps_by_depth(answers, log.deepest)
            found[:, row, column] = (
                costs.total_ms(by_depth),
                by_depth.sum(axis=1),
                np.bincount(walk.answer, walk.accepted, minlength=answers),
                np.bincount(walk.answer, walk.guessed, minlength=answers),
            )
    return _Replays(*found)


def _task(own: pd.DataFrame, replays: _Replays, grid: Sequence[int]) -> TaskTuning:
    """The index of the task's ``own`` answers is their place among all."""
    part = own.index.to_numpy()
    total_ms = replays.total_ms[:, :, part]
    surface = _speedups(own, total_ms.mean(axis=2))
    # The first of equals: the shortest draft, and the lowest threshold.
    row, column = (int(place) for place in np.unravel_index(surface.argmax(), surface.shape))
    steps, accepted, guessed = (
        float(counts[row, column, part].sum())
        for counts in (replays.steps, replays.accepted, replays.guessed)
    )
    return TaskTuning(
        n=int(own["question_id"].nunique()),
        speedup=surface,
        best=Setting(grid[row], THRESHOLDS[column]),
        estimate=_estimate(own, total_ms[row, column]),
        mean_accepted_tokens=1.0 + accepted / max(steps, 1.0),
        guessed_share=guessed / max(steps, 1.0),
    )


def _estimate(answers: pd.DataFrame, total_ms: Floats) -> Estimate:
    """The speedup with its interval; questions are the clusters, as in every report."""
    predicted = answers[["question_id", *_MEASURED]].assign(total_ms=total_ms)
    sums = predicted.groupby("question_id").sum()
    columns = {str(name): sums[name].to_numpy(dtype=np.float64) for name in sums.columns}
    tasks = answers.groupby("question_id")["task"].first()
    return estimates({"speedup": _SPEEDUP}, columns, strata=[*tasks])["speedup"]


def _speedups(answers: pd.DataFrame, mean_ms: Floats) -> Floats:
    """The speedup for every mean time of an answer, in whatever shape these come."""
    means = {name: np.full(mean_ms.shape, answers[name].mean()) for name in _MEASURED}
    return _SPEEDUP.of(means | {"total_ms": mean_ms})


def tunable_entry(run: Run, label: str | None = None) -> str:
    """The label of the entry to tune: ``label``, or the only one that can be.

    Raises:
        UsageError: there is none, or there are several; the message lists them.
    """
    entries = run.manifest.entries
    tunable = [name for name in entries if {STEPS, THRESHOLD} <= entries[name].options.keys()]
    if label in tunable:
        return str(label)
    options = f"the options {STEPS} and {THRESHOLD}"
    if not tunable:
        raise UsageError(
            f"no entry of {run.folder} has {options}, which are what is tuned; it has: "
            f"{', '.join(entries)}"
        )
    if label is not None:
        raise UsageError(
            f"{label!r} is no entry of {run.folder} with {options}; there are: {', '.join(tunable)}"
        )
    if len(tunable) > 1:
        raise UsageError(
            f"{run.folder} has several entries with {options}; choose one with --method: "
            f"{', '.join(tunable)}"
        )
    return tunable[0]


def _why_no_replay(run: Run, label: str, answers: pd.DataFrame, steps: pd.DataFrame) -> str | None:
    """What a replay of the entry's ``steps`` would need and the run does not hold, if anything."""
    folder, options, again = run.folder, run.manifest.entries[label].options, _again(run, label)
    reasons = (
        (
            run.manifest.sampled,
            f"{folder} was sampled, and only greedy drafts can be replayed: run again with "
            f"--temperature 0 {again}",
        ),
        (
            run.manifest.entries[label].lossy,
            f"{label} was lossy in {folder}, and only drafts that the target's own choice accepts "
            "can be replayed: run it again so that it is lossless",
        ),
        (
            options[THRESHOLD] != 0,
            f"{folder} was run with {label}.{THRESHOLD}={options[THRESHOLD]}, so it does not hold "
            f"what longer drafts would have been: run again with {again}",
        ),
        (
            (options.get(_WIDTH) or 1) != 1 or (steps["nodes"] != steps["drafted"] + 1).any(),
            f"{label} drafted with branches in {folder}, and only chains can be replayed: run "
            f"again with {again}",
        ),
        (
            (steps["confidence"].map(len) != steps["drafted"]).any(),
            f"{label} gave no confidences in {folder}, so there is no {THRESHOLD} to replay; tune "
            "another entry",
        ),
        (
            not (answers["total_ms"] > answers["ttft_ms"] * (answers["steps"] > 0)).all(),
            f"{folder} has answers of {label} that took no longer than their first token, so their "
            "times are not known; tune another run",
        ),
        (
            not steps["drafted"].any(),
            f"{folder} has no drafts of {label} on prompts that {run.manifest.baseline} answered "
            "too, so there is nothing to replay; tune another run",
        ),
    )
    return next((reason for wrong, reason in reasons if wrong), None)


def _again(run: Run, label: str) -> str:
    wanted = {THRESHOLD: 0, STEPS: _GENEROUS}
    if _WIDTH in run.manifest.entries[label].options:
        wanted[_WIDTH] = 1
    return " ".join(f"--option {label}.{name}={value}" for name, value in wanted.items())
