"""``run.json``: writing and reading a manifest, and refusing to mix two different runs.

Knows: :class:`Manifest` and its file.  Does not know: generations, steps, or metrics.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from specbench_kangaroo.errors import UsageError
from specbench_kangaroo.jsonl import plain
from specbench_kangaroo.records import SCHEMA_VERSION, Manifest, MethodRecord

MANIFEST = "run.json"

# What must be the same for two sets of generations to belong to one run.  The environment is left
# out: a run may go on after a restart of the machine.
_IDENTITY = ("model", "questions", "hashes", "baseline", "methods", "settings")
_ABSENT = "absent"


class Difference(NamedTuple):
    """The first field in which two manifests differ, by its dotted name."""

    field: str
    stored: Any
    given: Any


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes ``run.json`` whole or not at all."""
    temporary = folder / f"{MANIFEST}.tmp"
    temporary.write_text(json.dumps(plain(manifest), indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, folder / MANIFEST)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the run in ``folder``.

    Raises:
        UsageError: there is no run, its manifest is malformed, or a newer version wrote it.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UsageError(
            f"{folder} holds no run: {path} is missing; give a folder of specbench run"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = int(content["schema_version"])
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{path}: not a manifest ({error!r}); restore the file") from error
    if version > SCHEMA_VERSION:
        raise UsageError(
            f"{path}: schema version {version} is newer than {SCHEMA_VERSION}, the newest that "
            "this version reads; upgrade specbench-kangaroo"
        )
    return _manifest(path, content)


def _manifest(path: Path, content: dict[str, Any]) -> Manifest:
    try:
        methods = {name: MethodRecord(**record) for name, record in content["methods"].items()}
        return Manifest(**{**content, "methods": methods})
    except (TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"{path}: not a manifest ({error}); restore the file") from error


def refuse_difference(folder: Path, stored: Manifest, given: Manifest) -> None:
    """Raises :class:`UsageError` that names the first field in which ``given`` is another run."""
    found = _first_difference("", _identity(stored), _identity(given))
    if found is not None:
        raise UsageError(
            f"cannot resume {folder}: {found.field} is {found.stored!r} there and "
            f"{found.given!r} now; give the same value, or another --output"
        )


def _identity(manifest: Manifest) -> dict[str, Any]:
    content = plain(manifest)
    for record in content["methods"].values():
        del record["weights_record"]  # provenance: the hash of the weights says it all
    # Through JSON, so that a value compares equal with what a file has made of it.
    return {name: json.loads(json.dumps(content[name])) for name in _IDENTITY}


def _first_difference(path: str, stored: Any, given: Any) -> Difference | None:
    if not (isinstance(stored, Mapping) and isinstance(given, Mapping)):
        return None if stored == given else Difference(path, stored, given)
    for name in [*stored, *(name for name in given if name not in stored)]:
        inner = f"{path}.{name}" if path else name
        found = _first_difference(inner, stored.get(name, _ABSENT), given.get(name, _ABSENT))
        if found is not None:
            return found
    return None
