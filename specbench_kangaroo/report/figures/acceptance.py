"""Acceptance as figures: by position of the draft, and how long what is accepted gets."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from specbench_kangaroo.report.figures import style
from specbench_kangaroo.report.figures.step_tables import accepted_lengths as length_table
from specbench_kangaroo.stats.intervals import INTERVAL_NAME
from specbench_kangaroo.stats.summary import Summary

_PANELS = {
    "marginal": "marginal: of all steps",
    "conditional": "conditional: of the steps that drafted this far",
}
_ERRORS = f"error bars: {INTERVAL_NAME}"
_IDENTITY = f"mean accepted tokens = 1 + the sum of the marginal shares ({_ERRORS})"
_MEAN = f"mean: accepted tokens of a step, the bonus token included ({_ERRORS})"
_BAR, _LINE = "exactly w", "at least w: CTAR(w)"
_TICKS = 12  # at most
_DODGE = 0.06  # positions between two entries' error bars


def acceptance_by_position(summary: Summary) -> Figure | None:
    """The share of steps that accept a draft up to each position; None if no entry drafts."""
    names = _drafting(summary)
    if not names:
        return None
    figure = style.page(3.9)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    known = style.looks(summary)
    for place, name in enumerate(names):
        shift = _DODGE * (place - (len(names) - 1) / 2)
        label = summary.label(name)
        for axes, which in zip(panels, _PANELS, strict=True):
            found = [getattr(item, which) for item in summary.entries[name].positions]
            places = np.arange(1, len(found) + 1) + shift
            style.curve(axes, places, style.spans(found), known[name], label)
    for axes, heading in zip(panels, _PANELS.values(), strict=True):
        axes.set_title(heading, fontsize="medium")
        axes.set_xlabel("position in the draft")
        _dress(axes)
    panels[0].set_ylabel("share accepted")
    deepest = max(len(summary.entries[name].positions) for name in names)
    panels[0].set_xticks(_places(1, deepest))
    return style.finish(
        figure, heading=style.title(summary, names), note=_IDENTITY, entries=len(names) > 1
    )


def accepted_lengths(summary: Summary) -> Figure | None:
    """How many tokens in a row a step accepts, a panel per entry; None if no entry drafts."""
    names = _drafting(summary)
    if not names:
        return None
    columns = style.panels_in_row([summary.label(name) for name in names])
    rows = -(-len(names) // columns)
    figure = style.page(1.2 + 2.3 * rows)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    known = style.looks(summary)
    # The bars have their entries' colours, the legend's has none of them.
    panels[0, 0].add_patch(
        Rectangle((0, 0), 0, 0, facecolor="0.87", edgecolor=style.EDGE, label=_BAR)
    )
    for axes in panels.flat[len(names) :]:
        axes.remove()
    for place, (name, axes) in enumerate(zip(names, panels.flat, strict=False)):
        _lengths(axes, summary, name, known[name])
        if place % columns == 0:
            axes.set_ylabel("share of decode steps")
        if place + columns >= len(names):
            axes.set_xlabel("tokens w accepted in a row")
    return style.finish(figure, heading=style.title(summary), note=_MEAN)


def _drafting(summary: Summary) -> list[str]:
    return [name for name, entry in summary.entries.items() if entry.positions]


def _lengths(axes: Axes, summary: Summary, entry: str, look: style.Look) -> None:
    table = length_table(summary, entry)
    axes.bar(
        table["length"],
        table["exactly"],
        width=0.8,
        color=look.colour,
        **style.BAR,
    )
    axes.errorbar(
        table["length"],
        table["at_least"],
        yerr=style.reach(table[["at_least", "low", "high"]]),
        color="black",
        marker="o",
        markersize=3,
        linewidth=1.1,
        drawstyle="steps-mid",
        capsize=style.CAP,
        label=_LINE,
    )
    axes.set_xticks(_places(0, len(table) - 1))
    mean = summary.overall(entry)["mean_accepted_tokens"]
    axes.set_title(f"{summary.label(entry)}\nmean {mean.value:.2f}", fontsize="medium")
    _dress(axes)


def _places(first: int, last: int) -> list[int]:
    """Whole numbers for an axis, few enough to be read."""
    return list(range(first, last + 1, 1 + (last - first) // _TICKS))


def _dress(axes: Axes) -> None:
    axes.set_ylim(-0.03, 1.04)
    style.grid(axes)
