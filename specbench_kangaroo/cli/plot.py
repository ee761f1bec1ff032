"""``specbench plot``: the figures of a finished run, as files.

Knows: which figures there are and what their files are called.  Does not know: how they are drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specbench_kangaroo.cli.options import FigureFormat

if TYPE_CHECKING:
    from specbench_kangaroo.stats import Summary

SPEEDUP_FIGURE = "speedup_by_task"


def plot(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    format_: Annotated[
        list[FigureFormat] | None,
        typer.Option("--format", help="File format; repeatable.", show_default="png and svg"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="A folder for the figures.", show_default="the run's own")
    ] = None,
) -> None:
    """Draw the figures of a run."""
    from specbench_kangaroo.stats import summarise  # noqa: PLC0415
    from specbench_kangaroo.store import read_run  # noqa: PLC0415

    summary = summarise(read_run(run))
    formats = tuple(format_ or (FigureFormat.PNG, FigureFormat.SVG))
    for path in draw(summary, output or run, formats=formats):
        typer.echo(path)


def draw(
    summary: Summary,
    folder: Path,
    *,
    formats: tuple[FigureFormat, ...] = (FigureFormat.PNG, FigureFormat.SVG),
) -> list[Path]:
    """Save every figure of a run into ``folder``.

    Raises:
        UsageError: the run has nothing to draw, or the folder cannot be written.
    """
    from specbench_kangaroo.errors import UsageError  # noqa: PLC0415
    from specbench_kangaroo.plots import save, speedup_by_task  # noqa: PLC0415

    figure = speedup_by_task(summary)
    try:
        return save(figure, folder / SPEEDUP_FIGURE, formats)
    except OSError as error:
        raise UsageError(
            f"cannot write {error.filename or folder}: {error.strerror}; give another --output"
        ) from error
