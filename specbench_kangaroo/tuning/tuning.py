"""What every draft length and threshold would have given, from one logged run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.schema import THRESHOLD
from specbench_kangaroo.record.writer import Run
from specbench_kangaroo.stats.summary import OVERALL
from specbench_kangaroo.stats.totals import PROMPT, paired, per_generation
from specbench_kangaroo.tuning.replay import draft_log
from specbench_kangaroo.tuning.step_costs import step_costs
from specbench_kangaroo.tuning.surfaces import (
    THRESHOLDS,
    Setting,
    TaskTuning,
    measured_speedup,
    predicted_speedup,
    tune_tasks,
)

STEPS = "steps"
_WIDTH = "tree_width"  # of methods that can draft with branches too

# Long enough that few drafts are accepted whole; only the token after such a one is not drafted.
_GENEROUS = 12
TUNING_VERSION = 2  # 1 named the method instead of the entry
_PLAIN = (
    *("run", "entry", "baseline", "model", "questions", "answers", "unknown_share"),
    *("steps", "thresholds"),
)  # what a document has as it is


@dataclass(frozen=True, slots=True, eq=False)
class Tuning:
    """An entry's settings, and what each would have given.

    Attributes:
        logged: the setting of the run.
        answers: that were replayed.
        unknown_share: positions of these that no draft of the run says anything of.
        predicted_at_logged: the speedup that a replay of the run's own setting gives.  The costs of
            its steps are scaled to the run's times, so this checks the replay and not the costs.
        measured_at_logged: the speedup that the run measured.
    """

    run: str
    entry: str
    baseline: str
    model: str
    questions: str
    logged: Setting
    steps: tuple[int, ...]
    thresholds: tuple[float, ...]
    tasks: Mapping[str, TaskTuning]
    answers: int
    unknown_share: float
    predicted_at_logged: float
    measured_at_logged: float

    @property
    def best(self) -> Setting:
        """The best setting over all tasks."""
        return self.tasks[OVERALL].best

    def at(self, task: str, setting: Setting) -> float:
        """The speedup predicted for a task at a setting of the grid."""
        row = self.steps.index(setting.steps)
        return float(self.tasks[task].speedup[row, self.thresholds.index(setting.threshold)])


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
    steps = _steps_of(run, label, answers)
    if reason := _why_no_replay(run, label, steps):
        raise UsageError(reason)
    log = draft_log(answers, steps, max_new_tokens=int(manifest.settings["max_new_tokens"]))
    costs = step_costs(answers, steps, _steps_of(run, manifest.baseline, answers))
    grid = tuple(range(1, log.deepest + 1))
    options = manifest.entries[label].options
    logged = Setting(int(options[STEPS]), float(options[THRESHOLD]))
    return Tuning(
        run=manifest.name,
        entry=label,
        baseline=manifest.baseline,
        model=manifest.model,
        questions=manifest.questions,
        logged=logged,
        steps=grid,
        thresholds=THRESHOLDS,
        tasks=tune_tasks(answers, log, costs, grid),
        answers=len(answers),
        unknown_share=log.unknown_share,
        predicted_at_logged=predicted_speedup(answers, log, costs, logged),
        measured_at_logged=measured_speedup(answers),
    )


def to_json(tuning: Tuning) -> dict[str, Any]:
    """The document of ``specbench tune --format json``; a surface has a row per draft length."""
    return {
        "schema_version": TUNING_VERSION,
        **{name: getattr(tuning, name) for name in _PLAIN},
        "logged": tuning.logged._asdict(),
        "at_logged": {
            "predicted": tuning.predicted_at_logged,
            "measured": tuning.measured_at_logged,
        },
        "tasks": {
            task: {
                "n": part.n,
                "best": part.best._asdict() | {"speedup": asdict(part.estimate)},
                "mean_accepted_tokens": part.mean_accepted_tokens,
                "guessed_share": part.guessed_share,
                "speedup_at_best_overall": tuning.at(task, tuning.best),
                "speedup": part.speedup.tolist(),
            }
            for task, part in tuning.tasks.items()
        },
    }


def _steps_of(run: Run, entry: str, answers: pd.DataFrame) -> pd.DataFrame:
    """The entry's steps on the prompts of ``answers``."""
    return run.steps[run.steps["entry"] == entry].merge(answers[PROMPT], on=PROMPT)


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


def _why_no_replay(run: Run, label: str, steps: pd.DataFrame) -> str | None:
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
