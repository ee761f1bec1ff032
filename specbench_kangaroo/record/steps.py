"""The steps of a run: a journal while it goes on, a Parquet file once it rests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from specbench_kangaroo.record.checks import checked, upgraded
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.files import replacing
from specbench_kangaroo.record.jsonl import as_line, numbered_lines, plain
from specbench_kangaroo.record.schema import ExitReason, GenerationKey, StepRecord

JOURNAL = "steps.jsonl"
STEPS = "steps.parquet"
KEY = [field.name for field in fields(GenerationKey)]
CONFIDENCE_TYPE = pa.list_(pa.float64())
STEP_SCHEMA = pa.schema(
    [
        ("entry", pa.string()),
        ("question_id", pa.int64()),
        ("turn", pa.int64()),
        ("repeat", pa.int64()),
        ("step", pa.int64()),
        ("context_length", pa.int64()),
        ("drafted", pa.int64()),
        ("accepted", pa.int64()),
        ("emitted", pa.int64()),
        ("nodes", pa.int64()),
        ("exit_reason", pa.string()),
        ("confidence", CONFIDENCE_TYPE),
        ("verify_share", pa.float64()),
        ("draft_ms", pa.float64()),
        ("verify_ms", pa.float64()),
        ("accept_ms", pa.float64()),
    ]
)

_NO_COUNT = frozenset({"entry", "question_id", "exit_reason", "confidence"})
# Checksums, as a flipped bit may well decode to another number.
_PARQUET = {"compression": "zstd", "write_page_checksum": True}
# Bounds the memory that a journal takes on its way to Parquet, whatever the length of the run.
_ROWS_PER_TABLE = 50_000


def journal_line(key: GenerationKey, steps: Sequence[StepRecord]) -> bytes:
    """The line of ``steps.jsonl`` that holds all steps of one generation."""
    return as_line(plain(key) | {"steps": steps})


def read_steps(folder: Path, expected: Mapping[GenerationKey, int]) -> pd.DataFrame:
    """The steps of the finished generations of a run, wherever they lie: one row per step.

    ``confidence`` stays an Arrow column (its items are lists): a million small Python lists would
    cost more time and memory than all the rest.

    Args:
        folder: of the run.
        expected: the finished generations, each with the number of its steps.

    Raises:
        UsageError: there are fewer than that, or a file does not hold steps.
    """
    tables = [STEP_SCHEMA.empty_table(), *_step_tables(folder, expected.keys())]
    table = pa.concat_tables(tables)
    _refuse_fewer(folder, _counts(table), expected)
    mapper = {CONFIDENCE_TYPE: pd.ArrowDtype(CONFIDENCE_TYPE)}.get
    frame: pd.DataFrame = table.to_pandas(types_mapper=mapper)
    return frame


def settle_steps(folder: Path, finished: AbstractSet[GenerationKey]) -> None:
    """Moves the journal, if there is one, into ``steps.parquet``, which keeps no other steps.

    A kill between the replacement and the removal leaves both; readers then count each once.

    Raises:
        UsageError: a file does not hold steps.
        OSError: the disk refuses; in either case both files are as they were.
    """
    journal, steps = folder / JOURNAL, folder / STEPS
    # Without a journal: somebody may have removed a generation's line, to have it redone.
    if not journal.exists() and _settled(steps).keys() <= finished:
        return
    with (
        replacing(steps) as temporary,
        temporary.open("wb") as file,
        pq.ParquetWriter(file, STEP_SCHEMA, **_PARQUET) as writer,
    ):
        for table in _step_tables(folder, finished):
            writer.write_table(table)
    journal.unlink(missing_ok=True)


def refuse_lost_steps(folder: Path, expected: Mapping[GenerationKey, int]) -> None:
    """Raises :class:`UsageError` if there are fewer settled steps than ``expected``."""
    _refuse_fewer(folder, _settled(folder / STEPS), expected)


def _settled(path: Path) -> Counter[GenerationKey]:
    return _counts(_read_parquet(path)) if path.exists() else Counter()


def _refuse_fewer(
    folder: Path, found: Mapping[GenerationKey, int], expected: Mapping[GenerationKey, int]
) -> None:
    for key, steps in expected.items():
        if found.get(key, 0) < steps:
            raise UsageError(
                f"{folder}: {STEPS} has {found.get(key, 0)} steps of {named(key)}, whose line in "
                f"generations.jsonl says {steps}; restore the files, or remove that line and "
                "--resume the run"
            )


def named(key: GenerationKey) -> str:
    """A generation in a message."""
    place = f"question {key.question_id}, turn {key.turn}, repeat {key.repeat}"
    return f"{key.entry}'s answer to {place}"


def _counts(table: pa.Table) -> Counter[GenerationKey]:
    columns = table.group_by(KEY).aggregate([([], "count_all")]).to_pydict()
    counts = columns.pop("count_all")
    keys = map(GenerationKey, *(columns[name] for name in KEY))
    return Counter(dict(zip(keys, counts, strict=True)))


def _step_tables(folder: Path, finished: AbstractSet[GenerationKey]) -> Iterator[pa.Table]:
    """Parquet first, then the journal's generations that Parquet does not hold."""
    pending = set(finished)
    if (folder / STEPS).exists():
        table = _read_parquet(folder / STEPS)
        keys = _counts(table).keys()
        yield table if keys <= finished else _only(table, finished)
        pending -= keys
    if (folder / JOURNAL).exists():
        yield from _tables(_journal_rows(folder / JOURNAL, pending))


