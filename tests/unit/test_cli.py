"""The command line as users meet it: help, listings, reports, and errors of one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from specbench_kangaroo.record.manifest import resume_command
from tests.command import WITHOUT_HEAVY_IMPORTS, call, refused
from tests.unit.runs import make_run

COMMANDS = (
    *("run", "report", "plot", "compare", "tune", "export", "profile"),
    *("list", "doctor", "distil", "train"),
)


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["list", "tasks"]])
def test_help_and_listings_do_not_wait_for_torch(arguments: list[str]) -> None:
    child = subprocess.run(
        [sys.executable, "-c", WITHOUT_HEAVY_IMPORTS, *arguments],
        check=False,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert child.returncode == 0, f"imported for nothing: {child.stderr}"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    shown = capsys.readouterr().out
    assert [name for name in COMMANDS if f"\n  {name} " not in shown] == []


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert call() == 2
    assert capsys.readouterr().err.startswith("Usage: specbench")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    assert capsys.readouterr().out.startswith("specbench-kangaroo ")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["bench"], "No such command 'bench'"),
        (["run", "--methods", "kangaroo"], "No such option"),
        (["run", "--limit", "0"], "--limit"),
        (["run", "--temperature", "-1"], "--temperature"),
        (["run", "--temperature", "1", "--top-p", "0"], "top_p is 0.0, and must be a number > 0"),
        (["run", "--backend", "graph"], "graph backend needs a CUDA device, not cpu"),
        (["run", "--batch-size", "4"], "--batch-size is 1, not 4"),
        (["run", "--resume"], "--resume.* requires an argument"),
        (["run", "--resume", "nowhere"], "nowhere holds no run"),
        (["run", "--from", "nowhere", "--config", "study.toml"], "--config and --from each bring"),
        (["run", "--config", "nowhere.toml"], "cannot read the study nowhere.toml: No such file"),
        (["run", "--method", "kangoroo"], "did you mean 'kangaroo'"),
        (["run", "--task", "maths"], "unknown task 'maths'; .*math_reasoning"),
        (["run", "--model", "smollm"], "unknown model 'smollm'; .*smollm2-135m"),
        (["run", "--dtype", "fp8"], "unknown dtype 'fp8'; .*float32"),
        (["run", "--device", "tpu"], "unknown device 'tpu'; .*cpu"),
        (["run", "--questions", "nowhere.jsonl"], "cannot read questions from 'nowhere.jsonl'"),
        (["run", "--option", "threshold=0.6"], "takes LABEL.NAME=VALUE, not 'threshold=0.6'"),
        (["run", "--option", "kangaroo.threshold"], "takes LABEL.NAME=VALUE"),
        (["run", "--option", "kangaroo.steps=3"], "no entry with options has the label 'kangaroo'"),
        (
            ["run", "--method", "kangaroo", "--option", "kangaroo.step=3"],
            "unknown option of kangaroo 'step'; did you mean 'steps'",
        ),
        (
            ["run", "--method", "kangaroo", "--option", "kangaroo.steps=few"],
            "kangaroo.steps must be of type int, not 'few'",
        ),
        (
            ["run", "--method", "chain=kangoroo"],
            "unknown method 'kangoroo'; did you mean 'kangaroo'",
        ),
        (
            ["run", "--method", "kangaroo"] * 1 + ["--method", "kangaroo"],
            "as in --method kangaroo-2=kangaroo",
        ),
        (["run", "--method", "vanilla"], "as in --method again=vanilla"),
        (["run", "--method", "vanilla=kangaroo"], "vanilla is the label of the baseline"),
        (["run", "--method", "a.b=kangaroo"], "letters, digits, _ and -, and 'a.b' is not"),
        (["run", "--method", "chain="], "takes METHOD or LABEL=METHOD, not 'chain='"),
        (
            ["run", "--method", "kangaroo", "--sweep", "kangaroo.steps=2,few"],
            "kangaroo.steps must be of type int, not 'few'",
        ),
        (
            ["run", "--method", "kangaroo", "--sweep", "kangaroo.threshold=0.3,0.30"],
            r"kangaroo\[threshold=0.30\] repeats a value",
        ),
        (["report"], "Missing argument 'RUN...'"),
        (["report", "nowhere"], "nowhere holds no run"),
        (["report", "nowhere", "--format", "pdf"], "'pdf' is not one of .*'latex'.*'html'"),
        (["plot", "nowhere"], "nowhere holds no run"),
        (["list", "questions", "--questions", "spec_bench"], "did you mean 'spec-bench'"),
    ],
)
def test_unusable_input_is_one_line_and_status_2(
    arguments: list[str],
    reason: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, *arguments)
    assert re.search(reason, line), line
    assert not list(tmp_path.iterdir()), "a refused command must leave nothing behind"


def test_malformed_questions_are_named_by_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question_id": 1, "category": "qa"}\n')
    assert "mine.jsonl:1: no field 'turns'" in refused(capsys, "run", "--questions", path)


def test_listings(capsys: pytest.CaptureFixture[str]) -> None:
    for what, expected in (
        ("methods", "kangaroo.threshold"),
        ("models", "smollm2-135m: SmolLM2-135M-Instruct"),
        ("tasks", "math_reasoning"),
        ("questions", "spec-bench: "),
    ):
        assert call("list", what) == 0
        assert expected in capsys.readouterr().out
    assert call("list", "questions", "--questions", "builtin") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 49
    assert max(map(len, lines)) <= 80


def test_report_in_every_format(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    assert call("report", folder) == 0
    assert "kangaroo against vanilla" in capsys.readouterr().out
    assert call("report", folder, "--format", "markdown") == 0
    assert capsys.readouterr().out.startswith("### kangaroo against vanilla")
    assert call("report", folder, "--format", "json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["entries"]["kangaroo"]["tasks"]["overall"]["n"] == 4


def test_report_of_several_runs_into_a_file(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "one"), make_run(tmp_path / "two", questions_per_task=3)]
    output = tmp_path / "report.txt"
    assert call("report", *runs, "--output", output) == 0
    assert output.read_text().count("kangaroo against vanilla") == 2


def test_a_report_that_cannot_be_written_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = make_run(tmp_path / "run")
    line = refused(capsys, "report", folder, "--output", tmp_path / "none" / "report.txt")
    assert "cannot write" in line


def test_the_command_to_resume_with_can_be_pasted() -> None:
    folder = Path("my results") / "run"
    assert resume_command(folder) == "specbench run --resume 'my results/run'"
    assert resume_command(Path("x"), "host:1") == "specbench run --resume x --ray-address host:1"
