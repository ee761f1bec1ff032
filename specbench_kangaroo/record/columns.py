"""Steps as columns, in a line and in Parquet; both follow from the types in :mod:`schema`."""

from __future__ import annotations

import types
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import inspect

from specbench_kangaroo.record.files import replacing
from specbench_kangaroo.record.schema import Generation, GenerationKey, Record, Status, StepRecord

GENERATIONS = "generations.jsonl"
COPY, STEPS = "generations.parquet", "steps.parquet"
KEY = GenerationKey.__struct_fields__
_STEP = StepRecord.__struct_fields__

_LINES_PER_TABLE = 256  # bounds the memory that a file takes on its way to Parquet
_STRICT: dict[str, Any] = {"frozen": True, "forbid_unknown_fields": True}
_FIELDS: Any = [(of.name, of.type) for of in msgspec.structs.fields(StepRecord)]
Columns: Any = msgspec.defstruct(
    "Columns", [(name, types.GenericAlias(tuple, (kind, ...))) for name, kind in _FIELDS], **_STRICT
)
Line: Any = msgspec.defstruct(
    "Line", [("steps", Columns)], bases=(Generation,), kw_only=True, **_STRICT
)
"""A line of ``generations.jsonl``: a :class:`Generation` whose ``steps`` are a tuple a field."""


def _arrow(of: inspect.Type) -> pa.DataType:
    match of:
        case inspect.UnionType(types=(first, *_)):  # pandas has no whole number that is missing
            return pa.float64() if isinstance(first, inspect.IntType) else _arrow(first)
        case inspect.VarTupleType(item_type=item):
            return pa.list_(_arrow(item))
        case inspect.IntType():
            return pa.int64()
        case inspect.FloatType():
            return pa.float64()
    return pa.string()


def arrow_schema(*kinds: type[Record]) -> pa.Schema:
    """A column for each field of the records."""
    told: list[Any] = [inspect.type_info(kind) for kind in kinds]
    return pa.schema([(of.name, _arrow(of.type)) for kind in told for of in kind.fields])


STEP_SCHEMA = arrow_schema(GenerationKey, StepRecord)
CONFIDENCE_TYPE = STEP_SCHEMA.field("confidence").type


def as_table(records: Sequence[Record], kind: type[Record]) -> pa.Table:
    """A row for each record."""
    schema = arrow_schema(kind)
    columns = {name: [getattr(record, name) for record in records] for name in schema.names}
    return pa.Table.from_pydict(columns, schema=schema)


def steps_of(steps: Sequence[StepRecord]) -> Any:
    """Steps as the columns of a :data:`Line`."""
    return Columns(**{name: tuple(getattr(step, name) for step in steps) for name in _STEP})


def in_tables(lines: Iterable[Any]) -> Iterator[tuple[list[Generation], pa.Table]]:
    """The generations of some :data:`Line` records and a row for each step, batch by batch."""
    source = iter(lines)
    while batch := list(islice(source, _LINES_PER_TABLE)):
        counts = [len(line.steps.step) for line in batch]
        columns = {
            name: list(chain.from_iterable(getattr(line.steps, name) for line in batch))
            for name in _STEP
        }
        for name in KEY:
            values = zip((getattr(line, name) for line in batch), counts, strict=True)
            columns[name] = [value for value, count in values for _ in range(count)]
        yield [generation_of(line) for line in batch], pa.table(columns, schema=STEP_SCHEMA)


def generation_of(line: Any) -> Generation:
    """The generation of a :data:`Line`."""
    return Generation(*(getattr(line, name) for name in Generation.__struct_fields__))


def refuse_contradictions(line: Any) -> None:
    """Raises :class:`ValueError` if numbers of a :data:`Line` contradict each other."""
    if len({len(getattr(line.steps, name)) for name in _STEP}) > 1:
        raise ValueError("the columns of its steps differ in length")
    columns = (line.steps.drafted, line.steps.accepted, line.steps.emitted)
    for step, (drafted, accepted, emitted) in enumerate(zip(*columns, strict=True)):
        if accepted > drafted:
            raise ValueError(f"step {step} accepted {accepted} of {drafted} drafted tokens")
        if not 1 <= emitted <= accepted + 1:
            raise ValueError(f"step {step} emitted {emitted} tokens, having accepted {accepted}")
    steps, tokens, passes = len(columns[0]), line.new_tokens, line.target_passes
    emitted = sum(line.steps.emitted)
    if line.status is not Status.OK:  # how far it came says nothing
        return
    if passes != steps + 1 and (passes or steps):
        raise ValueError(f"target_passes is {passes}, but it has {steps} steps")
    if steps and tokens != emitted + 1:
        raise ValueError(f"new_tokens is {tokens}, but its steps emitted {emitted} after the first")
    if tokens != len(line.output_ids):
        raise ValueError(f"new_tokens is {tokens}, but it has {len(line.output_ids)} output_ids")


# --- Parquet: copies of the lines, for notebooks and fast reports ---


def write_copies(folder: Path, lines: Iterable[Any]) -> None:
    """Copies the lines of a run into its Parquet files, each whole or not at all.

    The generations' says of which lines, and beside which steps, it is a copy.

    Raises:
        OSError: the disk refuses.
    """
    answers: list[Generation] = []
    with _writing(folder / STEPS, STEP_SCHEMA) as file:
        for some, table in in_tables(lines):
            answers += some
            file.write_table(table)
    table = as_table(answers, Generation)
    told = {name: content_mark(folder / name) for name in (GENERATIONS, STEPS)}
    with _writing(folder / COPY, table.schema.with_metadata(told)) as file:
        file.write_table(table)


def read_copies(folder: Path) -> tuple[list[Generation], pa.Table] | None:
    """The generations and the steps of a run; None if its lines have no copy that is whole."""
    try:
        answers = pq.read_table(folder / COPY, page_checksum_verification=True)
        told = answers.schema.metadata or {}
        for name in (GENERATIONS, STEPS):
            if told.get(name.encode(), b"").decode() != content_mark(folder / name):
                return None
        rows = msgspec.json.encode(answers.to_pylist())
        steps = pq.read_table(folder / STEPS).cast(STEP_SCHEMA)
        return msgspec.json.decode(rows, type=list[Generation]), steps
    except (pa.ArrowException, OSError, ValueError):  # nothing is lost: the lines say it all
        return None


@contextmanager
def _writing(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    with (
        replacing(path) as temporary,
        temporary.open("wb") as file,  # its errors have numbers
        pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        yield writer


def content_mark(path: Path) -> str:
    """Size and checksum of a file."""
    checksum = size = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum, size = zlib.crc32(block, checksum), size + len(block)
    return f"{size}:{checksum:08x}"