def _read_parquet(path: Path) -> pa.Table:
    try:
        names = pq.read_schema(path).names
        stored = upgraded(dict(zip(names, names, strict=True)), STEP_SCHEMA.names)
        missing = [name for name in STEP_SCHEMA.names if name not in stored]
        if missing:  # pyarrow would fill it with nulls
            raise ValueError(f"column {missing[0]} is missing")
        schema = pa.schema([field.with_name(stored[field.name]) for field in STEP_SCHEMA])
        table = pq.read_table(path, schema=schema, page_checksum_verification=True)
        table = table.rename_columns(STEP_SCHEMA.names)
        _check_values(table)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{path}: not readable as steps ({reason}); restore the file") from error
    return table


def _check_values(table: pa.Table) -> None:
    """Raises :class:`ValueError` for what no step can hold: cheap beside reading it."""
    for field in STEP_SCHEMA:
        column = table[field.name]
        if column.null_count:
            raise ValueError(f"{field.name} has gaps")
        values = pc.list_flatten(column) if field.name == "confidence" else column
        finite = not pa.types.is_floating(values.type) or pc.all(pc.is_finite(values)).as_py()
        if values.null_count or finite is False:
            raise ValueError(f"{field.name} holds what is no number")
        if field.name not in _NO_COUNT and len(values) and (low := pc.min(values).as_py()) < 0:
            raise ValueError(f"{field.name} holds {low}")
    reasons = set(table["exit_reason"].unique().to_pylist())
    if not reasons <= set(ExitReason):
        raise ValueError(f"exit_reason holds {min(reasons - set(ExitReason))!r}")


def _only(table: pa.Table, finished: AbstractSet[GenerationKey]) -> pa.Table:
    rows = table.select(KEY).to_pylist()
    return table.filter(pa.array([GenerationKey(**row) in finished for row in rows], pa.bool_()))


def _journal_rows(path: Path, wanted: AbstractSet[GenerationKey]) -> Iterator[dict[str, Any]]:
    seen: dict[GenerationKey, int] = {}
    for number, line in numbered_lines(path):
        try:
            key, steps = _journalled(line)
            if key in seen:
                raise ValueError(f"{named(key)} stands in line {seen[key]} already")
        except ValueError as error:
            raise UsageError(f"{path}:{number}: {error}; remove or fix that line") from error
        seen[key] = number
        if key in wanted:
            row = plain(key)
            yield from (row | step for step in steps)


def _journalled(line: Mapping[str, Any]) -> tuple[GenerationKey, list[dict[str, Any]]]:
    """What :func:`journal_line` wrote."""
    given = {name: value for name, value in line.items() if name != "steps"}
    key = GenerationKey(**checked(GenerationKey, given))
    steps = line.get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise ValueError("no list of 'steps'")
    return key, [checked(StepRecord, step) for step in steps]


def _tables(rows: Iterable[dict[str, Any]]) -> Iterator[pa.Table]:
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _ROWS_PER_TABLE:
            yield pa.Table.from_pylist(batch, schema=STEP_SCHEMA)
            batch = []
    yield pa.Table.from_pylist(batch, schema=STEP_SCHEMA)
