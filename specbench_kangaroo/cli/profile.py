"""``specbench profile``: parse, measure, show."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from specbench_kangaroo.cli import completion
from specbench_kangaroo.cli import options as flags
from specbench_kangaroo.cli.output import plain_text, say, write_file
from specbench_kangaroo.cli.run import INTERRUPTED
from specbench_kangaroo.models.catalogue import DEFAULT_MODEL
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.run.config import ModelChoice

if TYPE_CHECKING:
    from specbench_kangaroo.microbench.estimates import Profile

_FILE_WIDTH = 80


class ProfileFormat(StrEnum):
    """What a profile can be rendered as."""

    TERMINAL = "terminal"
    JSON = "json"


Shape = Annotated[
    str | None,
    typer.Option(
        help="Random weights of this size in place of a model. A name as vicuna-7b, or a "
        "config.json.",
        show_default=False,
        metavar="NAME",
        autocompletion=completion.shapes,
    ),
]
Backends = Annotated[
    list[flags.Backend] | None,
    typer.Option(
        help="How the target's passes are launched; repeatable.",
        show_default="eager",
        metavar="eager|graph",
    ),
]
Repeats = Annotated[int, typer.Option(min=1, help="How often all is measured.", metavar="N")]
Format = Annotated[ProfileFormat, typer.Option("--format", help="What to write.")]
Output = Annotated[
    Path | None,
    typer.Option(help="A file to write.", show_default="standard output", metavar="FILE"),
]


def profile(  # noqa: PLR0913 (one parameter a flag)
    *,
    model: flags.Model = DEFAULT_MODEL,
    revision: flags.Revision = None,
    dtype: flags.Dtype = None,
    device: flags.Device = None,
    shape: Shape = None,
    backend: Backends = None,
    repeats: Repeats = 7,
    format_: Format = ProfileFormat.TERMINAL,
    output: Output = None,
) -> None:
    """Measure what a pass of the target costs by its rows, and how far one is from the memory.

    Bandwidth and matrix products of the machine are measured beside it. How fast a method is, or
    transformers' own generate, says a run: specbench run --method hf_generate.
    """
    from specbench_kangaroo.microbench.profile import (  # noqa: PLC0415
        ProfileRequest,
        measure,
        open_subject,
    )

    if output is not None and not output.resolve().parent.is_dir():
        raise UsageError(f"cannot write {output}: its folder does not exist; give another --output")
    if shape is not None and (model != DEFAULT_MODEL or revision is not None):
        raise UsageError("--shape stands in place of a model: leave --model and --revision out")
    request = ProfileRequest(
        model=ModelChoice(name=model, revision=revision, dtype=dtype, device=device),
        backends=tuple(dict.fromkeys(backend or [flags.Backend.EAGER])),
        shape=shape,
        repeats=repeats,
    )
    try:
        subject = open_subject(request)
        with _progress() as on_progress:
            found = measure(subject, repeats=repeats, on_progress=on_progress)
    except KeyboardInterrupt:
        say("interrupted: nothing was kept")
        raise typer.Exit(INTERRUPTED) from None
    _show(found, format_, output)


def _show(found: Profile, format_: ProfileFormat, output: Path | None) -> None:
    from specbench_kangaroo.microbench.estimates import to_json  # noqa: PLC0415
    from specbench_kangaroo.microbench.table import terminal  # noqa: PLC0415

    if format_ is ProfileFormat.JSON:
        text = json.dumps(to_json(found), indent=2) + "\n"
    elif output is None:
        Console(highlight=False).print(terminal(found))
        return
    else:
        text = plain_text(terminal(found), width=_FILE_WIDTH)
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_file(output, text)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar drawn by hand between repeats, and by no thread within one: those are timed."""
    console = Console(stderr=True)
    hidden = not console.is_terminal
    with Progress(console=console, auto_refresh=False, transient=True, disable=hidden) as progress:
        bar = progress.add_task("warming up", total=None)
        progress.refresh()

        def advance_to(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total, description="measuring", refresh=True)

        yield advance_to
