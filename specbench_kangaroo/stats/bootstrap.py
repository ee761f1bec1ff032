"""Intervals for ratios of sums over questions: one bootstrap for every estimate of the project.

Questions are the clusters: turns and repeats of a question are no independent evidence, so they
come here summed.  All estimates of a call share their resamples, which keeps them paired.

Few questions give a bootstrap too narrow intervals: it draws from n points as if they were all
there are.  The nominal level is therefore that of Student's interval in place of the normal one
(the expanded interval of Hesterberg, The American Statistician 69, 2015); it tends to 95 % as n
grows.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, norm, t

Floats = NDArray[np.float64]

CONFIDENCE_LEVEL = 0.95
INTERVAL_NAME = "95 % BCa bootstrap over questions"
RESAMPLES = 2000
SEED = 20240701

# Resamples held at once: with 480 questions and 30 columns, 12 MB.
_BATCH = 100
# Below this relative spread all resamples are the same number but for rounding.
_CONSTANT = 1e-12


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measured value and its interval; the bounds are None if one question cannot give any."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Ratio:
    """``constant + scale * Π Σ over / Π Σ under``: sums over questions of the named columns.

    ``over`` and ``under`` name the same number of columns, so that means serve as well as sums.
    """

    over: tuple[str, ...]
    under: tuple[str, ...]
    scale: float = 1.0
    constant: float = 0.0

    def of(self, means: Mapping[str, Floats]) -> Floats:
        """The ratio, from each column's mean; NaN where it is 0/0."""
        above = np.prod([means[name] for name in self.over], axis=0)
        below = np.prod([means[name] for name in self.under], axis=0)
        ratio: Floats = self.constant + self.scale * above / below
        return ratio


def estimates(
    ratios: Mapping[str, Ratio],
    columns: Mapping[str, Floats],
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> dict[str, Estimate]:
    """Every ratio with its interval; one that is not a number is absent.

    Args:
        ratios: by the name that the estimate gets.
        columns: per-question sums, all of the same length.
        resamples: size of the bootstrap distribution.
        seed: the same seed and data give the same interval.
    """
    names = sorted({name for ratio in ratios.values() for name in (*ratio.over, *ratio.under)})
    data = np.stack([np.asarray(columns[name], dtype=np.float64) for name in names])  # (C, n)
    if data.shape[1] == 0:
        return {}
    with np.errstate(all="ignore"):
        points = _evaluate(list(ratios.values()), names, data)
    kept = {name: p for name, p in zip(ratios, points, strict=True) if math.isfinite(p)}
    if data.shape[1] == 1 or not kept:
        return {name: Estimate(point, None, None) for name, point in kept.items()}
    chosen = [ratios[name] for name in kept]
    low, high = _intervals(chosen, names, data, resamples=resamples, seed=seed)
    return {name: _estimate(point, low[i], high[i]) for i, (name, point) in enumerate(kept.items())}


def _evaluate(
    ratios: Sequence[Ratio], names: Sequence[str], data: Floats, axis: int = -1
) -> Floats:
    """``data`` (C, …, n) → (R, …): each ratio of the means along the questions."""
    means = dict(zip(names, data.mean(axis=axis), strict=True))
    return np.stack([ratio.of(means) for ratio in ratios])


def _intervals(
    ratios: Sequence[Ratio], names: Sequence[str], data: Floats, *, resamples: int, seed: int
) -> tuple[Floats, Floats]:
    """Lower and upper bounds (R,): BCa, or percentiles where BCa is not defined."""

    def statistic(sample: Floats, axis: int) -> Floats:
        return _evaluate(ratios, names, sample, axis)

    level = expanded_level(data.shape[1])
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # What they warn of, a degenerate distribution, is dealt with below, ratio by ratio.
        warnings.simplefilter("ignore")
        result: Any = bootstrap(
            (data,),
            statistic,
            n_resamples=resamples,
            batch=_BATCH,
            vectorized=True,
            paired=True,
            axis=-1,
            confidence_level=level,
            method="BCa",
            random_state=np.random.default_rng(seed),
        )
        interval = result.confidence_interval
        return _mended(interval.low, interval.high, result.bootstrap_distribution, level)


def expanded_level(questions: int) -> float:
    """The nominal level whose interval from so few questions covers :data:`CONFIDENCE_LEVEL`."""
    tail = (1 - CONFIDENCE_LEVEL) / 2
    quantile = math.sqrt(questions / (questions - 1)) * t.ppf(tail, questions - 1)
    return float(1 - 2 * norm.cdf(quantile))


def _mended(low: Floats, high: Floats, distribution: Floats, level: float) -> tuple[Floats, Floats]:
    """Percentiles in place of BCa bounds that are no numbers; ``distribution`` is (R, B)."""
    distribution = np.where(np.isfinite(distribution), distribution, np.nan)
    tail = 50 * (1 - level)
    below, above = np.nanpercentile(distribution, [tail, 100 - tail], axis=-1)
    usable = np.isfinite(low) & np.isfinite(high)
    return np.where(usable, low, below), np.where(usable, high, above)


def _estimate(value: float, low: float, high: float) -> Estimate:
    if not (math.isfinite(low) and math.isfinite(high)):
        return Estimate(float(value), None, None)
    if high - low <= _CONSTANT * max(1.0, abs(value)):
        return Estimate(float(value), float(value), float(value))
    return Estimate(float(value), float(low), float(high))
