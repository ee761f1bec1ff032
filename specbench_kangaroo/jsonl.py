"""Records as JSON lines that survive a kill: a torn last line is noticed and dropped.

Knows: the records of :mod:`records` and lines.  Does not know: which files a run has.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from specbench_kangaroo.errors import UsageError
from specbench_kangaroo.records import ExitReason, Lossless, Status

R = TypeVar("R")

_FROM_JSON = {
    "status": Status,
    "verdict": Lossless,
    "exit_reason": ExitReason,
    "output_ids": tuple,
    "confidence": tuple,
}
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


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The object of each line; a last line that a kill has torn is left out.

    Raises:
        UsageError: a malformed line with others after it, which no kill can leave behind.
    """
    torn: UsageError | None = None
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if torn is not None:
                raise torn
            value = _parsed(line)
            if value is None:
                torn = UsageError(f"{path}:{number}: not a JSON object; remove or mend that line")
            else:
                yield value


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def read_records(path: Path, kind: type[R]) -> list[R]:
    """Every line of ``path`` as a ``kind``.

    Raises:
        UsageError: a line is malformed or holds something else; it names the file and the line.
    """
    records = []
    for number, row in enumerate(read_lines(path), 1):
        try:
            records.append(from_plain(kind, row))
        except (TypeError, ValueError) as error:
            message = f"{path}:{number}: not a {kind.__name__} ({error}); remove or mend that line"
            raise UsageError(message) from error
    return records


def from_plain(kind: type[R], row: Mapping[str, Any]) -> R:
    """The record that :func:`plain` turned into ``row``."""
    given = {
        name: _FROM_JSON[name](value) if name in _FROM_JSON else value
        for name, value in row.items()
    }
    return kind(**given)


def drop_torn_line(path: Path) -> None:
    """Cuts a torn last line off ``path``, so that the next append starts a line of its own."""
    content = path.read_bytes()
    start = content.rstrip(b"\n").rfind(b"\n") + 1
    last = content[start:]
    whole = _parsed(last) is not None
    if not last or (whole and last.endswith(b"\n")):
        return
    with path.open("r+b") as file:
        file.truncate(start)
        if whole:  # only its newline is missing
            file.seek(start)
            file.write(last + b"\n")
