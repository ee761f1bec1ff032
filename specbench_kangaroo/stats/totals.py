"""What a run adds up to, per generation and per question: plain sums, before any metric."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from specbench_kangaroo.record.schema import Status
from specbench_kangaroo.record.writer import Run

PROMPT = ["question_id", "turn", "repeat"]
KEY = ["entry", *PROMPT]

# What the baseline's row of a pair contributes, under the name ``baseline_…``.
_OF_BASELINE = ["new_tokens", "decode_tokens", "total_ms", "decode_ms", "steps", "target_step_ms"]
_SUMMED = ["drafted", "accepted", "nodes", "verify_share", "draft_ms", "verify_ms", "accept_ms"]


def per_generation(run: Run) -> pd.DataFrame:
    """The run's generations, each with the sums of its steps.

    Columns ``accepted_3`` and ``drafted_3`` count the steps with at least three tokens accepted and
    drafted, and so on up to the deepest draft of the run.
    """
    sums = _per_step_group(run.steps)
    frame = run.generations.drop(columns=["output_ids", "text", "error"])
    frame = frame.merge(sums, on=KEY, how="left")
    added = [column for column in sums.columns if column not in KEY]
    frame[added] = frame[added].fillna(0)  # an answer of one token has no step
    return _derived(frame)


def _per_step_group(steps: pd.DataFrame) -> pd.DataFrame:
    """One row per generation that has steps.  By bincount: a run may have millions of steps."""
    groups = steps.groupby(KEY, sort=False)
    code = groups.ngroup().to_numpy()
    frame = groups.size().reset_index(name="steps")  # rows in the order of the codes
    for column in _SUMMED:
        frame[column] = np.bincount(code, weights=steps[column].to_numpy(), minlength=len(frame))
    depth = int(steps["drafted"].max()) if len(steps) else 0
    counts = [
        _at_least(column, code, steps, depth, len(frame)) for column in ("accepted", "drafted")
    ]
    return pd.concat([frame, *counts], axis=1)


def _at_least(
    column: str, code: NDArray[np.integer[Any]], steps: pd.DataFrame, depth: int, groups: int
) -> pd.DataFrame:
    """``column_i`` for i from 1 to ``depth``: the steps of each group with ``column >= i``."""
    cell = code * (depth + 1) + steps[column].to_numpy()
    counts = np.bincount(cell, minlength=groups * (depth + 1)).reshape(groups, depth + 1)
    tails = counts[:, ::-1].cumsum(axis=1)[:, ::-1]  # (groups, depth + 1)
    return pd.DataFrame(tails[:, 1:], columns=[f"{column}_{i}" for i in range(1, depth + 1)])


def _derived(frame: pd.DataFrame) -> pd.DataFrame:
    stepped = frame["steps"] > 0
    return frame.assign(
        generations=1,
        generations_with_steps=stepped.astype("int64"),
        accepted_per_step=(frame["accepted"] / frame["steps"]).where(stepped, 0.0),
        decode_ms=frame["total_ms"] - frame["ttft_ms"],
        decode_tokens=(frame["new_tokens"] - 1).clip(lower=0),
        phases_ms=frame[["ttft_ms", "draft_ms", "verify_ms", "accept_ms"]].sum(axis=1),
        target_step_ms=frame["verify_ms"] + frame["accept_ms"],
        # Where energy was not measured neither it nor its tokens count.
        energy_j=frame["energy_j"].fillna(0.0),
        energy_tokens=frame["new_tokens"].where(frame["energy_j"].notna(), 0),
    )


def paired(generations: pd.DataFrame, *, entry: str, baseline: str) -> pd.DataFrame:
    """The entry's generations whose prompt both it and the baseline answered without an error."""
    usable = generations[generations["status"] == Status.OK.value]
    ours = usable[usable["entry"] == entry]
    theirs = usable.loc[usable["entry"] == baseline, [*PROMPT, *_OF_BASELINE]]
    renamed = theirs.rename(columns={name: f"baseline_{name}" for name in _OF_BASELINE})
    return ours.merge(renamed, on=PROMPT)


def per_question(pairs: pd.DataFrame) -> pd.DataFrame:
    """Sums over the turns and repeats of each question: a row per question, with its task."""
    numbers = pairs.select_dtypes("number").columns.difference(PROMPT)
    frame = pairs.groupby(["task", "question_id"], sort=False)[list(numbers)].sum().reset_index()
    # By id: workers answer in any order, and a sum's last digit depends on it.
    frame = frame.sort_values("question_id", kind="stable", ignore_index=True)
    frame["questions"] = 1
    frame["tokens_per_ms"] = frame["new_tokens"] / frame["total_ms"]
    frame["baseline_tokens_per_ms"] = frame["baseline_new_tokens"] / frame["baseline_total_ms"]
    frame["ideal_ms"] = _ideal_ms(frame)
    return frame


def _ideal_ms(frame: pd.DataFrame) -> pd.Series:
    """Time if verifying a draft cost no more than the baseline's step on the same question.

    ``verify_share`` scales it for methods whose draft has done part of the target's pass already.
    """
    own = frame["baseline_target_step_ms"] / frame["baseline_steps"]
    # A one-token answer of the baseline has no step; its question then takes the mean of all.
    overall = frame["baseline_target_step_ms"].sum() / max(frame["baseline_steps"].sum(), 1)
    step_ms = own.fillna(overall)
    ideal: pd.Series = frame["ttft_ms"] + frame["draft_ms"] + frame["verify_share"] * step_ms
    return ideal
