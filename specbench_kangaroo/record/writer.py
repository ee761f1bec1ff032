"""A run folder: append to it, resume it; :mod:`reader` reads it.

::

    run.json           the manifest
    generations.jsonl  a line per generation with its steps, the writer's lock too
    lossless.jsonl     a line per lossless verdict; without the file all are given again
    device.jsonl       a line per block edge, where the device can be asked; see device_log.py

When a run ends ``generations.parquet`` and ``steps.parquet`` are made, copies of generations.jsonl
with a row per generation and a row per step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType

import msgspec
from msgspec.structs import replace

from specbench_kangaroo.record.columns import (
    GENERATIONS,
    Line,
    generation_of,
    refuse_contradictions,
    steps_of,
    write_copies,
)
from specbench_kangaroo.record.errors import StorageError, UsageError
from specbench_kangaroo.record.files import LineFile, replacing, storing
from specbench_kangaroo.record.jsonl import as_line, drop_torn_line, one_line
from specbench_kangaroo.record.manifest import (
    MANIFEST,
    manifest_to_resume,
    refuse_difference,
    resume_command,
    write_manifest,
)
from specbench_kangaroo.record.reader import LOSSLESS, Run, read_answers, read_records, read_run
from specbench_kangaroo.record.schema import (
    COMPLETE,
    Generation,
    GenerationKey,
    Judgement,
    Manifest,
    StepRecord,
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
            self._lossless = opened.enter_context(LineFile(folder / LOSSLESS))
            opened.pop_all()

    @classmethod
    def create(cls, folder: Path, manifest: Manifest) -> RunWriter:
        """Starts a run in a new or empty folder.

        Raises:
            UsageError: something is there already.
        """
        refuse_taken(folder)
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
            UsageError: no run there, another or an older one, another writer, or a malformed line.
        """
        stored = manifest_to_resume(folder)
        refuse_difference(folder, stored, manifest)
        return cls(folder, stored)

    @property
    def finished(self) -> Mapping[GenerationKey, Generation]:
        """Every generation that has a line, whatever its status: none of them is to be redone."""
        return self._finished

    def append(self, generation: Generation, steps: Sequence[StepRecord]) -> None:
        """Adds a generation and its steps; both have left this process when it returns.

        Raises:
            UsageError: values that no reader would take, such as a confidence that is no number.
            StorageError: the disk refuses; the folder is as if this had not been tried.
        """
        key = generation.key
        if key in self._finished:
            raise ValueError(f"{key} is already in {self.folder}")
        line = Line(**msgspec.structs.asdict(generation), steps=steps_of(steps))
        with _recording(key):
            refuse_contradictions(line)
            content = as_line(line)
        self._generations.append(content)
        self._finished[key] = generation

    def judge(self, judgement: Judgement) -> None:
        """Adds the lossless verdict on a generation.

        Raises:
            UsageError: values that no reader would take.
            StorageError: the disk refuses.
        """
        if judgement.key in self.judged:
            raise ValueError(f"{judgement.key} is already judged in {self.folder}")
        with _recording(judgement.key):
            content = as_line(judgement)
        self._lossless.append(content)
        self.judged.add(judgement.key)

    def close(self, status: str) -> None:
        """Copies the lines into Parquet and records ``status`` (``complete`` or ``interrupted``).

        Raises:
            StorageError: the disk refuses; nothing is lost, and the run can be resumed.
        """
        if self._generations.closed:
            return
        try:
            with storing(self.folder):
                self._lossless.close()
                if not (self._lossless.failed or self._generations.failed):
                    write_copies(self.folder, read_answers(self.folder, self._manifest))
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
        lines = read_answers(self.folder, self._manifest)
        self._finished = {line.key: generation_of(line) for line in lines}
        drop_torn_line(self.folder / GENERATIONS)
        if (self.folder / LOSSLESS).exists():
            self._recover_verdicts(self.folder / LOSSLESS)
        write_manifest(self.folder, self._manifest)

    def _recover_verdicts(self, path: Path) -> None:
        """A verdict on an answer that is to be given again must not become the new one's."""
        verdicts = {item.key: item for item in read_records(path, Judgement)}
        kept = [item for key, item in verdicts.items() if key in self._finished]
        self.judged = {item.key for item in kept}
        if len(kept) == len(verdicts):
            drop_torn_line(path)
            return
        with replacing(path) as temporary:
            temporary.write_bytes(b"".join(map(as_line, kept)))


@contextmanager
def _recording(key: GenerationKey) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        problem = f"{key} cannot be recorded ({one_line(error)})"
        raise UsageError(f"{problem}; correct its method, or leave it out") from error


def refuse_taken(folder: Path) -> None:
    """Raises :class:`UsageError` if no new run can be made in ``folder``."""
    if folder.exists() and not _is_free(folder):
        raise _taken(folder)


def _taken(folder: Path) -> UsageError:
    go_on = f"go on with its run by {resume_command(folder)}, or "
    holds_run = (folder / MANIFEST).exists()
    return UsageError(f"{folder} is not empty; {go_on if holds_run else ''}give another --output")


def _is_free(folder: Path) -> bool:
    """Whether there is nothing, or only what a kill leaves before a run has its manifest."""
    if not folder.is_dir():
        return False
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    sizes.pop(f"{MANIFEST}.tmp", None)
    return sizes in ({}, {GENERATIONS: 0})
