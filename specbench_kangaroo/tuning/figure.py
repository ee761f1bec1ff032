"""A tuning as a figure: predicted speedup by draft length and threshold, overall and by task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from specbench_kangaroo.report.figures.style import page
from specbench_kangaroo.stats.bootstrap import Floats
from specbench_kangaroo.stats.summary import OVERALL
from specbench_kangaroo.tuning.surfaces import TaskTuning
from specbench_kangaroo.tuning.tuning import Tuning

_COLOURS = "cividis"  # even steps, and the same to the colour-blind
_BEST = "#D55E00"  # Okabe and Ito's vermilion, which stands out from all of cividis
_LARGE, _SMALL = 0.25, 1.7  # inches: a row of the large map, a small map
_PER_ROW = 3
_DARK = 0.55  # cividis is dark up to here
# Colours are shares of a map's best, so that a map of small speedups shows its shape as well as one
# of large ones.  Settings that lose more than a quarter need not be told apart.
_SHARES = Normalize(0.75, 1.0, clip=True)


def speedup_surface(tuning: Tuning) -> Figure:
    """A heat map for all questions, with its values, and a small one for each task.

    The best setting of each map is framed, and the colours are shares of it.
    """
    tasks = [task for task in tuning.tasks if task != OVERALL]
    rows = -(-len(tasks) // _PER_ROW) if len(tasks) > 1 else 0  # one task is all there is
    large = 1.0 + _LARGE * len(tuning.steps)
    figure = page(large + _SMALL * rows + 0.7)
    grid = figure.add_gridspec(1 + rows, _PER_ROW, height_ratios=[large, *[_SMALL] * rows])
    whole = figure.add_subplot(grid[0, :])
    image = _map(whole, tuning, OVERALL)
    _values(whole, tuning.tasks[OVERALL])
    whole.set_title(_title(tuning), fontsize="medium")
    axes = [whole]
    for place, task in enumerate(tasks if rows else []):
        axes.append(figure.add_subplot(grid[1 + place // _PER_ROW, place % _PER_ROW]))
        _map(axes[-1], tuning, task)
        axes[-1].set_title(_small_title(task, tuning.tasks[task]), fontsize="small")
    bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=40, extend="min")
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    bar.set_label("of the best speedup in the same map")
    return figure


def _map(axes: Axes, tuning: Tuning, task: str) -> AxesImage:
    part = tuning.tasks[task]
    image = axes.imshow(_shares(part), cmap=_COLOURS, norm=_SHARES, origin="lower", aspect="auto")
    row = tuning.steps.index(part.best.steps)
    column = tuning.thresholds.index(part.best.threshold)
    axes.add_patch(
        Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=_BEST, linewidth=2.2)
    )
    large = task == OVERALL
    every = 2 if large else 5
    axes.set_xticks(*_ticks([f"{eta:g}" for eta in tuning.thresholds], every))
    axes.set_yticks(*_ticks([str(steps) for steps in tuning.steps], 1 if large else 3))
    size = "medium" if large else "small"
    axes.tick_params(labelsize="small" if large else "x-small", length=2)
    axes.set_xlabel("threshold η", fontsize=size)
    axes.set_ylabel("steps γ", fontsize=size)
    return image


def _ticks(labels: Sequence[str], every: int) -> tuple[list[int], list[str]]:
    places = list(range(0, len(labels), every))
    return places, [labels[place] for place in places]


def _shares(part: TaskTuning) -> Floats:
    shares: Floats = part.speedup / part.speedup.max()
    return shares


def _values(axes: Axes, part: TaskTuning) -> None:
    shares = _shares(part)
    for (row, column), value in np.ndenumerate(part.speedup):
        axes.text(
            column,
            row,
            f"{value:.2f}",
            ha="center",
            va="center",
            fontsize=6,
            color="white" if float(_SHARES(shares[row, column])) < _DARK else "black",
        )


def _title(tuning: Tuning) -> str:
    best = tuning.tasks[OVERALL]
    return (
        f"predicted speedup of {tuning.entry} over {tuning.baseline}: {tuning.model}, "
        f"{tuning.questions}\nbest overall: {best.estimate.value:.2f}× at γ = {best.best.steps}, "
        f"η = {best.best.threshold:g} (n = {best.n})"
    )


def _small_title(task: str, part: TaskTuning) -> str:
    return (
        f"{task.replace('_', ' ')} (n = {part.n})\n{part.estimate.value:.2f}× at "
        f"γ = {part.best.steps}, η = {part.best.threshold:g}"
    )
