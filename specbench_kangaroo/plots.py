"""A summary as figures.

Knows: matplotlib and :class:`~specbench_kangaroo.stats.Summary`.  Does not know: records, windows
or pyplot's global state.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from specbench_kangaroo import bootstrap
from specbench_kangaroo.errors import UsageError
from specbench_kangaroo.stats import Summary

FORMATS = ("png", "svg", "pdf")
DPI = 160

# Okabe and Ito's colours, safe for the colour-blind; those on which a black error bar shows come
# first.  The hatches tell neighbours apart in greyscale.
_COLOURS = ("#56B4E9", "#E69F00", "#F0E442", "#009E73", "#CC79A7", "#D55E00", "#0072B2")
_HATCHES = ("", "//", "..", "\\\\", "xx", "--", "oo")
_BAR_INCHES = 0.26
_GROUP_GAP = 0.6  # between tasks, in bars


def speedup_by_task(summary: Summary) -> Figure:
    """Speedup over the baseline: a group of bars per task, a bar per method, with intervals.

    Raises:
        UsageError: no method was set against the baseline.
    """
    names = [name for name in summary.methods if "speedup" in _figures(summary, name)]
    if not names:
        raise UsageError(
            f"run {summary.run!r} has no speedup to plot: nothing but the baseline ran"
        )
    tasks = list(dict.fromkeys(task for name in names for task in summary.methods[name].tasks))
    pitch = len(names) + _GROUP_GAP
    figure = Figure(figsize=(8.0, 1.6 + _BAR_INCHES * pitch * len(tasks)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, name in enumerate(names):
        centres = [pitch * place + index for place in range(len(tasks))]
        _bars(axes, summary, name, tasks=tasks, centres=centres, style=index)
    middle = (len(names) - 1) / 2
    axes.set_yticks(
        [pitch * place + middle for place in range(len(tasks))], _labels(summary, tasks)
    )
    _dress(axes, summary, names)
    if len(names) > 1:
        # Outside the axes, so that it can lie over no bar.
        figure.legend(loc="outside lower center", ncols=min(len(names), 4), frameon=False)
    return figure


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


def _figures(summary: Summary, method: str) -> dict[str, bootstrap.Figure]:
    tasks = summary.methods[method].tasks
    return dict(next(iter(tasks.values())).figures) if tasks else {}


def _bars(
    axes: Axes,
    summary: Summary,
    method: str,
    *,
    tasks: Sequence[str],
    centres: Sequence[float],
    style: int,
) -> None:
    found = summary.methods[method].tasks
    label = summary.label(method)  # once, so that the legend names each method once
    for task, centre in zip(tasks, centres, strict=True):
        speedup = found[task].figures.get("speedup") if task in found else None
        if speedup is None:
            continue
        _bar(axes, speedup, centre, label=label, style=style)
        label = "_"


def _bar(axes: Axes, speedup: bootstrap.Figure, centre: float, *, label: str, style: int) -> None:
    axes.barh(
        centre,
        speedup.value,
        height=0.86,
        color=_COLOURS[style % len(_COLOURS)],
        hatch=_HATCHES[style % len(_HATCHES)],
        edgecolor="0.3",
        linewidth=0.6,
        label=label,
    )
    end = _error_bar(axes, speedup, centre)
    axes.annotate(
        f"{speedup.value:.2f}×",
        (end, centre),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontsize="small",
        zorder=4,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},  # over the line at 1
    )


def _error_bar(axes: Axes, speedup: bootstrap.Figure, centre: float) -> float:
    """Draws the interval, if there is one; returns where bar and interval end."""
    if speedup.low is None or speedup.high is None:
        return speedup.value
    # A BCa interval need not hold the value, and an error bar has no negative length.
    below, above = max(speedup.value - speedup.low, 0.0), max(speedup.high - speedup.value, 0.0)
    for colour, width in (("white", 3.2), ("black", 1.2)):  # a halo, against the hatches
        axes.errorbar(
            speedup.value,
            centre,
            xerr=[[below], [above]],
            fmt="none",
            ecolor=colour,
            elinewidth=width,
            capsize=2.5,
            capthick=width,
        )
    return speedup.value + above


def _labels(summary: Summary, tasks: Sequence[str]) -> list[str]:
    baseline = summary.methods[summary.baseline].tasks
    return [f"{task.replace('_', ' ')} (n = {baseline[task].n})" for task in tasks]


def _dress(axes: Axes, summary: Summary, names: Sequence[str]) -> None:
    axes.axvline(1.0, color="black", linestyle="--", linewidth=1.0, zorder=3)
    axes.invert_yaxis()  # the first task at the top
    axes.margins(x=0.12, y=0.02)  # room for the values beyond the longest bar
    axes.set_xlim(left=0.0)
    axes.set_xlabel(f"speedup over {summary.baseline}  (error bars: {bootstrap.INTERVAL_NAME})")
    subject = (
        f"{summary.label(names[0])}: " if len(names) == 1 else ""
    )  # otherwise the legend names them
    axes.set_title(f"{subject}{summary.model}, {summary.questions}", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
