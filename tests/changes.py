"""The same thing with another value in it."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from msgspec import Struct, structs

T = TypeVar("T")


def replace(of: T, /, **changes: Any) -> T:
    """A copy of a record or a dataclass with other values in the named fields."""
    if isinstance(of, Struct):
        return structs.replace(of, **changes)
    return dataclasses.replace(of, **changes)  # type: ignore[type-var]
