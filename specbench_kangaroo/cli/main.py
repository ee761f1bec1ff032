"""``specbench``: the command line's root, and what an error looks like.

Importing it does not import torch, so that ``specbench --help`` is quick; commands import what they
need when they run.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from specbench_kangaroo import __version__
from specbench_kangaroo.cli.compare import compare
from specbench_kangaroo.cli.doctor import doctor
from specbench_kangaroo.cli.listing import app as listing
from specbench_kangaroo.cli.output import say
from specbench_kangaroo.cli.plot import plot
from specbench_kangaroo.cli.profile import profile
from specbench_kangaroo.cli.report import export, report
from specbench_kangaroo.cli.run import INTERRUPTED, run
from specbench_kangaroo.cli.training import distil, train
from specbench_kangaroo.cli.tune import tune
from specbench_kangaroo.record.errors import UsageError

UNUSABLE_INPUT = 2
EXIT_STATUSES: Mapping[int, str] = {
    0: "done",
    1: "the lossless check, a gate or the doctor found a failure",
    UNUSABLE_INPUT: "unusable input, in one line that says how to fix it",
    INTERRUPTED: "interrupted; what was finished is kept",
}
"""What a script can rely on, whatever the command."""

# Typer has carried a copy of click of its own since 0.26, and used the installed one before.
_ClickError: type[Exception] = next(
    kind
    for kind in typer.BadParameter.__mro__
    if kind.__name__ == "ClickException" and issubclass(kind, Exception)
)

app = typer.Typer(
    name="specbench",
    help="Benchmark speculative decoding: speedups with intervals, outputs that provably match.",
    epilog=f"Exit status: {'; '.join(f'{n} {means}' for n, means in EXIT_STATUSES.items())}.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for _command in (run, report, plot, compare, export, tune, profile, distil, doctor):
    app.command()(_command)
app.add_typer(train, name="train")
app.add_typer(listing, name="list")


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"specbench-kangaroo {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line, the process's own by default, and exit with its status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    command = shlex.join(["specbench", *given])
    try:
        # The context's obj: a command that records how it was called finds it there.
        status = app(args=given, prog_name="specbench", standalone_mode=False, obj=command)
    except UsageError as error:
        _fail(str(error))
    except _ClickError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
            say(str(error))
            sys.exit(UNUSABLE_INPUT)
        _fail(_one_line(error))
    sys.exit(status or 0)


def _fail(message: str) -> None:
    say(f"error: {message}")
    sys.exit(UNUSABLE_INPUT)


def _one_line(error: BaseException) -> str:
    """Click's message, with the command whose help says more."""
    message: str = " ".join(error.format_message().split())  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    return f"{message} (see `{context.command_path} --help`)" if context else message


if __name__ == "__main__":
    main()
