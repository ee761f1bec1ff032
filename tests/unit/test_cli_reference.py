"""The page of all commands and flags is the command line's own description of itself."""

from __future__ import annotations

import shlex
from functools import cache
from pathlib import Path

import typer.cli
from typer.testing import CliRunner

from specbench_kangaroo.cli.main import EXIT_STATUSES

ROOT = Path(__file__).parents[2]


@cache
def made() -> tuple[Path, str]:
    """The page as ``make reference`` makes it: where it is written, and what."""
    recipe = ROOT.joinpath("Makefile").read_text().partition("\nreference:")[2].partition("\n\n")[0]
    words = shlex.split(recipe.partition(" -m typer ")[2].replace("\\\n", ""))
    *arguments, option, path = words
    assert option == "--output"
    result = CliRunner().invoke(typer.cli.app, arguments)
    assert result.exit_code == 0, result.output
    return ROOT / path, result.output


def test_the_page_is_what_the_flags_say() -> None:
    path, text = made()
    written, lines = path.read_text(encoding="utf-8").splitlines(), text.strip().splitlines()
    changed = [line for line in lines if line not in written]
    changed += [f"no longer: {line}" for line in written if line not in lines]
    assert written == lines, (
        f"{path.relative_to(ROOT)} does not describe this command line; "
        f"`make reference` writes it again. It differs in: {changed or 'the order of its lines'}"
    )


def test_every_command_and_every_exit_status_is_on_the_page() -> None:
    _, text = made()
    assert {0, 1, 2, 130} <= EXIT_STATUSES.keys()
    assert all(f"{status} {means}" in text for status, means in EXIT_STATUSES.items())
    for name in ("run", "train kangaroo", "list heads"):
        section = text.partition(f" `specbench {name}`\n")[2].partition("\n## ")[0]
        assert "--help" in section, f"the page has no section on specbench {name}"
