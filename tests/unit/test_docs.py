"""The documents against the repository: links, commands, imports, tables, and plain English.

Each check is a function of a text, and a test plants faults that it must find.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest
import typer.main

from specbench_kangaroo.bench.config import choices_of, entries_of
from specbench_kangaroo.bench.registry import built_in_files
from specbench_kangaroo.cli.main import app
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.schema import Generation, StepRecord
from specbench_kangaroo.record.writer import read_run
from specbench_kangaroo.report.documents import markdown
from specbench_kangaroo.stats.metrics import METRICS
from specbench_kangaroo.stats.summary import summarise

ROOT = Path(__file__).parents[2]
MOST_LINES = 150  # of README.md: longer ones are not read
WRITTEN_BY_TYPER = "specbench_kangaroo/cli/README.md"  # usage lines, no commands
PLUG_IN = "repeat_last"  # the method that methods/README.md makes up; it is not installed

ODD_WORDS = (
    *("mend", "a person", "held against", "has a meaning", "anew", "amiss", "nought"),
    "in one stroke",
)

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_INLINE = re.compile(r"`([^`]+)`")
_REFERENCE = re.compile(r"results/reference/([\w.-]+)")
_TABLE = re.compile(r"((?:^\|.*\n)+)", re.MULTILINE)
_PLACEHOLDER = re.compile(r"…|\.\.\.|<\w")
_ODD = re.compile(rf"\b(?:{'|'.join(ODD_WORDS)})\b".replace(" ", r"\s+"), re.IGNORECASE)


@cache
def tracked() -> frozenset[str]:
    """Files by their path: git's and new ones; all where there is no git, as in an sdist."""
    if not (ROOT / ".git").exists():
        found = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
        return frozenset(str(path) for path in found if "__pycache__" not in path.parts)
    options = ["-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(
        ["git", "ls-files", *options], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return frozenset(name for name in listed.stdout.split("\0") if (ROOT / name).is_file())


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


PAGES = sorted(name for name in tracked() if name.endswith(".md"))


# --- a page in pieces ---


@dataclass(frozen=True, slots=True)
class Piece:
    """A fenced block, or a command in it, and where it stands."""

    page: str
    line: int
    text: str
    language: str = ""


def blocks(page: str, text: str) -> Iterator[Piece]:
    """The fenced blocks."""
    opened: tuple[int, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.startswith("```"):
            lines.append(line)
        elif opened is None:
            opened, lines = (number + 1, line[3:].strip()), []
        else:
            yield Piece(page, opened[0], "\n".join(lines), opened[1])
            opened = None


def prose(text: str) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """Those of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+?) *$", prose(text), re.MULTILINE)
    words = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", word).replace(" ", "-") for word in words}


def commands(page: str, text: str, program: str) -> Iterator[Piece]:
    """A program's command lines in fenced blocks; a backslash at the end continues one."""
    for block in blocks(page, text):
        whole = block.text.replace("\\\n", "")
        for line in whole.splitlines() if block.language in ("", "console") else ():
            command = line.strip().removeprefix("$ ").removeprefix(".venv/bin/")
            if command.split(" ")[0] == program:
                yield Piece(page, block.line, command)


# --- what is wrong with it ---


def broken_links(page: str, text: str) -> list[str]:
    """Relative links that lead to no file or folder of the repository, or to no heading."""
    broken = []
    for link in _LINK.findall(_INLINE.sub("", prose(text))):
        path, _, anchor = unquote(link).partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        name = str(target.relative_to(ROOT)) if target.is_relative_to(ROOT) else ""
        is_folder = any(file.startswith(f"{name}/") for file in tracked())
        if name not in tracked() and not is_folder:
            broken.append(f"{link}: not in the repository")
        elif anchor and anchor not in anchors(read(name) if path else text):
            broken.append(f"{link}: no such heading")
    return broken


def missing_runs(text: str) -> list[str]:
    """What is mentioned below results/reference and does not exist; `make gpu` makes the rest."""
    named = {name.rstrip(".") for name in _REFERENCE.findall(text)}
    found = {path.name for path in (ROOT / "results" / "reference").iterdir()}
    return sorted(name for name in named - found if not name.startswith("gpu-"))


def problem(command: str, *, partial: bool = False) -> str | None:
    """Why a `specbench` command line cannot be pasted; a partial one may lack arguments."""
    if _PLACEHOLDER.search(command):
        return "it has a placeholder"
    try:
        given = _parsed(shlex.split(command, comments=True)[1:])
        texts = {name: list(given.get(name) or ()) for name in ("method", "option", "sweep")}
        if "sweep" in given and PLUG_IN not in texts["method"]:
            _check_options(**texts)
    except UsageError as error:
        return str(error)
    except Exception as error:  # click's, of which typer may carry a copy of its own
        if not hasattr(error, "format_message"):
            raise
        message = str(error.format_message())
        return None if partial and message.startswith(("Missing", "Usage:")) else message
    return None


def _parsed(words: list[str]) -> dict[str, object]:
    """The flags of a command line by name, read by the real parser; nothing runs."""
    command, parent, name = typer.main.get_command(app), None, "specbench"
    while True:
        context = command.make_context(name, words, parent=parent)
        if not hasattr(command, "resolve_command"):
            return context.params
        rest = [*context._protected_args, *context.args]
        name, command, words = command.resolve_command(context, rest)
        parent = context


def _check_options(method: list[str], option: list[str], sweep: list[str]) -> None:
    from specbench_kangaroo.bench.setup import entry_options  # noqa: PLC0415 (imports torch)

    entry_options(entries_of(choices_of(method, option, sweep)))


def missing_imports(code: str) -> list[str]:
    """Names of this project that a Python block imports and that there are not."""
    missing = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("specbench_"):
            try:
                module = importlib.import_module(node.module)
            except ImportError:
                missing.append(node.module)
                continue
            names = (f"{node.module}.{item.name}" for item in node.names)
            missing += [name for name in names if not hasattr(module, name.rpartition(".")[2])]
    return missing


def wrong_rows(text: str) -> list[str]:
    """Rows of tables with speedups that the report of the run named before does not have."""
    wrong, run = [], ""
    for part in _TABLE.split(prose(text)):
        if not part.startswith("|"):
            run = (_REFERENCE.findall(part) or [run])[-1].rstrip(".")
            continue
        header, *rows = _cells(part)
        if "speedup" in header:
            wrong += [f"{run}: {row}" for row in rows if row not in _reported(run, header)]
    return wrong


def _cells(table: str) -> list[list[str]]:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return [cells for cells in lines if set("".join(cells)) - set("-:")]


def _reported(run: str, header: list[str]) -> list[list[str]]:
    """The rows of a run's report, as far as its tables have these columns."""
    found = []
    for table in _TABLE.findall(_report(run)):
        columns, *rows = _cells(table)
        if set(header) <= set(columns):
            found += [[row[columns.index(name)] for name in header] for row in rows]
    return found


@cache
def _report(run: str) -> str:
    return markdown(summarise(read_run(ROOT / "results" / "reference" / run)))


# --- the tests ---


COMMANDS = [
    command
    for page in PAGES
    if page != WRITTEN_BY_TYPER
    for command in commands(page, read(page), "specbench")
]
PYTHON = [
    block for page in PAGES for block in blocks(page, read(page)) if block.language == "python"
]
IMPORTING = [block for block in PYTHON if re.match(r"(from|import|\"\"\")", block.text)]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page: str) -> None:
    assert broken_links(page, read(page)) == []


@pytest.mark.parametrize("page", PAGES)
def test_runs_that_are_mentioned_exist(page: str) -> None:
    assert missing_runs(read(page)) == [], "a number without its run cannot be checked"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.page}-{command.line}")
