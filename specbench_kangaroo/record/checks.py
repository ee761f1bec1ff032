"""Records from plain data, refused where a value is not what the record's annotation says."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, fields
from functools import cache, partial
from typing import Any, TypeVar

from specbench_kangaroo.record.schema import RENAMED, ExitReason, Lossless, Status

R = TypeVar("R")
Reader = Callable[[Any], Any]

_LARGEST = 2**63 - 1  # what a column of a table can hold
_GREATEST = sys.float_info.max  # an integer above it is no float
_SIGNED = frozenset({"question_id"})  # a name, not a count
_SHOWN = 40  # characters of a wrong value


def from_plain(kind: type[R], row: Mapping[str, Any]) -> R:
    """The record that :func:`jsonl.plain` turned into ``row``.

    Raises:
        ValueError: a field is missing, unknown, or has another type or a value out of range.
    """
    return kind(**checked(kind, row))


def checked(kind: type, row: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the record; see :func:`from_plain`."""
    readers, required = _readers(kind), _required(kind)
    row = upgraded(row, readers)
    if not required <= row.keys() or not row.keys() <= readers.keys():
        raise ValueError(_names_differ(required, readers, row))
    values = {}
    for name, value in row.items():
        try:
            values[name] = readers[name](value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name!r} must be {error}, not {shown(value)}") from None
    return values


def upgraded(row: Mapping[str, Any], names: Collection[str]) -> Mapping[str, Any]:
    """A row of any schema version with the ``names`` that its fields have in this one.

    By the row and not by the run's version: a run that was resumed has rows of several.
    """
    old = [name for name in RENAMED if name in row and name not in names]
    if not old or any(RENAMED[name] in row or RENAMED[name] not in names for name in old):
        return row
    row = {RENAMED.get(name, name) if name in old else name: row[name] for name in row}
    if "methods" in old and isinstance(row["entries"], dict):
        row["entries"] = {label: _labelled(label, of) for label, of in row["entries"].items()}
    return row


def _labelled(label: str, record: Any) -> Any:
    """What a version without labels says of a method, whose name is the entry's label."""
    return {"method": label} | record if isinstance(record, dict) else record


def shown(value: Any) -> str:
    """A value in a message: on one line, and cut where it is long."""
    text = repr(value) if not isinstance(value, list | dict) else f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _names_differ(
    required: frozenset[str], known: Mapping[str, Reader], row: Mapping[str, Any]
) -> str:
    missing = sorted(required - row.keys())
    if missing:
        return f"no {missing[0]!r}"
    return f"unknown field {shown(min(row.keys() - known.keys()))}"


@cache
def _required(kind: type) -> frozenset[str]:
    return frozenset(
        field.name
        for field in fields(kind)
        if field.default is MISSING and field.default_factory is MISSING
    )


@cache
def _readers(kind: type) -> dict[str, Reader]:
    return {
        field.name: _signed if field.name in _SIGNED else _reader(str(field.type))
        for field in fields(kind)
    }


def _reader(annotation: str) -> Reader:
    inner = annotation.removesuffix(" | None")
    reader = _READERS.get(inner, _anything)
    return partial(_optional, reader) if inner != annotation else reader


def _optional(reader: Reader, value: Any) -> Any:
    return None if value is None else reader(value)


def _anything(value: Any) -> Any:
    return value


def is_text(value: str) -> bool:
    """Whether every character is one: JSON can spell halves of them, which no file can hold."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(value: Any) -> str:
    if type(value) is not str or not is_text(value):
        raise ValueError("a text")
    return value


def _truth(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("true or false")
    return value


def _count(value: Any) -> int:
    # Not isinstance: a JSON true is an int to it.
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise ValueError("a whole number of at least 0")
    return value


def _signed(value: Any) -> int:
    if type(value) is not int or not -_LARGEST <= value <= _LARGEST:
        raise ValueError("a whole number of 64 bits")
    return value


def _amount(value: Any) -> float:
    if type(value) not in (float, int) or not 0 <= value <= _GREATEST:
        raise ValueError("a finite number of at least 0")
    return float(value)


def _counts(value: Any) -> tuple[int, ...]:
    # Three passes without a Python call an item: a run has millions of token ids.
    if type(value) is not list or not set(map(type, value)) <= {int}:
        raise ValueError("a list of whole numbers")
    if value and (min(value) < 0 or max(value) > _LARGEST):
        raise ValueError("a list of whole numbers of at least 0")
    return tuple(value)


def _numbers(value: Any) -> tuple[float, ...]:
    if type(value) is not list or not set(map(type, value)) <= {int, float}:
        raise ValueError("a list of numbers")
    if not all(-_GREATEST <= item <= _GREATEST for item in value):
        raise ValueError("a list of finite numbers")
    return tuple(value)


def _texts(value: Any) -> tuple[str, ...]:
    if type(value) is not list or not set(map(type, value)) <= {str}:
        raise ValueError("a list of texts")
    return tuple(value)


def _object(value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise ValueError("an object")
    return value


def _one_of(kind: type[ExitReason | Lossless | Status], value: Any) -> Any:
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise ValueError(f"one of {', '.join(kind)}") from None


_READERS: Mapping[str, Reader] = {
    "str": _text,
    "bool": _truth,
    "int": _count,
    "float": _amount,
    "tuple[int, ...]": _counts,
    "tuple[float, ...]": _numbers,
    "Sequence[str]": _texts,
    "Mapping[str, Any]": _object,
    "Mapping[str, str]": _object,
    "Mapping[str, EntryRecord]": _object,
    "Status": partial(_one_of, Status),
    "Lossless": partial(_one_of, Lossless),
    "ExitReason": partial(_one_of, ExitReason),
}
