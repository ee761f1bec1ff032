"""A run folder on a full disk and under two writers: nothing lost or doubled, and no traceback."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specbench_kangaroo.record import files as whole_writes
from specbench_kangaroo.record.columns import COPY, STEPS
from specbench_kangaroo.record.errors import StorageError, UsageError
from specbench_kangaroo.record.files import LineFile, replacing, write_whole
from specbench_kangaroo.record.manifest import MANIFEST
from specbench_kangaroo.record.writer import GENERATIONS, LOSSLESS, RunWriter, read_run
from tests.unit.faults import Disk, largest_file, lines_on
from tests.unit.runs import make_answer, make_judgement, make_manifest, resume_run


def assert_whole(folder: Path, *, answers: int) -> None:
    run = read_run(folder)
    assert run.manifest.status == "complete"
    assert run.generations["question_id"].tolist() == list(range(answers)), "lost or doubled"
    counts = run.steps["question_id"].value_counts().to_dict()
    assert counts == dict.fromkeys(range(answers), 12), "steps are lost or doubled"
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [MANIFEST, GENERATIONS, LOSSLESS, STEPS, COPY]
    ), "something is left behind"


# --- a full disk ---


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(size=st.integers(0, 16_000))
def test_a_run_that_fills_the_disk_at_any_byte_goes_on_later(tmp_path_factory, size):
    """The system itself refuses: in a line, in Parquet, or in run.json, wherever ``size`` falls."""
    folder, told = tmp_path_factory.mktemp("full") / "run", ""
    try:
        with largest_file(size), RunWriter.create(folder, make_manifest()) as writer:
            for number in range(4):
                writer.append(*make_answer(number))
    except UsageError as error:
        told = str(error)
    full = f"cannot write {folder}: File too large; raise the largest"
    assert not told or told.startswith(full)
    assert "\n" not in told, "a full disk is one line"
    if (folder / MANIFEST).exists():
        read_run(folder)
        resume_run(folder, answers=4)
    else:  # it was full before there was a run: the folder is free for another try
        with RunWriter.create(folder, make_manifest()):
            pass
        resume_run(folder, answers=4)
    assert_whole(folder, answers=4)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("cuts", [True, False])
@pytest.mark.parametrize("free", [0, 1, 100, 400])  # bytes of the line that still find room
def test_nothing_follows_a_line_that_failed(tmp_path, error, cuts, free):
    folder, disk = tmp_path / "run", Disk()
    with lines_on(disk):
        writer = RunWriter.create(folder, make_manifest())
    writer.append(*make_answer(0))
    before = (folder / GENERATIONS).read_bytes()
    disk.free, disk.error, disk.cuts = free, error, cuts
    with pytest.raises(StorageError, match=f"cannot write {folder}") as caught:
        writer.append(*make_answer(1))
    disk.free = None  # there is room again, but not for a writer that has failed
    with pytest.raises(StorageError):
        writer.append(*make_answer(2))
    writer.__exit__(StorageError, caught.value, None)
    assert list(writer.finished) == [make_answer(0)[0].key], (
        "a lost answer must not count as finished"
    )
    assert (folder / GENERATIONS).read_bytes()[: None if cuts else len(before)] == before
    assert read_run(folder).manifest.status == "interrupted"
    resume_run(folder, answers=3)
    assert_whole(folder, answers=3)


def test_the_line_says_what_is_wrong_and_how_to_go_on(tmp_path):
    disk = Disk()
    with lines_on(disk):
        writer = RunWriter.create(tmp_path / "run", make_manifest())
    disk.free = 10
    with pytest.raises(StorageError) as caught:
        writer.append(*make_answer(0))
    writer.close("interrupted")
    assert str(caught.value) == (
        f"cannot write {tmp_path / 'run'}: No space left on device; free some space, "
        "then go on with specbench run --resume"
    )


def test_a_verdict_that_finds_no_room_is_given_later(tmp_path):
    folder, disk = tmp_path / "run", Disk()
    with lines_on(disk):
        writer = RunWriter.create(folder, make_manifest())
    generation, steps = make_answer(0, "kangaroo")
    writer.append(generation, steps)
    disk.free = 20
    with pytest.raises(StorageError, match="No space left"), writer:
        writer.judge(make_judgement(generation.key))
    assert writer.judged == set()
    with RunWriter.resume(folder, make_manifest()) as writer:
        assert writer.judged == set()
        writer.judge(make_judgement(generation.key))
    assert len(read_run(folder).judgements) == 1


def test_a_run_whose_copies_find_no_room_is_interrupted(tmp_path):
    folder = tmp_path / "run"
    writer = RunWriter.create(folder, make_manifest())
    for number in range(3):
        writer.append(*make_answer(number))
    with pytest.raises(StorageError, match="File too large"), largest_file(3000):
        writer.close("complete")
    assert read_run(folder).manifest.status == "interrupted", "it is not complete yet"
    assert not list(folder.glob("*.tmp")), "a part of a file takes room and says nothing"
    assert not list(folder.glob("*.parquet"))
    resume_run(folder, answers=3)
    assert_whole(folder, answers=3)


def test_a_full_disk_at_resuming_leaves_the_run_as_it_was(tmp_path):
    folder = tmp_path / "run"
    with RunWriter.create(folder, make_manifest()) as writer:
        writer.append(*make_answer(0))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with largest_file(30), pytest.raises(StorageError, match="File too large"):
        RunWriter.resume(folder, make_manifest())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    resume_run(folder, answers=2)
    assert_whole(folder, answers=2)


def test_what_stops_a_run_is_told_rather_than_the_full_disk_after_it(tmp_path):
    def interrupted() -> None:
        with RunWriter.create(tmp_path / "run", make_manifest()) as writer:
            writer.append(*make_answer(0))
            with largest_file(0):
                writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    resume_run(tmp_path / "run", answers=1)
    assert_whole(tmp_path / "run", answers=1)


def test_a_summary_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "summary.json"
    write_whole(path, "before")
    with largest_file(100), pytest.raises(StorageError, match="File too large"):
        write_whole(path, "after" * 100)
    assert path.read_text() == "before"
    assert [item.name for item in tmp_path.iterdir()] == ["summary.json"]


def test_an_interruption_leaves_no_part_of_a_file(tmp_path):
    def interrupted() -> None:
        with replacing(tmp_path / "a") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_unusable_input(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="give another --output") as caught:
        RunWriter.create(tmp_path / "file" / "run", make_manifest())
    assert not isinstance(caught.value, StorageError), "there is no run to go on with"


@pytest.mark.parametrize("left", [[], [GENERATIONS], [GENERATIONS, f"{MANIFEST}.tmp"]])
def test_a_start_that_was_killed_at_once_is_no_run_in_the_way(tmp_path, left):
    for name in left:
        (tmp_path / name).write_bytes(b"" if name == GENERATIONS else b"{")
    with RunWriter.create(tmp_path, make_manifest()) as writer:
        writer.append(*make_answer(0))
    assert_whole(tmp_path, answers=1)


# --- two writers ---

OTHER = """
import sys
from pathlib import Path
from specbench_kangaroo.record.writer import RunWriter
from tests.unit.runs import make_manifest
with RunWriter.create(Path(sys.argv[1]), make_manifest()):
    print("open", flush=True)
    sys.stdin.read()
