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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from specbench_kangaroo.stats.bootstrap import Floats
from specbench_kangaroo.stats.totals import PROMPT
from specbench_kangaroo.tuning.draft_log import Ints

# Fewer steps of a length give no point of their own: one slow step would be taken for a bend.
_ENOUGH = 5


class _Point(NamedTuple):
    """A median, and how many steps it is of."""

    ms: float
    steps: int


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
    deepest = int(steps["drafted"].max())
    drafts = {0: _Point(0.0, 1)} | _by_depth(steps, "draft_ms")
    verifies = _by_depth(steps, "verify_ms")
    if len(baseline_steps):
        share = float(steps["verify_share"].mean())
        one_row_ms = float(baseline_steps["verify_ms"].median()) * share
        verifies[0] = _Point(one_row_ms, len(baseline_steps))
    taken = _taken(answers, steps, deepest)
    count = answers["steps"].to_numpy(dtype=np.float64)
    rest = answers["total_ms"] - answers["phases_ms"] + answers["accept_ms"]
    per_step = rest.to_numpy(dtype=np.float64) / np.maximum(count, 1)
    drafting = _scaled(_curve(drafts, deepest), taken, answers["draft_ms"])
    verifying = _scaled(_curve(verifies, deepest), taken, answers["verify_ms"])
    return StepCosts(
        first_ms=answers["ttft_ms"].to_numpy(dtype=np.float64),
        step_ms=drafting + verifying + per_step[:, None],
    )


def _by_depth(steps: pd.DataFrame, column: str) -> dict[int, _Point]:
    """Medians by tokens drafted, of lengths that were measured often enough and of the deepest."""
    parts = steps.groupby("drafted")[column]
    medians, counts = parts.median(), parts.size()
    kept = medians[(counts >= _ENOUGH) | (medians.index == medians.index.max())]
    return {int(depth): _Point(float(kept.loc[depth]), int(counts[depth])) for depth in kept.index}


def _curve(points: Mapping[int, _Point], deepest: int) -> Floats:
    """(D + 1,) milliseconds at 0, 1, … ``deepest`` tokens drafted."""
    depths = sorted(points)
    rising = _rising([points[depth] for depth in depths])
    curve: Floats = np.interp(np.arange(deepest + 1), depths, rising)
    return curve


def _rising(points: Sequence[_Point]) -> list[float]:
    """The closest times that never fall (isotonic regression, by pooling adjacent violators)."""
    pools: list[tuple[_Point, int]] = []  # a mean with its steps, and how many points it stands for
    for point in points:
        pool, width = point, 1
        while pools and pools[-1][0].ms > pool.ms:
            before, more = pools.pop()
            count = before.steps + pool.steps
            pool = _Point((before.ms * before.steps + pool.ms * pool.steps) / count, count)
            width += more
        pools.append((pool, width))
    return [pool.ms for pool, width in pools for _ in range(width)]


def _taken(answers: pd.DataFrame, steps: pd.DataFrame, deepest: int) -> Floats:
    """(A, D + 1): how many steps of each length each answer took."""
    numbered = answers[PROMPT].assign(number=np.arange(len(answers)))
    number = steps[[*PROMPT, "drafted"]].merge(numbered, on=PROMPT, how="inner")
    cell = (number["number"] * (deepest + 1) + number["drafted"]).to_numpy()
    counts = np.bincount(cell, minlength=len(answers) * (deepest + 1))
    return counts.reshape(len(answers), deepest + 1).astype(np.float64)


def _scaled(curve: Floats, taken: Floats, measured_ms: pd.Series) -> Floats:
    """(A, D + 1): the curve, so that each answer's steps add up to what it measured."""
    expected = taken @ curve  # [A]
    found = measured_ms.to_numpy(dtype=np.float64)
    scale = np.divide(found, expected, out=np.ones_like(found), where=expected > 0)
    scaled: Floats = scale[:, None] * curve
    return scaled