def test_commands_can_be_pasted(command: Piece) -> None:
    told = f"{command.page}:{command.line}: {command.text}"
    assert (found := problem(command.text)) is None, f"{told}: {found}"


@pytest.mark.parametrize("page", [page for page in PAGES if page != WRITTEN_BY_TYPER])
def test_commands_in_the_text_have_flags_that_exist(page: str) -> None:
    found = [" ".join(code.split()) for code in _INLINE.findall(prose(read(page)))]
    named = [code for code in found if re.match(r"specbench [a-z]", code)]
    wrong = {code: problem(code, partial=True) for code in named}
    assert {code: why for code, why in wrong.items() if why} == {}


@pytest.mark.parametrize("block", IMPORTING, ids=lambda block: f"{block.page}-{block.line}")
def test_python_blocks_import_what_there_is(block: Piece) -> None:
    assert missing_imports(block.text) == [], f"{block.page}:{block.line}"


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_tables_are_those_of_the_runs(page: str) -> None:
    assert "| speedup |" in read(page)
    assert wrong_rows(read(page)) == []


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", read("Makefile"), re.MULTILINE))
    named = {item.text.split()[1] for page in PAGES for item in commands(page, read(page), "make")}
    assert "bench" in named
    assert named <= targets, f"make knows no {sorted(named - targets)}"


