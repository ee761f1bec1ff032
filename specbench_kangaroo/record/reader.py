"""A run folder read back: every line checked, steps beside their generations."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pandas as pd
import pyarrow as pa

from specbench_kangaroo.record import older
from specbench_kangaroo.record.columns import (
    CONFIDENCE_TYPE,
    GENERATIONS,
    STEP_SCHEMA,
    Line,
    as_table,
    in_tables,
    read_copies,
    refuse_contradictions,
)
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.jsonl import numbered
from specbench_kangaroo.record.manifest import MANIFEST, read_manifest
from specbench_kangaroo.record.schema import (
    LINES_HOLD_STEPS,
    BlockEdge,
    Generation,
    GenerationKey,
    Judgement,
    Manifest,
    Record,
)

LOSSLESS = "lossless.jsonl"
DEVICE = "device.jsonl"

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
    old = manifest.schema_version < LINES_HOLD_STEPS
    decode = older.line_decoder(folder) if old else msgspec.json.Decoder(Line).decode

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
    decode = older.decoder(kind) if old else msgspec.json.Decoder(kind).decode
    return [item for _, item in numbered(path, decode, kind.__name__)] if path.is_file() else []


def _frame(table: pa.Table) -> pd.DataFrame:
    """A missing number is NaN; confidences stay in Arrow."""
    mapper = {CONFIDENCE_TYPE: pd.ArrowDtype(CONFIDENCE_TYPE)}.get
    frame: pd.DataFrame = table.to_pandas(types_mapper=mapper)
    for name in {"output_ids", "error"} & {*table.column_names}:  # as the records have them
        frame[name] = pd.Series(table[name].to_pylist(), dtype=object)
    return frame
