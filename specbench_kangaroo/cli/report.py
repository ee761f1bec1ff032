"""``specbench report``: the figures of finished runs, as text.

Knows: which format is rendered by what.  Does not know: figures, or how they are laid out.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specbench_kangaroo.cli.options import ReportFormat, Runs

if TYPE_CHECKING:
    from specbench_kangaroo.stats import Summary

_FILE_WIDTH = 100  # of terminal tables in a file, which has no width of its own


def report(
    runs: Runs,
    format_: Annotated[
        ReportFormat, typer.Option("--format", help="What to write.")
    ] = ReportFormat.TERMINAL,
    output: Annotated[
        Path | None, typer.Option(help="A file to write.", show_default="standard output")
    ] = None,
    details: Annotated[
        bool,
        typer.Option(
            "--details", help="In the terminal, the table of every method below a comparison."
        ),
    ] = False,
) -> None:
    """Show the figures of runs, one run after another.

    A run of several methods is shown as a comparison; Markdown and JSON hold all its details.
    """
    from specbench_kangaroo.stats import summarise  # noqa: PLC0415
    from specbench_kangaroo.store import read_run  # noqa: PLC0415

    summaries = [summarise(read_run(folder)) for folder in runs]
    if output is not None:
        text = "".join(as_text(summary, format_, details=details) for summary in summaries)
        write_file(output, text)
        return
    for summary in summaries:
        show(summary, format_, details=details)


def show(
    summary: Summary, format_: ReportFormat = ReportFormat.TERMINAL, *, details: bool = False
) -> None:
    """Print a summary; tables take the terminal's width and colours."""
    from rich.console import Console  # noqa: PLC0415

    from specbench_kangaroo.tables import terminal  # noqa: PLC0415

    if format_ is ReportFormat.TERMINAL:
        Console(highlight=False).print(terminal(summary, details=details))
    else:
        typer.echo(as_text(summary, format_), nl=False)


def as_text(summary: Summary, format_: ReportFormat, *, details: bool = False) -> str:
    """A summary without colours, ending in a newline."""
    from rich.console import Console  # noqa: PLC0415

    from specbench_kangaroo.markdown_tables import markdown  # noqa: PLC0415
    from specbench_kangaroo.stats import to_json  # noqa: PLC0415
    from specbench_kangaroo.tables import terminal  # noqa: PLC0415

    if format_ is ReportFormat.JSON:
        return json.dumps(to_json(summary), indent=2) + "\n"
    if format_ is ReportFormat.MARKDOWN:
        return markdown(summary)
    file = io.StringIO()
    Console(file=file, width=_FILE_WIDTH, highlight=False).print(terminal(summary, details=details))
    return file.getvalue()


def write_file(path: Path, text: str) -> None:
    """Write a document that a person asked for by name.

    Raises:
        UsageError: it cannot be written there.
    """
    from specbench_kangaroo.errors import UsageError  # noqa: PLC0415

    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; give another --output") from error
