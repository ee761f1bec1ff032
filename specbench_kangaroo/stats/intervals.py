"""Intervals for ratios of sums over questions: one method for every estimate of the project.

Questions are the clusters: turns and repeats of a question are no independent evidence, so they
come here summed.  The standard error is a delete-one jackknife's (Shao and Tu, The Jackknife and
Bootstrap, 1995), reached over by a quantile of Student's t on the scale on which the estimate is
nearly normal: the logarithm, or the logit of a share.  Tasks are chosen and not drawn, so what is
said of several tasks has the variance within each and none between them.

Three long answers among fifty short ones are hardly more evidence than three answers.  The degrees
of freedom are therefore those of the effective number of questions (Kish, Survey Sampling, 1965),
added up over tasks by Satterthwaite's rule as Welch corrected it (Biometrika 34, 1947).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, stdtr, stdtrit

Floats = NDArray[np.float64]
Key = TypeVar("Key", bound=Hashable)

CONFIDENCE_LEVEL = 0.95
INTERVAL_NAME = "95 % jackknife-t over questions"

# Below this relative spread all questions are the same but for rounding.
_CONSTANT = 1e-12


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measured value and its interval; the bounds are None if one question cannot give any.

    ``p`` is how likely an estimate at least as far from 1 is if the truth is 1, for a ratio of
    times or the like; None for a share, and without bounds.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None = None

    @property
    def figures(self) -> dict[str, float | None]:
        """The value and its bounds by name, as documents hold them."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class Ratio:
    """``constant + scale * Π Σ over / Π Σ under``: sums over questions of the named columns.

    ``over`` and ``under`` name the same number of columns, so that means serve as well as sums.
    No column is ever negative.  A ``share`` lies between 0 and 1, and so does its interval.
    """

    over: tuple[str, ...]
    under: tuple[str, ...]
    scale: float = 1.0
    constant: float = 0.0
    share: bool = False

    def of(self, means: Mapping[str, Floats]) -> Floats:
        """The ratio, from each column's mean; NaN where it is 0/0."""
        above = np.prod([means[name] for name in self.over], axis=0)
        below = np.prod([means[name] for name in self.under], axis=0)
        ratio: Floats = self.constant + self.scale * above / below
        return ratio


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """Independent parts of an estimate's variance, and the degrees of freedom of each: (…, H)."""

    variances: Floats
    degrees: Floats

    @property
    def error(self) -> Floats:
        """The standard error (…)."""
        error: Floats = np.sqrt(self.variances.sum(axis=-1))
        return error

    @property
    def freedom(self) -> Floats:
        """Degrees of freedom of the sum of all parts (…)."""
        parts, degrees = self.variances, self.degrees
        most = np.where(parts > 0, degrees, 0).sum(axis=-1)
        squares = (parts**2 / (degrees + 2)).sum(axis=-1)
        freedom: Floats = np.minimum(parts.sum(axis=-1) ** 2 / squares - 2, most)
        return freedom


@dataclass(frozen=True, slots=True, eq=False)
class Intervals:
    """Estimates as arrays (…); bounds are NaN where there are none."""

    value: Floats
    low: Floats
    high: Floats
    p: Floats


def estimates(
    ratios: Mapping[str, Ratio],
    columns: Mapping[str, Floats],
    *,
    strata: Sequence[Hashable] | None = None,
) -> dict[str, Estimate]:
    """Every ratio with its interval; one that is not a number is absent.

    Args:
        ratios: by the name that the estimate gets.
        columns: per-question sums, all of the same length.
        strata: each question's task, where there are several; without it all are of one.
    """
    found = {name: intervals(ratio, columns, strata=strata) for name, ratio in ratios.items()}
    return {
        name: _estimate(*(float(x) for x in (item.value, item.low, item.high, item.p)))
        for name, item in found.items()
        if math.isfinite(item.value)
    }


def intervals(
    ratio: Ratio, columns: Mapping[str, Floats], *, strata: Sequence[Hashable] | None = None
) -> Intervals:
    """One ratio with its interval, of as many sets of questions as the columns (…, n) hold."""
    used = {name: np.asarray(columns[name], np.float64) for name in (*ratio.over, *ratio.under)}
    with np.errstate(all="ignore"):  # what is not a number is none in the result either
        value = np.asarray(ratio.of({name: column.sum(axis=-1) for name, column in used.items()}))
        questions = next(iter(used.values())).shape[-1]
        if questions < 2:
            none = np.full(value.shape, np.nan)
            return Intervals(value, none, none, none)
        return interval(ratio, value, _jackknife(ratio, used, _membership(strata, questions)))


