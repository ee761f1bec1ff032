"""How every figure looks: the page, entries' looks, values with intervals, legends, files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.stats import bootstrap
from specbench_kangaroo.stats.bootstrap import Floats
from specbench_kangaroo.stats.summary import Summary

FORMATS = ("png", "svg", "pdf")
DPI = 160
WIDTH = 8.0  # inches
EDGE = "0.3"  # of bars, hatches and markers

# Okabe and Ito's colours, safe for the colour-blind; yellow, the faintest as a line, comes last.
# Hatches, markers and dashes tell entries apart in greyscale.
COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#0072B2", "#F0E442")
_HATCHES = ("", "//", "..", "\\\\", "xx", "--", "oo")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
CAP = 2.5  # points, half the width of an error bar's end
# Inches that a text of ten points takes, for what has to be laid out before it is drawn.
_CHARACTER = 0.08
_LEGEND_KEY = 0.65
_LEGEND_ROW = 0.21
_LEGEND_COLUMNS = 4  # at most
_PANELS = 3  # in a row, at most
_PANEL_AXIS = 0.45  # what lies between two panels


@dataclass(frozen=True, slots=True)
class Look:
    """How one entry is drawn, in every figure of a run."""

    colour: str
    hatch: str
    marker: str
    line: str


BASELINE = Look("black", "", "*", "--")  # dashed, as the line that it is at a speedup of 1


def looks(summary: Summary) -> dict[str, Look]:
    """The look of every entry, by its place in the run; the baseline's is always the same."""
    others = [name for name in summary.entries if name != summary.baseline]
    found = {summary.baseline: BASELINE}
    for place, name in enumerate(others):
        at = place % len(COLOURS)
        other = (at + place // len(COLOURS)) % len(_HATCHES)  # no two of 49 entries look alike
        found[name] = Look(COLOURS[at], _HATCHES[other], MARKERS[other], "-")
    return found


def page(height: float) -> Figure:
    """An empty figure, ``height`` in inches; nothing of it is known to pyplot."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def title(summary: Summary, names: Sequence[str]) -> str:
    """What was run; one entry alone is named here, several are in the legend."""
    subject = f"{summary.label(names[0])}: " if len(names) == 1 else ""
    return f"{subject}{summary.model}, {summary.questions}"


def undress(axes: Axes) -> None:
    """Leave only the spines that carry a scale."""
    axes.spines[["top", "right"]].set_visible(False)


def grid(axes: Axes) -> None:
    """Faint lines to read heights by, behind the data."""
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)


def legend_below(figure: Figure, *, note: str = "", entries: bool = True) -> None:
    """A legend of all labels, each once, outside the axes, so that it can lie over no data.

    Args:
        figure: with everything drawn; it grows with the rows of the legend.
        note: a line or two about the whole figure, above the entries.
        entries: False leaves the note alone, where there is nothing to tell apart.
    """
    keys: dict[str, Artist] = {}
    for axes in figure.axes if entries else ():
        for key, label in zip(*axes.get_legend_handles_labels(), strict=True):
            keys.setdefault(label, key)
    labels = list(keys)
    columns = max(1, min(len(labels), _fitting(labels, _LEGEND_COLUMNS, beside=_LEGEND_KEY)))
    further_rows = max(0, -(-len(labels) // columns) - 1)
    figure.set_figheight(figure.get_figheight() + _LEGEND_ROW * further_rows)
    legend = figure.legend(
        list(keys.values()),
        labels,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        title=note or None,
        title_fontsize="small",
    )
    legend.get_title().set_multialignment("center")


def panels_in_row(labels: Sequence[str]) -> int:
    """How many panels fit beside each other, each with one of the labels above it."""
    return min(len(labels), _fitting(labels, _PANELS, beside=_PANEL_AXIS))


def _fitting(labels: Sequence[str], most: int, *, beside: float) -> int:
    longest = max((len(label) for label in labels), default=0)
    return max(1, min(most, int(WIDTH / (longest * _CHARACTER + beside))))


def save(
    figure: Figure, path_without_suffix: Path, formats: Sequence[str] = ("png", "svg")
) -> list[Path]:
    """Writes the figure once per format; the same figure gives the same bytes.

    Raises:
        UsageError: a format that is none of :data:`FORMATS`.
    """
    for name in formats:
        if name not in FORMATS:
            raise UsageError(f"unknown figure format {name!r}; there are: {', '.join(FORMATS)}")
    path_without_suffix.parent.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in formats:
        # Not with_suffix: that would cut a dot in the name of the run off.
        path = path_without_suffix.with_name(f"{path_without_suffix.name}.{name}")
        with mpl.rc_context({"svg.hashsalt": "specbench"}):
            figure.savefig(path, dpi=DPI, metadata=_metadata(name))
        paths.append(path)
    return paths


def _metadata(name: str) -> dict[str, str | None]:
    # No date: it would make two files of the same figure differ.
    dated = {"svg": "Date", "pdf": "CreationDate"}
    return {dated[name]: None} if name in dated else {}


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
