"""``specbench report``: the figures of finished runs, as text."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specbench_kangaroo.cli.options import ReportFormat, Runs
from specbench_kangaroo.cli.output import plain_text, write_file

if TYPE_CHECKING:
    from specbench_kangaroo.stats.summary import Summary

_FILE_WIDTH = 100  # of terminal tables in a file, which has no width of its own


def report(
    runs: Runs,
    format_: Annotated[
        ReportFormat, typer.Option("--format", help="What to write.")
    ] = ReportFormat.TERMINAL,
    output: Annotated[
        Path | None,
        typer.Option(help="A file to write.", show_default="standard output", metavar="FILE"),
    ] = None,
    details: Annotated[
        bool, typer.Option("--details", help="In the terminal, all tables of every entry.")
    ] = False,
    published: Annotated[
        bool,
        typer.Option(
            "--published",
            help="In the terminal and LaTeX, what papers and the leaderboard say of the methods.",
        ),
    ] = False,
) -> None:
    """Show the figures of runs: side by side if there are several, then one run after another.

    A run of several entries is shown as a comparison; every other format holds all its details.
    HTML is one page with the figures in it, and needs no network.
    """
    # Before pyarrow is imported: its own pool keeps what it frees, 150 MB of a large run.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    if output is None and format_ is ReportFormat.TERMINAL:
        show(*_summaries(runs), details=details, published=published)
        return
    text = _as_text(runs, format_, details=details, published=published)
    if output is not None:
        write_file(output, text)
    else:
        typer.echo(text, nl=False)


def show(*summaries: Summary, details: bool = False, published: bool = False) -> None:
    """Print tables that take the terminal's width and colours."""
    from rich.console import Console  # noqa: PLC0415

    from specbench_kangaroo.report.tables import terminal  # noqa: PLC0415

    Console(highlight=False).print(terminal(*summaries, details=details, published=published))


def as_json(*summaries: Summary) -> str:
    """The document of one run, or a list of them."""
    from specbench_kangaroo.stats.summary import to_json  # noqa: PLC0415

    documents = [to_json(summary) for summary in summaries]
    return json.dumps(documents if len(documents) > 1 else documents[0], indent=2) + "\n"


def _summaries(folders: Sequence[Path]) -> list[Summary]:
    from specbench_kangaroo.record.writer import read_run  # noqa: PLC0415
    from specbench_kangaroo.stats.summary import summarise  # noqa: PLC0415

    return [summarise(read_run(folder)) for folder in folders]  # no run is kept: it may be large


def _as_text(
    folders: Sequence[Path], format_: ReportFormat, *, details: bool, published: bool
) -> str:
    """A report without colours, ending in a newline.  Imports what the format needs, no more."""
    if format_ is ReportFormat.HTML:
        return _page(folders)
    summaries = _summaries(folders)
    if format_ is ReportFormat.JSON:
        return as_json(*summaries)
    if format_ is ReportFormat.CSV:
        from specbench_kangaroo.report.documents import csv_text  # noqa: PLC0415

        return csv_text(*summaries)
    if format_ is ReportFormat.MARKDOWN:
        from specbench_kangaroo.report.documents import markdown  # noqa: PLC0415

        return markdown(*summaries)
    if format_ is ReportFormat.LATEX:
        from specbench_kangaroo.report.documents import latex  # noqa: PLC0415

        return latex(*summaries, published=published)
    from specbench_kangaroo.report.tables import terminal  # noqa: PLC0415

    drawing = terminal(*summaries, details=details, published=published)
    return plain_text(drawing, width=_FILE_WIDTH)


def _page(folders: Sequence[Path]) -> str:
    from specbench_kangaroo.record.writer import read_run  # noqa: PLC0415
    from specbench_kangaroo.report.html_report import illustrated, page  # noqa: PLC0415

    numbered = enumerate(folders, 1)
    return page(*(illustrated(read_run(path), anchor=f"run-{i}") for i, path in numbered))
