"""The estimates of a profile from what was measured, and their JSON document.

Medians have the interval between two order statistics, which assumes nothing of how times are
distributed; six samples are the least that give one.

Schema history of the document
    1 (2026-11): first version.
    2 (2026-11): backends, vanilla_over_floor, matmul_tflop_s; random weights, which have no figure
        of what drafts are worth, and say so under ``weights``; more rows of ``verify_ms``.
    3 (2026-11): one_row_ms, one_row_over_floor, weight_bytes, context_tokens, sweeps.  What a run
        says has left: vanilla and generate, harness_share, methods, draft_step_ms, template,
        prompt_tokens and new_tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from scipy.stats import quantile_test

from specbench_kangaroo.stats.intervals import CONFIDENCE_LEVEL, Estimate

PROFILE_VERSION = 3

Sweep = Mapping[int, float]
"""Milliseconds of a pass by its rows."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """What was measured in one go: sweeps by backend, and what the machine gave beside them."""

    sweeps: Mapping[str, Sequence[Sweep]]
    bandwidth_gb_s: float
    matmul_tflop_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PassCosts:
    """Passes as one backend launches them."""

    one_row_over_floor: Estimate
    verify_ms: Mapping[int, Estimate]  # by rows of a pass
    verify_ratio: Mapping[int, Estimate]  # to one row, paired within a sweep


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A profile in estimates; the floor is the time to read a token's weights once."""

    about: Mapping[str, Any]
    floor_ms_per_token: Estimate
    bandwidth_gb_s: Estimate
    matmul_tflop_s: Estimate
    backends: Mapping[str, PassCosts]


def summarise(repeats: Sequence[Repeat], *, weight_bytes: int, about: Mapping[str, Any]) -> Profile:
    """Every estimate of a profile; ``weight_bytes`` are those that one token reads."""
    bandwidth = median_estimate([repeat.bandwidth_gb_s for repeat in repeats])
    return Profile(
        about=about,
        floor_ms_per_token=_floor_ms(weight_bytes, bandwidth),
        bandwidth_gb_s=bandwidth,
        matmul_tflop_s=median_estimate([repeat.matmul_tflop_s for repeat in repeats]),
        backends={name: _costs(name, repeats, weight_bytes) for name in repeats[0].sweeps},
    )


def _costs(backend: str, repeats: Sequence[Repeat], weight_bytes: int) -> PassCosts:
    every = [found for repeat in repeats for found in repeat.sweeps[backend]]
    # Each repeat against the bandwidth beside it: a machine that drifts hits both alike.
    over_floor = [
        median(found[1] for found in repeat.sweeps[backend])
        / (weight_bytes / repeat.bandwidth_gb_s / 1e6)
        for repeat in repeats
    ]
    return PassCosts(
        one_row_over_floor=median_estimate(over_floor),
        verify_ms={rows: median_estimate([s[rows] for s in every]) for rows in every[0]},
        verify_ratio={rows: median_estimate([s[rows] / s[1] for s in every]) for rows in every[0]},
    )


def _floor_ms(weight_bytes: int, bandwidth: Estimate) -> Estimate:
    """Milliseconds to read the weights once; the widest bandwidth gives the lowest floor."""
    value, low, high = (
        None if gb_s is None else weight_bytes / gb_s / 1e6
        for gb_s in (bandwidth.value, bandwidth.high, bandwidth.low)
    )
    assert value is not None
    return Estimate(value, low, high)


def median_estimate(samples: Sequence[float]) -> Estimate:
    """The median; its bounds are None where so few samples give no interval."""
    value = float(median(samples))
    if len(samples) == 1:
        return Estimate(value, None, None)
    found = quantile_test(samples, q=value, p=0.5).confidence_interval(CONFIDENCE_LEVEL)
    if not (math.isfinite(found.low) and math.isfinite(found.high)):
        return Estimate(value, None, None)
    return Estimate(value, float(found.low), float(found.high))


def to_json(profile: Profile) -> dict[str, Any]:
    """The document of ``specbench profile --format json``.

    The first backend's estimates stand at the top, those of further ones under ``backends``.
    """
    (_, first), *others = profile.backends.items()
    limits = ("floor_ms_per_token", "bandwidth_gb_s", "matmul_tflop_s")
    document = {
        "schema_version": PROFILE_VERSION,
        **profile.about,
        **{key: getattr(profile, key).figures for key in limits},
        **_costs_json(first),
    }
    if others:
        document["backends"] = {name: _costs_json(costs) for name, costs in others}
    return document


def _costs_json(costs: PassCosts) -> dict[str, Any]:
    return {
        "one_row_ms": costs.verify_ms[1].figures,
        "one_row_over_floor": costs.one_row_over_floor.figures,
        "verify_ms": {str(rows): item.figures for rows, item in costs.verify_ms.items()},
        "verify_ratio": {str(rows): item.figures for rows, item in costs.verify_ratio.items()},
    }
