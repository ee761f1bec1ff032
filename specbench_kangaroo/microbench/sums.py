"""What a profile's answers add up to, per prompt: plain sums, before any ratio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from specbench_kangaroo.microbench.contest import Answer
from specbench_kangaroo.microbench.profile import Sample
from specbench_kangaroo.record.schema import BASELINE
from specbench_kangaroo.stats.bootstrap import Floats


def columns_of(answers: Sequence[Sample], floors_ms: Sequence[float]) -> dict[str, Floats]:
    """Sums per prompt, (n,) each, under names such as ``vanilla.decode_ms``.

    ``floors_ms`` are the floor of a token in each repeat: what a repeat's tokens would have taken
    at the bandwidth that was measured beside them is ``floor_ms``.
    """
    count = 1 + max(sample.prompt for sample in answers)
    columns: dict[str, Floats] = {}
    for sample in answers:
        amounts = _amounts(sample.answer)
        amounts["floor_ms"] = amounts["decode_tokens"] * floors_ms[sample.repeat]
        for key, amount in amounts.items():
            column = columns.setdefault(f"{sample.contestant}.{key}", np.zeros(count))
            column[sample.prompt] += amount
    return columns


def _amounts(answer: Answer) -> dict[str, float]:
    decoded = answer.decoded
    return {
        "tokens": len(decoded.output_ids),
        "passes": answer.passes,
        "total_ms": decoded.total_ms,
        "decode_tokens": len(decoded.output_ids) - answer.first_tokens,
        "decode_ms": decoded.total_ms - decoded.ttft_ms,
        "phases_ms": sum(s.draft_ms + s.verify_ms + s.accept_ms for s in decoded.steps),
        "steps": len(decoded.steps),
        "accepted": sum(step.accepted for step in decoded.steps),
    }


def beside(columns: Mapping[str, Floats], first: Mapping[str, Floats]) -> dict[str, Floats]:
    """A backend's columns, and the baseline's of the first one under ``first.…``."""
    baseline = {f"first.{k}": v for k, v in first.items() if k.startswith(f"{BASELINE}.")}
    return {**columns, **baseline}


def differing(answers: Sequence[Sample], name: str) -> int:
    """The prompts to which a contestant ever gave other tokens than the baseline."""
    ours = {(s.prompt, s.answer.decoded.output_ids) for s in answers if s.contestant == BASELINE}
    theirs = {(s.prompt, s.answer.decoded.output_ids) for s in answers if s.contestant == name}
    return len({prompt for prompt, _ in theirs - ours})
