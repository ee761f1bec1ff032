"""Two workers on a local Ray cluster of this machine: deaths, signals, and what comes out."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from specbench_kangaroo.record.manifest import read_manifest

from .run_process import (
    EACH,
    PATIENCE_S,
    finished,
    generations_of,
    run_of_seconds,
    start,
    wait_for_generations,
)

pytest.importorskip("ray", reason="needs the extra ray")

pytestmark = pytest.mark.xdist_group("ray")  # two clusters at once would starve each other
QUESTIONS = 5
INTERRUPTED = 130
GONE_S = 20
TWO = ["--workers", "2"]
ANSWER = [
    *("entry", "question_id", "turn", "repeat", "status"),
    *("output_ids", "text", "prompt_tokens", "target_passes"),
]


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("SPECBENCH_CACHE", str(tmp_path / "cache"))
    return run_of_seconds(tmp_path, questions=QUESTIONS, new_tokens=160)


def answering(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The actors of a run that answer a question just now, as Ray titles their processes."""
    found = psutil.Process(process.pid).children(recursive=True)
    return [child for child in found if "ray::Worker.answer" in " ".join(child.cmdline())]


def kill_one(process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not (actors := answering(process)):
        assert time.monotonic() < deadline_s, "no worker answers anything"
        time.sleep(0.01)
    actors[-1].kill()


def answers(folder: Path) -> list[list[object]]:
    rows = generations_of(folder)[ANSWER]
    return sorted((list(row) for row in rows.to_numpy().tolist()), key=str)


def acceptance(folder: Path) -> object:
    overall = json.loads((folder / "summary.json").read_text())["methods"]["kangaroo"]
    figures = overall["tasks"]["overall"]
    # Values: an interval's resampling goes by the order in which the questions were answered.
    names = ("mean_accepted_tokens", "acceptance_rate", "compression_rate")
    return overall["lossless"], [figures[name]["value"] for name in names]


def test_a_worker_is_killed_and_the_run_is_what_one_process_makes(
    arguments: list[str], tmp_path: Path
) -> None:
    folder, alone = tmp_path / "run", tmp_path / "alone"
    process = start([*arguments, *TWO, "--output", str(folder)])
    wait_for_generations(process, folder, EACH)
    kill_one(process)
    _, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, told.decode()
    said = told.decode().splitlines()
    assert any("died while it answered question" in line for line in said), said
    assert any("2 workers share processors" in line for line in said), said
    assert len(said) <= 4, f"Ray's own lines are not for the user: {said}"
    assert finished([*arguments, "--output", str(alone)])[0] == 0
    assert answers(folder) == answers(alone), "none lost, none doubled, every token the same"
    assert acceptance(folder) == acceptance(alone)
    found = generations_of(folder)
    assert set(found["worker"]) == {0, 1}
    assert (found.groupby("question_id")["worker"].nunique() == 1).all()
    manifest = read_manifest(folder)
    assert (manifest.status, manifest.settings["workers"]) == ("complete", 2)
    assert len(manifest.environment["workers"]) == 2


def interrupt(process: subprocess.Popen[bytes], family: list[psutil.Process]) -> None:
    """Ctrl-C as a terminal sends it: every process of the foreground hears it."""
    for one in (process, *(child for child in family if child.is_running())):
        one.send_signal(signal.SIGINT)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_with_workers(arguments: list[str], tmp_path: Path, times: int) -> None:
    folder = tmp_path / "run"
    arguments += [*TWO, "--output", str(folder)]
    process = start(arguments)
    wait_for_generations(process, folder, EACH)
    family = psutil.Process(process.pid).children(recursive=True)
    interrupt(process, family)
    assert process.stderr is not None
    line = next(line for line in process.stderr if line.startswith(b"interrupted"))
    assert re.fullmatch(
        rb"interrupted: finishing questions? [\d, ]+; press Ctrl-C again .*\n", line
    )
    if times == 2:
        interrupt(process, family)
    _, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == INTERRUPTED, told.decode()
    assert b"go on with" in told
    found = generations_of(folder)
    assert 0 < len(found) < EACH * QUESTIONS, "it was stopped too late to test anything"
    assert set(found["question_id"].value_counts()) == {EACH}, "a question comes whole or not"
    if times == 1:
        under_way = {int(number) for number in re.findall(rb"\d+", line)}
        assert under_way <= set(found["question_id"]), "what was under way must be written"
    psutil.wait_procs(family, timeout=GONE_S)
    assert not [child for child in family if child.is_running()], "processes were left behind"
    status, told_again = finished([*arguments, "--resume"])
    assert status == 0, told_again
    assert len(generations_of(folder)) == EACH * QUESTIONS
