"""Records as JSON lines that survive a kill: a torn last line is noticed and dropped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from specbench_kangaroo.record.checks import from_plain
from specbench_kangaroo.record.errors import UsageError

R = TypeVar("R")

_PLAIN = frozenset({str, int, float, bool, type(None)})


def plain(value: Any) -> Any:
    """``value`` with every record, mapping, tuple and enum replaced by what JSON has for it."""
    if type(value) in _PLAIN:  # first: a run has millions of token ids
        return value
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return value


def as_line(value: Any) -> bytes:
    """One JSON line.  ASCII only: no text can hold a byte that a reader takes for a line's end."""
    return json.dumps(plain(value), ensure_ascii=True).encode("ascii") + b"\n"


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


def parsed(content: bytes) -> Any:
    """The JSON value of some bytes, with or without a byte-order mark.

    Raises:
        ValueError: they are no JSON.
    """
    try:
        return json.loads(content)
    except UnicodeDecodeError:
        raise ValueError("it is no text in UTF-8") from None
    except RecursionError:  # brackets without an end
        raise ValueError("it is nested too deeply") from None


def numbered_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number and the object of each line; blank lines and a torn last one are left out.

    A kill tears a line anywhere before its end: what cannot be read and has an end was changed by
    somebody.

    Raises:
        UsageError: such a line, or the file cannot be read.
    """
    with reading(path), path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            value = _object(line)
            if value is not None:
                yield number, value
            elif line.endswith(b"\n"):
                raise UsageError(f"{path}:{number}: not a JSON object; remove or fix that line")


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The object of each line; see :func:`numbered_lines`."""
    for _, value in numbered_lines(path):
        yield value


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = parsed(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def read_records(path: Path, kind: type[R]) -> list[R]:
    """Every line of ``path`` as a ``kind``; see :func:`numbered_records`."""
    return [record for _, record in numbered_records(path, kind)]


def numbered_records(path: Path, kind: type[R]) -> Iterator[tuple[int, R]]:
    """The number of each line, and the line as a ``kind``.

    Raises:
        UsageError: a line is malformed or holds something else; it names the file and the line.
    """
    for number, row in numbered_lines(path):
        try:
            record = from_plain(kind, row)
        except ValueError as error:
            message = f"{path}:{number}: not a {kind.__name__} ({error}); remove or fix that line"
            raise UsageError(message) from error
        yield number, record


def drop_torn_line(path: Path) -> None:
    """Cuts a torn last line off ``path``, so that the next append starts a line of its own."""
    content = path.read_bytes()
    start = content.rfind(b"\n") + 1
    last = content[start:]
    if not last:
        return
    with path.open("rb+") as file:
        if _object(last) is None:
            file.truncate(start)
        else:  # only its newline is missing
            file.seek(0, 2)
            file.write(b"\n")