def interval(ratio: Ratio, value: Floats, spread: Spread) -> Intervals:
    """Bounds of a ratio's ``value`` from its spread, on the scale that suits the kind of ratio."""
    error, freedom = spread.error, spread.freedom
    reach = stdtrit(freedom, 0.5 + CONFIDENCE_LEVEL / 2) * error
    inner = value - ratio.constant
    relative = reach / np.abs(inner)
    ends = [ratio.constant + inner * np.exp(sign * relative) for sign in (-1, 1)]
    if ratio.share:
        inside = (value > 0) & (value < 1)
        slope = value * (1 - value)
        ends = [
            np.where(inside, expit(logit(value) + sign * reach / slope), end)
            for sign, end in zip((-1, 1), ends, strict=True)
        ]
    # All of the same kind, none of which accepted or drafted anything, have no logarithm.
    ends = [np.where(error > 0, end, value + 0 * error) for end in ends]
    p = np.full(value.shape, np.nan)
    if not (ratio.share or ratio.constant):
        p = 2 * stdtr(freedom, -np.abs(np.log(value)) * value / error)
        p = np.where(error > 0, p, np.isclose(value, 1, rtol=_CONSTANT, atol=0))
    return Intervals(value, np.minimum(*ends), np.maximum(*ends), p)


def _membership(strata: Sequence[Hashable] | None, questions: int) -> Floats:
    """Which question is of which stratum, as 0 and 1: (H, n).

    A stratum of one question cannot tell its variance.  All of these form one together, and one
    that stands alone joins the smallest: the interval then also has what differs between them.
    """
    _, code, counts = np.unique(
        np.zeros(questions) if strata is None else [str(name) for name in strata],
        return_inverse=True,
        return_counts=True,
    )
    (single,) = np.nonzero(counts == 1)
    if len(single) == 1 and len(counts) > 1:
        single = np.argsort(counts, kind="stable")[:2]
    if len(single):
        code = np.where(np.isin(code, single), single[0], code)
    present: NDArray[Any] = np.unique(code)
    membership: Floats = (code == present[:, None]).astype(np.float64)
    return membership


def _jackknife(ratio: Ratio, columns: Mapping[str, Floats], membership: Floats) -> Spread:
    """The variance of a ratio by stratum, each question deleted in turn from its own."""
    counts = membership.sum(axis=1)  # (H,)
    stretch = (counts / (counts - 1)) @ membership  # (n,)

    def centred(column: Floats) -> Floats:
        means: Floats = (column @ membership.T / counts) @ membership
        return column - means

    totals = {name: column.sum(axis=-1, keepdims=True) for name, column in columns.items()}
    # A stratum that has lost a question stands for as many as before.
    deleted = ratio.of({n: totals[n] - stretch * centred(c) for n, c in columns.items()})  # (…, n)
    variances = centred(deleted) ** 2 @ membership.T * (counts - 1) / counts  # (…, H)
    # How much of the estimate rests on each question: its share of the sums.
    weight = sum(np.nan_to_num(column / totals[name]) for name, column in columns.items())
    effective = (weight @ membership.T) ** 2 / (weight**2 @ membership.T)
    return Spread(variances, np.fmax(effective - 1, 1.0))


def _estimate(value: float, low: float, high: float, p: float) -> Estimate:
    if not (math.isfinite(low) and math.isfinite(high)):
        return Estimate(value, None, None)
    if high - low <= _CONSTANT * max(1.0, abs(value)):
        low = high = value
        p = p if math.isnan(p) else float(math.isclose(value, 1.0, rel_tol=_CONSTANT))
    return Estimate(value, low, high, None if math.isnan(p) else p)


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Each p-value corrected for there being several (Holm, Scand. J. Statist. 6, 1979)."""
    adjusted: dict[Key, float] = {}
    largest = 0.0
    for place, key in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[key]))
        adjusted[key] = largest
    return adjusted
