"""The timing gates: has an entry lost speedup, and has the baseline entry itself become slower.

An entry's speedup is set against its speedup in the baseline run, so that a machine that slows both
entries alike changes nothing; the baseline entry's own speed then shows an engine that slowed.
Both are paired by question.  A gate fails only if the whole interval lies below what is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from specbench_kangaroo.gate.gates import Bound, Gate
from specbench_kangaroo.gate.pairs import Matched
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.report.sheets import interval_text
from specbench_kangaroo.stats.bootstrap import Floats, Ratio, estimates
from specbench_kangaroo.stats.metrics import METRICS

_LEAST_QUESTIONS = 2  # one gives no interval


def timing_gates(matched: Matched, tolerance: float) -> Iterator[Gate]:
    """One gate an entry; none for an entry that has no answer in common.

    Raises:
        UsageError: there are too few questions for an interval.
    """
    for entry in matched.entries:
        before, after = matched.questions(entry)
        if before.empty:
            continue
        if len(before) < _LEAST_QUESTIONS:
            raise UsageError(
                f"--timing needs answers of {entry} to {_LEAST_QUESTIONS} questions at least, "
                "and both runs have them to one only; ask more questions, or leave --timing out"
            )
        own = entry == matched.baseline.manifest.baseline
        name = "tokens_per_second" if own else "speedup"
        yield _timing_gate(name, entry, _columns(before, after), tolerance)


def _timing_gate(name: str, entry: str, columns: dict[str, Floats], tolerance: float) -> Gate:
    ratio = METRICS[name].ratio
    found = estimates(
        {
            "before": _prefixed("before", ratio),
            "after": _prefixed("after", ratio),
            "change": _change(ratio),
        },
        columns,
    )
    before, after, change = (found[key] for key in ("before", "after", "change"))
    allowed = 1 - tolerance
    questions = len(next(iter(columns.values())))
    return Gate(
        name=name,
        entry=entry,
        passed=change.high is None or change.high >= allowed,
        baseline=before.value,
        value=after.value,
        bound=Bound.AT_LEAST,
        limit=allowed * before.value,
        detail=f"{interval_text(change, '.3f')} times the baseline's, over {questions} questions",
        change=change,
    )


def _columns(before: pd.DataFrame, after: pd.DataFrame) -> dict[str, Floats]:
    """Every sum of both runs under ``before_…`` and ``after_…``, question by question."""
    sides = [
        frame.set_index("question_id").select_dtypes("number").add_prefix(prefix)
        for frame, prefix in ((before, "before_"), (after, "after_"))
    ]
    joined = sides[0].join(sides[1], how="inner")
    return {str(name): joined[name].to_numpy(dtype=np.float64) for name in joined.columns}


def _prefixed(side: str, ratio: Ratio) -> Ratio:
    over, under = _names(side, ratio.over), _names(side, ratio.under)
    return Ratio(over, under, scale=ratio.scale, constant=ratio.constant)


def _change(ratio: Ratio) -> Ratio:
    """The ratio after, divided by the ratio before; a scale cancels out, a constant would not."""
    if ratio.constant:
        raise ValueError(f"{ratio} has a constant, so its change is no ratio of sums")
    return Ratio(
        _names("after", ratio.over) + _names("before", ratio.under),
        _names("after", ratio.under) + _names("before", ratio.over),
    )


def _names(side: str, columns: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{side}_{column}" for column in columns)
