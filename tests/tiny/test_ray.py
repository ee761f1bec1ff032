"""Two workers on a local Ray cluster of this machine: signals, a death, and what comes out.

One run folder goes through all of it: Ctrl-C, resumed, Ctrl-C twice, resumed, a worker killed.
Starting Ray and two workers is what costs time here, so each stage is run once.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
import pytest

from specbench_kangaroo.record.manifest import read_manifest
from tests.command import call

from .run_process import EACH, PATIENCE_S, Gate, generations_of, small_run, start

pytest.importorskip("ray", reason="needs the extra ray")

QUESTIONS = 6
INTERRUPTED = 130
ANSWER = [
    *("entry", "question_id", "turn", "repeat", "status"),
    *("output_ids", "text", "prompt_tokens", "target_passes"),
]


@dataclass(frozen=True, slots=True)
class Stage:
    """A command that has ended, and what it left."""

    status: int
    told: list[str]  # lines
    found: pd.DataFrame  # generations
    left: list[psutil.Process]  # that should have ended with it


class Command:
    """A run whose two workers stand at the gate, each with a question."""

    def __init__(self, arguments: list[str], folder: Path, gate: Gate) -> None:
        self.folder, self.gate, self.told = folder, gate, list[str]()
        self.process = start(arguments, gate)
        self.actors = gate.wait_for(self.process, 2)
        self.family = psutil.Process(self.process.pid).children(recursive=True)

    def interrupt(self) -> None:
        """Ctrl-C as a terminal sends it: every process of the foreground hears it."""
        for one in (self.process, *(child for child in self.family if child.is_running())):
            one.send_signal(signal.SIGINT)

    def hear(self, word: bytes) -> None:
        assert self.process.stderr is not None
        line = next(line for line in self.process.stderr if line.startswith(word))
        self.told.append(line.decode().rstrip())

    def end(self) -> Stage:
        _, told = self.process.communicate(timeout=PATIENCE_S)
        self.told += told.decode().splitlines()
        _, left = psutil.wait_procs(self.family, timeout=PATIENCE_S)
        return Stage(self.process.returncode, self.told, generations_of(self.folder), left)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("workers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECBENCH_CACHE", str(folder / "cache"))
        yield small_run(folder, questions=QUESTIONS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "run"


@pytest.fixture(scope="module")
def interrupted(
    arguments: list[str], folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Stage:
    """Ctrl-C when each worker has made one question and has begun another."""
    begun = [*arguments, "--workers", "2", "--output", str(folder)]
    command = Command(begun, folder, Gate(tmp_path_factory.mktemp("a") / "gate", after=1))
    command.interrupt()
    command.hear(b"interrupted")
    command.gate.open()
    return command.end()


@pytest.fixture(scope="module")
def stopped(interrupted: Stage, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """Resumed, and Ctrl-C twice before either worker answers anything: the gate stays shut."""
    del interrupted
    gate = Gate(tmp_path_factory.mktemp("b") / "gate", after=0)
    command = Command(["run", "--resume", str(folder)], folder, gate)
    command.interrupt()
    command.hear(b"interrupted")
    command.interrupt()
    return command.end()


@pytest.fixture(scope="module")
def killed(stopped: Stage, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """Resumed, and a worker killed while it answers; the run then goes to its end."""
    del stopped
    gate = Gate(tmp_path_factory.mktemp("c") / "gate", after=0)
    command = Command(["run", "--resume", str(folder)], folder, gate)
    psutil.Process(command.actors[0]).kill()
    gate.open()
    return command.end()


def test_ctrl_c_finishes_the_question_of_every_worker(interrupted: Stage) -> None:
    assert interrupted.status == INTERRUPTED, interrupted.told
    lines = [line for line in interrupted.told if line.startswith("interrupted: finishing")]
    pattern = r"interrupted: finishing questions (2, 3|3, 2); press Ctrl-C again to stop now"
    assert re.fullmatch(pattern, lines[0]), lines
    assert any("go on with" in line for line in interrupted.told)
    counts = interrupted.found["question_id"].value_counts().to_dict()
    assert counts == dict.fromkeys(range(4), EACH), "what was under way is written, and no more"
    assert not interrupted.left, "processes were left behind"


def test_a_second_ctrl_c_waits_for_no_worker(interrupted: Stage, stopped: Stage) -> None:
    assert stopped.status == INTERRUPTED, stopped.told
    assert any("go on with" in line for line in stopped.told)
    assert stopped.found.equals(interrupted.found), "no question was answered in between"
    assert not stopped.left, "processes were left behind"


def test_a_worker_is_killed_and_the_run_is_what_one_process_makes(
    killed: Stage, arguments: list[str], folder: Path, tmp_path: Path
) -> None:
    assert killed.status == 0, killed.told
    assert any("died while it answered question" in line for line in killed.told), killed.told
    assert any("2 workers share processors" in line for line in killed.told), killed.told
    assert len(killed.told) <= 4, f"Ray's own lines are not for the user: {killed.told}"
    assert call(*arguments, "--output", tmp_path / "alone") == 0
    assert answers(folder) == answers(tmp_path / "alone"), "lost, doubled, or other tokens"
    assert acceptance(folder) == acceptance(tmp_path / "alone")
    assert set(killed.found["worker"]) == {0, 1}
    assert (killed.found.groupby("question_id")["worker"].nunique() == 1).all()
    manifest = read_manifest(folder)
    assert (manifest.status, manifest.settings["workers"]) == ("complete", 2)
    assert len(manifest.environment["workers"]) == 2
    assert not killed.left, "processes were left behind"


def answers(folder: Path) -> list[list[object]]:
    rows = generations_of(folder)[ANSWER]
    return sorted((list(row) for row in rows.to_numpy().tolist()), key=str)


def acceptance(folder: Path) -> object:
    overall = json.loads((folder / "summary.json").read_text())["entries"]["kangaroo"]
    figures = overall["tasks"]["overall"]
    # Values: an interval's resampling goes by the order in which the questions were answered.
    names = ("mean_accepted_tokens", "acceptance_rate", "compression_rate")
    return overall["lossless"], [figures[name]["value"] for name in names]
