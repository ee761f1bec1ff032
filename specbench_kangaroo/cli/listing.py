"""``specbench list``: what there is to name on a command line."""

from __future__ import annotations

import inspect
import typing
from collections import Counter
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

from specbench_kangaroo.bench.questions import CATEGORIES, SOURCES, TASKS, Question, load_questions
from specbench_kangaroo.bench.registry import method_class, method_names
from specbench_kangaroo.cli.output import deliver
from specbench_kangaroo.models.catalogue import MODELS
from specbench_kangaroo.models.heads import KnownHeads, NeedsHeads

if TYPE_CHECKING:
    from specbench_kangaroo.engine.method import MethodOptions

_LINE = 80

app = typer.Typer(
    help="Show the methods, models, draft heads, tasks or questions.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def methods() -> None:
    """Show every method, whether it needs heads, and its options with default and type."""
    for name in method_names():
        kind = method_class(name)
        summary = (inspect.getdoc(kind) or "").partition("\n")[0]
        lossy = " (lossy)" if kind.lossy else ""
        deliver(Text(f"{name}{lossy}: {summary}\n  {_need_of_heads(kind)}"))
        deliver(_option_table(name, kind.Options))


@app.command()
def models() -> None:
    """Show the models that have a short name.

    --model also takes a folder or a hub id (org/name).
    """
    for spec in MODELS.values():
        typer.echo(f"{spec.name}: {spec.about}")


@app.command()
def heads() -> None:
    """Show the draft heads of methods, by the model that they fit.

    Those that are not shipped are named to a run by --option, as shown below each.
    """
    kinds: dict[str, Any] = {name: method_class(name) for name in method_names()}
    needing = {name: kind for name, kind in kinds.items() if isinstance(kind, NeedsHeads)}
    found = [(name, known) for name, kind in needing.items() for known in kind.known_heads()]
    for model, revision in dict.fromkeys((known.model, known.revision) for _, known in found):
        typer.echo(f"--model {model}{f' --revision {revision}' if revision else ''}")
        for name, known in found:
            if (known.model, known.revision) == (model, revision):
                typer.echo(_head_lines(name, known))
    typer.echo("Sources")
    for source in dict.fromkeys(source for _, known in found for source in known.sources):
        typer.echo(f"  {source}")


@app.command()
def tasks() -> None:
    """Show the tasks, and the question categories of each."""
    for task in TASKS:
        categories = [name for name, of in CATEGORIES.items() if of == task and name != task]
        typer.echo(f"{task}: {', '.join(categories)}" if categories else task)


@app.command()
def questions(
    source: Annotated[
        str | None,
        typer.Option(
            "--questions",
            help="Show the questions of this set.",
            metavar="SET",
            autocompletion=lambda: list(SOURCES),
        ),
    ] = None,
) -> None:
    """Show the question sets, or the questions of one."""
    if source is None:
        for name, description in SOURCES.items():
            typer.echo(f"{name}: {description}")
        return
    found = load_questions(source).questions
    for question in found:
        typer.echo(_question_line(question))
    counts = Counter(question.task for question in found)
    typer.echo(", ".join(f"{count} {task}" for task, count in counts.items()))


def _need_of_heads(kind: Any) -> str:
    if not isinstance(kind, NeedsHeads):
        return "needs no draft heads"
    models = [known.model for known in kind.known_heads() if not known.given]
    shipped = ", ".join(models) or "no model"
    return f"needs draft heads, shipped for {shipped}; see specbench list heads"


def _head_lines(method: str, known: KnownHeads) -> str:
    """What they are, then how they are asked for if they do not come by themselves."""
    facts = [f"{known.parameters / 1e6:,.1f} M parameters", known.about]
    first = f"  {method}: {', '.join(filter(None, facts))}"
    if not known.given:
        return f"{first}, shipped"
    return f"{first}\n    {known.given}{f', from {known.download}' if known.download else ''}"


def _option_table(method: str, options: type[MethodOptions]) -> Table:
    hints = typing.get_type_hints(options)
    table = Table.grid("", Column(no_wrap=True), "", "", padding=(0, 2))
    for field in fields(options):
        flag = f"{method}.{field.name}={_default(field.default)}"
        help_ = field.metadata.get("help", "")
        table.add_row("", Text(flag), _kind(hints[field.name]), Text(help_))
    return table


def _default(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _kind(hint: Any) -> str:
    kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind is not type(None)]
    return " or ".join(kind.__name__ for kind in kinds)


def _question_line(question: Question) -> str:
    """Its id, where it belongs, and how it begins, on a line of 80 columns."""
    turns = f"{len(question.turns)} turns: " if len(question.turns) > 1 else ""
    start = " ".join(question.turns[0].split())
    line = Text(f"{question.question_id:>4}  {question.category:<15} {turns}{start}")
    line.truncate(_LINE, overflow="ellipsis")
    return line.plain
