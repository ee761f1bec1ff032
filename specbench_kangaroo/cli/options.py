"""Flags that several commands share, so that a name means the same thing everywhere."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

from msgspec.structs import replace
from typer import Context, Option

from specbench_kangaroo.bench.config import choices_of
from specbench_kangaroo.bench.questions import SOURCES, TASKS
from specbench_kangaroo.cli import completion
from specbench_kangaroo.machine.devices import DTYPES
from specbench_kangaroo.record.request import Request

Filled = TypeVar("Filled")


def by_name(kind: Callable[..., Filled], given: Mapping[str, Any], **more: Any) -> Filled:
    """A record filled with the flags that its fields are named after, and with ``more``."""
    names = inspect.signature(kind).parameters
    return kind(**{name: value for name, value in given.items() if name in names} | more)


def given_flags(context: Context) -> dict[str, str]:
    """The flags of a command that stand on its command line, by their parameters' names."""
    return {
        name: parameter.opts[0]
        for parameter in context.command.params
        if (name := parameter.name)
        and (source := context.get_parameter_source(name))
        and source.name == "COMMANDLINE"
    }


def overridden(base: Request, given: Mapping[str, Any]) -> Request:
    """The request with the values of flags, by their parameters' names, in place of its own."""
    asked = {_FIELDS.get(name, name): value for name, value in given.items()}
    asked |= {"tasks": tuple(asked["tasks"])} if "tasks" in asked else {}
    parts = {name: getattr(base, name) for name in ("target", "questions", "decoding")}
    changed = {
        name: replace(part, **{field: asked[field] for field in asked if hasattr(part, field)})
        for name, part in parts.items()
    }
    methods, options, sweeps = (given.get(name) or () for name in ("method", "option", "sweep"))
    entries = choices_of(methods, options, sweeps, base=base.entries)
    return replace(base, **changed, entries=entries)


_FIELDS = {"questions": "source", "task": "tasks"}  # of flags that have another name


class Backend(StrEnum):
    """How a pass of the target is launched."""

    EAGER = "eager"
    GRAPH = "graph"


Model = Annotated[
    str,
    Option(
        help="Target: a name from `specbench list models`, a folder, or org/name.",
        metavar="NAME",
        autocompletion=completion.models,
    ),
]
Revision = Annotated[
    str | None, Option(help="Branch, tag or commit of a hub model.", metavar="NAME")
]
Template = Annotated[
    str,
    Option(
        help="How prompts are written: tokenizer (its own chat template), vicuna (Spec-Bench's "
        "prompts) or plain.",
        metavar="NAME",
        autocompletion=completion.templates,
    ),
]
Dtype = Annotated[
    str | None,
    Option(
        help="float32, bfloat16, float16 or float64.",
        show_default="the device's",
        metavar="NAME",
        autocompletion=lambda: list(DTYPES),
    ),
]
Device = Annotated[
    str | None,
    Option(
        help="cpu, cuda, cuda:N or auto.",
        show_default="cuda if there is one",
        metavar="NAME",
        autocompletion=lambda: ["cpu", "cuda"],
    ),
]
Methods = Annotated[
    list[str] | None,
    Option(
        help="A method beside the baseline, under a label of its own if it stands several times; "
        "repeatable. See `specbench list methods`.",
        metavar="[LABEL=]METHOD",
        autocompletion=completion.entries,
    ),
]
MethodOptions = Annotated[
    list[str] | None,
    Option(
        help="An option of a method, by its label; repeatable. See `specbench list methods`.",
        metavar="LABEL.NAME=VALUE",
    ),
]
Sweeps = Annotated[
    list[str] | None,
    Option(
        "--sweep",
        help="An entry for each value, in place of the label's own; several sweeps of a label give "
        "all combinations.",
        metavar="LABEL.NAME=V1,V2,...",
    ),
]
Questions = Annotated[
    str,
    Option(
        help="builtin, spec-bench, or the path of a file in Spec-Bench's format.",
        metavar="SET",
        autocompletion=lambda: list(SOURCES),
    ),
]
Tasks = Annotated[
    list[str] | None,
    Option(
        help="Only this task; repeatable. See `specbench list tasks`.",
        show_default="all",
        metavar="NAME",
        autocompletion=lambda: list(TASKS),
    ),
]
Limit = Annotated[
    int | None, Option(min=1, help="Questions per task, at most.", show_default="all", metavar="N")
]
MaxNewTokens = Annotated[int, Option(min=1, help="Tokens per answer, at most.", metavar="N")]
Temperature = Annotated[float, Option(min=0.0, help="0 is greedy decoding.", metavar="X")]
TopP = Annotated[float, Option(help="Nucleus sampling; with a temperature above 0.", metavar="X")]
Seed = Annotated[int, Option(help="Where sampling starts from.", metavar="N")]
Repeats = Annotated[int, Option(min=1, help="How often every question is asked.", metavar="N")]
Warmup = Annotated[
    int, Option(min=0, help="Prompts that every entry answers before it is measured.", metavar="N")
]
BatchSize = Annotated[
    int, Option(help="Prompts decoded at once: 1, as in Spec-Bench.", metavar="N")
]
Workers = Annotated[
    int,
    Option(
        min=1,
        help="Share the questions over so many workers, each with a GPU, or some of the cores, of "
        "its own; needs the extra `ray`.",
        metavar="N",
    ),
]
RayAddress = Annotated[
    str | None,
    Option(
        help="A running Ray cluster, as auto or HOST:PORT, with this package on every node.",
        show_default="this machine",
        metavar="ADDRESS",
    ),
]
BackendFlag = Annotated[Backend, Option(help="How the target's passes are launched.")]
RunOutput = Annotated[
    Path | None,
    Option(
        help="The run folder to make.",
        show_default="results/TIME-NAME, or TIME-LABELS",
        metavar="DIR",
    ),
]
Config = Annotated[
    Path | None,
    Option(
        help="A study: a TOML file with what the flags say; flags that are given replace its "
        "values. See docs/study.md.",
        metavar="FILE",
    ),
]
From = Annotated[
    Path | None,
    Option(
        "--from",
        help="Make the run of this folder again, in a new one; flags that are given replace its "
        "values.",
        metavar="DIR",
        autocompletion=completion.run_folders,
    ),
]
Resume = Annotated[
    Path | None,
    Option(
        help="Make the answers that the run in this folder lacks; no other flag but --ray-address.",
        metavar="DIR",
        autocompletion=completion.run_folders,
    ),
]
DryRun = Annotated[
    bool,
    Option(
        "--dry-run",
        help="Check and load everything, show entries, prompts and an estimate of the time, and "
        "write nothing.",
    ),
]
FileOutput = Annotated[
    Path | None, Option(help="A file to write.", show_default="standard output", metavar="FILE")
]
