"""``specbench tune``: what other draft lengths and thresholds would have given in a run."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specbench_kangaroo.cli.completion import run_folders
from specbench_kangaroo.cli.output import plain_text, say, write_file, writing
from specbench_kangaroo.cli.run import INTERRUPTED, benchmark, go_on
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.tuning.rerun import command_line, request_again

if TYPE_CHECKING:
    from specbench_kangaroo.record.request import Request
    from specbench_kangaroo.record.writer import Run
    from specbench_kangaroo.stats.intervals import Estimate
    from specbench_kangaroo.tuning.tuning import Tuning

FIGURE = "tune"
_FILE_WIDTH = 80


class TuneFormat(StrEnum):
    """What a tuning can be rendered as."""

    TERMINAL = "terminal"
    JSON = "json"


Logged = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="A run folder: threshold 0, and steps such as 12.",
        autocompletion=run_folders,
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        help="The label of one with the options steps and threshold.",
        show_default="the only one of the run",
        metavar="LABEL",
    ),
]
Verify = Annotated[bool, typer.Option("--verify", help="Run the best setting too, into RUN-tuned.")]
Format = Annotated[TuneFormat, typer.Option("--format", help="What to write.")]
Output = Annotated[
    Path | None,
    typer.Option(
        help="A file to write; the figure goes beside it.",
        show_default="standard output",
        metavar="FILE",
    ),
]


def tune(
    run: Logged,
    *,
    method: Method = None,
    verify: Verify = False,
    format_: Format = TuneFormat.TERMINAL,
    output: Output = None,
) -> None:
    """Predict the speedup of every draft length and threshold from one logged run.

    The run must have drafted greedily, without branches and with threshold 0, so that it holds the
    draft's confidence in every token.
    """
    from specbench_kangaroo.record.writer import read_run  # noqa: PLC0415
    from specbench_kangaroo.tuning import tuning  # noqa: PLC0415

    logged = read_run(run)
    found = tuning.tune(logged, method)
    request = request_again(logged.manifest, found.entry, found.best._asdict())
    _draw(found, output.parent if output else run)
    text = _tables(found, request, output) if format_ is TuneFormat.TERMINAL else ""
    status, measured = _verify(logged, found, request) if verify else (0, None)
    if format_ is TuneFormat.JSON:
        text = _document(found, request, measured)
    elif measured is not None:
        text += _outcome(found, measured)
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_file(output, text)
    raise typer.Exit(status)


def _tables(found: Tuning, request: Request, output: Path | None) -> str:
    """What a file gets; without one it is printed here and now, as a run may follow."""
    from rich.console import Console  # noqa: PLC0415

    from specbench_kangaroo.tuning.tables import terminal  # noqa: PLC0415

    # Not through rich, which would break the line: it is there to be pasted.
    command = f"run it: {command_line(request)}\n"
    if output is not None:
        return plain_text(terminal(found), width=_FILE_WIDTH) + command
    Console(highlight=False).print(terminal(found))
    typer.echo(command, nl=False)
    return ""


def _draw(found: Tuning, folder: Path) -> None:
    from specbench_kangaroo.report.figures.style import save  # noqa: PLC0415
    from specbench_kangaroo.tuning.figure import speedup_surface  # noqa: PLC0415

    with writing(folder):
        (path,) = save(speedup_surface(found), folder / FIGURE, ("png",))
    say(f"figure: {path}")


def _document(found: Tuning, request: Request, measured: Estimate | None) -> str:
    from specbench_kangaroo.tuning.tables import to_json  # noqa: PLC0415

    document = to_json(found) | {"command": command_line(request)}
    if measured is not None:
        document["measured"] = measured.figures
    return json.dumps(document, indent=2) + "\n"


def _outcome(found: Tuning, measured: Estimate) -> str:
    from specbench_kangaroo.report.sheets import interval_text  # noqa: PLC0415
    from specbench_kangaroo.stats.summary import OVERALL  # noqa: PLC0415

    predicted = found.tasks[OVERALL].estimate
    return f"predicted {interval_text(predicted)}, measured {interval_text(measured)}\n"


def _verify(logged: Run, found: Tuning, request: Request) -> tuple[int, Estimate]:
    """Run the best setting; returns the run's exit status and its speedup.

    Raises:
        UsageError: the questions, model or draft weights are no longer those of the logged run.
    """
    from specbench_kangaroo.record.writer import read_run  # noqa: PLC0415
    from specbench_kangaroo.stats.summary import OVERALL, summarise  # noqa: PLC0415

    folder = _tuned_folder(logged.folder)
    (entry,) = request.entries
    is_begun = _is_begun(folder, entry.label, found)
    _check_questions(logged, request)
    # Standard output is the tuning's, and a document in JSON; the run tells its story beside it.
    with redirect_stdout(sys.stderr):
        if is_begun:
            status = go_on(folder)
        else:
            status = benchmark(request, command_line(request, folder), folder)
    if status == INTERRUPTED:
        raise typer.Exit(status)
    tuned = read_run(folder)
    _check_weights(logged, tuned, found.entry, entry.label)
    tasks = summarise(tuned).entries[entry.label].tasks
    if OVERALL not in tasks:
        raise UsageError(f"{folder} has no answers to compare; see its generations.jsonl")
    return status, tasks[OVERALL].estimates["speedup"]


def _tuned_folder(folder: Path) -> Path:
    named = folder if folder.name not in ("", "..") else folder.resolve()
    return named.with_name(f"{named.name}-tuned")


def _is_begun(folder: Path, label: str, found: Tuning) -> bool:
    """Whether the folder holds a run of the best setting already, which only needs finishing."""
    from specbench_kangaroo.record.manifest import MANIFEST, read_manifest  # noqa: PLC0415

    if not (folder / MANIFEST).is_file():
        return False
    record = read_manifest(folder).entries.get(label)
    wanted = found.best._asdict()
    if record is None or any(record.options.get(name) != wanted[name] for name in wanted):
        raise UsageError(
            f"{folder} holds a run of other settings; move or remove it, then --verify again"
        )
    return True


def _check_questions(logged: Run, request: Request) -> None:
    from specbench_kangaroo.bench.questions import load_questions  # noqa: PLC0415

    source = request.questions.source
    if load_questions(source).sha256 != logged.manifest.hashes.get("questions"):
        raise UsageError(
            f"the questions of {source} have changed since {logged.folder} was run; restore them, "
            "or run and tune again"
        )


def _check_weights(logged: Run, tuned: Run, label: str, tuned_label: str) -> None:
    before, after = logged.manifest, tuned.manifest
    if before.hashes != after.hashes:
        raise UsageError(f"{before.model} has changed since {logged.folder} was run; run it again")
    weights = after.entries[tuned_label].weights_sha256
    if before.entries[label].weights_sha256 != weights:
        raise UsageError(
            f"the weights of {label} have changed since {logged.folder} was run; run it again"
        )
