"""Run folders of versions 1 to 3 as the present one has them; what was different is here alone.

Up to version 2 fields had other names, and an entry its method's name; up to 3 the manifest had
``settings`` in place of a request, and steps lay beside their generations.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct

from specbench_kangaroo.record.columns import KEY, STEPS, Columns, Line, steps_of
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.jsonl import Decode, numbered, one_line, parsed
from specbench_kangaroo.record.request import Decoding, QuestionChoice, TargetChoice
from specbench_kangaroo.record.schema import (
    BASELINE,
    EntryRecord,
    Generation,
    GenerationKey,
    Resolved,
    StepRecord,
)

R = TypeVar("R")

_RENAMED = {"method": "entry", "methods": "entries", "rows": "nodes"}
_JOURNAL = "steps.jsonl"  # up to version 2: steps that are not in Parquet yet


def decoder(kind: type[R]) -> Decode[R]:
    """Reads a line as a ``kind``; raises ValueError for anything else."""
    return lambda line: msgspec.convert(_renamed(parsed(line)), kind)


def _renamed(row: Mapping[str, Any]) -> dict[str, Any]:
    if any(new in row for old, new in _RENAMED.items() if old in row):
        return dict(row)  # of no version: the old name is then refused as unknown
    return {_RENAMED.get(name, name): value for name, value in row.items()}


# --- the manifest ---


def upgraded(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """A manifest of any version as the present one has it; raises ValueError if it cannot be."""
    if content["schema_version"] < 3:
        content = _renamed(content)
        if isinstance(entries := content.get("entries"), dict):
            content["entries"] = {
                label: {"method": label} | of if isinstance(of, dict) else of
                for label, of in entries.items()
            }
    if content["schema_version"] < 4 and "settings" in content:
        content = _with_request(content)
    return content


def _with_request(content: Mapping[str, Any]) -> dict[str, Any]:
    """The request that the settings tell of.

    It has the name of a questions' file for its path, and all options of every entry.
    """
    settings = msgspec.convert(content["settings"], dict[str, Any])
    entries = msgspec.convert(content.get("entries", {}), dict[str, EntryRecord])
    baseline = content.get("baseline", BASELINE)
    revision = settings.get("model_revision")
    if "==" in str(revision):  # the package that a model of the catalogue came from
        revision = None
    request = {
        "target": {"model": content.get("model"), "revision": revision}
        | _named(settings, TargetChoice),
        "questions": {"source": content.get("questions")} | _named(settings, QuestionChoice),
        "decoding": _named(settings, Decoding),
        "entries": _asked({name: of for name, of in entries.items() if name != baseline}),
    }
    kept = {name: value for name, value in content.items() if name != "settings"}
    return kept | {"request": request, "resolved": _named(settings, Resolved)}


def _named(settings: Mapping[str, Any], kind: type[Struct]) -> dict[str, Any]:
    return {name: settings[name] for name in kind.__struct_fields__ if name in settings}


def _asked(entries: Mapping[str, EntryRecord]) -> list[dict[str, Any]]:
    """Each with its options; those of a sweep, whose labels nobody can give, are numbered."""
    found: dict[str, dict[str, Any]] = {}
    for name, entry in entries.items():
        stem, swept, _ = name.partition("[")
        label, number = stem, 2
        while label in found or (swept and label in entries):
            label, number = f"{stem}-{number}", number + 1
        options = {option: value for option, value in entry.options.items() if value is not None}
        found[label] = {"label": label, "method": entry.method, "options": options}
    return [*found.values()]


# --- steps ---


def line_decoder(folder: Path) -> Decode[Any]:
    """Reads a line of generations as a :data:`~columns.Line`, with its steps from where they lie.

    Raises:
        UsageError: the folder's steps are missing or malformed.
    """
    steps, generation, none = _steps(folder), decoder(Generation), steps_of(())

    def decode(content: bytes) -> Any:
        found = generation(content)
        return Line(**msgspec.structs.asdict(found), steps=steps.get(found.key, none))

    return decode


def _steps(folder: Path) -> dict[GenerationKey, Any]:
    path, journal = folder / STEPS, folder / _JOURNAL
    if not path.is_file() and not journal.is_file():
        raise UsageError(f"{folder} is incomplete: {STEPS} is missing; restore the file")
    found = {}
    if journal.is_file():  # a kill has left it
        found = dict(steps for _, steps in numbered(journal, _journalled, "list of steps"))
    try:
        return found | _tabled(path) if path.is_file() else found
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise UsageError(
            f"{path}: not readable as steps ({one_line(error)}); restore the file"
        ) from error


def _journalled(content: bytes) -> tuple[GenerationKey, Any]:
    line = _renamed(parsed(content))
    steps = msgspec.convert(line.pop("steps", None), list[dict[str, Any]])
    records = msgspec.convert([_renamed(step) for step in steps], list[StepRecord])
    return msgspec.convert(line, GenerationKey), steps_of(records)


def _tabled(path: Path) -> dict[GenerationKey, Any]:
    columns = _renamed(pq.read_table(path, page_checksum_verification=True).to_pydict())
    rows = defaultdict(list)
    for row, key in enumerate(zip(*(columns[name] for name in KEY), strict=True)):
        rows[GenerationKey(*key)].append(row)
    decode = msgspec.json.Decoder(Columns).decode

    def steps(at: Sequence[int]) -> Any:  # through JSON: what is no number is then none here either
        values = {name: [of[row] for row in at] for name, of in columns.items() if name not in KEY}
        return decode(msgspec.json.encode(values))

    return {key: steps(at) for key, at in rows.items()}
