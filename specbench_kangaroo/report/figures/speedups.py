"""Speedups as figures: by task, and beside what the same drafts could have given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specbench_kangaroo.report.figures.style import (
    EDGE,
    Look,
    error_bar,
    legend_below,
    looks,
    note,
    page,
    point,
    reach_of,
    title,
    undress,
)
from specbench_kangaroo.stats import bootstrap
from specbench_kangaroo.stats.summary import OVERALL, Summary

_BAR_INCHES = 0.26
_GROUP_GAP = 0.6  # between tasks, in bars
_ROW_INCHES = 0.42
_IDEAL_NOTE = (
    "ideal: the same drafts, verified at the cost of one token, with its interval as a band\n"
    "%: realised as a share of the ideal"
)
_REALISED, _IDEAL, _SHARE = "speedup", "speedup_ideal", "realised_over_ideal"


def speedup_by_task(summary: Summary) -> Figure | None:
    """Speedup over the baseline: a group of bars per task, a bar per entry, with intervals.

    None if no entry was set against the baseline.
    """
    names = [name for name in summary.entries if _REALISED in _overall(summary, name)]
    if not names:
        return None
    tasks = list(dict.fromkeys(task for name in names for task in summary.entries[name].tasks))
    pitch = len(names) + _GROUP_GAP
    figure = page(1.6 + _BAR_INCHES * pitch * len(tasks))
    axes = figure.add_subplot()
    known = looks(summary)
    for index, name in enumerate(names):
        centres = [pitch * place + index for place in range(len(tasks))]
        _bars(axes, summary, name, tasks=tasks, centres=centres, look=known[name])
    middle = (len(names) - 1) / 2
    axes.set_yticks(
        [pitch * place + middle for place in range(len(tasks))], _labels(summary, tasks)
    )
    axes.margins(x=0.12, y=0.02)  # room for the values beyond the longest bar
    axes.set_xlim(left=0.0)
    _dress(axes, summary)
    axes.set_title(title(summary, names), fontsize="medium")
    if len(names) > 1:
        legend_below(figure)
    return figure


def realised_over_ideal(summary: Summary) -> Figure | None:
    """Overall speedup of each entry beside the one if verification cost what one token does.

    None if no entry drafts.
    """
    wanted = {_REALISED, _IDEAL, _SHARE}
    names = [name for name in summary.entries if wanted <= _overall(summary, name).keys()]
    if not names:
        return None
    figure = page(2.0 + _ROW_INCHES * len(names))
    axes = figure.add_subplot()
    known = looks(summary)
    for row, name in enumerate(names):
        _dumbbell(axes, _overall(summary, name), row, known[name])
    point(axes, [], [], face=EDGE, label="realised")
    point(axes, [], [], face="white", label="ideal")
    axes.set_yticks(range(len(names)), [summary.label(name) for name in names])
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.use_sticky_edges = False
    axes.margins(x=0.12)
    _dress(axes, summary)
    axes.set_title(title(summary, []), fontsize="medium")  # the axis names the entries
    legend_below(figure, note=_IDEAL_NOTE)
    return figure


def _overall(summary: Summary, entry: str) -> Mapping[str, bootstrap.Estimate]:
    tasks = summary.entries[entry].tasks
    return tasks[OVERALL].estimates if OVERALL in tasks else {}


def _bars(
    axes: Axes,
    summary: Summary,
    entry: str,
    *,
    tasks: Sequence[str],
    centres: Sequence[float],
    look: Look,
) -> None:
    found = summary.entries[entry].tasks
    for task, centre in zip(tasks, centres, strict=True):
        speedup = found[task].estimates.get(_REALISED) if task in found else None
        if speedup is None:
            continue
        _bar(axes, speedup, centre, label=summary.label(entry), look=look)


def _bar(axes: Axes, speedup: bootstrap.Estimate, centre: float, *, label: str, look: Look) -> None:
    axes.barh(
        centre,
        speedup.value,
        height=0.86,
        color=look.colour,
        hatch=look.hatch,
        edgecolor=EDGE,
        linewidth=0.6,
        label=label,
    )
    error_bar(axes, speedup.value, centre, reach_of([speedup]))
    note(axes, f"{speedup.value:.2f}×", _end(speedup), centre)


def _dumbbell(axes: Axes, found: Mapping[str, bootstrap.Estimate], row: int, look: Look) -> None:
    real, ideal, share = (found[name] for name in (_REALISED, _IDEAL, _SHARE))
    axes.plot([real.value, ideal.value], [row, row], color=EDGE, linewidth=1.2, zorder=2)
    if ideal.low is not None and ideal.high is not None:
        # A band, as two error bars on one line could not be told apart where they overlap.
        axes.barh(row, ideal.high - ideal.low, left=ideal.low, height=0.5, color="0.87", zorder=1)
    error_bar(axes, real.value, row, reach_of([real]))
    point(axes, ideal.value, row, face="white", marker=look.marker)
    point(axes, real.value, row, face=look.colour, marker=look.marker)
    note(axes, f"{100 * share.value:.0f} %", max(_end(real), _end(ideal)), row)


def _end(figure: bootstrap.Estimate) -> float:
    """Where value and interval end."""
    return figure.value if figure.high is None else max(figure.value, figure.high)


def _labels(summary: Summary, tasks: Sequence[str]) -> list[str]:
    baseline = summary.entries[summary.baseline].tasks
    return [f"{task.replace('_', ' ')} (n = {baseline[task].n})" for task in tasks]


def _dress(axes: Axes, summary: Summary) -> None:
    axes.axvline(1.0, color="black", linestyle="--", linewidth=1.0, zorder=3)
    axes.invert_yaxis()  # the first row at the top
    axes.set_xlabel(f"speedup over {summary.baseline}  (error bars: {bootstrap.INTERVAL_NAME})")
    undress(axes)
    axes.tick_params(axis="y", length=0)
