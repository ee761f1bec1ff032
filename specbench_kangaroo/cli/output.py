"""Where a command's text goes: the terminal, files that were named, and a bar of progress."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from specbench_kangaroo.record.errors import UsageError

_FILE_WIDTH = 100  # of terminal tables in a file, which has no width of its own


def say(line: str) -> None:
    """Tell the user a line, on standard error: standard output is for what was asked for."""
    typer.echo(line, err=True)


def deliver(document: RenderableType, output: Path | None = None) -> None:
    """Show what was asked for on standard output, or write it to the file that was named.

    A text stays as it is; tables take the terminal's width and colours.
    """
    if not isinstance(document, str):
        if output is None:
            Console(highlight=False).print(document)
            return
        document = plain_text(document, width=_FILE_WIDTH)
    if output is None:
        typer.echo(document, nl=False)
    else:
        write_file(output, document)


def json_text(document: Any) -> str:
    """A JSON document that is read by eye too; it ends in a newline."""
    return json.dumps(document, indent=2) + "\n"


def plain_text(drawing: RenderableType, *, width: int) -> str:
    """What a terminal of this width would show, without colours; it ends in a newline."""
    file = io.StringIO()
    Console(file=file, width=width, highlight=False).print(drawing)
    return file.getvalue()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around whatever writes ``path`` or files below it, for the user who asked for it by name.

    Raises:
        UsageError: it cannot be written there.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot write {error.filename or path}: {error.strerror}; give another --output"
        ) from error


def write_file(path: Path, text: str) -> None:
    """Write a document; see :func:`writing`."""
    with writing(path):
        path.write_text(text, encoding="utf-8")


@contextmanager
def still_bar(total: int | None = None, *, done: int = 0) -> Iterator[Callable[..., None]]:
    """A bar drawn by hand between measurements, and by no thread within one: those are timed.

    Yields what draws it again with changes that :meth:`rich.progress.Progress.update` knows.  It is
    on standard error; without a terminal nothing is drawn.
    """
    console = Console(stderr=True)
    progress = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
        console=console,
        auto_refresh=False,
        transient=True,
        disable=not console.is_terminal,
    )
    with progress:
        bar = progress.add_task("warming up", total=total, completed=done)
        progress.refresh()
        yield partial(progress.update, bar, refresh=True)
