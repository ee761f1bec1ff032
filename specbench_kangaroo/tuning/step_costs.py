"""What a step would have cost at any draft length, from the steps that a run measured.

Two curves over the draft length, piecewise linear: of drafting from 0 ms, and of verifying from
the baseline's pass over one row, of which a draft that ran the first layers itself leaves a share.
Their other points are medians of steps that were measured at that length: the logged length, and
shorter drafts as the ends of answers have them.  Those are few, so points that would make a longer
draft cheaper than a shorter one are averaged, by their numbers of steps, until none does.  Each
answer scales both curves to its own measured times, as longer contexts cost more; what a step takes
besides is the answer's own mean.

So the logged setting's own total comes out exactly, and shorter drafts are an interpolation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import isotonic_regression

from specbench_kangaroo.stats.intervals import Floats
from specbench_kangaroo.stats.totals import PROMPT
from specbench_kangaroo.tuning.replay import Ints

# Fewer steps of a length give no point of their own: one slow step would be taken for a bend.
_ENOUGH = 5


@dataclass(frozen=True, slots=True, eq=False)
class StepCosts:
    """Milliseconds of an answer's parts; A answers, D the deepest draft.

    Attributes:
        first_ms: (A,) the prefill and first token.
        step_ms: (A, D + 1) one step, by the number of tokens that it drafts.
    """

    first_ms: Floats
    step_ms: Floats

    def total_ms(self, steps_by_depth: Ints) -> Floats:
        """(A,) each answer's time, from how many steps it takes of each length (A, D + 1)."""
        total: Floats = self.first_ms + (self.step_ms * steps_by_depth).sum(axis=1)
        return total


def step_costs(
    answers: pd.DataFrame, steps: pd.DataFrame, baseline_steps: pd.DataFrame
) -> StepCosts:
    """The costs of a method's answers.

    Args:
        answers: a row per answer, with the sums of :func:`totals.per_generation`.
        steps: the method's steps on these answers, and no others.
        baseline_steps: the baseline's.
    """
    drafts, verifies = _by_depth(steps, "draft_ms"), _by_depth(steps, "verify_ms")
    if 0 not in drafts.index:
        drafts.loc[0] = 0.0, 1
    if len(baseline_steps):
        one_row_ms = baseline_steps["verify_ms"].median() * steps["verify_share"].mean()
        verifies.loc[0] = one_row_ms, len(baseline_steps)
    lengths = range(int(steps["drafted"].max()) + 1)
    taken = steps.value_counts([*PROMPT, "drafted"]).unstack(fill_value=0)  # [A, D + 1]
    of_answers = pd.MultiIndex.from_frame(answers[PROMPT])
    taken = taken.reindex(index=of_answers, columns=lengths, fill_value=0)
    rest = answers["total_ms"] - answers["phases_ms"] + answers["accept_ms"]
    per_step = (rest / answers["steps"].clip(lower=1)).to_numpy(dtype=np.float64)
    drafting = _scaled(drafts, taken, answers["draft_ms"])
    verifying = _scaled(verifies, taken, answers["verify_ms"])
    return StepCosts(
        first_ms=answers["ttft_ms"].to_numpy(dtype=np.float64),
        step_ms=drafting + verifying + per_step[:, None],
    )


def _by_depth(steps: pd.DataFrame, column: str) -> pd.DataFrame:
    """Medians ``ms`` by tokens drafted, and of how many ``steps`` each is.

    Of lengths that were measured often enough, and of the deepest.
    """
    found = steps.groupby("drafted")[column].agg(ms="median", steps="size")
    kept: pd.DataFrame = found[(found["steps"] >= _ENOUGH) | (found.index == found.index.max())]
    return kept.astype(float)


def _scaled(points: pd.DataFrame, taken: pd.DataFrame, measured_ms: pd.Series) -> Floats:
    """(A, D + 1): a curve through the points that never falls, scaled for each answer.

    Each answer's steps, as many of each length as ``taken`` has, then add up to what it measured.
    """
    points = points.sort_index()
    # Rounded, so that lengths that cost the same do so to the last bit.
    rising = isotonic_regression(points["ms"], weights=points["steps"]).x.round(9)
    curve = np.interp(taken.columns.to_numpy(), points.index, rising)
    expected = taken.to_numpy() @ curve  # [A]
    found = measured_ms.to_numpy(dtype=np.float64)
    scale = np.divide(found, expected, out=np.ones_like(found), where=expected > 0)
    scaled: Floats = scale[:, None] * curve
    return scaled
