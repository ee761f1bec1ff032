"""A run folder: append to it, resume it, read it.

::

    run.json           the manifest
    generations.jsonl  a line per generation, the writer's lock too
    steps.parquet      a row per step; while the run goes on, newer steps lie in steps.jsonl
    lossless.jsonl     a line per lossless verdict

Steps are journalled before their generation's line, so a generation that has a line has its steps;
steps without that line belong to a generation that was cut short, and are dropped.

Knows: files.  Does not know: how generations are made, or what is computed from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, BinaryIO

import pandas as pd

from specbench_kangaroo.errors import UsageError
from specbench_kangaroo.journal import (
    JOURNAL,
    STEPS,
    journal_line,
    read_steps,
    settle_steps,
)
from specbench_kangaroo.jsonl import as_line, drop_torn_line, plain, read_records
from specbench_kangaroo.records import (
    COMPLETE,
    Generation,
    GenerationKey,
    Judgement,
    Manifest,
    StepRecord,
)
from specbench_kangaroo.run_json import read_manifest, refuse_difference, write_manifest

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows: no advisory locks, so a second writer is not noticed
    fcntl = None

GENERATIONS = "generations.jsonl"
LOSSLESS = "lossless.jsonl"

_DTYPES = {
    "int": "int64",
    "float": "float64",
    "int | None": "float64",
    "float | None": "float64",
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


class RunWriter:
    """The one writer of a run folder; :meth:`create` or :meth:`resume` makes it.

    As a context manager it closes the run as ``complete``, or ``interrupted`` if an exception
    passes through; after an explicit :meth:`close` leaving the block does nothing more.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self._manifest = replace(manifest, status="running")
        self._finished: dict[GenerationKey, Generation] = {}
        self.judged: set[GenerationKey] = set()
        self._generations = _open_locked(folder / GENERATIONS)
        try:
            self._recover()
            self._journal = (folder / JOURNAL).open("ab")
            self._lossless = (folder / LOSSLESS).open("ab")
        except BaseException:
            self._generations.close()
            raise

    @classmethod
    def create(cls, folder: Path, manifest: Manifest) -> RunWriter:
        """Starts a run in a new or empty folder.

        Raises:
            UsageError: something is there already.
        """
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(
                f"{folder} is not empty; use --resume to continue its run, or another --output"
            )
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, manifest)

    @classmethod
    def resume(cls, folder: Path, manifest: Manifest) -> RunWriter:
        """Continues a run; its own manifest stays, with the environment that it started in.

        Raises:
            UsageError: no run there, another run, another writer, or a malformed line.
        """
        stored = read_manifest(folder)
        refuse_difference(folder, stored, manifest)
        return cls(folder, stored)

    @property
    def finished(self) -> Mapping[GenerationKey, Generation]:
        """Every generation that has a line, whatever its status: none of them is to be redone."""
        return self._finished

    def append(self, generation: Generation, steps: Sequence[StepRecord]) -> None:
        """Adds a generation and its steps; both have left this process when it returns."""
        if generation.key in self._finished:
            raise ValueError(f"{generation.key} is already in {self.folder}")
        # A key without a line is harmless; a line without its key would lose its steps at close.
        self._finished[generation.key] = generation
        _write(self._journal, journal_line(generation.key, steps))
        _write(self._generations, as_line(generation))

    def judge(self, judgement: Judgement) -> None:
        """Adds the lossless verdict on a generation."""
        if judgement.key in self.judged:
            raise ValueError(f"{judgement.key} is already judged in {self.folder}")
        _write(self._lossless, as_line(judgement))
        self.judged.add(judgement.key)

    def close(self, status: str) -> None:
        """Settles the steps and records ``status`` (``complete`` or ``interrupted``)."""
        if self._generations.closed:
            return
        try:
            self._journal.close()
            self._lossless.close()
            settle_steps(self.folder, self._finished.keys())
            write_manifest(self.folder, replace(self._manifest, status=status))
        finally:
            self._generations.close()  # last: it holds the lock

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(COMPLETE if kind is None else "interrupted")

    def _recover(self) -> None:
        """Takes over what earlier writers finished, and clears what a kill left half done."""
        generations, lossless = self.folder / GENERATIONS, self.folder / LOSSLESS
        self._finished = {item.key: item for item in read_records(generations, Generation)}
        drop_torn_line(generations)
        if lossless.exists():
            verdicts = read_records(lossless, Judgement)
            self.judged = {item.key for item in verdicts} & self._finished.keys()
            drop_torn_line(lossless)
        settle_steps(self.folder, self._finished.keys())
        write_manifest(self.folder, self._manifest)


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
    finished = {item.key: item for item in read_records(folder / GENERATIONS, Generation)}
    lossless = folder / LOSSLESS
    verdicts = read_records(lossless, Judgement) if lossless.is_file() else []
    # By key: a verdict whose generation was lost with the machine is given a second time.
    judged = {item.key: item for item in verdicts if item.key in finished}
    return Run(
        folder=folder,
        manifest=manifest,
        generations=_frame(finished.values(), Generation),
        steps=read_steps(folder, finished.keys()),
        judgements=_frame(judged.values(), Judgement),
    )


def _frame(records: Iterable[Any], kind: type[Any]) -> pd.DataFrame:
    """A row per record; numbers have their dtype even in a frame that has no rows, None is NaN."""
    columns = {field.name: str(field.type) for field in fields(kind)}
    dtypes = {name: _DTYPES[of] for name, of in columns.items() if of in _DTYPES}
    frame = pd.DataFrame([plain(record) for record in records], columns=list(columns))
    return frame.astype(dtypes)


def _open_locked(path: Path) -> BinaryIO:
    """Opens ``path`` for appending; the lock goes when the file is closed or the process dies."""
    file = path.open("ab")
    if fcntl is None:
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UsageError(
            f"{path.parent} is being written by another process; wait for it, or another --output"
        ) from None
    return file


def _write(file: BinaryIO, line: bytes) -> None:
    file.write(line)
    file.flush()
