"""``specbench plot``: the figures of finished runs and trained draft heads, as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specbench_kangaroo.cli.completion import run_folders
from specbench_kangaroo.cli.output import writing
from specbench_kangaroo.record.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEARNING_FIGURE = "learning_curve"
_FOLDER = "figures"


class FigureFormat(StrEnum):
    """What a figure can be saved as."""

    PNG = "png"
    SVG = "svg"
    PDF = "pdf"


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
    from specbench_kangaroo.report.figures import learning  # noqa: PLC0415
    from specbench_kangaroo.report.figures.catalogue import check_names, figures_of  # noqa: PLC0415
    from specbench_kangaroo.stats.summary import summarise  # noqa: PLC0415

    check_names(figure or ())
    formats = format_ or _FORMATS
    heads = [path for path in runs if path.suffix == learning.WEIGHTS_SUFFIX]
    if heads:
        curves = learning.learning_curve([learning.read_learning(path) for path in heads])
        saved = save_figures({_LEARNING_FIGURE: curves}, output or heads[0].parent, formats)
        typer.echo("\n".join(map(str, saved)))
    folders = [path for path in runs if path not in heads]
    for run, folder in _folders(folders, output).items():
        found = read_run(run)
        drawn = figures_of(found, summarise(found), figure)
        _refuse_missing(run, drawn, figure)
        typer.echo("\n".join(map(str, save_figures(drawn, folder, formats))))


def _folders(runs: Sequence[Path], output: Path | None) -> dict[Path, Path]:
    """Where the figures of each run go."""
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
    missing = [name for name in asked or () if name not in drawn]
    if missing:
        raise UsageError(f"{run} has no data for {', '.join(missing)}; leave it out")
    if not drawn:
        raise UsageError(f"{run} has no answers to draw anything from; see its generations.jsonl")


def save_figures(
    drawn: Mapping[str, Figure], folder: Path, formats: Sequence[FigureFormat] = _FORMATS
) -> list[Path]:
    """Save figures by name, each in every format; returns the files."""
    from specbench_kangaroo.report.figures.style import save  # noqa: PLC0415

    with writing(folder):
        return [path for name in drawn for path in save(drawn[name], folder / name, formats)]
