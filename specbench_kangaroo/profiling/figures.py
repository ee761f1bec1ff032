"""The figures of a profile, with intervals, from its samples.

Knows: sums over prompts, medians.  Does not know: how samples were made, or how figures are shown.

Ratios of sums are bootstrapped by prompt.  Medians have the interval between two order statistics,
which assumes nothing of how times are distributed; six samples are the least that give one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
from scipy.stats import quantile_test

from specbench_kangaroo.bootstrap import CONFIDENCE_LEVEL, Figure, Floats, Ratio, figures
from specbench_kangaroo.profiling.contest import Answer
from specbench_kangaroo.profiling.profile import Sample, Samples
from specbench_kangaroo.profiling.subjects import GENERATE, peer_of
from specbench_kangaroo.profiling.verify_cost import ROWS
from specbench_kangaroo.records import BASELINE

PROFILE_VERSION = 1

_SHARED = {
    "vanilla_over_generate": Ratio(
        (f"{BASELINE}.tokens", f"{GENERATE}.total_ms"),
        (f"{GENERATE}.tokens", f"{BASELINE}.total_ms"),
    ),
    "vanilla_over_generate_decode": Ratio(
        (f"{BASELINE}.decode_tokens", f"{GENERATE}.decode_ms"),
        (f"{GENERATE}.decode_tokens", f"{BASELINE}.decode_ms"),
    ),
    "vanilla_ms_per_token": Ratio((f"{BASELINE}.decode_ms",), (f"{BASELINE}.decode_tokens",)),
    "generate_ms_per_token": Ratio((f"{GENERATE}.decode_ms",), (f"{GENERATE}.decode_tokens",)),
    "harness_share": Ratio(
        (f"{BASELINE}.phases_ms",), (f"{BASELINE}.decode_ms",), scale=-1.0, constant=1.0
    ),
}

# A method's speed over its peer's: the key, and the columns that it is made of.
_AGAINST = (
    ("over_generate", "total_ms", "tokens"),
    ("over_generate_decode", "decode_ms", "decode_tokens"),
)


@dataclass(frozen=True, slots=True)
class MethodProfile:
    """One method: ``speedup`` over the baseline, what only drafting methods have, its peer.

    ``differs`` counts the prompts on which it gave other tokens than the baseline, and
    ``generate_differs`` those on which its peer did; None without a peer.
    """

    figures: Mapping[str, Figure]
    differs: int
    generate_differs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A profile in figures; ``about`` says what was measured, and where."""

    about: Mapping[str, Any]
    figures: Mapping[str, Figure]
    verify_ms: Mapping[int, Figure]  # by rows of a pass
    verify_ratio: Mapping[int, Figure]  # to one row, paired within a sweep
    methods: Mapping[str, MethodProfile]  # without the baseline
    prompts: int
    generate_differs: int  # prompts on which generate gave other tokens than the baseline


def summarise_profile(samples: Samples, *, weight_bytes: int, about: Mapping[str, Any]) -> Profile:
    """Every figure of a profile; ``weight_bytes`` are those that one token reads."""
    names = list(dict.fromkeys(sample.contestant for sample in samples.answers))
    apart = {GENERATE, BASELINE, *map(peer_of, names)}
    methods = [name for name in names if name not in apart]
    columns = _columns(samples.answers, names)
    bandwidth = median_figure(samples.bandwidths_gb_s)
    return Profile(
        about=about,
        figures={
            **figures(_SHARED, columns),
            "floor_ms_per_token": _floor_ms(weight_bytes, bandwidth),
            "bandwidth_gb_s": bandwidth,
        },
        verify_ms={rows: median_figure([s[rows] for s in samples.sweeps]) for rows in ROWS},
        verify_ratio={
            rows: median_figure([s[rows] / s[1] for s in samples.sweeps]) for rows in ROWS
        },
        methods={name: _method(samples.answers, columns, name) for name in methods},
        prompts=len(next(iter(columns.values()))),
        generate_differs=_differs(samples.answers, GENERATE),
    )


def median_figure(samples: Sequence[float]) -> Figure:
    """The median; its bounds are None where so few samples give no interval."""
    value = float(median(samples))
    if len(samples) == 1:
        return Figure(value, None, None)
    found = quantile_test(samples, q=value, p=0.5).confidence_interval(CONFIDENCE_LEVEL)
    if not (math.isfinite(found.low) and math.isfinite(found.high)):
        return Figure(value, None, None)
    return Figure(value, float(found.low), float(found.high))


