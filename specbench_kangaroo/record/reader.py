"""A run folder read back: every line checked, steps beside their generations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from specbench_kangaroo.record.checks import shown
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.jsonl import numbered_records, read_records
from specbench_kangaroo.record.manifest import MANIFEST, read_manifest
from specbench_kangaroo.record.schema import (
    BlockEdge,
    Generation,
    GenerationKey,
    Judgement,
    Manifest,
    Status,
)
from specbench_kangaroo.record.steps import JOURNAL, STEPS, named, read_steps

GENERATIONS = "generations.jsonl"
LOSSLESS = "lossless.jsonl"
DEVICE = "device.jsonl"

_DTYPES = {
    "int": "int64",
    "float": "float64",
    "int | None": "float64",
    "float | None": "float64",
}
_PLAIN: Mapping[str, Callable[[Any], Any]] = {
    "tuple[int, ...]": list,
    "Status": str,
    "Lossless": str,
}


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A run as read back.  Frames have a row per record and the records' fields as columns.

    ``generations.output_ids`` and ``steps.confidence`` hold lists.
    """

    folder: Path
    manifest: Manifest
    generations: pd.DataFrame
    steps: pd.DataFrame
    judgements: pd.DataFrame
    device: tuple[BlockEdge, ...] = ()  # its states at block edges, where they were measured


def read_run(folder: Path) -> Run:
    """Reads a run, finished or not, without changing anything.

    Raises:
        UsageError: no run, a missing or malformed file, or a newer schema version.
    """
    manifest = read_manifest(folder)
    if not (folder / GENERATIONS).is_file():
        raise UsageError(f"{folder} is incomplete: {GENERATIONS} is missing; restore the file")
    if not (folder / STEPS).is_file() and not (folder / JOURNAL).is_file():
        raise UsageError(f"{folder} is incomplete: {STEPS} is missing; restore the file")
    finished = read_generations(folder, manifest)
    lossless = folder / LOSSLESS
    verdicts = read_records(lossless, Judgement) if lossless.is_file() else []
    # By key: a verdict whose generation was lost with the machine is given a second time.
    judged = {item.key: item for item in verdicts if item.key in finished}
    return Run(
        folder=folder,
        manifest=manifest,
        generations=_frame(finished.values(), Generation),
        steps=read_steps(folder, steps_by_line(finished)),
        judgements=_frame(judged.values(), Judgement),
        device=read_device_log(folder),
    )


def read_generations(folder: Path, manifest: Manifest) -> dict[GenerationKey, Generation]:
    """Every generation that has a line.

    Raises:
        UsageError: a line is malformed, of an entry that the run does not have, or there twice.
    """
    path, labels = folder / GENERATIONS, manifest.labels
    found: dict[GenerationKey, Generation] = {}
    lines: dict[GenerationKey, int] = {}
    for number, item in numbered_records(path, Generation):
        wrong = None
        if item.entry not in labels:
            wrong = f"entry {shown(item.entry)} is not among {', '.join(labels)} of {MANIFEST}"
        elif item.key in found:
            wrong = f"{named(item.key)} stands in line {lines[item.key]} already"
        if wrong:
            raise UsageError(f"{path}:{number}: {wrong}; remove or fix that line")
        found[item.key], lines[item.key] = item, number
    return found


def read_device_log(folder: Path) -> tuple[BlockEdge, ...]:
    """The states of a run, in order; none if they were not measured.

    Raises:
        UsageError: a malformed line other than a torn last one.
    """
    path = folder / DEVICE
    return tuple(read_records(path, BlockEdge)) if path.is_file() else ()


def steps_of(generation: Generation) -> int:
    """How many steps it has: every pass of the target but the prefill; none counts if it failed."""
    return max(0, generation.target_passes - 1) if generation.status is Status.OK else 0


def steps_by_line(finished: Mapping[GenerationKey, Generation]) -> dict[GenerationKey, int]:
    """The finished generations, each with the number of its steps."""
    return {key: steps_of(generation) for key, generation in finished.items()}


def _frame(records: Iterable[Any], kind: type[Any]) -> pd.DataFrame:
    """A row per record; numbers have their dtype even in a frame that has no rows, None is NaN."""
    rows = list(records)
    columns = {field.name: str(field.type) for field in fields(kind)}
    return pd.DataFrame({name: _column(rows, name, of) for name, of in columns.items()})


def _column(rows: Sequence[Any], name: str, annotation: str) -> Any:
    values = [getattr(row, name) for row in rows]
    if annotation in _DTYPES:
        return np.array(values, dtype=_DTYPES[annotation])
    as_plain = _PLAIN.get(annotation)
    # Without rows pandas would take any column for numbers.
    return [as_plain(value) if as_plain else value for value in values] or np.array([], object)
