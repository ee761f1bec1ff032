"""Which runs can be replayed: the method to tune, and what its steps must look like."""

from __future__ import annotations

import pandas as pd

from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.schema import THRESHOLD
from specbench_kangaroo.record.writer import Run

STEPS = "steps"
_WIDTH = "tree_width"  # of methods that can draft with branches too

# Long enough that few drafts are accepted whole; only the token after such a one is not drafted.
_GENEROUS = 12


def tunable_method(run: Run, method: str | None = None) -> str:
    """The method to tune: ``method``, or the only one that can be.

    Raises:
        UsageError: there is none, or there are several; the message lists them.
    """
    methods = run.manifest.methods
    tunable = [name for name in methods if {STEPS, THRESHOLD} <= methods[name].options.keys()]
    if method in tunable:
        return str(method)
    options = f"the options {STEPS} and {THRESHOLD}"
    if not tunable:
        raise UsageError(
            f"no method of {run.folder} has {options}, which are what is tuned; it has: "
            f"{', '.join(methods)}"
        )
    if method is not None:
        raise UsageError(
            f"{method!r} is no method of {run.folder} with {options}; there are: "
            f"{', '.join(tunable)}"
        )
    if len(tunable) > 1:
        raise UsageError(
            f"{run.folder} has several methods with {options}; choose one with --method: "
            f"{', '.join(tunable)}"
        )
    return tunable[0]


def refuse_unreplayable(run: Run, method: str, steps: pd.DataFrame) -> None:
    """Raises :class:`UsageError` for a run that does not hold what a replay needs.

    Args:
        run: whose manifest says how ``method`` ran.
        method: one that :func:`tunable_method` gave.
        steps: its steps.
    """
    record = run.manifest.methods[method]
    if run.manifest.sampled:
        raise UsageError(
            f"{run.folder} was sampled, and only greedy drafts can be replayed: run again with "
            f"--temperature 0 {_again(run, method)}"
        )
    if record.lossy:
        raise UsageError(
            f"{method} was lossy in {run.folder}, and only drafts that the target's own choice "
            f"accepts can be replayed: run it again so that it is lossless"
        )
    if record.options[THRESHOLD] != 0:
        raise UsageError(
            f"{run.folder} was run with {method}.{THRESHOLD}={record.options[THRESHOLD]}, so it "
            f"does not hold what longer drafts would have been: run again with "
            f"{_again(run, method)}"
        )
    if (record.options.get(_WIDTH) or 1) != 1 or (steps["rows"] != steps["drafted"] + 1).any():
        raise UsageError(
            f"{method} drafted with branches in {run.folder}, and only chains can be replayed: "
            f"run again with {_again(run, method)}"
        )
    if any(len(told) != drafted for told, drafted in _told(steps)):
        raise UsageError(
            f"{method} gave no confidences in {run.folder}, so there is no {THRESHOLD} to replay; "
            "tune another method"
        )


def _told(steps: pd.DataFrame) -> list[tuple[list[float], int]]:
    return list(zip(steps["confidence"].tolist(), steps["drafted"].tolist(), strict=True))


def _again(run: Run, method: str) -> str:
    wanted = {THRESHOLD: 0, STEPS: _GENEROUS}
    if _WIDTH in run.manifest.methods[method].options:
        wanted[_WIDTH] = 1
    return " ".join(f"--option {method}.{name}={value}" for name, value in wanted.items())
