"""``specbench report`` and ``specbench export``: finished runs as text, and for other programs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from specbench_kangaroo.cli.completion import run_folders
from specbench_kangaroo.cli.options import FileOutput
from specbench_kangaroo.cli.output import deliver, json_text, say, writing
from specbench_kangaroo.record.errors import UsageError, counted

if TYPE_CHECKING:
    from rich.console import RenderableType


class ReportFormat(StrEnum):
    """What a report can be rendered as."""

    TERMINAL = "terminal"
    MARKDOWN = "markdown"
    LATEX = "latex"
    CSV = "csv"
    JSON = "json"
    HTML = "html"


class ExportFormat(StrEnum):
    """What a run can be exported as."""

    SPEC_BENCH = "spec-bench"


Runs = Annotated[
    list[Path], Argument(metavar="RUN...", help="Run folders.", autocompletion=run_folders)
]
Format = Annotated[ReportFormat, Option("--format", help="What to write.")]
Details = Annotated[bool, Option("--details", help="In the terminal, all tables of every entry.")]
Published = Annotated[
    bool,
    Option(
        "--published",
        help="In the terminal and LaTeX, what papers and the leaderboard say of the methods.",
    ),
]
Sessions = Annotated[
    bool,
    Option(
        "--sessions",
        help="Of three or more runs of one request: speedups that hold for other sessions too. "
        "In the terminal, Markdown and JSON.",
    ),
]
ExportedRun = Annotated[
    Path, Argument(metavar="RUN", help="A run folder.", autocompletion=run_folders)
]
OtherFormat = Annotated[ExportFormat, Option("--format", help="What to write.")]
Folder = Annotated[
    Path | None, Option(help="A folder for the files.", show_default="RUN/FORMAT", metavar="DIR")
]


def report(
    runs: Runs,
    format_: Format = ReportFormat.TERMINAL,
    output: FileOutput = None,
    details: Details = False,
    published: Published = False,
    sessions: Sessions = False,
) -> None:
    """Show the figures of runs: side by side if there are several, then one run after another.

    A run of several entries is shown as a comparison; every other format holds all its details.
    HTML is one page with the figures in it, and needs no network.
    """
    # Before pyarrow is imported: its own pool keeps what it frees, 150 MB of a large run.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    if sessions:
        deliver(_over_sessions(runs, format_), output)
    else:
        deliver(_rendered(runs, format_, details=details, published=published), output)


def _rendered(
    folders: Sequence[Path], format_: ReportFormat, *, details: bool, published: bool
) -> RenderableType:
    """What the format shows of the runs.  Imports what it needs, no more."""
    from specbench_kangaroo.record.writer import read_run  # noqa: PLC0415
    from specbench_kangaroo.stats.summary import summarise, to_json  # noqa: PLC0415

    if format_ is ReportFormat.HTML:
        from specbench_kangaroo.report.html_report import illustrated, page  # noqa: PLC0415

        numbered = enumerate(folders, 1)
        return page(*(illustrated(read_run(path), anchor=f"run-{i}") for i, path in numbered))
    summaries = [summarise(read_run(path)) for path in folders]  # no run is kept: it may be large
    if format_ is ReportFormat.JSON:
        documents = [to_json(summary) for summary in summaries]
        return json_text(documents if len(documents) > 1 else documents[0])
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

    return terminal(*summaries, details=details, published=published)


def _over_sessions(folders: Sequence[Path], format_: ReportFormat) -> RenderableType:
    """One table, or document, of several sessions."""
    from rich.console import Group  # noqa: PLC0415

    from specbench_kangaroo.record.writer import read_run  # noqa: PLC0415
    from specbench_kangaroo.report.documents import markdown_section  # noqa: PLC0415
    from specbench_kangaroo.report.sections import over_sessions as drawn  # noqa: PLC0415
    from specbench_kangaroo.report.tables import section_parts  # noqa: PLC0415
    from specbench_kangaroo.stats.sessions import over_sessions, to_json  # noqa: PLC0415

    formats = (ReportFormat.TERMINAL, ReportFormat.MARKDOWN, ReportFormat.JSON)
    if format_ not in formats:
        raise UsageError(
            f"--sessions has no format {format_.value}; give --format {' or '.join(formats)}"
        )
    found = over_sessions(read_run(folder) for folder in folders)
    if format_ is ReportFormat.JSON:
        return json_text(to_json(found))
    if format_ is ReportFormat.MARKDOWN:
        return "\n\n".join(markdown_section(drawn(found))) + "\n"
    return Group(*section_parts(drawn(found)))


def export(
    run: ExportedRun, format_: OtherFormat = ExportFormat.SPEC_BENCH, output: Folder = None
) -> None:
    """Write a run as answer files for Spec-Bench's own evaluation/speed.py, one per entry.

    Files of the same names are replaced.
    """
    from specbench_kangaroo.record.writer import read_run  # noqa: PLC0415
    from specbench_kangaroo.report.spec_bench_answers import answer_files  # noqa: PLC0415

    folder = output or run / format_.value
    files = answer_files(read_run(run))
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for file in files.values():
            lines = (json.dumps(line) + "\n" for line in file.lines)
            (folder / file.name).write_text("".join(lines), "utf-8")
    for file in files.values():
        typer.echo(folder / file.name)
    for label, file in files.items():
        if file.left_out:
            say(f"{label}: left out {counted(file.left_out, 'answer')} that failed")
