"""Where a command's text goes: a document without a terminal's width, and files that were named."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from specbench_kangaroo.record.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType


def plain_text(drawing: RenderableType, *, width: int) -> str:
    """What a terminal of this width would show, without colours; it ends in a newline."""
    from rich.console import Console  # noqa: PLC0415

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


def say(line: str) -> None:
    """Tell the user a line, on standard error: standard output is for what was asked for."""
    typer.echo(line, err=True)
