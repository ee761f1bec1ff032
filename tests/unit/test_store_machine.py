"""Any sequence of writes, full disks, kills at any byte and resumptions, against a plain model.

The model is a dictionary: what was appended and not lost, each once.  The folder must hold exactly
that, whatever happened to it.
"""

from __future__ import annotations

import shutil
import tempfile
from codecs import BOM_UTF8
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from specbench_kangaroo.record.columns import COPY, STEPS
from specbench_kangaroo.record.errors import StorageError
from specbench_kangaroo.record.manifest import MANIFEST
from specbench_kangaroo.record.schema import Generation, GenerationKey, Judgement, StepRecord
from specbench_kangaroo.record.writer import GENERATIONS, LOSSLESS, RunWriter, read_run
from tests.unit.faults import Disk, leave, lines_on
from tests.unit.random_records import VERDICTS, answers, judgement
from tests.unit.runs import make_generation, make_manifest

PLACES = st.floats(0, 1)  # where in a file: its start is 0, its end 1


class RunFolder(RuleBasedStateMachine):
    """A run folder and its writer, which is None after a close or a kill."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.folder = self.root / "run"
        self.disk = Disk()
        self.finished: dict[GenerationKey, tuple[Generation, list[StepRecord]]] = {}
        self.verdicts: dict[GenerationKey, Judgement] = {}
        self.writer: RunWriter | None = None

    def teardown(self) -> None:
        if self.writer is not None:
            self.release()
        shutil.rmtree(self.root)

    def open(self, way: Any) -> None:
        with lines_on(self.disk):
            self.writer = way(self.folder, make_manifest())

    def release(self) -> None:
        """What the system does for a process that is gone."""
        assert self.writer is not None
        leave(self.writer)
        self.writer = None

    @initialize()
    def create(self) -> None:
        self.open(RunWriter.create)

    @precondition(lambda self: self.writer is None)
    @rule()
    def resume(self) -> None:
        self.open(RunWriter.resume)
        expected = {key: generation for key, (generation, _) in self.finished.items()}
        assert self.writer.finished == expected, "a resumed run must redo what is lost, and only it"
        assert self.writer.judged == self.verdicts.keys()

    @precondition(lambda self: self.writer is not None)
    @rule(answer=answers(), room=st.none() | st.integers(0, 3000), cuts=st.booleans())
    def append(
        self, answer: tuple[Generation, list[StepRecord]], room: int | None, cuts: bool
    ) -> None:
        """Adds an answer; with ``room`` the disk may be full before it is written."""
        generation, steps = answer
        if generation.key in self.finished:
            with pytest.raises(ValueError, match="already in"):
                self.writer.append(generation, steps)
            return
        self.disk.free, self.disk.cuts = room, cuts
        try:
            self.writer.append(generation, steps)
        except StorageError:
            self.fall_over()
        else:
            self.finished[generation.key] = (generation, steps)
        finally:
            self.disk.free, self.disk.cuts = None, True

    def fall_over(self) -> None:
        """A run whose disk is full: every later write is refused, and it is closed."""
        with pytest.raises(StorageError, match=r"an earlier line failed|No space left"):
            self.writer.append(*self.spare())
        self.writer.__exit__(StorageError, StorageError("full"), None)
        self.writer = None

    def spare(self) -> tuple[Generation, Sequence[StepRecord]]:
        """An answer that is in no run."""
        return make_generation(question_id=99), ()

    @precondition(lambda self: self.writer is not None and self.finished.keys() - self.verdicts)
    @rule(data=st.data(), parts=VERDICTS, room=st.none() | st.integers(0, 200))
    def judge(self, data: st.DataObject, parts: Any, room: int | None) -> None:
        open_ = sorted(self.finished.keys() - self.verdicts.keys(), key=repr)
        given = judgement(data.draw(st.sampled_from(open_)), parts)
        self.disk.free = room
        try:
            self.writer.judge(given)
        except StorageError:
            self.writer.__exit__(StorageError, StorageError("full"), None)
            self.writer = None
        else:
            self.verdicts[given.key] = given
        finally:
            self.disk.free = None

    @precondition(lambda self: self.writer is not None)
    @rule(status=st.sampled_from(["complete", "interrupted"]))
    def close(self, status: str) -> None:
        self.writer.close(status)
        self.writer = None
        assert read_run(self.folder).manifest.status == status

    @precondition(lambda self: self.writer is not None)
    @rule(answer=answers(), place=PLACES)
    def kill_within_an_append(
        self, answer: tuple[Generation, list[StepRecord]], place: float
    ) -> None:
        """The process is gone at a byte of the line."""
        generation, steps = answer
        if generation.key in self.finished:
            return
        path = self.folder / GENERATIONS
        before = path.stat().st_size
        self.writer.append(generation, steps)
        self.release()
        written = path.stat().st_size - before
        keep = round(place * written)
        with path.open("rb+") as file:
            file.truncate(before + keep)
        if keep >= written - 1:  # all of it, or all but its newline
            self.finished[generation.key] = (generation, steps)

    @precondition(lambda self: self.writer is not None)
    @rule(name=st.sampled_from([STEPS, COPY]), place=PLACES)
    def kill_while_the_copies_are_made(self, name: str, place: float) -> None:
        """Before, within or after a new Parquet file is there."""
        kept = [STEPS, COPY, MANIFEST][[STEPS, COPY].index(name) :]  # what comes later is old
        old = {
            path: path.read_bytes() if path.exists() else None
            for path in (self.folder / name for name in kept)
        }
        self.writer.close("interrupted")
        self.writer = None
        new = (self.folder / name).read_bytes()
        for path, content in old.items():
            if path.name == name and place == 1:
                continue
            path.unlink()
            if content is not None:
                path.write_bytes(content)
        if place < 1:
            (self.folder / f"{name}.tmp").write_bytes(new[: round(place * len(new))])

    @precondition(lambda self: self.writer is None and self.finished)
    @rule(data=st.data())
    def remove_a_line_by_hand(self, data: st.DataObject) -> None:
        """As the messages tell the user to do, to have an answer redone."""
        read = [generation.key for generation, _ in self.finished.values()]
        number = data.draw(st.integers(0, len(read) - 1))
        path = self.folder / GENERATIONS
        lines = path.read_bytes().splitlines(keepends=True)
        del lines[number]
        path.write_bytes(b"".join(lines))
        del self.finished[read[number]]
        self.verdicts.pop(read[number], None)

    @precondition(lambda self: self.writer is None)
    @rule(name=st.sampled_from([GENERATIONS, LOSSLESS]))
    def save_with_windows_line_endings(self, name: str) -> None:
        path = self.folder / name
        if path.exists() and path.read_bytes().endswith(b"\n"):
            lines = path.read_bytes().removeprefix(BOM_UTF8).splitlines()
            path.write_bytes(BOM_UTF8 + b"".join(line + b"\r\n" for line in lines))

    @invariant()
    def the_folder_holds_what_the_model_holds(self) -> None:
        run = read_run(self.folder)
        keys = [GenerationKey(*row) for row in run.generations[_KEY].itertuples(index=False)]
        assert keys == list(self.finished), "an answer is lost, doubled or in another place"
        assert run.generations["text"].tolist() == [g.text for g, _ in self.finished.values()]
        expected = {
            (*_fields(key), step.step, step.draft_ms)
            for key, (_, steps) in self.finished.items()
            for step in steps
        }
        found = run.steps[[*_KEY, "step", "draft_ms"]]
        assert set(found.itertuples(index=False, name=None)) == expected, "steps are lost or stale"
        assert len(found) == sum(len(steps) for _, steps in self.finished.values())
        verdicts = {
            GenerationKey(*row[:4]): row[4]
            for row in run.judgements[[*_KEY, "verdict"]].itertuples(index=False)
        }
        assert verdicts == {key: item.verdict.value for key, item in self.verdicts.items()}


_KEY = ["entry", "question_id", "turn", "repeat"]


def _fields(key: GenerationKey) -> tuple[str, int, int, int]:
    return key.entry, key.question_id, key.turn, key.repeat


def test_a_run_folder_loses_and_doubles_nothing() -> None:
    run_state_machine_as_test(
        RunFolder,
        settings=settings(
            max_examples=20,
            stateful_step_count=12,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
