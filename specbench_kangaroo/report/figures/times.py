"""Time as figures: what a decode step is spent on, and how it grows with the context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specbench_kangaroo.report.figures import clustered, style
from specbench_kangaroo.report.figures.paired_steps import PairedSteps
from specbench_kangaroo.report.figures.step_tables import (
    OF_TIME,
    OF_YIELD,
    PHASES,
    TOTAL,
    by_context,
    step_times,
)
from specbench_kangaroo.stats.intervals import INTERVAL_NAME, Estimate
from specbench_kangaroo.stats.summary import Summary


class _Phase(NamedTuple):
    colour: str
    hatch: str
    ink: str | None  # of a value written on it; none over hatches


# Four even steps of cividis, which a greyscale print keeps in order, and hatches.
PHASE_LOOKS = {
    "draft": _Phase("#123570", "", "white"),
    "verify": _Phase("#7D7C78", "", "white"),
    "accept": _Phase("#BCAD6C", "////", None),
    "other": _Phase("#FEE838", "....", None),
}
_ROOM = 0.09  # of the longest bar, for a value within
_ROW_INCHES = 0.46
_STEP_NOTE = f"error bars: {clustered.INTERVAL_NAME} (left), {INTERVAL_NAME} (right)"
_CONTEXT_LABELS = ("milliseconds per token", "mean accepted tokens")
_CONTEXT_NOTE = (
    "milliseconds of draft, verify and accept; bins of equally many baseline steps, "
    f"which differ in their tasks too\nerror bars: {clustered.INTERVAL_NAME}"
)


def step_time(summary: Summary, parts: Mapping[str, PairedSteps]) -> Figure | None:
    """A bar per entry, stacked by phase, beside the time of a token; None without any step."""
    table = step_times(parts)
    if table.empty:
        return None
    phases = table.pivot(index="entry", columns="phase", values="ms_per_step")
    totals = table[table["phase"] == TOTAL].set_index("entry")
    names = list(totals.index)
    figure = style.page(1.7 + _ROW_INCHES * len(names))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    _stacks(left, phases.loc[names])
    known = style.looks(summary)
    for row, name in enumerate(names):
        _whole(left, totals.loc[name], row)
        _token(right, summary, name, row, known[name])
    for axes, label in ((left, "milliseconds per decode step"), (right, "milliseconds per token")):
        axes.set_xlabel(label)
        axes.set_xlim(0.0, 1.2 * axes.dataLim.x1)  # room for the values
        axes.tick_params(axis="y", length=0)
    style.name_rows(left, [summary.label(name) for name in names])
    return style.finish(figure, heading=style.title(summary), note=_STEP_NOTE)


def context_length(summary: Summary, parts: Mapping[str, PairedSteps]) -> Figure | None:
    """Time per token and accepted tokens against context length; None without any step."""
    table = by_context(parts, summary.baseline)
    if table.empty:
        return None
    drafting = bool(table["mean_accepted_tokens"].notna().any())
    figure = style.page(4.4)
    panels = figure.subplots(1, 1 + drafting, sharex=True, squeeze=False)[0]
    known = style.looks(summary)
    for name, part in table.groupby("entry", sort=False):
        label = summary.label(str(name))
        for axes, columns in zip(panels, (OF_TIME, OF_YIELD), strict=False):
            found = part[list(columns)].to_numpy()
            if not np.isnan(found[:, 0]).all():
                style.curve(axes, part["context_length"], found, known[str(name)], label)
    for axes, label, least in zip(panels, _CONTEXT_LABELS, (0.0, 1.0), strict=False):
        axes.set_xlabel("context length in tokens")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=least)
        style.grid(axes)
    return style.finish(figure, heading=style.title(summary), note=_CONTEXT_NOTE)


def _stacks(axes: Axes, phases: pd.DataFrame) -> None:
    """A bar per row of ``phases``; a part that is wide enough has its value in it."""
    start = np.zeros(len(phases))
    for phase in PHASES:
        look = PHASE_LOOKS[phase]
        # Clocks of device and host differ by microseconds, which may leave less than nothing.
        width = phases[phase].clip(lower=0.0).to_numpy()
        bars = axes.barh(
            np.arange(len(phases)),
            width,
            left=start,
            height=0.66,
            color=look.colour,
            hatch=look.hatch,
            label=phase,
            **style.BAR,
        )
        start = start + width
        if look.ink:
            room = _ROOM * phases[TOTAL].max()
            values = [f"{ms:.1f}" if ms > room else "" for ms in width]
            axes.bar_label(bars, values, label_type="center", color=look.ink, fontsize="small")


def _whole(axes: Axes, total: pd.Series, row: int) -> None:
    found = Estimate(*total[["ms_per_step", "low", "high"]].astype(float))
    style.error_bar(axes, found, row)
    style.note(axes, f"{found.value:.1f}", style.end(found), row)


def _token(axes: Axes, summary: Summary, entry: str, row: int, look: style.Look) -> None:
    found = summary.overall(entry).get("tpot_ms")
    if found is None:
        return
    if entry == summary.baseline:
        axes.axvline(found.value, color="black", linestyle="--", linewidth=1.0)
    style.error_bar(axes, found, row)
    style.point(axes, found.value, row, face=look.colour, marker=look.marker)
    style.note(axes, f"{found.value:.1f}", style.end(found), row)
