"""``run.json``: writing and reading a manifest, and refusing to mix two different runs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from specbench_kangaroo.record.checks import from_plain, shown
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.files import write_whole
from specbench_kangaroo.record.jsonl import parsed, plain, reading
from specbench_kangaroo.record.schema import (
    DEFAULT_TEMPLATE,
    SCHEMA_VERSION,
    EntryRecord,
    Manifest,
)

MANIFEST = "run.json"

# What must be the same for two sets of generations to belong to one run.  The environment is left
# out: a run may go on after a restart of the machine.
_IDENTITY = ("model", "questions", "hashes", "baseline", "entries", "settings")
_ABSENT = "absent"
_DEVICE = re.compile(r"\w+(:\d{1,4})?")
# What figures and comparisons read of the parts that have no fixed fields.
_READ: Sequence[tuple[str, str, tuple[type, ...]]] = (
    ("settings", "temperature", (int, float)),
    ("settings", "max_new_tokens", (int,)),
    ("settings", "dtype", (str,)),
    ("settings", "device", (str,)),
    ("environment", "cpu", (str,)),
    ("environment", "gpus", (list,)),
)

SETTINGS_BEFORE: Mapping[str, Any] = {"template": DEFAULT_TEMPLATE, "workers": 1}
"""Settings that older versions did not record, with the value that those had for all runs."""


class Difference(NamedTuple):
    """The first field in which two manifests differ, by its dotted name."""

    field: str
    stored: Any
    given: Any


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes ``run.json`` whole or not at all.

    Raises:
        StorageError: the disk refuses.
    """
    write_whole(folder / MANIFEST, json.dumps(plain(manifest), indent=2) + "\n")


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
        with reading(path):
            content = parsed(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"expected an object, found {shown(content)}")
        version = content.get("schema_version")
        if type(version) is not int or version < 1:
            raise ValueError(f"schema_version is {shown(version)}")
    except ValueError as error:
        raise UsageError(f"{path}: not a manifest ({error}); restore the file") from error
    if version > SCHEMA_VERSION:
        raise UsageError(
            f"{path}: schema version {version} is newer than {SCHEMA_VERSION}, the newest that "
            "this version reads; upgrade specbench-kangaroo"
        )
    try:
        return _manifest(content)
    except ValueError as error:
        raise UsageError(f"{path}: not a manifest ({error}); restore the file") from error


def _manifest(content: dict[str, Any]) -> Manifest:
    manifest = from_plain(Manifest, content)
    entries: dict[str, EntryRecord] = {}
    for label, record in manifest.entries.items():
        if not isinstance(record, dict):
            raise ValueError(f"entries.{label} must be an object, not {shown(record)}")
        entries[label] = from_plain(EntryRecord, record)
    _check_free_parts(manifest)
    return replace(manifest, entries=entries)


def _check_free_parts(manifest: Manifest) -> None:
    for of, what, kinds in _READ:
        value = getattr(manifest, of).get(what)
        if value is not None and type(value) not in kinds:
            raise ValueError(f"{of}.{what} is {shown(value)}")
    device = manifest.settings.get("device")
    if device is not None and not _DEVICE.fullmatch(device):
        raise ValueError(f"settings.device is {shown(device)}")
    for gpu in manifest.environment.get("gpus") or ():
        if not isinstance(gpu, dict) or not isinstance(gpu.get("name"), str):
            raise ValueError("environment.gpus must be a list of objects with a name")


def refuse_difference(folder: Path, stored: Manifest, given: Manifest) -> None:
    """Raises :class:`UsageError` that names the first field in which ``given`` is another run."""
    found = first_difference(stored, given)
    if found is not None:
        raise UsageError(
            f"cannot resume {folder}: {found.field} is {found.stored!r} there and "
            f"{found.given!r} now; give the same value, or another --output"
        )


def first_difference(stored: Manifest, given: Manifest) -> Difference | None:
    """The first field in which two manifests are of different runs; None if they are of one."""
    return _first_difference("", _identity(stored), _identity(given))


def _identity(manifest: Manifest) -> dict[str, Any]:
    content = plain(manifest)
    content["settings"] = {**SETTINGS_BEFORE, **content["settings"]}
    for record in content["entries"].values():
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
