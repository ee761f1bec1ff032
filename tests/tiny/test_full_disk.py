"""``specbench run`` when the disk is full or the folder not its own: one line, nothing lost."""

from __future__ import annotations

import json
import shlex
from datetime import UTC, datetime
from pathlib import Path

import pytest

from specbench_kangaroo.bench import study
from tests.command import call
from tests.unit.faults import Disk, lines_on

from .bench import save_model, save_questions


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A run of the baseline alone, in four generations."""
    monkeypatch.chdir(tmp_path)
    model = save_model(tmp_path)
    questions = save_questions(tmp_path / "questions.jsonl", count=2)
    return [
        *("run", "--model", str(model), "--questions", str(questions), "--device", "cpu"),
        *("--max-new-tokens", "8"),
    ]


@pytest.mark.parametrize("free", [0, 4000])  # bytes: of the first answer, and of a later one
def test_a_full_disk_is_an_interruption_that_says_how_to_go_on(
    arguments: list[str], free: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with lines_on(Disk(free=free)):
        assert call(*arguments, "--output", "run") == 130
    last = capsys.readouterr().err.splitlines()[-1]
    wrong, _, command = last.partition(", then go on with ")
    assert command == "specbench run --resume run"
    assert wrong == "cannot write run: No space left on device; free some space"
    done = Path("run/generations.jsonl").read_bytes()
    assert done.count(b"\n") < 4, "the test needs a disk that is full before the run is done"
    assert bool(done) == bool(free)
    assert call(*shlex.split(command)[1:]) == 0
    assert Path("run/generations.jsonl").read_bytes().startswith(done)
    assert json.loads(Path("run/summary.json").read_text())["status"] == "complete"


def test_a_summary_that_finds_no_room_costs_no_run(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments, "--output", "run") == 0
    Path("run/summary.json").write_text("the one before")
    Path("run/summary.json.tmp").mkdir()  # what is to be written first, cannot be
    capsys.readouterr()
    assert call("run", "--resume", "run") == 130
    shown = capsys.readouterr()
    assert "brackets: 95 % jackknife-t" in shown.out, (
        "hours of measuring must be seen, whatever the disk does"
    )
    assert shown.err.splitlines()[-1].startswith(
        "cannot write run: Is a directory; see to the disk"
    )
    assert Path("run/summary.json").read_text() == "the one before"


def test_an_answer_to_a_question_that_the_run_does_not_have_is_named(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments, "--output", "run") == 0
    path = Path("run/generations.jsonl")
    record = json.loads(path.read_text().splitlines()[0]) | {"question_id": 77}
    path.write_text(path.read_text() + json.dumps(record) + "\n")
    capsys.readouterr()
    assert call("run", "--resume", "run") == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "an answer of vanilla to question 77, turn 0, repeat 0, which is none of its" in told


def test_a_second_run_of_one_second_has_a_folder_of_its_own(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So has one after the clock was put back."""

    class Stopped(datetime):
        @classmethod
        def now(cls, tz: object = None) -> Stopped:
            return cls(2026, 11, 1, tzinfo=UTC)

    monkeypatch.setattr(study, "datetime", Stopped)
    assert [call(*arguments) for _ in range(3)] == [0, 0, 0]
    first = "20261101T000000Z-vanilla"
    names = sorted(path.name for path in Path("results").iterdir())
    assert names == [first, f"{first}-2", f"{first}-3"]
