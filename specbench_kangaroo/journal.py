"""The steps of a run: a journal while it goes on, a Parquet file once it rests.

Knows: both files and how they make one table.  Does not know: locks, manifests, or metrics.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from specbench_kangaroo.errors import UsageError
from specbench_kangaroo.jsonl import as_line, plain, read_lines
from specbench_kangaroo.records import GenerationKey, StepRecord

JOURNAL = "steps.jsonl"
STEPS = "steps.parquet"
KEY = [field.name for field in fields(GenerationKey)]
CONFIDENCE_TYPE = pa.list_(pa.float64())
STEP_SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("question_id", pa.int64()),
        ("turn", pa.int64()),
        ("repeat", pa.int64()),
        ("step", pa.int64()),
        ("context_length", pa.int64()),
        ("drafted", pa.int64()),
        ("accepted", pa.int64()),
        ("emitted", pa.int64()),
        ("rows", pa.int64()),
        ("exit_reason", pa.string()),
        ("confidence", CONFIDENCE_TYPE),
        ("verify_share", pa.float64()),
        ("draft_ms", pa.float64()),
        ("verify_ms", pa.float64()),
        ("accept_ms", pa.float64()),
    ]
)

# Bounds the memory that a journal takes on its way to Parquet, whatever the length of the run.
_ROWS_PER_TABLE = 50_000


def journal_line(key: GenerationKey, steps: Sequence[StepRecord]) -> bytes:
    """The line of ``steps.jsonl`` that holds all steps of one generation."""
    return as_line(plain(key) | {"steps": steps})


def read_steps(folder: Path, finished: AbstractSet[GenerationKey]) -> pd.DataFrame:
    """The steps of the finished generations of a run, wherever they lie: one row per step.

    ``confidence`` stays an Arrow column (its items are lists): a million small Python lists would
    cost more time and memory than all the rest.
    """
    table = pa.concat_tables([STEP_SCHEMA.empty_table(), *_step_tables(folder, finished)])
    mapper = {CONFIDENCE_TYPE: pd.ArrowDtype(CONFIDENCE_TYPE)}.get
    frame: pd.DataFrame = table.to_pandas(types_mapper=mapper)
    return frame


def settle_steps(folder: Path, finished: AbstractSet[GenerationKey]) -> None:
    """Moves the journal, if there is one, into ``steps.parquet``.

    A kill between the replacement and the removal leaves both; readers then count each once.
    """
    if not (folder / JOURNAL).exists():
        return
    temporary = folder / f"{STEPS}.tmp"
    with pq.ParquetWriter(temporary, STEP_SCHEMA, compression="zstd") as writer:
        for table in _step_tables(folder, finished):
            writer.write_table(table)
    os.replace(temporary, folder / STEPS)
    (folder / JOURNAL).unlink()


def _step_tables(folder: Path, finished: AbstractSet[GenerationKey]) -> Iterator[pa.Table]:
    """Parquet first, then the journal's generations that Parquet does not hold."""
    pending = set(finished)
    if (folder / STEPS).exists():
        table = _read_parquet(folder / STEPS)
        keys = {GenerationKey(**row) for row in table.group_by(KEY).aggregate([]).to_pylist()}
        yield table if keys <= finished else _only(table, finished)
        pending -= keys
    if (folder / JOURNAL).exists():
        yield from _tables(_journal_rows(folder / JOURNAL, pending))


def _read_parquet(path: Path) -> pa.Table:
    try:
        return pq.read_table(path, schema=STEP_SCHEMA)
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"{path}: not readable as steps ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _only(table: pa.Table, finished: AbstractSet[GenerationKey]) -> pa.Table:
    rows = table.select(KEY).to_pylist()
    return table.filter(pa.array([GenerationKey(**row) in finished for row in rows]))


def _journal_rows(path: Path, wanted: AbstractSet[GenerationKey]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(read_lines(path), 1):
        try:
            key = {name: line[name] for name in KEY}
            steps = line["steps"]
        except KeyError as error:
            raise UsageError(f"{path}:{number}: no {error}; remove or mend that line") from error
        if GenerationKey(**key) in wanted:
            yield from (key | step for step in steps)


def _tables(rows: Iterable[dict[str, Any]]) -> Iterator[pa.Table]:
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _ROWS_PER_TABLE:
            yield pa.Table.from_pylist(batch, schema=STEP_SCHEMA)
            batch = []
    yield pa.Table.from_pylist(batch, schema=STEP_SCHEMA)
