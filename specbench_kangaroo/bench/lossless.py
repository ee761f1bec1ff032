"""Is a greedy output the baseline's: exact, a near tie, or a violation."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence

from specbench_kangaroo.record.schema import GenerationKey, Judgement, Lossless

# Scoring several rows at once adds the same products up in another order than scoring one, so two
# logits that are closer than the rounding may change places.  Logits are of magnitude 20 or so; one
# unit in the last place is then 3.6e-15 in float64, 1.9e-6 in float32, 0.016 in float16 and 0.125
# in bfloat16, and the reductions of some tens of layers add a few of those up.
TOLERANCE = {"float64": 1e-9, "float32": 1e-3, "float16": 5e-2, "bfloat16": 0.25}


def judge(
    key: GenerationKey,
    reference: Sequence[int],
    output: Sequence[int],
    *,
    gap_at: Callable[[int], float | None],
    tolerance: float,
) -> Judgement:
    """Compares an output with the baseline's, token by token.

    Args:
        key: the generation that is judged.
        reference: the baseline's token ids.
        output: the entry's token ids.
        gap_at: how far the less likely of both outputs' tokens at a position lies below the
            target's best logit, after the prefix that both share; None if one has ended there,
            which no tie excuses.  Called only if they differ, once: it costs a pass of the target.
        tolerance: a gap below this is a near tie; see :data:`TOLERANCE`.
    """
    verdict, gap = Lossless.EXACT, None
    position = _first_difference(reference, output)
    if position is not None:
        gap = gap_at(position)
        near = gap is not None and gap < tolerance
        verdict = Lossless.NEAR_TIE if near else Lossless.VIOLATION
    if gap is not None and not math.isfinite(gap):
        gap = sys.float_info.max  # a broken model's; no file of records holds a NaN
    return Judgement(key.entry, key.question_id, key.turn, key.repeat, verdict, position, gap)


def _first_difference(reference: Sequence[int], output: Sequence[int]) -> int | None:
    """None if equal; a strict prefix differs where it ends."""
    for position, (expected, found) in enumerate(zip(reference, output, strict=False)):
        if expected != found:
            return position
    return None if len(reference) == len(output) else min(len(reference), len(output))
