"""A run folder read back: every line checked, steps beside their generations."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from specbench_kangaroo.record.columns import (
    CONFIDENCE_TYPE,
    GENERATIONS,
    KEY,
    STEP_SCHEMA,
    STEPS,
    Columns,
    Line,
    as_table,
    in_tables,
    read_copies,
    refuse_contradictions,
    steps_of,
)
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.jsonl import decoder, numbered, one_line, parsed, upgraded
from specbench_kangaroo.record.manifest import MANIFEST, read_manifest
from specbench_kangaroo.record.schema import (
    LINES_HOLD_STEPS,
    BlockEdge,
    Generation,
    GenerationKey,
    Judgement,
    Manifest,
    Record,
    StepRecord,
)

LOSSLESS = "lossless.jsonl"
DEVICE = "device.jsonl"
_OLD_JOURNAL = "steps.jsonl"  # up to version 2: steps that are not in Parquet yet

R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A run as read back.  Frames have a row per record and the records' fields as columns.

    ``generations.output_ids`` and ``steps.confidence`` hold lists; the latter is an Arrow column,
    as a million small Python lists would cost more time and memory than all the rest.
    """

    folder: Path
    manifest: Manifest
    generations: pd.DataFrame
    steps: pd.DataFrame
    judgements: pd.DataFrame
    device: tuple[BlockEdge, ...] = ()  # its states at block edges, where they were measured


def read_run(folder: str | os.PathLike[str]) -> Run:
    """Reads a run, finished or not, without changing anything.

    Raises:
        UsageError: no run, a missing or malformed file, or a newer schema version.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    old = manifest.schema_version < LINES_HOLD_STEPS
    copies = None if old else read_copies(folder)
    if copies is None or not {answer.entry for answer in copies[0]} <= set(manifest.labels):
        answers, tables = [], [STEP_SCHEMA.empty_table()]
        for some, table in in_tables(read_answers(folder, manifest)):
            answers += some
            tables.append(table)
        copies = answers, pa.concat_tables(tables)
    keys = {answer.key for answer in copies[0]}
    verdicts = read_records(folder / LOSSLESS, Judgement, old=old)
    # By key: a verdict whose generation was lost with the machine is given a second time.
    judged = {item.key: item for item in verdicts if item.key in keys}
    return Run(
        folder=folder,
        manifest=manifest,
        generations=_frame(as_table(copies[0], Generation)),
        steps=_frame(copies[1]),
        judgements=_frame(as_table(list(judged.values()), Judgement)),
        device=read_device_log(folder),
    )


def read_answers(folder: Path, manifest: Manifest) -> Iterator[Any]:
    """Every generation that has a line, with its steps, as a :data:`~columns.Line`.

    Raises:
        UsageError: a line is malformed, contradicts itself, is of an entry that the run does not
            have, or there twice.
    """
    path, labels = folder / GENERATIONS, manifest.labels
    if not path.is_file():
        raise UsageError(f"{folder} is incomplete: {GENERATIONS} is missing; restore the file")
    decode = _old_line(folder) if manifest.schema_version < LINES_HOLD_STEPS else decoder(Line)

    def checked(content: bytes) -> Any:
        line = decode(content)
        if line.entry not in labels:
            raise ValueError(f"entry {line.entry!r} is not among {', '.join(labels)} of {MANIFEST}")
        if line.key in seen:
            raise ValueError(f"{line.key} stands in line {seen[line.key]} already")
        refuse_contradictions(line)
        return line

    seen: dict[GenerationKey, int] = {}
    for number, line in numbered(path, checked, "Generation"):
        seen[line.key] = number
        yield line


def read_device_log(folder: Path) -> tuple[BlockEdge, ...]:
    """The states of a run, in order; none if they were not measured.

    Raises:
        UsageError: a malformed line other than a torn last one.
    """
    return tuple(read_records(folder / DEVICE, BlockEdge))


def read_records(path: Path, kind: type[R], *, old: bool = False) -> list[R]:
    """All lines of a file, none if there is none; ``old``: of a schema version before 4.

    Raises:
        UsageError: a malformed line other than a torn last one.
    """
    decode = decoder(kind, old=old)
    return [item for _, item in numbered(path, decode, kind.__name__)] if path.is_file() else []


def _frame(table: pa.Table) -> pd.DataFrame:
    """A missing number is NaN; confidences stay in Arrow."""
    mapper = {CONFIDENCE_TYPE: pd.ArrowDtype(CONFIDENCE_TYPE)}.get
    frame: pd.DataFrame = table.to_pandas(types_mapper=mapper)
    for name in {"output_ids", "error"} & {*table.column_names}:  # as the records have them
        frame[name] = pd.Series(table[name].to_pylist(), dtype=object)
    return frame


# --- versions 1 to 3, whose steps lie beside their generations ---


def _old_line(folder: Path) -> Callable[[bytes], Any]:
    steps, generation, none = _old_steps(folder), decoder(Generation, old=True), steps_of(())

    def decode(content: bytes) -> Any:
        found = generation(content)
        return Line(**msgspec.structs.asdict(found), steps=steps.get(found.key, none))

    return decode


def _old_steps(folder: Path) -> dict[GenerationKey, Any]:
    """The steps of each generation, wherever they lie."""
    path, journal = folder / STEPS, folder / _OLD_JOURNAL
    if not path.is_file() and not journal.is_file():
        raise UsageError(f"{folder} is incomplete: {STEPS} is missing; restore the file")
    found = {}
    if journal.is_file():  # a kill has left it
        found = dict(steps for _, steps in numbered(journal, _journalled, "list of steps"))
    try:
        return found | _old_parquet(path) if path.is_file() else found
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise UsageError(
            f"{path}: not readable as steps ({one_line(error)}); restore the file"
        ) from error


def _old_parquet(path: Path) -> dict[GenerationKey, Any]:
    table = pq.read_table(path, page_checksum_verification=True)
    columns = upgraded(table.to_pydict())
    rows = defaultdict(list)
    for row, key in enumerate(zip(*(columns[name] for name in KEY), strict=True)):
        rows[GenerationKey(*key)].append(row)
    decode = decoder(Columns)

    def steps(at: Sequence[int]) -> Any:  # through JSON: what is no number is then none here either
        values = {name: [of[row] for row in at] for name, of in columns.items() if name not in KEY}
        return decode(msgspec.json.encode(values))

    return {key: steps(at) for key, at in rows.items()}


def _journalled(content: bytes) -> tuple[GenerationKey, Any]:
    line = dict(upgraded(parsed(content)))
    steps = msgspec.convert(line.pop("steps", None), list[dict[str, Any]])
    records = msgspec.convert([upgraded(step) for step in steps], list[StepRecord])
    return msgspec.convert(line, GenerationKey), steps_of(records)
