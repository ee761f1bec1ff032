"""The definitions of the metrics: each is one line, a ratio of sums over questions."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Flag, auto
from typing import NamedTuple

import numpy as np

from specbench_kangaroo.stats.intervals import Floats, Ratio


class Has(Flag):
    """What of an entry there are records of; a metric that needs more of it is absent, not 0."""

    ANSWERS = auto()
    STEPS = auto()  # its passes of the target, and their times
    DRAFTS = auto()
    BASELINE = auto()  # to compare it with


class Metric(NamedTuple):
    """A definition, and what it needs."""

    ratio: Ratio
    needs: Has


# Times are compared per token.  With equal outputs, as a greedy run has, that is the ratio of the
# times; after a near tie the outputs may differ in length, and the longer one is not the slower.
METRICS: dict[str, Metric] = {
    "speedup": Metric(
        Ratio(("baseline_total_ms", "new_tokens"), ("baseline_new_tokens", "total_ms")),
        Has.BASELINE,
    ),
    "speedup_decode": Metric(
        Ratio(("baseline_decode_ms", "decode_tokens"), ("baseline_decode_tokens", "decode_ms")),
        Has.BASELINE,
    ),
    # Spec-Bench evaluation/speed.py: the mean over questions of tokens per second.
    "speedup_specbench": Metric(
        Ratio(("tokens_per_ms",), ("baseline_tokens_per_ms",)), Has.BASELINE
    ),
    "speedup_ideal": Metric(
        Ratio(("baseline_total_ms", "new_tokens"), ("baseline_new_tokens", "ideal_ms")),
        Has.DRAFTS | Has.BASELINE,
    ),
    # speedup / speedup_ideal, in which all but the two times cancels out.
    "realised_over_ideal": Metric(Ratio(("ideal_ms",), ("total_ms",)), Has.DRAFTS | Has.BASELINE),
    "tokens_per_second": Metric(Ratio(("new_tokens",), ("total_ms",), scale=1000.0), Has.ANSWERS),
    "mean_accepted_tokens": Metric(
        Ratio(("accepted",), ("steps",), constant=1.0), Has.DRAFTS
    ),  # the 1 is the bonus token of each step
    "mean_accepted_tokens_per_request": Metric(
        Ratio(("accepted_per_step",), ("generations_with_steps",), constant=1.0), Has.DRAFTS
    ),
    "acceptance_rate": Metric(Ratio(("accepted",), ("drafted",), share=True), Has.DRAFTS),
    # What a step costs, in passes of the baseline on the same questions, and what it yields:
    # speedup_decode is tokens_per_step / (draft_cost + verify_cost), but for the harness's share.
    "draft_cost": Metric(
        Ratio(("draft_ms", "baseline_steps"), ("steps", "baseline_target_step_ms")),
        Has.DRAFTS | Has.BASELINE,
    ),
    "verify_cost": Metric(
        Ratio(("target_step_ms", "baseline_steps"), ("steps", "baseline_target_step_ms")),
        Has.DRAFTS | Has.BASELINE,
    ),
    "nodes_per_step": Metric(Ratio(("nodes",), ("steps",)), Has.DRAFTS),
    # Not mean_accepted_tokens, which counts the bonus token even where an EOS has cut it off.
    "tokens_per_step": Metric(Ratio(("decode_tokens",), ("steps",)), Has.DRAFTS),
    "compression_rate": Metric(Ratio(("new_tokens",), ("target_passes",)), Has.STEPS),
    "ttft_ms": Metric(Ratio(("ttft_ms",), ("generations",)), Has.ANSWERS),
    "tpot_ms": Metric(Ratio(("decode_ms",), ("decode_tokens",)), Has.ANSWERS),
    "harness_share": Metric(
        Ratio(("phases_ms",), ("total_ms",), scale=-1.0, constant=1.0, share=True), Has.STEPS
    ),
    "draft_share": Metric(Ratio(("draft_ms",), ("total_ms",), share=True), Has.DRAFTS),
    "verify_share_of_time": Metric(Ratio(("verify_ms",), ("total_ms",), share=True), Has.STEPS),
    # Of the whole device, prefill included; absent where no answer's energy was measured.
    "joules_per_token": Metric(Ratio(("energy_j",), ("energy_tokens",)), Has.ANSWERS),
}


def acceptance_at(columns: Mapping[str, Floats]) -> list[tuple[Ratio, Ratio]]:
    """Marginal and conditional acceptance at positions 1, 2, … as far as the entry drafts.

    Args:
        columns: sums or means over questions, by the names of :mod:`totals`.
    """
    depth = 0
    while np.sum(columns.get(f"drafted_{depth + 1}", 0.0)) > 0:
        depth += 1
    return [
        (
            Ratio((f"accepted_{i}",), ("steps",), share=True),
            Ratio((f"accepted_{i}",), (f"drafted_{i}",), share=True),
        )
        for i in range(1, depth + 1)
    ]


def applicable(has: Has) -> dict[str, Ratio]:
    """The metrics that apply to such an entry, by name."""
    return {name: metric.ratio for name, metric in METRICS.items() if metric.needs in has}
