"""What a gate is: one question about one entry, with its limit and its answer."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from specbench_kangaroo.stats.bootstrap import Estimate

# A loss that is the tolerance itself holds, whichever way its last bit was rounded.
_ROUNDING = 1e-9


class Bound(Enum):
    """On which side of its limit a value has to stay."""

    AT_LEAST = "≥"
    AT_MOST = "≤"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerances:
    """By how much a candidate may be worse."""

    acceptance: float = 0.02  # relative for the mean, absolute for the share of steps by position
    tokens: float = 0.0  # share of answers
    speedup: float = 0.05  # relative; the whole interval must lie beyond it


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One question about one entry, answered.

    ``baseline`` is None where the value itself is already a comparison.  What is measured in time
    has a ``change``: the value over the baseline's with its interval, the whole of which must lie
    beyond what is allowed for the gate to fail.
    """

    name: str
    entry: str
    passed: bool
    baseline: float | None
    value: float
    bound: Bound
    limit: float
    detail: str
    change: Estimate | None = None


def decided(
    name: str,
    entry: str,
    baseline: float | None,
    value: float,
    bound: Bound,
    limit: float,
    detail: str,
) -> Gate:
    """The gate that ``value`` passes if it stays on its side of ``limit``."""
    room = value - limit if bound is Bound.AT_LEAST else limit - value
    return Gate(
        name=name,
        entry=entry,
        passed=room >= -_ROUNDING,
        baseline=baseline,
        value=value,
        bound=bound,
        limit=limit,
        detail=detail,
    )
