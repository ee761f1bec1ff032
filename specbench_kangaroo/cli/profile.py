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
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from specbench_kangaroo.cli import completion
from specbench_kangaroo.cli import options as flags
from specbench_kangaroo.cli.output import plain_text, say, write_file
from specbench_kangaroo.cli.run import INTERRUPTED
from specbench_kangaroo.models.catalogue import DEFAULT_MODEL
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.schema import BASELINE, DEFAULT_TEMPLATE
from specbench_kangaroo.run.config import ModelChoice

if TYPE_CHECKING:
    from specbench_kangaroo.microbench.figures import Profile
    from specbench_kangaroo.microbench.subjects import ProfileRequest

_FILE_WIDTH = 80


class ProfileFormat(StrEnum):
    """What a profile can be rendered as."""

    TERMINAL = "terminal"
    JSON = "json"


Methods = Annotated[
    list[str] | None,
    typer.Option(
        help=f"A method beside the baseline; repeatable. For none: --method {BASELINE}.",
        show_default="those with trained weights for the model",
        metavar="NAME",
        autocompletion=completion.methods,
    ),
]
Shape = Annotated[
    str | None,
    typer.Option(
        help="Random weights of this size in place of a model: latency only. A name as vicuna-7b, "
        "or a config.json.",
        show_default=False,
        metavar="NAME",
        autocompletion=completion.shapes,
    ),
]
ExitLayer = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Of a shape's untrained drafts that have one.",
        show_default="the method's choice",
        metavar="N",
    ),
]
Backends = Annotated[
    list[flags.Backend] | None,
    typer.Option(
        help="How the target's passes are launched; repeatable, and the first is the one that the "
        "others are set to.",
        show_default="eager",
        metavar="eager|graph",
    ),
]
Peers = Annotated[
    bool,
    typer.Option(
        "--peers",
        help="Set each method that transformers has too against generate by the same method. "
        "Without --method: all of those too that need no options.",
    ),
]
NewTokens = Annotated[int, typer.Option(min=2, help="Tokens per answer, exactly.", metavar="N")]
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
    template: flags.Template = DEFAULT_TEMPLATE,
    dtype: flags.Dtype = None,
    device: flags.Device = None,
    shape: Shape = None,
    exit_layer: ExitLayer = None,
    backend: Backends = None,
    method: Methods = None,
    option: flags.MethodOptions = None,
    peers: Peers = False,
    new_tokens: NewTokens = 64,
    repeats: Repeats = 7,
    format_: Format = ProfileFormat.TERMINAL,
    output: Output = None,
) -> None:
    """Measure the engine: against generate, against the memory, and by rows of a pass.

    Vanilla decoding, generate and the methods take turns on one prompt of each task; with --shape
    prompts are random tokens, and untrained drafts say what a draft costs, not what it is worth.
    """
    from specbench_kangaroo.microbench.subjects import ProfileRequest  # noqa: PLC0415

    if output is not None and not output.resolve().parent.is_dir():
        raise UsageError(f"cannot write {output}: its folder does not exist; give another --output")
    if shape is not None and (model != DEFAULT_MODEL or revision is not None):
        raise UsageError("--shape stands in place of a model: leave --model and --revision out")
    request = ProfileRequest(
        model=ModelChoice(
            name=model, revision=revision, template=template, dtype=dtype, device=device
        ),
        backends=tuple(dict.fromkeys(backend or [flags.Backend.EAGER])),
        shape=shape,
        exit_layer=exit_layer,
        methods=tuple(method or ()),
        options=tuple(option or ()),
        new_tokens=new_tokens,
        repeats=repeats,
        peers=peers,
    )
    try:
        found = _measured(request)
    except KeyboardInterrupt:
        say("interrupted: nothing was kept")
        raise typer.Exit(INTERRUPTED) from None
    _show(found, format_, output)


def _measured(request: ProfileRequest) -> Profile:
    from specbench_kangaroo.microbench.bandwidth import weight_bytes_per_token  # noqa: PLC0415
    from specbench_kangaroo.microbench.figures import summarise_profile  # noqa: PLC0415
    from specbench_kangaroo.microbench.profile import measure  # noqa: PLC0415
    from specbench_kangaroo.microbench.subjects import about, open_subjects  # noqa: PLC0415

    subjects = open_subjects(request)
    with _progress() as on_progress:
        samples = measure(
            subjects,
            new_tokens=request.new_tokens,
            repeats=request.repeats,
            on_progress=on_progress,
        )
    return summarise_profile(
        samples,
        weight_bytes=weight_bytes_per_token(subjects.untouched),
        about=about(subjects, request),
        latency_only=subjects.model.shape is not None,
    )


def _show(found: Profile, format_: ProfileFormat, output: Path | None) -> None:
    from specbench_kangaroo.microbench.document import to_json  # noqa: PLC0415
    from specbench_kangaroo.microbench.tables import terminal  # noqa: PLC0415

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
    """A bar drawn by hand between answers, and by no thread within one: those are timed."""
    console = Console(stderr=True)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    disable = not console.is_terminal
    with Progress(
        *columns, console=console, auto_refresh=False, transient=True, disable=disable
    ) as progress:
        bar = progress.add_task("warming up", total=None)
        progress.refresh()

        def advance_to(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total, description="answers", refresh=True)

        yield advance_to
