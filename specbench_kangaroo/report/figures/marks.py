"""What figures draw of a value with an interval: error bars, points, curves, its text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from specbench_kangaroo.report.figures.style import EDGE, Look
from specbench_kangaroo.stats import bootstrap
from specbench_kangaroo.stats.bootstrap import Floats

CAP = 2.5  # points, half the width of an error bar's end


def reach(value: ArrayLike, low: ArrayLike, high: ArrayLike) -> Floats:
    """(2, N) how far intervals reach below and above their values; NaN where there is none.

    An interval need not hold the value, and an error bar has no negative length.
    """
    point = np.array(value, dtype=np.float64, ndmin=1)
    below, above = point - np.asarray(low, np.float64), np.asarray(high, np.float64) - point
    return np.maximum(np.stack([below, above]), 0.0)


def reach_of(found: Sequence[bootstrap.Estimate]) -> Floats:
    """:func:`reach` of figures with their intervals."""
    none = float("nan")
    return reach(
        [item.value for item in found],
        [none if item.low is None else item.low for item in found],
        [none if item.high is None else item.high for item in found],
    )


def error_bar(axes: Axes, x: float, y: float, lengths: Floats) -> None:
    """A horizontal one, (2, 1) ``lengths`` as of :func:`reach`, legible over a hatch too."""
    if np.isnan(lengths).any():
        return
    for colour, width in (("white", 3.2), ("black", 1.2)):  # a halo, against the hatches
        axes.errorbar(
            x,
            y,
            xerr=lengths,
            fmt="none",
            ecolor=colour,
            elinewidth=width,
            capsize=CAP,
            capthick=width,
        )


def note(axes: Axes, text: str, x: float, y: float) -> None:
    """A value written to the right of what ends at ``x``."""
    axes.annotate(
        text,
        (x, y),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontsize="small",
        zorder=4,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},  # over the line at 1
    )


def point(
    axes: Axes, x: ArrayLike, y: ArrayLike, *, face: str, marker: str = "o", label: str = "_"
) -> None:
    """A large marker; one without data is an entry of the legend."""
    axes.plot(
        x,
        y,
        marker=marker,
        linestyle="none",
        markersize=8,
        markerfacecolor=face,
        markeredgecolor=EDGE,
        label=label,
        zorder=5,
    )


def curve(axes: Axes, x: ArrayLike, y: ArrayLike, lengths: Floats, look: Look, label: str) -> None:
    """An entry's points with vertical error bars, (2, N) ``lengths`` as of :func:`reach`."""
    axes.errorbar(
        x,
        y,
        yerr=lengths,
        color=look.colour,
        marker=look.marker,
        linestyle=look.line,
        linewidth=1.4,
        markersize=5.5,
        markeredgecolor=EDGE,
        markeredgewidth=0.6,
        elinewidth=1.1,
        capsize=CAP,
        label=label,
    )