def to_json(profile: Profile) -> dict[str, Any]:
    """The document of ``specbench profile --format json``; keys without a meaning are absent."""
    methods = {name: _method_json(method) for name, method in profile.methods.items()}
    drafting = [method for method in methods.values() if "draft_step_ms" in method]
    return {
        "schema_version": PROFILE_VERSION,
        **profile.about,
        **{name: asdict(figure) for name, figure in profile.figures.items()},
        "generate_differs": profile.generate_differs,
        "verify_ms": {str(rows): asdict(item) for rows, item in profile.verify_ms.items()},
        "verify_ratio": {str(rows): asdict(item) for rows, item in profile.verify_ratio.items()},
        **({"draft_step_ms": drafting[0]["draft_step_ms"]} if drafting else {}),
        "methods": methods,
    }


def _method_json(method: MethodProfile) -> dict[str, Any]:
    counts = {"differs": method.differs}
    if method.generate_differs is not None:
        counts["generate_differs"] = method.generate_differs
    return {key: asdict(figure) for key, figure in method.figures.items()} | counts


def _columns(answers: Sequence[Sample], names: Sequence[str]) -> dict[str, Floats]:
    """Sums per prompt, (n,) each, under names such as ``vanilla.decode_ms``."""
    count = 1 + max(sample.prompt for sample in answers)
    columns: dict[str, Floats] = {}
    for sample in answers:
        for key, amount in _amounts(sample.answer).items():
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


def _floor_ms(weight_bytes: int, bandwidth: Figure) -> Figure:
    """Milliseconds to read the weights once; the widest bandwidth gives the lowest floor."""
    value, low, high = (
        None if gb_s is None else weight_bytes / gb_s / 1e6
        for gb_s in (bandwidth.value, bandwidth.high, bandwidth.low)
    )
    assert value is not None
    return Figure(value, low, high)


def _method(answers: Sequence[Sample], columns: Mapping[str, Floats], name: str) -> MethodProfile:
    ratios = {"speedup": Ratio((f"{BASELINE}.total_ms",), (f"{name}.total_ms",))}
    draft_steps_ms = _draft_steps_ms(answers, name)
    if draft_steps_ms:
        ratios["mean_accepted_tokens"] = Ratio(
            (f"{name}.accepted",), (f"{name}.steps",), constant=1.0
        )
    peer = peer_of(name)
    has_peer = f"{peer}.tokens" in columns
    if has_peer:
        ratios |= _against(name, peer)
    found = figures(ratios, columns)
    if draft_steps_ms:
        found["draft_step_ms"] = median_figure(draft_steps_ms)
    return MethodProfile(
        found, _differs(answers, name), _differs(answers, peer) if has_peer else None
    )


def _against(name: str, peer: str) -> dict[str, Ratio]:
    """A method's speed over its peer's, what that is made of, and how well each drafted.

    All passes count in ``compression_rate``, the prefill too, as a peer's drafts begin there.
    """
    ratios = {
        "compression_rate": Ratio((f"{name}.tokens",), (f"{name}.passes",)),
        "generate_compression_rate": Ratio((f"{peer}.tokens",), (f"{peer}.passes",)),
    }
    for key, ms, tokens in _AGAINST:
        ratios[key] = Ratio(
            (f"{name}.{tokens}", f"{peer}.{ms}"), (f"{peer}.{tokens}", f"{name}.{ms}")
        )
        ratios[f"{ms}_per_token"] = Ratio((f"{name}.{ms}",), (f"{name}.{tokens}",))
        ratios[f"generate_{ms}_per_token"] = Ratio((f"{peer}.{ms}",), (f"{peer}.{tokens}",))
    return ratios


def _draft_steps_ms(answers: Sequence[Sample], name: str) -> list[float]:
    """Milliseconds per drafted depth: each answer's median, as its steps are not independent."""
    medians_ms = []
    for sample in answers:
        steps = sample.answer.decoded.steps if sample.contestant == name else ()
        if steps_ms := [step.draft_ms / step.drafted for step in steps if step.drafted]:
            medians_ms.append(median(steps_ms))
    return medians_ms


def _differs(answers: Sequence[Sample], name: str) -> int:
    """The prompts to which a contestant ever gave other tokens than the baseline."""
    ours = {(s.prompt, s.answer.decoded.output_ids) for s in answers if s.contestant == BASELINE}
    theirs = {(s.prompt, s.answer.decoded.output_ids) for s in answers if s.contestant == name}
    return len({prompt for prompt, _ in theirs - ours})
