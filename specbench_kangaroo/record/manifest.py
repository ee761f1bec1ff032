"""``run.json``: writing and reading a manifest, and refusing to mix two different runs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.files import write_whole
from specbench_kangaroo.record.jsonl import one_line, parsed, reading
from specbench_kangaroo.record.schema import SCHEMA_VERSION, Manifest

MANIFEST = "run.json"

# What must be the same for two sets of generations to belong to one run.  The environment is left
# out: a run may go on after a restart of the machine.
_IDENTITY = ("model", "questions", "hashes", "baseline", "entries")
_ABSENT = "absent"


class _Gpu(Struct):
    name: str


class _Environment(Struct):
    cpu: str | None = None
    gpus: tuple[_Gpu, ...] | None = None


class Difference(NamedTuple):
    """The first field in which two manifests differ, by its dotted name."""

    field: str
    stored: Any
    given: Any


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes ``run.json`` whole or not at all.

    Raises:
        UsageError: a value in it cannot be recorded.
        StorageError: the disk refuses.
    """
    try:
        text = json.dumps(msgspec.to_builtins(manifest), indent=2, allow_nan=False)
        _manifest(parsed(text.encode()))
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"cannot record this run in {folder / MANIFEST}: {one_line(error)}; give another value"
        ) from error
    write_whole(folder / MANIFEST, f"{text}\n")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the run in ``folder``.

    Raises:
        UsageError: there is no run, its manifest is malformed, a newer version wrote it, or the
            folder has something in it that is no file, such as a pipe, whose reading would wait.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UsageError(
            f"{folder} holds no run: {path} is missing; give a folder of specbench run"
        )
    try:
        with reading(path):
            _refuse_pipes(folder)
            content = parsed(path.read_bytes())
        version = content.get("schema_version")
        if type(version) is int and version > SCHEMA_VERSION:
            raise UsageError(
                f"{path}: schema version {one_line(version)} is newer than {SCHEMA_VERSION}, the "
                "newest that this version reads; upgrade specbench-kangaroo"
            )
        if type(version) is not int or version < 1:
            raise ValueError(f"schema_version is {version!r}")
        return _manifest(content)
    except ValueError as error:
        raise UsageError(f"{path}: not a manifest ({one_line(error)}); restore the file") from error


def _refuse_pipes(folder: Path) -> None:
    for path in folder.iterdir():
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UsageError(f"{path} is neither a file nor a folder; move it away")


def manifest_to_resume(folder: Path) -> Manifest:
    """The manifest of a run that this version can go on with.

    Raises:
        UsageError: see :func:`read_manifest`, or an older version made it.
    """
    found = read_manifest(folder)
    if found.schema_version < SCHEMA_VERSION:
        again = shlex.join(["specbench", "run", "--from", str(folder), "--output", "NEW"])
        raise UsageError(
            f"cannot resume {folder}: an older version of specbench-kangaroo made it (schema "
            f"{found.schema_version}, now {SCHEMA_VERSION}); repeat it with {again}"
        )
    return found


def resume_command(folder: Path, ray_address: str | None = None) -> str:
    """What goes on with the run in ``folder``, to be pasted."""
    address = () if ray_address is None else ("--ray-address", ray_address)
    return shlex.join(["specbench", "run", "--resume", str(folder), *address])


def _manifest(content: Mapping[str, Any]) -> Manifest:
    if content["schema_version"] < SCHEMA_VERSION:
        from specbench_kangaroo.record import older  # noqa: PLC0415 (pyarrow comes with it)

        content = older.upgraded(content)
    manifest = msgspec.convert(content, Manifest)
    try:
        place = "created"
        _ = manifest.started
        place = "environment"
        msgspec.convert(manifest.environment, _Environment)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    return manifest


def refuse_difference(folder: Path, stored: Manifest, given: Manifest) -> None:
    """Raises :class:`UsageError` that names the first field in which ``given`` is another run."""
    found = first_difference(stored, given)
    if found is not None:
        raise UsageError(
            f"cannot resume {folder}: {found.field} is {one_line(repr(found.stored))} there and "
            f"{one_line(repr(found.given))} now; restore what has changed, or repeat the run with "
            f"{shlex.join(['specbench', 'run', '--from', str(folder)])}"
        )


def first_difference(stored: Manifest, given: Manifest) -> Difference | None:
    """The first field in which two manifests are of different runs; None if they are of one."""
    return _first_difference("", _identity(stored), _identity(given))


def _identity(manifest: Manifest) -> dict[str, Any]:
    # Through JSON, so that a value compares equal with what a file has made of it.
    content = json.loads(json.dumps(msgspec.to_builtins(manifest)))
    for record in content["entries"].values():
        del record["weights_record"]  # provenance: the hash of the weights says it all
    return {name: content[name] for name in _IDENTITY} | {"settings": manifest.settings}


def _first_difference(path: str, stored: Any, given: Any) -> Difference | None:
    if not (isinstance(stored, Mapping) and isinstance(given, Mapping)):
        return None if stored == given else Difference(path, stored, given)
    for name in [*stored, *(name for name in given if name not in stored)]:
        inner = f"{path}.{name}" if path else name
        found = _first_difference(inner, stored.get(name, _ABSENT), given.get(name, _ABSENT))
        if found is not None:
            return found
    return None
