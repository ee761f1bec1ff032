"""The definitions of the metrics: each is one line, a ratio of sums over questions."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

import numpy as np

from specbench_kangaroo.stats.bootstrap import Floats, Ratio


class For(Enum):
    """Which entries a metric applies to; it is absent, not 0, for the others."""

    ALL = "all"
    STEPPED = "stepped"  # whose passes of the target were recorded, and their times
    DRAFTING = "drafting"
    COMPARED = "compared"  # all but the baseline
    DRAFTING_COMPARED = "drafting and compared"


class Metric(NamedTuple):
    """A definition, and the entries that it applies to."""

    ratio: Ratio
    applies_to: For


# Times are compared per token.  With equal outputs, as a greedy run has, that is the ratio of the
# times; after a near tie the outputs may differ in length, and the longer one is not the slower.
METRICS: dict[str, Metric] = {
    "speedup": Metric(
        Ratio(("baseline_total_ms", "new_tokens"), ("baseline_new_tokens", "total_ms")),
        For.COMPARED,
    ),
    "speedup_decode": Metric(
        Ratio(("baseline_decode_ms", "decode_tokens"), ("baseline_decode_tokens", "decode_ms")),
        For.COMPARED,
    ),
    # Spec-Bench evaluation/speed.py: the mean over questions of tokens per second.
    "speedup_specbench": Metric(
        Ratio(("tokens_per_ms",), ("baseline_tokens_per_ms",)), For.COMPARED
    ),
    "speedup_ideal": Metric(
        Ratio(("baseline_total_ms", "new_tokens"), ("baseline_new_tokens", "ideal_ms")),
        For.DRAFTING_COMPARED,
    ),
    # speedup / speedup_ideal, in which all but the two times cancels out.
    "realised_over_ideal": Metric(Ratio(("ideal_ms",), ("total_ms",)), For.DRAFTING_COMPARED),
    "tokens_per_second": Metric(Ratio(("new_tokens",), ("total_ms",), scale=1000.0), For.ALL),
    "mean_accepted_tokens": Metric(
        Ratio(("accepted",), ("steps",), constant=1.0), For.DRAFTING
    ),  # the 1 is the bonus token of each step
    "mean_accepted_tokens_per_request": Metric(
        Ratio(("accepted_per_step",), ("generations_with_steps",), constant=1.0), For.DRAFTING
    ),
    "acceptance_rate": Metric(Ratio(("accepted",), ("drafted",)), For.DRAFTING),
    # What a step costs, in passes of the baseline on the same questions, and what it yields:
    # speedup_decode is tokens_per_step / (draft_cost + verify_cost), but for the harness's share.
    "draft_cost": Metric(
        Ratio(("draft_ms", "baseline_steps"), ("steps", "baseline_target_step_ms")),
        For.DRAFTING_COMPARED,
    ),
    "verify_cost": Metric(
        Ratio(("target_step_ms", "baseline_steps"), ("steps", "baseline_target_step_ms")),
        For.DRAFTING_COMPARED,
    ),
    "nodes_per_step": Metric(Ratio(("nodes",), ("steps",)), For.DRAFTING),
    # Not mean_accepted_tokens, which counts the bonus token even where an EOS has cut it off.
    "tokens_per_step": Metric(Ratio(("decode_tokens",), ("steps",)), For.DRAFTING),
    "compression_rate": Metric(Ratio(("new_tokens",), ("target_passes",)), For.STEPPED),
    "ttft_ms": Metric(Ratio(("ttft_ms",), ("generations",)), For.ALL),
    "tpot_ms": Metric(Ratio(("decode_ms",), ("decode_tokens",)), For.ALL),
    "harness_share": Metric(
        Ratio(("phases_ms",), ("total_ms",), scale=-1.0, constant=1.0), For.STEPPED
    ),
    "draft_share": Metric(Ratio(("draft_ms",), ("total_ms",)), For.DRAFTING),
    "verify_share_of_time": Metric(Ratio(("verify_ms",), ("total_ms",)), For.STEPPED),
    # Of the whole device, prefill included; absent where no answer's energy was measured.
    "joules_per_token": Metric(Ratio(("energy_j",), ("energy_tokens",)), For.ALL),
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
        (Ratio((f"accepted_{i}",), ("steps",)), Ratio((f"accepted_{i}",), (f"drafted_{i}",)))
        for i in range(1, depth + 1)
    ]


def applicable(*, stepped: bool, drafting: bool, compared: bool) -> dict[str, Ratio]:
    """The metrics that apply to such an entry, by name."""
    kinds = {For.ALL}
    if stepped:
        kinds |= {For.STEPPED}
    if drafting:
        kinds |= {For.DRAFTING}
    if compared:
        kinds |= {For.COMPARED}
    if drafting and compared:
        kinds |= {For.DRAFTING_COMPARED}
    return {name: metric.ratio for name, metric in METRICS.items() if metric.applies_to in kinds}
