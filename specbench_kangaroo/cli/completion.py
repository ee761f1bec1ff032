"""What a shell offers when the user presses Tab behind a flag or an argument.

Nothing here imports torch, so that an answer comes at once; what only an import of torch could tell
is left out.

Each function takes what was typed so far; what does not begin so is dropped by the caller.
"""

from __future__ import annotations

import importlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DEVICES = ("cpu", "cuda")
_FOLDERS_LOOKED_AT = 2000  # the user who presses Tab in a home folder does not wait for all of it
_DEPTH = 3  # results/reference/NAME


def methods(incomplete: str) -> list[str]:
    """Every method there is."""
    from specbench_kangaroo.run.registry import method_names  # noqa: PLC0415

    del incomplete
    return method_names()


def entries(incomplete: str) -> list[str]:
    """Every method that a run does not have anyway; behind a label all of them."""
    from specbench_kangaroo.record.schema import BASELINE  # noqa: PLC0415

    label, equals, _ = incomplete.partition("=")
    if equals:
        return [f"{label}={name}" for name in methods(incomplete)]
    return [name for name in methods(incomplete) if name != BASELINE]


def trainable_methods() -> list[str]:
    """Methods of this package with the hook ``trainee``, found by reading and not by importing."""
    from specbench_kangaroo.run.registry import built_in_files  # noqa: PLC0415

    files = built_in_files()
    return [name for name in files if "def trainee(" in files[name].read_text("utf-8")]


def _names_in(module: str, table: str, *, told_by: str = "") -> Callable[[str], list[Any]]:
    """The names of a table, which is imported when they are asked for.

    ``told_by`` is the attribute of its values that describes them to shells that show as much.
    """

    def names(incomplete: str) -> list[Any]:
        del incomplete
        found = getattr(importlib.import_module(f"specbench_kangaroo.{module}"), table)
        return [(name, getattr(found[name], told_by)) for name in found] if told_by else [*found]

    return names


# Of models the short names: for a folder, which may hold one, the shell has its own way.
models = _names_in("models.catalogue", "MODELS", told_by="title")
shapes = _names_in("models.shapes", "SHAPES")
tasks = _names_in("run.questions", "TASKS")
templates = _names_in("models.templates", "TEMPLATES", told_by="description")
question_sets = _names_in("run.questions", "SOURCES")
dtypes = _names_in("machine.devices", "DTYPES")  # whether this machine has them, the command says


def devices(incomplete: str) -> list[str]:
    """Kinds of device; counting them would import torch."""
    del incomplete
    return list(DEVICES)


def run_folders(incomplete: str) -> list[str]:
    """Run folders below what was typed; none leaves the shell to complete paths of any kind."""
    typed, part = os.path.split(incomplete)
    start = Path(typed).expanduser()
    return [os.path.join(typed, found) for found in _runs_below(start, part)]


def _runs_below(start: Path, part: str) -> Iterator[str]:
    """Run folders in ``start``, nearest first, by paths that begin with ``part``."""
    from specbench_kangaroo.record.manifest import MANIFEST  # noqa: PLC0415

    todo = deque((name, 1) for name in _subfolders(start) if name.startswith(part))
    for _ in range(_FOLDERS_LOOKED_AT):
        if not todo:
            return
        path, depth = todo.popleft()
        if (start / path / MANIFEST).is_file():
            yield path
        elif depth < _DEPTH:
            below = _subfolders(start / path)
            todo.extend((f"{path}{os.sep}{name}", depth + 1) for name in below)


def _subfolders(folder: Path) -> list[str]:
    """Names, hidden ones left out; none where the folder cannot be read."""
    try:
        with os.scandir(folder) as entries:
            found = [entry.name for entry in entries if entry.is_dir()]
    except OSError:
        return []
    return sorted(name for name in found if not name.startswith("."))
