"""Ctrl-C and SIGTERM: the question under way is finished or dropped, the folder is resumable."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from specbench_kangaroo.bench.signals import Interruption, interruptible
from specbench_kangaroo.record.manifest import read_manifest
from tests.command import call

from .run_process import EACH, PATIENCE_S, Gate, generations_of, small_run, start

INTERRUPTED = 130
QUESTIONS = 2
DONE = 2  # answers, when a signal comes


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("SPECBENCH_CACHE", str(tmp_path / "cache"))
    return [*small_run(tmp_path, questions=QUESTIONS), "--output", str(tmp_path / "run")]


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate", after=DONE)


@pytest.fixture
def process(arguments: list[str], gate: Gate) -> Iterator[subprocess.Popen[bytes]]:
    """A run in the third of its first question's answers, until the gate opens."""
    found = start(arguments, gate)
    gate.wait_for(found)
    yield found
    if found.poll() is None:
        found.kill()
    found.communicate()


def first_line_after(process: subprocess.Popen[bytes], word: str) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if word in line.decode():
            return line.decode()
    raise AssertionError(f"nothing was said of the signal ({word})")


def end(process: subprocess.Popen[bytes]) -> str:
    _, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == INTERRUPTED, told.decode()
    return told.decode()


def complete(folder: Path) -> None:
    """Resume, and look whether the whole run is there."""
    before = (folder / "generations.jsonl").read_bytes()
    assert call("run", "--resume", folder) == 0
    after = (folder / "generations.jsonl").read_bytes()
    assert after.startswith(before), "what was finished must stay as it was"
    assert len(generations_of(folder)) == EACH * QUESTIONS
    assert read_manifest(folder).status == "complete"


@pytest.mark.parametrize(
    ("number", "word", "again"),
    [(signal.SIGINT, "interrupted", "again "), (signal.SIGTERM, "terminated", "")],
)
def test_one_signal_finishes_the_question(
    process: subprocess.Popen[bytes],
    gate: Gate,
    tmp_path: Path,
    number: int,
    word: str,
    again: str,
) -> None:
    process.send_signal(number)
    line = first_line_after(process, word)
    assert line == f"{word}: finishing question 0; press Ctrl-C {again}to stop now\n"
    gate.open()
    told, folder = end(process), tmp_path / "run"
    assert f"{word}: {EACH} generations are in {folder}; go on" in told
    assert f"\n  specbench run --resume {folder}\n" in told
    found = generations_of(folder)
    assert found["question_id"].tolist() == [0] * EACH, "it was not finished, or another was begun"
    assert (folder / "lossless.jsonl").read_bytes().count(b"\n") == EACH // 2
    assert read_manifest(folder).status == "interrupted"
    assert not (folder / "steps.jsonl").exists(), "the steps of a run that rests are in Parquet"
    complete(folder)


def test_a_second_ctrl_c_drops_the_answer_under_way_and_keeps_those_before(
    process: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    process.send_signal(signal.SIGINT)
    first_line_after(process, "interrupted")
    process.send_signal(signal.SIGINT)  # the gate stays shut: it must not wait for the answer
    assert "go on with" in end(process)
    assert len(generations_of(tmp_path / "run")) == DONE
    assert read_manifest(tmp_path / "run").status == "interrupted"
    complete(tmp_path / "run")


def test_sigterm_twice_is_sigterm_once(capfd: pytest.CaptureFixture[str]) -> None:
    found = Interruption()
    found.under_way = "question 3"
    for _ in range(2):  # a supervisor may signal the group and the process
        found.heard(signal.SIGTERM, None)
    told = capfd.readouterr().err
    assert told == "terminated: finishing question 3; press Ctrl-C to stop now\n"
    with pytest.raises(KeyboardInterrupt):
        found.heard(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        found.stop_if_asked()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_where_nothing_is_under_way_a_signal_stops_at_once(number: int) -> None:
    found = Interruption()
    found.stop_if_asked()
    with pytest.raises(KeyboardInterrupt):
        found.heard(number, None)


def test_the_handlers_that_were_there_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with interruptible() as found:
        assert signal.getsignal(signal.SIGTERM) == found.heard
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for `command &`
    try:
        with interruptible():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_thread_leaves_signals_alone() -> None:
    before, inside = signal.getsignal(signal.SIGTERM), []

    def run() -> None:
        with interruptible() as found:
            inside.append((signal.getsignal(signal.SIGTERM), found.asked))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert inside == [(before, False)]
