"""A run that is killed outright, as by a power cut, and then resumed through the command line."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from specbench_kangaroo.cli.main import main

from .run_process import N_QUESTIONS, run_of_seconds, start, wait_for_generations

KILL_AFTER = 3  # generations
TIMED = ("speedup", "per_second", "_ms", "_share", "_cost", "realised")


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("SPECBENCH_CACHE", str(tmp_path / "cache"))
    return run_of_seconds(tmp_path)


def kill_in_the_middle(arguments: list[str], folder: Path) -> None:
    process = start([*arguments, "--output", str(folder)])
    wait_for_generations(process, folder, KILL_AFTER)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def finish(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0


def untimed(value: Any) -> Any:
    """A summary without the figures that a clock goes into."""
    if isinstance(value, dict):
        return {
            key: untimed(item)
            for key, item in value.items()
            if key not in ("run", "peak_rss_mb") and not any(part in key for part in TIMED)
        }
    return [untimed(item) for item in value] if isinstance(value, list) else value


def test_a_killed_run_resumes_and_repeats_nothing(arguments: list[str], tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    kill_in_the_middle(arguments, killed)
    before = (killed / "generations.jsonl").read_bytes()
    before = before[: before.rindex(b"\n") + 1]
    assert before.count(b"\n") < 4 * N_QUESTIONS, "it was killed too late to test anything"
    finish([*arguments, "--output", str(killed), "--resume"])
    after = (killed / "generations.jsonl").read_bytes()
    assert after.startswith(before), "what was finished must stay as it was"
    assert after.count(b"\n") == 4 * N_QUESTIONS
    finish([*arguments, "--output", str(whole)])
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (killed, whole)]
    assert untimed(summaries[0]) == untimed(summaries[1])
    assert summaries[0]["methods"]["kangaroo"]["lossless"]["exact"] == 2 * N_QUESTIONS
