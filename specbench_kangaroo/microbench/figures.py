"""The figures of a profile, with intervals, from its samples.

Ratios of sums are bootstrapped by prompt.  Medians have the interval between two order statistics,
which assumes nothing of how times are distributed; six samples are the least that give one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from scipy.stats import quantile_test

from specbench_kangaroo.microbench.peers import GENERATE, peer_of
from specbench_kangaroo.microbench.profile import Sample, Samples, Sweeps
from specbench_kangaroo.microbench.sums import beside, columns_of, differing
from specbench_kangaroo.record.schema import BASELINE
from specbench_kangaroo.stats.bootstrap import CONFIDENCE_LEVEL, Estimate, Floats, Ratio, estimates

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
    # Each answer against the bandwidth of its own repeat: a machine that drifts hits both alike.
    "vanilla_over_floor": Ratio((f"{BASELINE}.decode_ms",), (f"{BASELINE}.floor_ms",)),
    "harness_share": Ratio(
        (f"{BASELINE}.phases_ms",), (f"{BASELINE}.decode_ms",), scale=-1.0, constant=1.0
    ),
}
_OVER_FIRST = Ratio(
    (f"{BASELINE}.tokens", f"first.{BASELINE}.total_ms"),
    (f"first.{BASELINE}.tokens", f"{BASELINE}.total_ms"),
)

# A method's speed over its peer's: the key, and the columns that it is made of.
_AGAINST = (
    ("over_generate", "total_ms", "tokens"),
    ("over_generate_decode", "decode_ms", "decode_tokens"),
)


@dataclass(frozen=True, slots=True)
class MethodProfile:
    """One method: ``speedup`` over the baseline, what only drafting methods have, its peer.

    ``differs`` counts the prompts on which it gave other tokens than the baseline, and
    ``generate_differs`` those on which its peer did; None without a peer, and both for random
    weights, whose every token is a near tie.
    """

    estimates: Mapping[str, Estimate]
    differs: int | None
    generate_differs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProfile:
    """What one backend gives."""

    estimates: Mapping[str, Estimate]
    verify_ms: Mapping[int, Estimate]  # by rows of a pass
    verify_ratio: Mapping[int, Estimate]  # to one row, paired within a sweep
    methods: Mapping[str, MethodProfile]  # without the baseline
    generate_differs: int | None  # prompts with other tokens than the baseline's


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A profile in figures; ``about`` says what was measured, and where.

    With ``latency_only`` the weights are random: no figure depends on what a draft is worth.
    """

    about: Mapping[str, Any]
    limits: Mapping[str, Estimate]  # of the machine: the floor, and what it was measured with
    engines: Mapping[str, EngineProfile]  # by backend
    prompts: int
    latency_only: bool = False

    @property
    def first(self) -> EngineProfile:
        """The backend that the others are set to."""
        return next(iter(self.engines.values()))


def summarise_profile(
    samples: Samples, *, weight_bytes: int, about: Mapping[str, Any], latency_only: bool = False
) -> Profile:
    """Every figure of a profile; ``weight_bytes`` are those that one token reads."""
    floors_ms = [weight_bytes / gb_s / 1e6 for gb_s in samples.bandwidths_gb_s]
    by_backend = {
        backend: [sample for sample in samples.answers if sample.backend in (backend, None)]
        for backend in samples.sweeps
    }
    columns = {backend: columns_of(of, floors_ms) for backend, of in by_backend.items()}
    first = next(iter(columns))
    return Profile(
        about=about,
        limits=_limits(samples, weight_bytes),
        engines={
            backend: _engine(
                by_backend[backend],
                columns[backend] if backend == first else beside(columns[backend], columns[first]),
                samples.sweeps[backend],
                over=None if backend == first else first,
                latency_only=latency_only,
            )
            for backend in samples.sweeps
        },
        prompts=len({sample.prompt for sample in samples.answers}),
        latency_only=latency_only,
    )


def median_figure(samples: Sequence[float]) -> Estimate:
    """The median; its bounds are None where so few samples give no interval."""
    value = float(median(samples))
    if len(samples) == 1:
        return Estimate(value, None, None)
    found = quantile_test(samples, q=value, p=0.5).confidence_interval(CONFIDENCE_LEVEL)
    if not (math.isfinite(found.low) and math.isfinite(found.high)):
        return Estimate(value, None, None)
    return Estimate(value, float(found.low), float(found.high))


def _limits(samples: Samples, weight_bytes: int) -> dict[str, Estimate]:
    bandwidth = median_figure(samples.bandwidths_gb_s)
    found = {"floor_ms_per_token": _floor_ms(weight_bytes, bandwidth), "bandwidth_gb_s": bandwidth}
    if samples.matmuls_tflop_s:
        found["matmul_tflop_s"] = median_figure(samples.matmuls_tflop_s)
    return found


def _floor_ms(weight_bytes: int, bandwidth: Estimate) -> Estimate:
    """Milliseconds to read the weights once; the widest bandwidth gives the lowest floor."""
    value, low, high = (
        None if gb_s is None else weight_bytes / gb_s / 1e6
        for gb_s in (bandwidth.value, bandwidth.high, bandwidth.low)
    )
    assert value is not None
    return Estimate(value, low, high)


def _engine(
    answers: Sequence[Sample],
    columns: Mapping[str, Floats],
    sweeps: Sweeps,
    *,
    over: str | None,
    latency_only: bool,
) -> EngineProfile:
    """One backend's figures; ``over`` is the one that its baseline is set to."""
    names = list(dict.fromkeys(sample.contestant for sample in answers))
    apart = {GENERATE, BASELINE, *map(peer_of, names)}
    summarised = _latency if latency_only else _method
    ratios = _SHARED if over is None else {**_SHARED, f"{BASELINE}_over_{over}": _OVER_FIRST}
    return EngineProfile(
        estimates=estimates(ratios, columns),
        verify_ms={rows: median_figure([s[rows] for s in sweeps]) for rows in sweeps[0]},
        verify_ratio={rows: median_figure([s[rows] / s[1] for s in sweeps]) for rows in sweeps[0]},
        methods={name: summarised(answers, columns, name) for name in names if name not in apart},
        generate_differs=None if latency_only else differing(answers, GENERATE),
    )


def _latency(answers: Sequence[Sample], columns: Mapping[str, Floats], name: str) -> MethodProfile:
    """Of a method on random weights: what a draft costs, and nothing that acceptance goes into."""
    del columns
    draft_steps_ms = _draft_steps_ms(answers, name)
    found = {"draft_step_ms": median_figure(draft_steps_ms)} if draft_steps_ms else {}
    return MethodProfile(found, None)


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
    found = estimates(ratios, columns)
    if draft_steps_ms:
        found["draft_step_ms"] = median_figure(draft_steps_ms)
    return MethodProfile(
        found, differing(answers, name), differing(answers, peer) if has_peer else None
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
