"""The draft's confidence against acceptance, as a figure: what a threshold on it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from specbench_kangaroo.record.schema import THRESHOLD, Manifest
from specbench_kangaroo.report.figures import clustered, style
from specbench_kangaroo.report.figures.paired_steps import PairedSteps
from specbench_kangaroo.report.figures.step_tables import calibration as calibration_table
from specbench_kangaroo.stats.summary import Summary

_THRESHOLD_LINE: Mapping[str, Any] = {"color": "black", "linestyle": ":", "linewidth": 1.4}
_ERRORS = f"error bars: {clustered.INTERVAL_NAME}"
_TREE_NOTE = (
    "tree: accepted if any token at that depth was; the end of an accepted branch counts as a "
    "rejection"
)


def calibration(
    summary: Summary, manifest: Manifest, parts: Mapping[str, PairedSteps]
) -> Figure | None:
    """Confidence against acceptance, a column per entry; None if no entry logs confidences."""
    tables = {name: calibration_table(part) for name, part in parts.items()}
    tables = {name: table for name, table in tables.items() if len(table)}
    if not tables:
        return None
    branched = [name for name in tables if parts[name].has_branches]
    labels = {name: summary.label(name) + " (tree)" * (name in branched) for name in tables}
    columns = style.panels_in_row(list(labels.values()))
    blocks = -(-len(tables) // columns)
    figure = style.page(1.2 + 3.4 * blocks)
    grid = figure.add_gridspec(2 * blocks, columns, height_ratios=[3, 1] * blocks)
    known = style.looks(summary)
    for place, (name, table) in enumerate(tables.items()):
        row, column = 2 * (place // columns), place % columns
        upper = figure.add_subplot(grid[row, column])
        lower = figure.add_subplot(grid[row + 1, column], sharex=upper)
        _reliability(upper, table, known[name])
        _histogram(lower, table, known[name])
        counted = f"n = {table['tokens'].sum():,} tokens"
        if threshold := _threshold(manifest, name):
            counted = f"η = {threshold:g}, {counted}"
            for axes in (upper, lower):
                axes.axvline(threshold, label="threshold η", **_THRESHOLD_LINE)
        upper.set_title(f"{labels[name]}\n{counted}", fontsize="medium")
        if column == 0:
            upper.set_ylabel("share accepted")
            lower.set_ylabel("tokens")
    note = f"{_TREE_NOTE}\n{_ERRORS}" if branched else _ERRORS
    return style.finish(figure, heading=style.title(summary), note=note)


def _reliability(axes: Axes, table: pd.DataFrame, look: style.Look) -> None:
    axes.plot(
        [0, 1],
        [0, 1],
        color="0.5",
        linestyle="--",
        linewidth=1.0,
        label="calibrated",
    )
    found = table[["accepted", "low", "high"]].to_numpy()
    style.curve(axes, table["confidence"], found, look, "measured")
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(-0.03, 1.04)
    axes.set_xticks([0.0, 0.25, 0.5, 0.75, 1.0], ["0", "0.25", "0.5", "0.75", "1"])
    axes.tick_params(labelbottom=False)


def _histogram(axes: Axes, table: pd.DataFrame, look: style.Look) -> None:
    axes.bar(
        table["left"],
        table["tokens"],
        width=table["right"] - table["left"],
        align="edge",
        color=look.colour,
        **style.BAR,
    )
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.set_xlabel("draft's top-1 probability")


def _threshold(manifest: Manifest, entry: str) -> float | None:
    """Below which drafting stops, if there is such."""
    found = manifest.entries[entry].options.get(THRESHOLD)
    return float(found) if isinstance(found, (int, float)) else None  # others' may be anything
