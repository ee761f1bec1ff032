"""The page of all commands and flags: ``README.md`` beside this module, made from the flags alone.

``make reference`` writes the page; a test holds it against the command line.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from specbench_kangaroo.cli.main import EXIT_STATUSES, app

PAGE = Path(__file__).with_name("README.md")
HEAD = """# The command line

Every command, flag and default, as `--help` shows them. Made by `make reference`; edit the flags,
not this page.
"""
COMPLETION = """
## Completion

`specbench --install-completion` teaches your shell (bash, zsh, fish or PowerShell) to complete
commands, flags, methods, models, tasks, question sets, formats, dtypes and run folders;
`specbench --show-completion` prints the script instead.
"""
_RECORD = re.compile(r"(?P<text>.*?) *(?:\[(?P<extra>[^\[\]]*)\])?", re.DOTALL)
_WORDS = re.compile(r"\((?P<words>.*)\)")


def page() -> str:
    """The whole page; it ends in a newline."""
    root = typer.main.get_command(app)
    context = root.make_context(str(app.info.name), [], resilient_parsing=True)
    return "".join((HEAD, _statuses(), *_section(root, context), COMPLETION))


def _statuses() -> str:
    rows = "".join(f"| {number} | {means} |\n" for number, means in EXIT_STATUSES.items())
    return f"\n| exit status | means |\n| ---: | --- |\n{rows}"


def _section(command: Any, context: Any) -> Iterator[str]:
    """What a command says of itself, and then each command below it."""
    yield f"\n## {context.command_path}\n\n```\n{_usage(command, context)}\n```\n"
    yield f"\n{_escaped(inspect.cleandoc(command.help or ''))}\n"
    yield _parameters(command, context)
    for name, below in getattr(command, "commands", {}).items():
        shown = name.upper() if _names_its_commands_later(command) else name
        inner = below.make_context(shown, [], parent=context, resilient_parsing=True)
        yield from _section(below, inner)


def _usage(command: Any, context: Any) -> str:
    arguments = [p.metavar for p in command.params if p.param_type_name == "argument"]
    options = ["[OPTIONS]"] if len(command.params) > len(arguments) else []
    below = ["COMMAND"] if hasattr(command, "commands") else []
    return " ".join([context.command_path, *options, *arguments, *below])


def _names_its_commands_later(command: Any) -> bool:
    """Whether one command stands for several, which are found when one of them is asked for."""
    return type(command).list_commands is not TyperGroup.list_commands


def _parameters(command: Any, context: Any) -> str:
    rows = [_row(parameter, context) for parameter in command.params if not parameter.hidden]
    if not rows:
        return ""
    return "\n| flag | default | |\n| --- | --- | --- |\n" + "".join(rows)


def _row(parameter: Any, context: Any) -> str:
    """A line of the table, from what ``--help`` shows: a name, a text, ``[default: …]``."""
    name, described = parameter.get_help_record(context)
    found = _RECORD.fullmatch(described)
    text, extra = (found["text"], found["extra"] or "") if found else (described, "")
    if parameter.param_type_name == "argument":
        name = parameter.metavar
    name = re.sub(r"<list\[(.*)\]>", r"<\1>", name)
    said = " ".join(filter(None, [text, *map(_limits, extra.split("; "))]))
    return f"| `{_cell(name)}` | {_default(extra)} | {_cell(_escaped(said))} |\n"


def _default(extra: str) -> str:
    for part in extra.split("; "):
        if part == "required":
            return part
        value = part.removeprefix("default: ")
        if value != part:
            words = _WORDS.fullmatch(value)
            return words["words"] if words else f"`{value}`"
    return ""


def _limits(extra: str) -> str:
    """The range of a flag's values in words, empty for what is no range."""
    if found := re.fullmatch(r"x>=([\d.]+)", extra):
        return f"At least {float(found[1]):g}."
    if found := re.fullmatch(r"([\d.]+)<=x<=([\d.]+)", extra):
        return f"From {float(found[1]):g} to {float(found[2]):g}."
    return ""


def _escaped(text: str) -> str:
    """Text in which Markdown finds no tag and no emphasis."""
    return re.sub("([<>*])", r"\\\1", text)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