def test_the_readme_is_short_enough_to_be_read() -> None:
    assert len(read("README.md").splitlines()) <= MOST_LINES, "move a part of it into docs/"


def test_the_readme_links_every_page_of_docs() -> None:
    pages = {page for page in PAGES if page.startswith("docs/")}
    assert pages, "docs/ is empty"
    assert pages <= set(_LINK.findall(read("README.md")))


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("docs/measures.md", [*METRICS]),
        ("docs/methods.md", [*built_in_files()]),
        ("docs/run-folder.md", [*inspect.signature(Generation).parameters]),
        ("docs/run-folder.md", [*inspect.signature(StepRecord).parameters]),
    ],
)
def test_pages_name_all_that_they_are_about(page: str, names: list[str]) -> None:
    assert len(names) > 1
    assert [name for name in names if f"`{name}`" not in read(page)] == []


def test_the_english_is_plain() -> None:
    kinds = {".py", ".md", ".toml", ".ipynb", ".yml", ".cff"}
    files = {name for name in tracked() if Path(name).suffix in kinds or name == "Makefile"}
    files.remove(str(Path(__file__).relative_to(ROOT)))
    found = {name: words for name in sorted(files) if (words := _ODD.findall(read(name)))}
    assert not found, f"say it in plain words: {found}"


# --- faults that the checks must find ---


@pytest.mark.parametrize(
    "link", ["docs/nothing.md", "README.md#nothing", "#nothing", "../outside.md", ".venv/installed"]
)
def test_a_broken_link_is_found(link: str) -> None:
    assert len(broken_links("README.md", f"# Something\n\n[text]({link})\n")) == 1


def test_good_links_pass() -> None:
    page = "# My `page`: a, b\n\n[a](#my-page-a-b) [b](docs) [c](methods/README.md#sampling)\n"
    assert broken_links("README.md", page) == []


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("specbench run --methods kangaroo", "No such option"),
        ("specbench bench", "No such command"),
        ("specbench report", "Missing argument"),
        ("specbench run --limit few", "--limit"),
        ("specbench report …", "placeholder"),
        ("specbench report <RUN>", "placeholder"),
        ("specbench run --method kangoroo", "unknown method"),
        ("specbench run --method kangaroo --option kangaroo.depth=2", "unknown option"),
    ],
)
def test_a_command_that_cannot_be_pasted_is_found(command: str, reason: str) -> None:
    assert reason in (problem(command) or ""), command


def test_a_flag_that_does_not_exist_is_found_in_an_incomplete_command() -> None:
    assert problem("specbench train kangaroo --exit-layer 3", partial=True) is None
    assert problem("specbench train kangaroo --exit-depth 3", partial=True) is not None


def test_commands_are_found_in_blocks() -> None:
    page = (
        "```\n$ specbench run \\\n  --limit 1\nshown\n```\n```json\nspecbench\n```\nspecbench x\n"
    )
    assert [item.text for item in commands("page", page, "specbench")] == [
        "specbench run   --limit 1"
    ]


def test_an_import_that_does_not_exist_is_found() -> None:
    code = "from specbench_kangaroo.nothing import a\nfrom specbench_kangaroo.record import b\n"
    expected = ["specbench_kangaroo.nothing", "specbench_kangaroo.record.b"]
    assert missing_imports(code) == expected


def test_a_number_that_no_run_gives_is_found() -> None:
    page = "see results/reference/cpu-bench\n\n| task | n |\n| --- | --- |\n| x | 1 |\n\nand\n\n"
    table = "| task | n | speedup |\n| --- | ---: | ---: |\n| overall | 24 | {} |\n"
    assert wrong_rows(page + table.format("0.93 (0.89–0.97)")) == []
    assert len(wrong_rows(page + table.format("1.93 (0.89–0.97)"))) == 1


def test_a_run_that_does_not_exist_is_found() -> None:
    assert missing_runs("[x](results/reference/cpu-bench), results/reference/none.") == ["none"]


def test_an_odd_word_is_found() -> None:
    assert all(_ODD.fullmatch(word) for word in ODD_WORDS)
    assert _ODD.findall("it is held\n  against it, amended") == ["held\n  against"]
