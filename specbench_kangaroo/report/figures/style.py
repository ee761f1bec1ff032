"""How every figure looks: the page, entries' looks, values with intervals, legends, files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import ArrayLike

from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.stats.intervals import Estimate, Floats
from specbench_kangaroo.stats.summary import Summary

FORMATS = ("png", "svg", "pdf")
DPI = 160
WIDTH = 8.0  # inches
EDGE = "0.3"  # of bars, hatches and markers
BAR: Mapping[str, Any] = {"edgecolor": EDGE, "linewidth": 0.6}

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


def title(summary: Summary, names: Sequence[str] = ()) -> str:
    """What was run; one entry alone is named here, several are in the legend or on an axis."""
    subject = f"{summary.label(names[0])}: " if len(names) == 1 else ""
    return f"{subject}{summary.model}, {summary.questions}"


def finish(figure: Figure, *, heading: str = "", note: str = "", entries: bool = True) -> Figure:
    """The figure with only those spines that carry a scale, and a legend of all labels.

    The legend lies outside the axes, so that it is over no data, and has each label once.

    Args:
        figure: with everything drawn; it grows with the rows of the legend.
        heading: above all panels.
        note: a line or two about the whole figure, above the entries.
        entries: False leaves the note alone, where there is nothing to tell apart.
    """
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    if heading:
        figure.suptitle(heading, fontsize="medium")
    keys: dict[str, Artist] = {}
    for axes in figure.axes if entries else ():
        for key, label in zip(*axes.get_legend_handles_labels(), strict=True):
            keys.setdefault(label, key)
    if keys or note:
        _legend(figure, keys, note)
    return as_they_are(figure)


def as_they_are(figure: Figure) -> Figure:
    """The figure without formulas in its texts: a task or a model may be named with dollars."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    return figure


def _legend(figure: Figure, keys: Mapping[str, Artist], note: str) -> None:
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


def grid(axes: Axes) -> None:
    """Faint lines to read heights by, behind the data."""
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)


def name_rows(axes: Axes, labels: Sequence[str], places: Sequence[float] | None = None) -> None:
    """The rows of horizontal bars or points, from the top; evenly set where no places are given."""
    axes.set_yticks(range(len(labels)) if places is None else places, labels)
    axes.tick_params(axis="y", length=0)
    if places is None:
        axes.set_ylim(-0.6, len(labels) - 0.4)
    axes.invert_yaxis()


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


def spans(found: Sequence[Estimate]) -> Floats:
    """(N, 3) values with their bounds; NaN where there is none."""
    return np.array([(item.value, item.low, item.high) for item in found], dtype=np.float64)


def reach(found: ArrayLike) -> Floats:
    """(2, N) how far intervals reach below and above their values, of (N, 3) as from ``spans``.

    An interval need not hold the value, and an error bar has no negative length.
    """
    value, low, high = np.asarray(found, dtype=np.float64).T
    lengths: Floats = np.maximum([value - low, high - value], 0.0)
    return lengths


def end(*found: Estimate) -> float:
    """Where values and intervals end."""
    return float(np.nanmax(spans(found)))


def error_bar(axes: Axes, found: Estimate, y: float) -> None:
    """A horizontal one, legible over a hatch too; none without an interval."""
    lengths = reach(spans([found]))
    if np.isnan(lengths).any():
        return
    for colour, width in (("white", 3.2), ("black", 1.2)):  # a halo, against the hatches
        axes.errorbar(
            found.value,
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


def curve(axes: Axes, x: ArrayLike, found: Floats, look: Look, label: str) -> None:
    """An entry's points with vertical error bars, (N, 3) as from :func:`spans`."""
    axes.errorbar(
        x,
        found[:, 0],
        yerr=reach(found),
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
