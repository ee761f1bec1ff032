"""Which runs can be replayed: the entry to tune, and what its steps must look like."""

from __future__ import annotations

import pandas as pd

from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.schema import THRESHOLD
from specbench_kangaroo.record.writer import Run

STEPS = "steps"
_WIDTH = "tree_width"  # of methods that can draft with branches too

# Long enough that few drafts are accepted whole; only the token after such a one is not drafted.
_GENEROUS = 12


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


def refuse_unreplayable(run: Run, label: str, steps: pd.DataFrame) -> None:
    """Raises :class:`UsageError` for a run that does not hold what a replay needs.

    Args:
        run: whose manifest says how ``label`` ran.
        label: one that :func:`tunable_entry` gave.
        steps: its steps.
    """
    record = run.manifest.entries[label]
    if run.manifest.sampled:
        raise UsageError(
            f"{run.folder} was sampled, and only greedy drafts can be replayed: run again with "
            f"--temperature 0 {_again(run, label)}"
        )
    if record.lossy:
        raise UsageError(
            f"{label} was lossy in {run.folder}, and only drafts that the target's own choice "
            f"accepts can be replayed: run it again so that it is lossless"
        )
    if record.options[THRESHOLD] != 0:
        raise UsageError(
            f"{run.folder} was run with {label}.{THRESHOLD}={record.options[THRESHOLD]}, so it "
            f"does not hold what longer drafts would have been: run again with "
            f"{_again(run, label)}"
        )
    if (record.options.get(_WIDTH) or 1) != 1 or (steps["nodes"] != steps["drafted"] + 1).any():
        raise UsageError(
            f"{label} drafted with branches in {run.folder}, and only chains can be replayed: "
            f"run again with {_again(run, label)}"
        )
    if any(len(told) != drafted for told, drafted in _told(steps)):
        raise UsageError(
            f"{label} gave no confidences in {run.folder}, so there is no {THRESHOLD} to replay; "
            "tune another entry"
        )


def _told(steps: pd.DataFrame) -> list[tuple[list[float], int]]:
    return list(zip(steps["confidence"].tolist(), steps["drafted"].tolist(), strict=True))


def _again(run: Run, label: str) -> str:
    wanted = {THRESHOLD: 0, STEPS: _GENEROUS}
    if _WIDTH in run.manifest.entries[label].options:
        wanted[_WIDTH] = 1
    return " ".join(f"--option {label}.{name}={value}" for name, value in wanted.items())
