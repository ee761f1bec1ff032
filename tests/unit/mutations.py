"""Run folders as no run leaves them: bytes, lines, values, labels, files and tables changed.

A number names a change: what is random in it follows from that number.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Json = Any
Change = Callable[[Path, random.Random, Sequence[Path]], None]

MANIFEST, LINES, VERDICTS = "run.json", "generations.jsonl", "lossless.jsonl"
TABLES = ("steps.parquet", "generations.parquet")

# JSON that Python would not write takes the place of these texts.
_WRITTEN = (*("1e999", "-1e999", "NaN", "-Infinity", "1" * 400), "[" * 5000, '{"a":' * 5000)
RAW = {f"<{text}>": text.encode() for text in _WRITTEN}
HOSTILE: tuple[Json, ...] = (
    *(None, True, False, 0, -1, 1, 2**31 - 1, 2**31, 2**63 - 1, 2**63, -(2**63), 10**6, 10**400),
    *(0.0, -0.5, 1.5, 1e-320, 1e15, 1e300, float("nan"), float("inf")),
    *("", " ", "\n", "\x00", "\ud800", "\u2028", "x" * 5000, "[/b]", "[red]", "$\\frac{$", "<b>&"),
    *("vanilla", "ok", "error", "cpu", "cuda:7", "../../x", "/", "NaN", "2026-13-45", "1"),
    *([], {}, [[]], [None], [1, "2"], {"": 1}, {"a": {"b": [1]}}, [0] * 70_000),
    *RAW,
)
NAMES = (
    *("[/red]", "[bold]x", "$x_{$", "a\nb", "../up", "a/b", "x" * 300, "\x00", "", "%s {0}", "\\"),
    *("<script>", "a&b_#", "=1+1", "é", "a,b", '"', "overall", "-", "chain[steps=3]"),
)
# What the types allow, in a generation.
ALLOWED: Mapping[str, Sequence[Json]] = {
    "total_ms": (0, 0.0, 1e15, 1e-300),
    "ttft_ms": (0, 1e15),
    "status": ("error", "prompt_too_long"),
    "error": ("[/b]\nTraceback", "\x00", "x" * 5000),
    "task": NAMES,
    "category": NAMES,
    "question_id": (2**63 - 1, -(2**63)),
    "turn": (2**31 - 1,),
    "repeat": (2**31 - 1,),
    "peak_rss_mb": (0, 1e15, None),
    "peak_device_mb": (0, 1e15),
    "energy_j": (0, 1e15),
    "worker": (2**31 - 1,),
    "text": ("\x00", "\u2028", "x" * 100_000),
}
# Where in a manifest, and what to put there; E stands for an entry's label.
IN_MANIFEST: Sequence[tuple[tuple[str, ...], Sequence[Json]]] = (
    (("entries", "E", "method"), NAMES),
    (("entries", "E", "lossy"), (True,)),
    (("entries", "E", "options", "threshold"), (0, "0", None, [], {}, 1e300, True, "[/b]", -0.0)),
    (("entries", "E", "options", "steps"), (0, -1, "12", None, [1], 10**30, 1.5, "x")),
    (("entries", "E", "options", "tree_width"), (1, 0, "1", None, [], 10**30)),
    (("entries", "E", "options", "[/b]"), ("$_$", {"a": [1]}, "x" * 5000)),
    (("baseline",), NAMES),
    (("schema_version",), (1, 2, 3, 4, 5, 2**40, True, 10**400)),
    (("created",), (*NAMES, "2026-01-01", "9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00")),
    (("status",), (*NAMES, "running", "complete")),
    (("name",), NAMES),
    (("model",), NAMES),
    (("questions",), NAMES),
    (("environment",), ({}, {"gpus": []}, {"gpus": [{"name": "[/b]"}]}, {"gpus": None, "cpu": ""})),
    (("request", "decoding", "temperature"), (1e6, 0.5)),
    (("request", "decoding", "max_new_tokens"), (1, 2**31 - 1)),
    (("request", "decoding", "workers"), (5, 0)),
    (("resolved",), ({}, {"device": "cuda:9999"}, {"dtype": "../x", "threads": 0})),
    (("settings", "temperature"), (1, None, "x")),
    (("settings", "max_new_tokens"), (1, 2**31 - 1)),
    (("settings", "device"), ("cuda:9999", "cuda:0\n", None)),
    (("settings", "model_revision"), ("a==b", 1)),
)


# --- files as bytes and as lines ---


def change_bytes(folder: Path, rng: random.Random, _: Sequence[Path]) -> None:
    path = rng.choice(sorted(folder.iterdir()))
    content = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 3)):
        at, length = rng.randint(0, len(content)), rng.choice((1, 3, 8, 200))
        kind = rng.choice(("flip", "cut", "insert", "end"))
        if kind == "flip" and content:
            content[at % len(content)] ^= 1 << rng.randrange(8)
        elif kind == "insert":
            content[at:at] = rng.randbytes(length)
        else:
            del content[at : at + length if kind == "cut" else None]
    path.write_bytes(content)


def change_lines(folder: Path, rng: random.Random, _: Sequence[Path]) -> None:
    path = rng.choice(sorted(folder.glob("*.jsonl")))
    lines = path.read_bytes().splitlines(keepends=True) or [b""]
    at, other = (rng.randrange(len(lines)) for _ in range(2))
    line = lines[at]
    strange = rng.choice((b"\n", b" \r\n", b"\xef\xbb\xbf\n", b"\x00" * 50))
    lines[at : at + 1] = rng.choice(
        ([], [line, line], [line[: rng.randint(0, len(line))]], [line.rstrip()], [strange, line])
    )
    if rng.random() < 0.3 and len(lines) > other:
        lines.append(lines.pop(other))
    path.write_bytes(b"".join(rng.choice((lines, lines, lines, [], lines[at : at + 1]))))


# --- values ---


def _places(value: Json, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything in a document; of a list to its ends alone."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = [(at, value[at]) for at in sorted({0, len(value) - 1}) if value]
    else:
        return
    for key, item in items:
        yield (*path, key)
        yield from _places(item, (*path, key))


def _edit(path: Path, rng: random.Random, change: Callable[[Json], None], *, every: bool) -> None:
    """Changes the document, or a line of it, or all lines alike."""
    one = path.suffix == ".json"
    texts = [path.read_bytes()] if one else path.read_bytes().splitlines()
    for at in range(len(texts)) if every or not texts else [rng.randrange(len(texts))]:
        document = json.loads(texts[at])
        change(document)
        texts[at] = json.dumps(document, indent=2 if one else None).encode()
        for name, raw in RAW.items():
            texts[at] = texts[at].replace(json.dumps(name).encode(), raw)
    path.write_bytes(b"".join(text + b"\n" for text in texts))


def change_values(folder: Path, rng: random.Random, _: Sequence[Path]) -> None:
    """A value anywhere becomes a hostile one, goes or has another name."""
    path = rng.choice([path for path in sorted(folder.glob("*.json*")) if path.stat().st_size])
    text = path.read_bytes()
    sample = json.loads(text if path.suffix == ".json" else text.splitlines()[0])
    way, hostile = rng.choice([*_places(sample)]), rng.choice(HOSTILE)
    kind = rng.choice(("put", "put", "put", "put", "remove", "rename", "add"))

    def change(document: Json) -> None:
        try:
            for key in way[:-1]:
                document = document[key]
            value = document.pop(way[-1])
        except (KeyError, IndexError):  # this line has no such place
            return
        if kind == "rename" and isinstance(document, dict):
            document[f"{way[-1]}_"] = value
        elif kind == "add" and isinstance(value, dict):
            document[way[-1]] = value | {"colour": hostile}
        elif kind != "remove" and isinstance(document, dict):
            document[way[-1]] = hostile
        elif kind != "remove":
            document.insert(way[-1], hostile)

    _edit(path, rng, change, every=rng.random() < 0.4)


def change_columns(folder: Path, rng: random.Random, _: Sequence[Path]) -> None:
    """Steps with a column that is longer, shorter or of other numbers."""
    numbers = (0, 1, 65535, 65536, 10**6, 2**31 - 1, 1e15)
    number, kind, none = rng.choice(numbers), rng.randrange(4), rng.random() < 0.2
    which = rng.random()

    def change(line: Json) -> None:
        columns = line.get("steps") or {"steps": []}  # older versions have theirs elsewhere
        name = sorted(columns)[int(which * len(columns))]
        values = columns[name]
        columns[name] = (values[1:], [*values, *values[:1]], [], [number for _ in values])[kind]
        if kind == 3 and name == "drafted":
            columns |= {"accepted": columns[name], "emitted": [1 for _ in values]}
        if none:
            line |= {"steps": {name: [] for name in columns}, "target_passes": kind % 2}

    _edit(folder / LINES, rng, change, every=rng.random() < 0.5)


def change_allowed(folder: Path, rng: random.Random, _: Sequence[Path]) -> None:
    """Values that the types allow and no run has, in some or in all answers."""
    name = rng.choice(sorted(ALLOWED))
    value, share = rng.choice(ALLOWED[name]), rng.choice((0.3, 1.0))

    def change(line: Json) -> None:
        if rng.random() < share:
            line[name] = value

    _edit(folder / LINES, rng, change, every=True)


# --- the manifest, and labels everywhere ---


def _as_labels_were(manifest: Json) -> tuple[str, str]:
    """How this version names the entries, and the entry of a record."""
    return ("entries", "entry") if "entries" in manifest else ("methods", "method")


def change_label(folder: Path, rng: random.Random, _: Sequence[Path]) -> None:
    """An entry has another label, in every file."""
    manifest = json.loads((folder / MANIFEST).read_text())
    field, key = _as_labels_were(manifest)
    old, new = rng.choice(sorted(manifest[field])), rng.choice(NAMES)

    def renamed(label: str) -> str:
        return new if label == old else label

    def change(document: Json) -> None:
        if field in document:
            document[field] = {renamed(name): of for name, of in document[field].items()}
            document["baseline"] = renamed(document.get("baseline", "vanilla"))
        else:
            document[key] = renamed(document[key])

    for name in (MANIFEST, LINES, VERDICTS):
        _edit(folder / name, rng, change, every=True)
    table = pq.read_table(folder / TABLES[0])
    labels = pa.array(map(renamed, table[key].to_pylist()), pa.string())
    at = table.schema.get_field_index(key)
    pq.write_table(table.set_column(at, key, labels), folder / TABLES[0])


def change_manifest(folder: Path, rng: random.Random, _: Sequence[Path]) -> None:
    """The manifest says something else than the entries, the answers or the clock."""
    way, values = rng.choice(IN_MANIFEST)
    kind = rng.choice(("put", "put", "put", "put", "drop", "more"))

    def change(manifest: Json) -> None:
        entries = manifest[_as_labels_were(manifest)[0]]
        label = rng.choice(sorted(entries))
        if kind == "drop":
            del entries[label]
        elif kind == "more":
            entries[rng.choice(NAMES)] = dict(entries[label])
        elif way[0] == "entries":
            of = entries[label]
            for key in way[2:-1]:
                of = of[key]
            of[way[-1]] = rng.choice(values)
        else:
            for key in way[:-1]:
                manifest = manifest.get(key, {})
            manifest[way[-1]] = rng.choice(values)

    _edit(folder / MANIFEST, rng, change, every=True)


# --- whole files ---


def _as_another_runs(path: Path, other: Path) -> None:
    if other.is_file():
        shutil.copyfile(other, path)


def _away(path: Path) -> None:
    away = path.parent.with_name("away")
    away.write_bytes(b"")
    path.symlink_to(away)


INSTEAD: tuple[Callable[[Path, Path], None], ...] = (
    lambda _path, _other: None,  # missing
    lambda path, _other: path.touch(),
    lambda path, _other: path.mkdir(),
    lambda path, _other: os.mkfifo(path),  # whoever opens it waits
    lambda path, _other: path.symlink_to(path.with_name("nothing")),
    lambda path, _other: path.symlink_to(path),
    lambda path, _other: path.symlink_to(path.parent),
    lambda path, other: path.symlink_to(path.with_name(other.name)),
    lambda path, _other: path.symlink_to("/dev/zero"),
    lambda path, _other: path.symlink_to("/dev/full"),
    lambda path, _other: path.write_bytes(bytes(4096)),
    lambda path, _other: _away(path),
    _as_another_runs,
    _as_another_runs,
)


def change_files(folder: Path, rng: random.Random, others: Sequence[Path]) -> None:
    """Something else is where a file of the run is, or might be."""
    names = sorted(path.name for path in folder.iterdir())
    made = (
        *TABLES,
        *(f"{name}.tmp" for name in (*TABLES, MANIFEST)),
        "steps.jsonl",
        "device.jsonl",
    )
    name = rng.choice([*names, *names, *made])
    (folder / name).unlink(missing_ok=True)
    instead = rng.choice(INSTEAD)
    other = name if instead is _as_another_runs else rng.choice(names)
    instead(folder / name, rng.choice(others) / other)


def change_table(folder: Path, rng: random.Random, _: Sequence[Path]) -> None:
    """A table that can be read and is another; its mark of the lines stays as it was."""
    path = rng.choice(sorted(folder.glob("*.parquet")))
    table = pq.read_table(path)
    rows, name = len(table), rng.choice(table.column_names)
    kept = table[name].to_pylist()
    value = rng.choice((None, 10**6, 2**62, 65536, -1, "x", [0.5], float("nan")))
    if type(kept[0]) is type(value) and rng.random() < 0.5:
        kept[rng.randrange(rows)] = value
    else:
        kept = [value] * rows
    names = [f"{of}_" if of == name else of for of in table.column_names]
    changed = rng.choice(
        (
            lambda: table.drop_columns([name]),
            lambda: table.rename_columns(names),
            lambda: table.slice(rng.randint(0, rows), rng.randint(0, rows)),
            lambda: table.slice(0, 0),
            lambda: pa.concat_tables([table, table]),
            *[lambda: table.set_column(table.column_names.index(name), name, pa.array(kept))] * 5,
        )
    )
    pq.write_table(changed().replace_schema_metadata(table.schema.metadata), path)


CHANGES: tuple[Change, ...] = (
    *(change_bytes, change_lines, change_values, change_values, change_columns, change_allowed),
    *(change_allowed, change_label, change_manifest, change_manifest, change_files, change_table),
)


def mutate(folder: Path, number: int, others: Sequence[Path]) -> str:
    """Makes the change that ``number`` stands for in a run folder; returns its kind.

    ``others`` are folders whose files may take the place of this one's.
    """
    change = CHANGES[number % len(CHANGES)]
    change(folder, random.Random(number), others)
    return change.__name__
