"""A run folder: append to it, resume it; :mod:`run_reader` reads it.

::

    run.json           the manifest
    generations.jsonl  a line per generation, the writer's lock too
    steps.parquet      a row per step; while the run goes on, newer steps lie in steps.jsonl
    lossless.jsonl     a line per lossless verdict
    device.jsonl       a line per block edge, where the device can be asked; see device_log.py

Steps are journalled before their generation's line, so a generation that has a line has its steps;
steps without that line belong to a generation that was cut short, and are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from specbench_kangaroo.record.errors import StorageError, UsageError
from specbench_kangaroo.record.files import LineFile, replacing, storing
from specbench_kangaroo.record.jsonl import as_line, drop_torn_line, read_records
from specbench_kangaroo.record.manifest import (
    MANIFEST,
    read_manifest,
    refuse_difference,
    write_manifest,
)
from specbench_kangaroo.record.reader import (
    GENERATIONS,
    LOSSLESS,
    Run,
    read_generations,
    read_run,
    steps_by_line,
    steps_of,
)
from specbench_kangaroo.record.schema import (
    COMPLETE,
    SCHEMA_VERSION,
    Generation,
    GenerationKey,
    Judgement,
    Manifest,
    StepRecord,
)
from specbench_kangaroo.record.steps import (
    JOURNAL,
    journal_line,
    refuse_lost_steps,
    settle_steps,
)

__all__ = ["GENERATIONS", "LOSSLESS", "Run", "RunWriter", "read_run"]


class RunWriter:
    """The one writer of a run folder; :meth:`create` or :meth:`resume` makes it.

    As a context manager it closes the run as ``complete``, or ``interrupted`` if an exception
    passes through; after an explicit :meth:`close` leaving the block does nothing more.
    """

    def __init__(self, folder: Path, manifest: Manifest, *, new: bool = False) -> None:
        self.folder = folder
        self._manifest = replace(manifest, status="running")
        self._finished: dict[GenerationKey, Generation] = {}
        self.judged: set[GenerationKey] = set()
        with storing(folder), ExitStack() as opened:
            self._generations = opened.enter_context(LineFile(folder / GENERATIONS, locked=True))
            if new and (folder / MANIFEST).exists():  # somebody was quicker
                raise _taken(folder)
            self._recover()
            self._journal = opened.enter_context(LineFile(folder / JOURNAL))
            self._lossless = opened.enter_context(LineFile(folder / LOSSLESS))
            opened.pop_all()

    @classmethod
    def create(cls, folder: Path, manifest: Manifest) -> RunWriter:
        """Starts a run in a new or empty folder.

        Raises:
            UsageError: something is there already.
        """
        if folder.exists() and not _is_free(folder):
            raise _taken(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return cls(folder, manifest, new=True)
        except StorageError as error:  # nothing is there that could go on
            raise UsageError(f"{error.problem}, or give another --output") from error
        except OSError as error:
            raise UsageError(
                f"cannot make {folder}: {error.strerror}; give another --output"
            ) from error

    @classmethod
    def resume(cls, folder: Path, manifest: Manifest) -> RunWriter:
        """Continues a run; its own manifest stays, with the environment that it started in.

        Raises:
            UsageError: no run there, another run, another writer, or a malformed line.
        """
        stored = read_manifest(folder)
        refuse_difference(folder, stored, manifest)
        # What is appended now is of this version, and an older one must say that it cannot read it.
        return cls(folder, replace(stored, schema_version=SCHEMA_VERSION))

    @property
    def finished(self) -> Mapping[GenerationKey, Generation]:
        """Every generation that has a line, whatever its status: none of them is to be redone."""
        return self._finished

    def append(self, generation: Generation, steps: Sequence[StepRecord]) -> None:
        """Adds a generation and its steps; both have left this process when it returns.

        Raises:
            StorageError: the disk refuses; the folder is as if this had not been tried.
        """
        if generation.key in self._finished:
            raise ValueError(f"{generation.key} is already in {self.folder}")
        if len(steps) < steps_of(generation):
            raise ValueError(
                f"{generation.key} has {generation.target_passes} passes, but not so "
                f"many steps: {len(steps)}"
            )
        # A key without a line is harmless; a line without its key would lose its steps at close.
        self._finished[generation.key] = generation
        try:
            self._journal.append(journal_line(generation.key, steps))
            self._generations.append(as_line(generation))
        except StorageError:
            del self._finished[generation.key]
            raise

    def judge(self, judgement: Judgement) -> None:
        """Adds the lossless verdict on a generation.

        Raises:
            StorageError: the disk refuses.
        """
        if judgement.key in self.judged:
            raise ValueError(f"{judgement.key} is already judged in {self.folder}")
        self._lossless.append(as_line(judgement))
        self.judged.add(judgement.key)

    def close(self, status: str) -> None:
        """Settles the steps and records ``status`` (``complete`` or ``interrupted``).

        Raises:
            StorageError: the disk refuses; nothing is lost, and the run can be resumed.
        """
        if self._generations.closed:
            return
        files = (self._journal, self._lossless, self._generations)
        try:
            with storing(self.folder):
                for file in files[:-1]:
                    file.close()
                if not any(file.failed for file in files):  # else the journal is left to resuming
                    settle_steps(self.folder, self._finished.keys())
            write_manifest(self.folder, replace(self._manifest, status=status))
        except StorageError:
            with suppress(StorageError):  # a small file may still fit; "running" is no lie either
                write_manifest(self.folder, replace(self._manifest, status="interrupted"))
            raise
        finally:
            with storing(self.folder):
                self._generations.close()  # last: it holds the lock

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close(COMPLETE)
            return
        with suppress(UsageError):  # what passes through says more; resuming settles the steps
            self.close("interrupted")

    def _recover(self) -> None:
        """Takes over what earlier writers finished, and clears what a kill left half done."""
        generations, lossless = self.folder / GENERATIONS, self.folder / LOSSLESS
        self._finished = read_generations(self.folder, self._manifest)
        settle_steps(self.folder, self._finished.keys())
        refuse_lost_steps(self.folder, steps_by_line(self._finished))
        drop_torn_line(generations)
        if lossless.exists():
            self._recover_verdicts(lossless)
        write_manifest(self.folder, self._manifest)

    def _recover_verdicts(self, path: Path) -> None:
        """A verdict on an answer that is to be given anew must not become the new one's."""
        verdicts = {item.key: item for item in read_records(path, Judgement)}
        kept = [item for key, item in verdicts.items() if key in self._finished]
        self.judged = {item.key for item in kept}
        if len(kept) == len(verdicts):
            drop_torn_line(path)
            return
        with replacing(path) as temporary:
            temporary.write_bytes(b"".join(map(as_line, kept)))


def _taken(folder: Path) -> UsageError:
    return UsageError(
        f"{folder} is not empty; use --resume to continue its run, or another --output"
    )


def _is_free(folder: Path) -> bool:
    """Whether there is nothing, or only what a kill leaves before a run has its manifest."""
    if not folder.is_dir():
        return False
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    sizes.pop(f"{MANIFEST}.tmp", None)
    return sizes in ({}, {GENERATIONS: 0})