"""


@contextmanager
def other_process(folder: Path) -> Any:
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": ":".join(sys.path)},
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield


def test_another_process_is_refused_while_the_first_one_lives(tmp_path):
    pytest.importorskip("fcntl")
    folder = tmp_path / "run"
    with other_process(folder):
        with pytest.raises(UsageError, match="written by another process; wait for it, or"):
            RunWriter.resume(folder, make_manifest())
        with pytest.raises(UsageError, match="is not empty"):
            RunWriter.create(folder, make_manifest())
    resume_run(folder, answers=1)
    assert_whole(folder, answers=1)


def test_two_that_start_at_once_do_not_mix(tmp_path, monkeypatch):
    """The second found the folder empty, and gets the lock when the first has done its work."""
    folder = tmp_path / "run"
    folder.mkdir()
    real = LineFile.__init__

    def late(self: LineFile, path: Path, *, locked: bool = False) -> None:
        monkeypatch.setattr(LineFile, "__init__", real)
        with RunWriter.create(folder, make_manifest()) as first:
            first.append(*make_answer(0))
        real(self, path, locked=locked)

    monkeypatch.setattr(LineFile, "__init__", late)
    with pytest.raises(UsageError, match="is not empty"):
        RunWriter.create(folder, make_manifest(model="another"))
    assert_whole(folder, answers=1)
    assert read_run(folder).manifest.model == "smollm2-135m"


@pytest.mark.parametrize("locks", ["none", "refused"])
def test_where_there_are_no_locks_the_first_line_beside_ours_ends_the_run(
    tmp_path, monkeypatch, locks
):
    class NoLocks:
        LOCK_EX = LOCK_NB = 0

        def flock(self, *_: Any) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(whole_writes, "fcntl", None if locks == "none" else NoLocks())
    folder = tmp_path / "run"
    first = RunWriter.create(folder, make_manifest())
    first.append(*make_answer(0))
    second = RunWriter.resume(folder, make_manifest())
    second.append(*make_answer(1))
    with pytest.raises(StorageError, match=r"another process has (changed|removed)"):
        first.append(*make_answer(2))
    first.close("interrupted")
    second.close("interrupted")
    resume_run(folder, answers=3)
    assert read_run(folder).generations["question_id"].tolist() == [0, 1, 2]


def test_a_folder_that_is_removed_under_a_run_is_noticed(tmp_path):
    writer = RunWriter.create(tmp_path / "run", make_manifest())
    for path in (tmp_path / "run").iterdir():
        path.unlink()
    with pytest.raises(StorageError, match="another process has removed"):
        writer.append(*make_answer(0))
    (tmp_path / "run").rmdir()
    with pytest.raises(StorageError, match="No such file or directory; put the folder back"):
        writer.close("interrupted")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("name", [GENERATIONS, LOSSLESS, f"{MANIFEST}.tmp", STEPS, f"{STEPS}.tmp"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path, name):
    folder = tmp_path / "run"
    with RunWriter.create(folder, make_manifest()) as writer:
        writer.append(*make_answer(0))
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with suppress(UsageError), RunWriter.resume(folder, make_manifest()):
        pass
    with suppress(UsageError):
        read_run(folder)
