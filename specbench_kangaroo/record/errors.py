"""Errors that a user can fix, look-ups that name the alternatives, and counts in words."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


class UsageError(Exception):
    """Unusable input.  The message is one line that says what is wrong and how to fix it."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))  # a name in it may have a line's end


class ResumableError(UsageError):
    """A run cannot go on now; what its folder holds is whole, and it can go on later.

    Attributes:
        problem: what is wrong and how to fix it, without how to go on.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}, then go on with specbench run --resume")
        self.problem = problem


class StorageError(ResumableError):
    """A run folder cannot be written any more."""


class DeviceLostError(ResumableError):
    """The device does nothing more for this process, whatever it is asked."""


def look_up(kind: str, name: str, table: Mapping[str, T]) -> T:
    """``table[name]``, or a :class:`UsageError` such as "unknown task 'maths'; did you mean …"."""
    if name in table:
        return table[name]
    close = difflib.get_close_matches(name, table, n=1) or [
        key for key in table if key.startswith(name[:4])
    ]
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UsageError(f"unknown {kind} {name!r}; {hint}there are: {', '.join(sorted(table))}")


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """``1 error``, ``2 errors``."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"
