"""Records as JSON lines that survive a kill: a torn last line is noticed and dropped."""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from specbench_kangaroo.record.errors import UsageError

R = TypeVar("R")
Decode = Callable[[bytes], R]

_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
_LONGEST = 200  # characters of a reason in a message


def as_line(value: Any) -> bytes:
    """One JSON line.  ASCII only: no text can hold a byte that a reader takes for a line's end.

    Raises:
        ValueError: a record that no reader would take, or a text with half a character.
    """
    line = msgspec.json.encode(value)
    if not line.isascii():
        line = _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], line.decode()).encode()
    if isinstance(value, msgspec.Struct) and msgspec.json.decode(line, type=type(value)) != value:
        raise ValueError("a value is no number")  # for which JSON has null
    return line + b"\n"


def one_line(reason: object) -> str:
    """An error or a value in a message: on one line, and cut where it is long."""
    text = " ".join(str(reason).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def is_text(value: str) -> bool:
    """Whether every character is one: JSON can spell halves of them, which no file can hold."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Around whatever reads a file that the user may have changed.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; restore the file") from error


def parsed(content: bytes) -> dict[str, Any]:
    """The JSON object of some bytes, with or without a byte-order mark.

    Raises:
        ValueError: they hold none.
    """
    try:
        return msgspec.json.decode(content.removeprefix(BOM_UTF8), type=dict[str, Any])
    except RecursionError:  # brackets without an end
        raise ValueError("it is nested too deeply") from None


def numbered(path: Path, decode: Decode[R], what: str) -> Iterator[tuple[int, R]]:
    """The number and the record of each line; blank lines and a torn last one are left out.

    A kill tears a line anywhere before its end: what cannot be read and has an end was changed by
    somebody.

    Args:
        path: of the file.
        decode: reads a line; it raises ValueError, with the place in the line, for any other.
        what: a line is, in a message.

    Raises:
        UsageError: such a line, or the file cannot be read.
    """
    with reading(path), path.open("rb") as file:
        for number, line in enumerate(file, 1):
            content = line.removeprefix(BOM_UTF8) if number == 1 else line
            if not content.strip():
                continue
            try:
                record = decode(content)
            except (ValueError, RecursionError) as error:
                if _is_torn(line):
                    return
                raise UsageError(
                    f"{path}:{number}: not a {what} ({one_line(error)}); remove or fix that line"
                ) from error
            yield number, record


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The object of each line; see :func:`numbered`."""
    return (record for _, record in numbered(path, parsed, "JSON object"))


def drop_torn_line(path: Path) -> None:
    """Cuts a torn last line off ``path``, so that the next append starts a line of its own."""
    content = path.read_bytes()
    start = content.rfind(b"\n") + 1
    last = content[start:]
    if not last:
        return
    with path.open("rb+") as file:
        if _is_torn(last):
            file.truncate(start)
        else:  # only its newline is missing
            file.seek(0, 2)
            file.write(b"\n")


def _is_torn(line: bytes) -> bool:
    try:
        parsed(line)
    except ValueError:
        return not line.endswith(b"\n")
    return False
