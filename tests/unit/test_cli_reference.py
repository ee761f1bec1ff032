"""The page of all commands and flags is the command line's own description of itself."""

from __future__ import annotations

import typer

from specbench_kangaroo.cli.main import EXIT_STATUSES, app
from specbench_kangaroo.cli.reference import PAGE, page


def test_the_page_is_what_the_flags_say() -> None:
    written = PAGE.read_text(encoding="utf-8").splitlines()
    made = page().splitlines()
    changed = [line for line in made if line not in written]
    changed += [f"no longer: {line}" for line in written if line not in made]
    assert written == made, (
        "specbench_kangaroo/cli/README.md does not describe this command line; "
        f"`make reference` writes it anew. It differs in: {changed or 'the order of its lines'}"
    )


def test_no_command_and_no_flag_is_left_out() -> None:
    text = page()
    for name, command in typer.main.get_command(app).commands.items():
        section = text.partition(f"\n## specbench {name}\n")[2].partition("\n## ")[0]
        assert section, f"the page has no section on specbench {name}"
        flags = [flag for item in command.params for flag in item.opts if flag.startswith("--")]
        missing = [flag for flag in flags if f"| `{flag}" not in section]
        assert not missing, f"the section on specbench {name} does not name {missing}"


def test_defaults_are_told_from_their_descriptions() -> None:
    lines = page().splitlines()
    assert "| `--max-new-tokens N` | `128` | Tokens per answer, at most. At least 1. |" in lines
    assert any(line.startswith("| `--limit N` | all | Questions per task") for line in lines)
    assert "| `RUN` | required | A run folder. |" in lines


def test_every_exit_status_is_on_the_page() -> None:
    assert {0, 1, 2, 130} <= EXIT_STATUSES.keys()
    assert all(f"| {status} | {means} |" in page() for status, means in EXIT_STATUSES.items())
