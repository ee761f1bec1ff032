"""Intervals for figures with many points: ratios of sums whose clusters are questions.

A reported figure has its interval from :mod:`intervals`.  A curve has hundreds of points, and the
ratio's linearisation (Cochran, Sampling Techniques, 1977, section 6.4) gives nearly the same at
once: the residuals of a question's sums, with Student's t for few questions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtrit

from specbench_kangaroo.stats.intervals import CONFIDENCE_LEVEL, Floats

INTERVAL_NAME = "95 % interval, clustered by question"
_COLUMNS = ["value", "low", "high", "questions"]
Ints = NDArray[np.integer[Any]]


def sums(
    cell: Ints, question: Ints, weights: Floats | None = None, *, cells: int, questions: int
) -> Floats:
    """Sums of ``weights``, or counts without any, by cell and question: (B, K).

    Args:
        cell: (S,) which cell each observation lies in, from 0.
        question: (S,) whose it is, from 0.
        weights: (S,) what is summed.
        cells: B.
        questions: K.
    """
    place = cell * questions + question
    found = np.bincount(place, weights, minlength=cells * questions)
    return found.reshape(cells, questions).astype(np.float64)


def ratios(over: Floats, under: Floats) -> pd.DataFrame:
    """``Σ over / Σ under`` of each cell, from sums by cell and question (B, K).

    A row per cell, with columns ``value``, NaN without observations; ``low, high``, NaN where a
    single question cannot give any; and ``questions``, how many have observations in the cell.
    """
    found = _linearised(over, under)
    half = found["reach"] * found["error"]
    found = found.assign(low=found["value"] - half, high=found["value"] + half)
    return found[_COLUMNS]


def shares(hits: Floats, trials: Floats) -> pd.DataFrame:
    """The share of trials that are hits, from counts by cell and question (B, K), as ``ratios``.

    Wilson's interval for as many independent trials as have the clustered standard error (Korn and
    Graubard 1998), so that it stays within 0 and 1.  Where all trials came out alike there is no
    spread to tell how they depend on each other, and each question counts as one trial.
    """
    found = _linearised(hits, trials)
    value, error, reach = (found[name].to_numpy() for name in ("value", "error", "reach"))
    with np.errstate(all="ignore"):
        spread = value * (1 - value)
        count = np.where(error > 0, spread / error**2, found["questions"])
        count = np.minimum(count, trials.sum(axis=1))
        shrink = 1 + reach**2 / count
        centre = (value + reach**2 / (2 * count)) / shrink
        half = reach / shrink * np.sqrt(spread / count + reach**2 / (4 * count**2))
    return found.assign(low=centre - half, high=centre + half)[_COLUMNS]


def _linearised(over: Floats, under: Floats) -> pd.DataFrame:
    """Value, standard error, how many of these an interval reaches, and questions, by cell."""
    questions = (under > 0).sum(axis=1)
    total = under.sum(axis=1)
    with np.errstate(all="ignore"):
        value = over.sum(axis=1) / total
        residuals = np.where(under > 0, over - value[:, None] * under, 0.0)  # [B, K]
        scale = questions / (questions - 1)
        error = np.sqrt(scale * (residuals**2).sum(axis=1)) / total
        reach = stdtrit(questions - 1, 0.5 + CONFIDENCE_LEVEL / 2)
    found = pd.DataFrame({"value": value, "questions": questions, "error": error, "reach": reach})
    found.loc[questions < 2, ["error", "reach"]] = np.nan
    return found
