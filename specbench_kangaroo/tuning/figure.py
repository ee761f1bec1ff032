"""A tuning as a figure: predicted speedup by draft length and threshold, overall and by task."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from specbench_kangaroo.report.figures.style import as_they_are, page
from specbench_kangaroo.stats.summary import OVERALL
from specbench_kangaroo.tuning.tuning import THRESHOLDS, TaskTuning, Tuning

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
    if len(tasks) == 1:  # which is all there is
        tasks = []
    rows = -(-len(tasks) // _PER_ROW)
    large = 1.0 + _LARGE * len(tuning.steps)
    figure = page(large + _SMALL * rows + 0.7)
    grid = figure.add_gridspec(1 + rows, _PER_ROW, height_ratios=[large, *[_SMALL] * rows])
    axes = [figure.add_subplot(grid[0, :])]
    image = _map(axes[0], tuning, OVERALL)
    _values(axes[0], tuning.tasks[OVERALL])
    axes[0].set_title(_title(tuning), fontsize="medium")
    for place, task in enumerate(tasks):
        axes.append(figure.add_subplot(grid[1 + place // _PER_ROW, place % _PER_ROW]))
        _map(axes[-1], tuning, task)
        axes[-1].set_title(_small_title(task, tuning.tasks[task]), fontsize="small")
    bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=40, extend="min")
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    bar.set_label("of the best speedup in the same map")
    return as_they_are(figure)


def _map(axes: Axes, tuning: Tuning, task: str) -> AxesImage:
    part, large = tuning.tasks[task], task == OVERALL
    shares = part.speedup / part.speedup.max()
    image = axes.imshow(shares, cmap=_COLOURS, norm=_SHARES, origin="lower", aspect="auto")
    corner = THRESHOLDS.index(part.best.threshold) - 0.5, tuning.steps.index(part.best.steps) - 0.5
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=_BEST, linewidth=2.2))
    columns = range(0, len(THRESHOLDS), 2 if large else 5)
    axes.set_xticks(columns, [f"{THRESHOLDS[column]:g}" for column in columns])
    rows = range(0, len(tuning.steps), 1 if large else 3)
    axes.set_yticks(rows, [str(tuning.steps[row]) for row in rows])
    size = "medium" if large else "small"
    axes.tick_params(labelsize="small" if large else "x-small", length=2)
    axes.set_xlabel("threshold η", fontsize=size)
    axes.set_ylabel("steps γ", fontsize=size)
    return image


def _values(axes: Axes, part: TaskTuning) -> None:
    dark = _SHARES(part.speedup / part.speedup.max()) < _DARK
    for (row, column), value in np.ndenumerate(part.speedup):
        colour = "white" if dark[row, column] else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour)


def _title(tuning: Tuning) -> str:
    run, best = tuning.manifest, tuning.tasks[OVERALL]
    return (
        f"predicted speedup of {tuning.entry} over {run.baseline}: {run.model}, {run.questions}\n"
        f"best overall: {best.estimate.value:.2f}× at γ = {best.best.steps}, "
        f"η = {best.best.threshold:g} (n = {best.n})"
    )


def _small_title(task: str, part: TaskTuning) -> str:
    return (
        f"{task.replace('_', ' ')} (n = {part.n})\n{part.estimate.value:.2f}× at "
        f"γ = {part.best.steps}, η = {part.best.threshold:g}"
    )
