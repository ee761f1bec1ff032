"""Methods by name: those that come with the harness, and those that other packages bring.

Every module of ``specbench_methods``, and every package in it that has a ``method.py``, is a method
of that name and exports it as ``METHOD``; another distribution adds one by an entry point of the
group ``specbench_kangaroo.methods``.
"""

from __future__ import annotations

import importlib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from specbench_kangaroo.record.errors import UsageError, look_up

if typing.TYPE_CHECKING:
    from specbench_kangaroo.engine.method import Method, MethodOptions

ENTRY_POINTS = "specbench_kangaroo.methods"
_BUILT_IN = "specbench_methods"
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def method_names() -> list[str]:
    """Every method there is, without importing one: opening a list costs no torch."""
    return sorted(_loaders())


def built_in_files() -> dict[str, Path]:
    """The module of every method that comes with the harness, without importing one."""
    package = importlib.import_module(_BUILT_IN)
    folders = [Path(folder) for folder in package.__path__]
    found = {path.stem: path for folder in folders for path in folder.glob("[!_]*.py")}
    found |= {path.parent.name: path for folder in folders for path in folder.glob("*/method.py")}
    return dict(sorted(found.items()))


def method_class(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        UsageError: no such method; the message lists those that there are.
    """
    return look_up("method", name, _loaders())()


def parse_options(name: str, given: Mapping[str, str], *, label: str = "") -> MethodOptions:
    """A method's options from ``key=value`` texts, typed as its ``Options`` class declares them.

    ``label`` is what the user calls the entry, if that is not the method's name.

    Raises:
        UsageError: an unknown option, or a text that is not of its type.
    """
    kind = method_class(name).Options
    hints = typing.get_type_hints(kind)
    known = {field.name: hints[field.name] for field in fields(kind)}
    parsed = {}
    for key, text in given.items():
        wanted = look_up(f"option of {name}", key, known)
        parsed[key] = _parse(f"{label or name}.{key}", text, wanted)
    return kind(**parsed)


def _loaders() -> dict[str, Callable[[], type[Method]]]:
    built_in = (
        EntryPoint(name, f"{_BUILT_IN}.{name}:METHOD", ENTRY_POINTS) for name in built_in_files()
    )
    # Ours come last: no package may replace the baseline.
    return {point.name: point.load for point in (*entry_points(group=ENTRY_POINTS), *built_in)}


def _parse(name: str, text: str, wanted: Any) -> Any:
    kinds = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
    if types.NoneType in kinds and text.lower() in ("", "none"):
        return None
    kind = next(kind for kind in kinds if kind is not types.NoneType)
    try:
        return _TRUTH[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        raise UsageError(f"{name} must be of type {kind.__name__}, not {text!r}") from None
