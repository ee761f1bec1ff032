"""A run that is killed outright, as by a power cut, and then resumed through the command line."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.command import call

from .run_process import EACH, Gate, small_run, start

QUESTIONS = 3
DONE = EACH + 1  # answers, when the process is gone
TIMED = ("speedup", "per_second", "_ms", "_share", "_cost", "realised")


def kill_in_the_middle(arguments: list[str], gate: Gate) -> None:
    process = start(arguments, gate)
    gate.wait_for(process)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def untimed(value: Any) -> Any:
    """A summary without the figures that a clock goes into."""
    if isinstance(value, dict):
        return {
            key: untimed(item)
            for key, item in value.items()
            if key not in ("run", "peak_rss_mb") and not any(part in key for part in TIMED)
        }
    return [untimed(item) for item in value] if isinstance(value, list) else value


def test_a_killed_run_resumes_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECBENCH_CACHE", str(tmp_path / "cache"))
    arguments = small_run(tmp_path, questions=QUESTIONS)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    kill_in_the_middle([*arguments, "--output", str(killed)], Gate(tmp_path / "gate", after=DONE))
    before = (killed / "generations.jsonl").read_bytes()
    assert before.count(b"\n") == DONE
    assert call("run", "--resume", killed) == 0
    after = (killed / "generations.jsonl").read_bytes()
    assert after.startswith(before), "what was finished must stay as it was"
    assert after.count(b"\n") == EACH * QUESTIONS
    assert call(*arguments, "--output", whole) == 0
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (killed, whole)]
    assert untimed(summaries[0]) == untimed(summaries[1])
    assert summaries[0]["entries"]["kangaroo"]["lossless"]["exact"] == 2 * QUESTIONS
