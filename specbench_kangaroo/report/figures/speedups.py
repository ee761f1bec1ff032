"""Speedups as figures: by task, and beside what the same drafts could have given."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specbench_kangaroo.report.figures import style
from specbench_kangaroo.stats.intervals import INTERVAL_NAME, Estimate
from specbench_kangaroo.stats.summary import Summary

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
    names = [name for name in summary.entries if _REALISED in summary.overall(name)]
    if not names:
        return None
    tasks = list(dict.fromkeys(task for name in names for task in summary.entries[name].tasks))
    pitch = len(names) + _GROUP_GAP
    figure = style.page(1.6 + _BAR_INCHES * pitch * len(tasks))
    axes = figure.add_subplot()
    known = style.looks(summary)
    for index, name in enumerate(names):
        for place, task in enumerate(tasks):
            speedup = summary.estimates(name, task).get(_REALISED)
            if speedup is not None:
                _bar(axes, speedup, pitch * place + index, summary.label(name), known[name])
    counts = summary.entries[summary.baseline].tasks
    middle = (len(names) - 1) / 2
    style.name_rows(
        axes,
        [f"{task.replace('_', ' ')} (n = {counts[task].n})" for task in tasks],
        [pitch * place + middle for place in range(len(tasks))],
    )
    axes.margins(x=0.12, y=0.02)  # room for the values beyond the longest bar
    axes.set_xlim(left=0.0)
    _dress(axes, summary)
    axes.set_title(style.title(summary, names), fontsize="medium")
    return style.finish(figure, entries=len(names) > 1)


def realised_over_ideal(summary: Summary) -> Figure | None:
    """Overall speedup of each entry beside the one if verification cost what one token does.

    None if no entry drafts.
    """
    wanted = {_REALISED, _IDEAL, _SHARE}
    names = [name for name in summary.entries if wanted <= summary.overall(name).keys()]
    if not names:
        return None
    figure = style.page(2.0 + _ROW_INCHES * len(names))
    axes = figure.add_subplot()
    known = style.looks(summary)
    for row, name in enumerate(names):
        _dumbbell(axes, summary.overall(name), row, known[name])
    style.point(axes, [], [], face=style.EDGE, label="realised")
    style.point(axes, [], [], face="white", label="ideal")
    style.name_rows(axes, [summary.label(name) for name in names])
    axes.use_sticky_edges = False
    axes.margins(x=0.12)
    _dress(axes, summary)
    axes.set_title(style.title(summary), fontsize="medium")
    return style.finish(figure, note=_IDEAL_NOTE)


def _bar(axes: Axes, speedup: Estimate, centre: float, label: str, look: style.Look) -> None:
    axes.barh(
        centre,
        speedup.value,
        height=0.86,
        color=look.colour,
        hatch=look.hatch,
        label=label,
        **style.BAR,
    )
    style.error_bar(axes, speedup, centre)
    style.note(axes, f"{speedup.value:.2f}×", style.end(speedup), centre)


def _dumbbell(axes: Axes, found: Mapping[str, Estimate], row: int, look: style.Look) -> None:
    real, ideal, share = (found[name] for name in (_REALISED, _IDEAL, _SHARE))
    axes.plot([real.value, ideal.value], [row, row], color=style.EDGE, linewidth=1.2, zorder=2)
    if ideal.low is not None and ideal.high is not None:
        # A band, as two error bars on one line could not be told apart where they overlap.
        axes.barh(row, ideal.high - ideal.low, left=ideal.low, height=0.5, color="0.87", zorder=1)
    style.error_bar(axes, real, row)
    style.point(axes, ideal.value, row, face="white", marker=look.marker)
    style.point(axes, real.value, row, face=look.colour, marker=look.marker)
    style.note(axes, f"{100 * share.value:.0f} %", style.end(real, ideal), row)


def _dress(axes: Axes, summary: Summary) -> None:
    axes.axvline(1.0, color="black", linestyle="--", linewidth=1.0, zorder=3)
    axes.set_xlabel(f"speedup over {summary.baseline}  (error bars: {INTERVAL_NAME})")
