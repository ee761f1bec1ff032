"""``specbench profile``: parse, measure, show."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from specbench_kangaroo.cli import options as flags
from specbench_kangaroo.cli.output import deliver, json_text, say, still_bar
from specbench_kangaroo.cli.run import INTERRUPTED
from specbench_kangaroo.models.shapes import SHAPES
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.request import DEFAULT_MODEL, TargetChoice

if TYPE_CHECKING:
    from specbench_kangaroo.microbench.estimates import Profile
    from specbench_kangaroo.microbench.profile import ProfileRequest


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
        autocompletion=lambda: list(SHAPES),
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
    output: flags.FileOutput = None,
) -> None:
    """Measure what a pass of the target costs by its rows, and how far one is from the memory.

    Bandwidth and matrix products of the machine are measured beside it. How fast a method is, or
    transformers' own generate, says a run: specbench run --method hf_generate.
    """
    from specbench_kangaroo.microbench.estimates import to_json  # noqa: PLC0415
    from specbench_kangaroo.microbench.profile import ProfileRequest  # noqa: PLC0415
    from specbench_kangaroo.microbench.table import terminal  # noqa: PLC0415

    if output is not None and not output.resolve().parent.is_dir():
        raise UsageError(f"cannot write {output}: its folder does not exist; give another --output")
    if shape is not None and (model != DEFAULT_MODEL or revision is not None):
        raise UsageError("--shape stands in place of a model: leave --model and --revision out")
    request = ProfileRequest(
        target=TargetChoice(model=model, revision=revision, dtype=dtype, device=device),
        backends=tuple(dict.fromkeys(backend or [flags.Backend.EAGER])),
        shape=shape,
        repeats=repeats,
    )
    found = _measured(request)
    deliver(json_text(to_json(found)) if format_ is ProfileFormat.JSON else terminal(found), output)


def _measured(request: ProfileRequest) -> Profile:
    from specbench_kangaroo.microbench.profile import measure, open_subject  # noqa: PLC0415

    try:
        subject = open_subject(request)
        with still_bar(request.repeats) as update:
            return measure(
                subject,
                repeats=request.repeats,
                on_progress=lambda done, _: update(completed=done, description="measuring"),
            )
    except KeyboardInterrupt:
        say("interrupted: nothing was kept")
        raise typer.Exit(INTERRUPTED) from None
