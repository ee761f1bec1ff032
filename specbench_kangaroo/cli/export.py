"""``specbench export``: a run in another project's format, as files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specbench_kangaroo.cli.completion import run_folders
from specbench_kangaroo.cli.output import say, writing

if TYPE_CHECKING:
    from specbench_kangaroo.report.spec_bench_answers import AnswerFile


class ExportFormat(StrEnum):
    """What a run can be exported as."""

    SPEC_BENCH = "spec-bench"


def export(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder.", autocompletion=run_folders)
    ],
    format_: Annotated[
        ExportFormat, typer.Option("--format", help="What to write.")
    ] = ExportFormat.SPEC_BENCH,
    output: Annotated[
        Path | None,
        typer.Option(help="A folder for the files.", show_default="RUN/FORMAT", metavar="DIR"),
    ] = None,
) -> None:
    """Write a run as answer files for Spec-Bench's own evaluation/speed.py, one per entry.

    Files of the same names are replaced.
    """
    from specbench_kangaroo.record.writer import read_run  # noqa: PLC0415
    from specbench_kangaroo.report.sheets import counted  # noqa: PLC0415
    from specbench_kangaroo.report.spec_bench_answers import answer_files  # noqa: PLC0415

    folder = output or run / format_.value
    files = answer_files(read_run(run))
    for path in _write(folder, files.values()):
        typer.echo(path)
    for label, file in files.items():
        if file.left_out:
            left_out = counted(file.left_out, "answer")
            say(f"{label}: left out {left_out} that failed")


def _write(folder: Path, files: Iterable[AnswerFile]) -> list[Path]:
    paths = []
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            path = folder / file.name
            path.write_text("".join(json.dumps(line) + "\n" for line in file.lines), "utf-8")
            paths.append(path)
    return paths
