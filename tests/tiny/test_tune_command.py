"""``specbench tune`` on a tiny model: the replay against the real loop, and the command itself.

A draft of an untrained adapter is right now and then, so every branch of a step is taken.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformers import LlamaConfig

from specbench_kangaroo.engine.clock import WallClock
from specbench_kangaroo.engine.decode import Decoded, Limits, decode
from specbench_kangaroo.engine.method import Method
from specbench_kangaroo.record.writer import read_run
from specbench_kangaroo.tuning.replay import DraftLog, draft_log, walks
from specbench_methods.kangaroo import Kangaroo
from specbench_methods.kangaroo.adapter import write_untrained
from specbench_methods.layer_skip import LayerSkip, LayerSkipOptions
from tests.command import call
from tests.unit.drafting import as_frame

from .bench import FAMILY, SAVED, save_model, save_questions
from .models import CONTEXT, VOCABULARY, target

LIMITS = Limits(max_new_tokens=36, eos=frozenset({12}))
SETTINGS = [(1, 0.5), (3, 0.3), (4, 0.7), (6, 0.0), (12, 0.4)]


def prompts() -> list[list[int]]:
    """Short ones, and one whose answer ends with the context."""
    rng = random.Random(2)
    lengths = [4] * 8 + [CONTEXT - 20]
    return [[rng.randrange(3, VOCABULARY) for _ in range(length)] for length in lengths]


def answers_of(method: Method) -> list[Decoded]:
    model = target(FAMILY)
    return [decode(model, method, prompt, limits=LIMITS, clock=WallClock()) for prompt in prompts()]


def log_of(answers: Sequence[Decoded]) -> DraftLog:
    counts = [len(answer.output_ids) for answer in answers]
    frame = pd.DataFrame({"question_id": range(len(counts)), "turn": 0, "repeat": 0})
    steps = as_frame([answer.steps for answer in answers])
    return draft_log(frame.assign(new_tokens=counts), steps, max_new_tokens=LIMITS.max_new_tokens)


def real_steps(answers: Sequence[Decoded]) -> dict[tuple[int, int], tuple[int, int]]:
    """What the loop did: (answer, root) to (drafted, accepted)."""
    return {
        (number, step.context_length - len(prompt) - 1): (step.drafted, step.accepted)
        for number, (answer, prompt) in enumerate(zip(answers, prompts(), strict=True))
        for step in answer.steps
    }


@pytest.mark.parametrize("name", ["kangaroo", "layer_skip"])
def test_a_replay_takes_the_steps_that_the_real_loop_takes(name: str, tmp_path: Path) -> None:
    model = target(FAMILY)
    kind: Any = Kangaroo if name == "kangaroo" else LayerSkip
    options: Any = LayerSkipOptions(exit_layer=1)
    if kind is Kangaroo:
        options = Kangaroo.example_options(model, tmp_path)[0]
    logged = answers_of(kind.load(model, replace(options, steps=12, threshold=0.0)))
    lengths = {len(answer.output_ids) for answer in logged}
    assert min(lengths) < 20 < max(lengths) == LIMITS.max_new_tokens, "EOS or budget is not tested"
    log = log_of(logged)
    compared = total = hits = 0
    for most, threshold in SETTINGS:
        chosen = kind.load(model, replace(options, steps=most, threshold=threshold))
        real = real_steps(answers_of(chosen))
        (walk,) = walks(log, [most], threshold)
        for at in range(len(walk.root)):
            key = int(walk.answer[at]), int(walk.root[at])
            if walk.guessed[at] or key not in real:
                continue
            assert (walk.drafted[at], walk.accepted[at]) == real[key], (
                f"answer {key[0]}, root {key[1]}: γ = {most}, η = {threshold} was promised other "
                "tokens than it drafts and gets accepted"
            )
            compared += 1
            hits += int(walk.accepted[at])
        total += len(real)
    assert compared > 0.95 * total, f"only {compared} of {total} steps could be compared"
    assert compared > 300, "too few steps to say anything"
    assert hits > 50, "no draft is ever right, so little was compared"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that a run of the command line needs, and the run."""
    folder = tmp_path_factory.mktemp("made")
    model = save_model(folder)
    write_untrained(
        LlamaConfig(**SAVED), folder / "adapter.safetensors", exit_layer=1, vocabulary_size=24
    )
    save_questions(folder / "questions.jsonl", count=2)
    arguments = ["run", "--model", str(model), "--questions", "questions.jsonl", "--device", "cpu"]
    arguments += ["--max-new-tokens", "16", "--method", "kangaroo", "--output", "logged"]
    for text in ("adapter=adapter.safetensors", "threshold=0", "steps=6", "tree_width=1"):
        arguments += ["--option", f"kangaroo.{text}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call(*arguments) == 0
    return folder


@pytest.fixture
def logged(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run in a working folder of its own."""
    shutil.copytree(made, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work" / "logged"


def test_tune_shows_the_best_setting_and_draws_the_surface(
    logged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert call("tune", "logged") == 0
    shown = capsys.readouterr()
    assert "best overall: steps " in shown.out
    assert "at the logged setting: predicted " in shown.out
    command = shown.out.splitlines()[-1]
    assert command.startswith("run it: specbench run --model ")
    assert "--option kangaroo.adapter=adapter.safetensors" in command
    assert shown.err == "figure: logged/tune.png\n"
    assert (logged / "tune.png").stat().st_size
    assert not (logged.parent / "logged-tuned").exists(), "nothing was to be run"


def test_the_best_setting_is_run_and_set_against_its_prediction(
    logged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert call("tune", "logged", "--verify", "--format", "json") == 0
    document = json.loads(capsys.readouterr().out)
    best = document["tasks"]["overall"]["best"]
    tuned = read_run(logged.parent / "logged-tuned")
    assert tuned.manifest.entries["kangaroo"].options["steps"] == best["steps"]
    assert tuned.manifest.entries["kangaroo"].options["threshold"] == best["threshold"]
    assert tuned.manifest.hashes == read_run(logged).manifest.hashes
    summary = json.loads((tuned.folder / "summary.json").read_text())
    measured = summary["entries"]["kangaroo"]["tasks"]["overall"]["speedup"]
    assert document["measured"] == measured
    # Again, as text: the run is there, so that nothing runs again.
    before = (tuned.folder / "generations.jsonl").read_bytes()
    assert call("tune", "logged", "--verify") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"predicted {best['speedup']['value']:.2f} (")
    assert f"measured {measured['value']:.2f} (" in last
    assert (tuned.folder / "generations.jsonl").read_bytes() == before


def test_the_command_that_tune_prints_runs(
    logged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert call("tune", "logged", "--format", "json") == 0
    words = json.loads(capsys.readouterr().out)["command"].split()
    assert words[:2] == ["specbench", "run"]
    assert call(*words[1:], "--output", "again") == 0
    again, before = (read_run(logged.parent / name).manifest for name in ("again", "logged"))
    assert again.settings == before.settings
    assert again.hashes == before.hashes


def test_a_file_takes_the_text_and_the_figure_goes_beside_it(
    logged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = logged.parent / "out"
    folder.mkdir()
    capsys.readouterr()
    assert call("tune", "logged", "--output", str(folder / "tune.txt")) == 0
    assert capsys.readouterr().out == ""
    assert "run it: specbench run" in (folder / "tune.txt").read_text()
    assert (folder / "tune.png").is_file()


def test_what_has_changed_since_is_not_taken_for_a_verification(
    logged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = logged.parent / "questions.jsonl"
    kept = questions.read_text()
    save_questions(questions, count=3)
    capsys.readouterr()
    assert call("tune", "logged", "--verify") == 2
    assert "questions.jsonl have changed since" in capsys.readouterr().err
    questions.write_text(kept)
    assert call("tune", "logged", "--verify") == 0
    record = json.loads((logged.parent / "logged-tuned" / "run.json").read_text())
    record["entries"]["kangaroo"]["options"]["steps"] = 99
    (logged.parent / "logged-tuned" / "run.json").write_text(json.dumps(record))
    capsys.readouterr()
    assert call("tune", "logged", "--verify") == 2
    assert "logged-tuned holds a run of other settings" in capsys.readouterr().err
