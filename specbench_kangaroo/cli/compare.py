"""``specbench compare``: the regression gate between two runs."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specbench_kangaroo.cli.completion import run_folders
from specbench_kangaroo.cli.output import plain_text, write_file

if TYPE_CHECKING:
    from specbench_kangaroo.gate.regression import Comparison

FAILED = 1
JOB_SUMMARY = "GITHUB_STEP_SUMMARY"
"""The environment variable by which GitHub names the file that a job's summary is made of."""

_FILE_WIDTH = 100  # of a terminal report in a file, which has no width of its own


class GateFormat(StrEnum):
    """What a comparison can be rendered as."""

    TERMINAL = "terminal"
    MARKDOWN = "markdown"
    JUNIT = "junit"


def _run(metavar: str, text: str) -> Any:
    return typer.Argument(metavar=metavar, help=text, autocompletion=run_folders)


def _tolerance(text: str) -> Any:
    return typer.Option(min=0.0, max=1.0, help=text, metavar="X")


Baseline = Annotated[Path, _run("BASELINE", "The run that sets what is expected.")]
Candidate = Annotated[Path, _run("CANDIDATE", "The run that must not be worse.")]
Timing = Annotated[
    bool, typer.Option("--timing", help="Gate speeds too: runs of one session on one machine only.")
]
ToleranceAcceptance = Annotated[
    float,
    _tolerance("Allowed loss: of mean accepted tokens, relative; by position, absolute."),
]
ToleranceTokens = Annotated[
    float, _tolerance("Allowed share of answers whose tokens are not the baseline's.")
]
ToleranceSpeedup = Annotated[
    float,
    _tolerance("Allowed loss of speed, relative; it fails if the whole interval lies beyond."),
]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        help="Compare though this field differs; repeatable. A refusal names the field.",
        metavar="FIELD",
    ),
]
Format = Annotated[GateFormat, typer.Option("--format", help="What to write.")]
Output = Annotated[
    Path | None,
    typer.Option(
        help="A file to write; standard output then has the terminal's table.",
        show_default="standard output",
        metavar="FILE",
    ),
]


def compare(  # noqa: PLR0913 (one parameter a flag)
    baseline: Baseline,
    candidate: Candidate,
    *,
    timing: Timing = False,
    tolerance_acceptance: ToleranceAcceptance = 0.02,
    tolerance_tokens: ToleranceTokens = 0.0,
    tolerance_speedup: ToleranceSpeedup = 0.05,
    allow: Allow = None,
    format_: Format = GateFormat.TERMINAL,
    output: Output = None,
) -> None:
    """Hold a run against an earlier one: has anything become worse.

    Errors, tokens, acceptance and losslessness are gated on any machine, speeds with --timing.
    Exit status 1: a gate failed; 2: the runs cannot be compared.
    """
    from specbench_kangaroo.gate import regression  # noqa: PLC0415
    from specbench_kangaroo.gate.gates import Tolerances  # noqa: PLC0415
    from specbench_kangaroo.record.writer import read_run  # noqa: PLC0415

    comparison = regression.compare(
        read_run(baseline),
        read_run(candidate),
        tolerances=Tolerances(
            acceptance=tolerance_acceptance, tokens=tolerance_tokens, speedup=tolerance_speedup
        ),
        timing=timing,
        allow=allow or (),
    )
    _deliver(comparison, format_, output)
    raise typer.Exit(FAILED if comparison.failed else 0)


def _deliver(comparison: Comparison, format_: GateFormat, output: Path | None) -> None:
    """Write the report to the file that was asked for, the terminal and the job's summary."""
    from rich.console import Console  # noqa: PLC0415

    from specbench_kangaroo.gate.reports import terminal  # noqa: PLC0415

    if output is not None:
        write_file(output, _as_text(comparison, format_))
    if output is not None or format_ is GateFormat.TERMINAL:
        Console(highlight=False).print(terminal(comparison))
    else:
        typer.echo(_as_text(comparison, format_), nl=False)
    if summary := os.environ.get(JOB_SUMMARY):
        _append(Path(summary), _as_text(comparison, GateFormat.MARKDOWN))


def _as_text(comparison: Comparison, format_: GateFormat) -> str:
    """A report without colours, ending in a newline."""
    from specbench_kangaroo.gate import reports as gate_reports  # noqa: PLC0415

    if format_ is GateFormat.MARKDOWN:
        return gate_reports.markdown(comparison)
    if format_ is GateFormat.JUNIT:
        return gate_reports.junit(comparison)
    return plain_text(gate_reports.terminal(comparison), width=_FILE_WIDTH)


def _append(path: Path, text: str) -> None:
    from specbench_kangaroo.record.errors import UsageError  # noqa: PLC0415

    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UsageError(
            f"cannot append to {path}, which {JOB_SUMMARY} names: {error.strerror}; unset it"
        ) from error
