"""What a shell offers when the user presses Tab behind a flag or an argument.

No import here leads to torch, so that an answer comes at once; what only an import of torch could
tell is left out.  What does not begin as typed is dropped by the caller.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from specbench_kangaroo.bench.registry import built_in_files, method_names
from specbench_kangaroo.models.catalogue import MODELS
from specbench_kangaroo.models.templates import TEMPLATES
from specbench_kangaroo.record.manifest import MANIFEST
from specbench_kangaroo.record.schema import BASELINE

_FOLDERS_LOOKED_AT = 2000  # the user who presses Tab in a home folder does not wait for all of it
_DEPTH = 3  # results/reference/NAME


def entries(incomplete: str) -> list[str]:
    """Every method that a run does not have anyway; behind a label all of them."""
    label, equals, _ = incomplete.partition("=")
    if equals:
        return [f"{label}={name}" for name in method_names()]
    return [name for name in method_names() if name != BASELINE]


def trainable_methods() -> list[str]:
    """Methods of this package with the hook ``trainee``, found by reading and not by importing."""
    files = built_in_files()
    return [name for name in files if "def trainee(" in files[name].read_text("utf-8")]


def models() -> list[tuple[str, str]]:
    """Short names of models; for a folder, which may hold one, the shell has its own way."""
    return [(name, spec.title) for name, spec in MODELS.items()]


def templates() -> list[tuple[str, str]]:
    """The ways to write a prompt."""
    return [(name, template.description) for name, template in TEMPLATES.items()]


def run_folders(incomplete: str) -> list[str]:
    """Run folders below what was typed; none leaves the shell to complete paths of any kind."""
    typed, part = os.path.split(incomplete)
    start = Path(typed).expanduser()
    return [os.path.join(typed, found) for found in _runs_below(start, part)]


def _runs_below(start: Path, part: str) -> Iterator[str]:
    """Run folders in ``start``, nearest first, by paths that begin with ``part``."""
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
