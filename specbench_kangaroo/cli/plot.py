"""``specbench plot``: the figures of finished runs and trained draft heads, as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specbench_kangaroo.cli.completion import run_folders
from specbench_kangaroo.cli.options import FigureFormat
from specbench_kangaroo.cli.output import writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from specbench_kangaroo.stats.summary import Summary

SPEEDUP_FIGURE = "speedup_by_task"
LEARNING_FIGURE = "learning_curve"
_FOLDER = "figures"
_FORMATS = (FigureFormat.PNG, FigureFormat.SVG)


Subjects = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN...",
        help="Run folders; or files of draft weights, whose learning curves share a figure.",
        autocompletion=run_folders,
    ),
]
Figures = Annotated[
    list[str] | None,
    typer.Option(
        help="Only this figure; repeatable.", show_default="all with data", metavar="NAME"
    ),
]
Formats = Annotated[
    list[FigureFormat] | None,
    typer.Option("--format", help="File format; repeatable.", show_default="png and svg"),
]
Output = Annotated[
    Path | None,
    typer.Option(
        help="A folder for the figures, with a folder per run in it.",
        show_default="RUN/figures, or where the weights are",
        metavar="DIR",
    ),
]


def plot(
    runs: Subjects, figure: Figures = None, format_: Formats = None, output: Output = None
) -> None:
    """Draw the figures of runs, or how draft heads learned."""
    from specbench_kangaroo.record.writer import read_run  # noqa: PLC0415
    from specbench_kangaroo.report.figures.catalogue import check_names, figures_of  # noqa: PLC0415
    from specbench_kangaroo.report.figures.learning import WEIGHTS_SUFFIX  # noqa: PLC0415
    from specbench_kangaroo.stats.summary import summarise  # noqa: PLC0415

    check_names(figure or ())
    formats = format_ or _FORMATS
    heads = [path for path in runs if path.suffix == WEIGHTS_SUFFIX]
    folders = [path for path in runs if path.suffix != WEIGHTS_SUFFIX]
    if heads:
        for path in _learning(heads, output or heads[0].parent, formats):
            typer.echo(path)
    for run, folder in _folders(folders, output).items():
        found = read_run(run)
        drawn = figures_of(found, summarise(found), figure)
        _refuse_missing(run, drawn, figure)
        for path in _save(drawn, folder, formats=formats):
            typer.echo(path)


def draw(summary: Summary, folder: Path) -> list[Path]:
    """Save the speedups alone, which is what a run shows of itself when it ends.

    Raises:
        UsageError: there is no speedup, or the folder cannot be written.
    """
    from specbench_kangaroo.record.errors import UsageError  # noqa: PLC0415
    from specbench_kangaroo.report.figures.speedups import speedup_by_task  # noqa: PLC0415

    figure = speedup_by_task(summary)
    if figure is None:
        raise UsageError(
            f"run {summary.run!r} has no speedup to plot: nothing but {summary.baseline} ran"
        )
    return _save({SPEEDUP_FIGURE: figure}, folder, formats=_FORMATS)


def _learning(heads: Sequence[Path], folder: Path, formats: Sequence[FigureFormat]) -> list[Path]:
    from specbench_kangaroo.report.figures.learning import learning_curve, read_learning  # noqa: PLC0415

    figure = learning_curve([read_learning(path) for path in heads])
    return _save({LEARNING_FIGURE: figure}, folder, formats=formats)


def _folders(runs: Sequence[Path], output: Path | None) -> dict[Path, Path]:
    """Where the figures of each run go."""
    from specbench_kangaroo.record.errors import UsageError  # noqa: PLC0415

    if output is None:
        return {run: run / _FOLDER for run in runs}
    folders = {run: output / run.resolve().name for run in runs}
    for folder in folders.values():
        same = [str(run) for run, other in folders.items() if other == folder]
        if len(same) > 1:
            raise UsageError(
                f"the figures of {' and '.join(same)} would overwrite each other in {folder}; "
                "plot them one by one, each with its own --output"
            )
    return folders


def _refuse_missing(run: Path, drawn: Mapping[str, Figure], asked: Sequence[str] | None) -> None:
    """Whoever asks for a figure by name is told why there is none."""
    from specbench_kangaroo.record.errors import UsageError  # noqa: PLC0415

    missing = [name for name in asked or () if name not in drawn]
    if missing:
        raise UsageError(f"{run} has no data for {', '.join(missing)}; leave it out")
    if not drawn:
        raise UsageError(f"{run} has no answers to draw anything from; see its generations.jsonl")


def _save(
    drawn: Mapping[str, Figure], folder: Path, *, formats: Sequence[FigureFormat]
) -> list[Path]:
    from specbench_kangaroo.report.figures.style import save  # noqa: PLC0415

    with writing(folder):
        return [path for name in drawn for path in save(drawn[name], folder / name, formats)]
