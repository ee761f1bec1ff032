"""``specbench run`` on a tiny model: what the user sees, and the exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig

from specbench_kangaroo.machine import devices
from specbench_kangaroo.record.writer import read_run
from specbench_kangaroo.run import registry
from specbench_methods.kangaroo.adapter import write_untrained
from tests.command import call

from .bench import SAVED, Cheats, Interrupts, Raises, Stub, save_model, save_questions

STUBS = {"stub": Stub, "cheats": Cheats, "raises": Raises, "interrupts": Interrupts}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def arguments(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A run of the stub methods, registered beside the real ones."""
    monkeypatch.setenv("SPECBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    real = registry._loaders()
    stubs = {name: lambda kind=kind: kind for name, kind in STUBS.items()}
    monkeypatch.setattr(registry, "_loaders", lambda: real | stubs)
    questions = save_questions(tmp_path / "questions.jsonl", count=2)
    return [
        *("run", "--model", str(model), "--questions", str(questions), "--device", "cpu"),
        *("--max-new-tokens", "8"),
    ]


def test_a_run_says_what_it_does_and_where_it_is(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments, "--method", "stub") == 0
    shown = capsys.readouterr()
    first = shown.err.splitlines()[0]
    assert "float32 on cpu" in first
    assert first.endswith("2 questions of questions.jsonl; vanilla, stub")
    (folder,) = (tmp_path / "results").iterdir()
    assert folder.name.endswith("Z-vanilla+stub")
    assert f"run folder: {Path('results') / folder.name}\n" in shown.out
    assert f"figure: {Path('results') / folder.name / 'speedup_by_task.png'}\n" in shown.out
    assert "lossless: 4 exact, 0 near ties, 0 violations" in shown.out
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["entries"]["stub"]["tasks"]["overall"]["n"] == 2
    manifest = json.loads((folder / "run.json").read_text())
    assert manifest["command"].startswith("specbench run --model")
    assert manifest["status"] == "complete"


def test_the_template_decides_the_prompts_and_is_recorded(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = {}
    for template in ("tokenizer", "plain", "vicuna"):
        folder = tmp_path / template
        assert call(*arguments, "--template", template, "--output", str(folder)) == 0
        request = json.loads((folder / "run.json").read_text())["request"]
        assert request["target"]["template"] == template
        line = (folder / "generations.jsonl").read_text().splitlines()[0]
        lengths[template] = json.loads(line)["prompt_tokens"]
    assert len(set(lengths.values())) == 3, f"each template writes another prompt: {lengths}"
    capsys.readouterr()
    again = [*arguments, "--resume", "--output", str(tmp_path / "plain")]
    assert call(*again) == 2
    assert "settings.template is 'plain' there and 'tokenizer' now" in capsys.readouterr().err
    assert call(*arguments, "--template", "vicuna1.1") == 2
    assert "unknown template 'vicuna1.1'; did you mean 'vicuna'" in capsys.readouterr().err


def test_a_method_stands_in_a_run_several_times_and_the_run_goes_on_after_a_kill(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = tmp_path / "adapter.safetensors"
    write_untrained(LlamaConfig(**SAVED), adapter, exit_layer=1, vocabulary_size=24)
    for label in ("kangaroo", "chain"):
        arguments += ["--option", f"{label}.adapter={adapter}", "--option", f"{label}.exit_layer=1"]
    arguments += ["--method", "kangaroo", "--method", "chain=kangaroo", "--method", "again=vanilla"]
    arguments += ["--option", "chain.tree_width=2", "--sweep", "chain.threshold=0,0.5"]
    assert call(*arguments) == 0
    (folder,) = (tmp_path / "results").iterdir()
    assert folder.name.endswith("Z-vanilla+kangaroo+chain+again"), (
        "no bracket for a shell to expand"
    )
    labels = ["vanilla", "kangaroo", "chain[threshold=0]", "chain[threshold=0.5]", "again"]
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary["entries"]) == labels
    assert [entry["method"] for entry in summary["entries"].values()] == [
        "vanilla",
        *["kangaroo"] * 3,
        "vanilla",
    ]
    for label in labels[1:]:
        assert summary["entries"][label]["lossless"] == {"exact": 4, "near_tie": 0, "violation": 0}
    assert summary["entries"]["chain[threshold=0.5]"]["options"]["tree_width"] == 2
    whole = (folder / "generations.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 4 * len(labels)
    (folder / "generations.jsonl").write_bytes(b"".join(lines[:13]) + b'{"entry": "cha')
    capsys.readouterr()
    assert call(*arguments, "--resume", "--output", str(folder)) == 0
    again = read_run(folder).generations
    assert len(again) == len(lines), "every answer is there, and once"
    assert not again.duplicated(["entry", "question_id", "turn"]).any()
    shown = capsys.readouterr().out
    assert "tree_width=2" in shown
    assert shown.count("4 exact") == 4


def test_the_baseline_alone_runs_too(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments) == 0
    assert "no figure: " in capsys.readouterr().out


def test_a_violation_exits_with_1_and_says_where(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments, "--method", "cheats") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("lossless check failed: cheats differs from vanilla on question")


def test_a_method_that_says_it_is_lossy_may_differ(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cheats, "lossy", True)
    assert call(*arguments, "--method", "cheats") == 0


def test_failures_are_counted_aloud(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_questions(tmp_path / "questions.jsonl", count=9)  # the ninth begins with w13
    assert call(*arguments, "--method", "raises") == 0
    shown = capsys.readouterr()
    assert "2 of 36 generations failed; the first: raises, question 8, RuntimeErr" in shown.err
    assert "2 errors" in shown.out


def test_ctrl_c_exits_with_130_and_says_how_to_go_on(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments += ["--method", "interrupts", "--output", "run"]
    assert call(*arguments) == 130
    *_, told, command = capsys.readouterr().err.splitlines()
    assert "generations are in run; go on with" in told
    assert command.strip().endswith("--method interrupts --output run --resume")
    monkeypatch.setattr(Interrupts, "at", 0)
    assert call(*command.split()[1:]) == 0


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--output", "taken"], "taken is not empty; use --resume to continue its run"),
        (["--output", "taken", "--resume"], "taken holds no run"),
        (["--dtype", "bfloat16"], "bfloat16 products do not work on cpu here"),
        (["--method", "kangaroo"], "no Kangaroo adapter shipped for"),
        (
            ["--method", "kangaroo", "--option", "kangaroo.adapter=wide.safetensors"],
            "a target of hidden size 48, but this one has 32",
        ),
    ],
)
def test_what_does_not_fit_is_one_line_and_loses_nothing(
    more: list[str],
    reason: str,
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "probe_dtype", lambda dtype, device: dtype == "float32")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("dear")
    wide = LlamaConfig(**{**SAVED, "hidden_size": 48})
    write_untrained(wide, tmp_path / "wide.safetensors", exit_layer=1, vocabulary_size=4)
    assert call(*arguments, *more) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1, shown
    assert reason in shown
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["letter.txt"]
    assert not (tmp_path / "results").exists()


def test_a_run_resumes_only_as_it_was_begun(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments, "--output", "run") == 0
    assert call(*arguments, "--output", "run", "--resume") == 0
    capsys.readouterr()
    assert call(*arguments, "--output", "run", "--resume", "--seed", "4") == 2
    assert "settings.seed is 0 there and 4 now" in capsys.readouterr().err
