"""A run that is killed outright, as by a power cut, and then resumed through the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from specbench_kangaroo.cli.main import main
from specbench_methods.parts.kangaroo_adapter import write_untrained

from .bench import SAVED, WORDS, save_model, save_questions

N_QUESTIONS = 8
KILL_AFTER = 3  # generations
PATIENCE_S = 300
TIMED = ("speedup", "per_second", "_ms", "_share", "_cost", "realised")


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A run that takes seconds: long enough to be killed in the middle."""
    monkeypatch.setenv("SPECBENCH_CACHE", str(tmp_path / "cache"))
    model, adapter = save_model(tmp_path), tmp_path / "adapter.safetensors"
    write_untrained(LlamaConfig(**SAVED), adapter, exit_layer=1, vocabulary_size=len(WORDS))
    questions = save_questions(tmp_path / "questions.jsonl", count=N_QUESTIONS)
    return [
        *("run", "--model", str(model), "--questions", str(questions)),
        *("--method", "kangaroo", "--option", f"kangaroo.adapter={adapter}"),
        *("--option", "kangaroo.threshold=0.02", "--max-new-tokens", "96", "--device", "cpu"),
    ]


def kill_in_the_middle(arguments: list[str], folder: Path) -> None:
    command = [sys.executable, "-m", "specbench_kangaroo.cli.main", *arguments]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),  # a run is resumed only with as many
    }
    process = subprocess.Popen(
        [*command, "--output", str(folder)], env=environment, stderr=subprocess.PIPE
    )
    generations, deadline_s = folder / "generations.jsonl", time.monotonic() + PATIENCE_S
    while not generations.exists() or generations.read_bytes().count(b"\n") < KILL_AFTER:
        assert process.poll() is None, f"the run ended early: {process.communicate()[1]!r}"
        assert time.monotonic() < deadline_s, "the run makes no generations"
        time.sleep(0.01)
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
