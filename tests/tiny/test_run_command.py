"""``specbench run`` on a tiny model: what the user sees, and the exit status."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from specbench_kangaroo.bench import registry
from specbench_kangaroo.bench.config import read_study
from specbench_kangaroo.machine import devices
from specbench_kangaroo.record.manifest import read_manifest
from specbench_kangaroo.record.request import Request
from specbench_kangaroo.record.writer import read_run
from specbench_methods.kangaroo.adapter import write_untrained
from tests.command import call, refused

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
    assert call("run", "--resume", str(folder)) == 0
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
    assert command == "  specbench run --resume run"
    monkeypatch.setattr(Interrupts, "at", 0)
    assert call(*command.split()[1:]) == 0


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--output", "taken"], "taken is not empty; give another --output"),
        (["--output", "taken", "--dry-run"], "taken is not empty; give another --output"),
        (["--from", "taken"], "taken holds no run"),
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


def test_a_run_is_resumed_by_its_folder_alone(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments, "--output", "run", "--seed", "3") == 0
    assert call("run", "--resume", "run") == 0
    capsys.readouterr()
    assert call(*arguments, "--output", "run") == 2
    assert "run is not empty; go on with its run by specbench run --resume run, or" in (
        capsys.readouterr().err
    )
    flags = ["--resume", "run", "--seed", "4", "--output", "run", "--dry-run"]
    line = refused(capsys, "run", *flags)
    assert "leave out --seed, --output, --dry-run, or start a new run by --from" in line


@pytest.mark.parametrize("changed", ["questions.jsonl", "model/model.safetensors"])
def test_what_has_changed_on_disk_is_not_resumed(
    arguments: list[str],
    model: Path,
    changed: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(model, tmp_path / "model")
    arguments[arguments.index("--model") + 1] = "model"
    assert call(*arguments, "--output", "run") == 0
    before = (tmp_path / "run" / "generations.jsonl").read_bytes()
    if changed == "questions.jsonl":
        save_questions(tmp_path / changed, count=3)
    else:
        tensors = load_file(tmp_path / changed)
        metadata = {"format": "pt"}
        save_file({name: 2 * values for name, values in tensors.items()}, changed, metadata)
    capsys.readouterr()
    line = refused(capsys, "run", "--resume", "run")
    assert re.search(r"cannot resume run: .* or repeat the run with specbench run --from run", line)
    assert (tmp_path / "run" / "generations.jsonl").read_bytes() == before


def test_a_run_with_relative_paths_is_resumed_from_another_directory(
    arguments: list[str],
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(model, tmp_path / "model")
    write_untrained(
        LlamaConfig(**SAVED), tmp_path / "a.safetensors", exit_layer=1, vocabulary_size=24
    )
    more = ["--method", "kangaroo", "--option", "kangaroo.adapter=a.safetensors"]
    relative = ["run", "--model", "model", "--questions", "questions.jsonl", *arguments[5:], *more]
    assert call(*relative, "--output", "run") == 0
    lines = (tmp_path / "run" / "generations.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "run" / "generations.jsonl").write_bytes(b"".join(lines[:3]))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    capsys.readouterr()
    assert call("run", "--resume", "../run") == 0
    assert "run folder: ../run\n" in capsys.readouterr().out
    assert len(read_run(tmp_path / "run").generations) == len(lines) == 8
    assert Path.cwd() == tmp_path / "elsewhere"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["directory"] == str(tmp_path)


def test_a_run_whose_paths_say_all_keeps_its_place_to_itself(
    arguments: list[str], tmp_path: Path
) -> None:
    assert call(*arguments, "--output", "run") == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["directory"] is None


# --- studies, and runs made again ---

STUDY = """
name = "My study: 1"
[target]
model = "model"
device = "cpu"
[questions]
source = "questions.jsonl"
[decoding]
max_new_tokens = 8
seed = 3
[[entries]]
method = "kangaroo"
options = { adapter = "a.safetensors" }
sweep = { threshold = [0.2, 0.5] }
[[entries]]
method = "stub"
"""


@pytest.fixture
def study(arguments: list[str], model: Path, tmp_path: Path) -> Path:
    """A study of what lies in the current directory."""
    del arguments
    shutil.copytree(model, tmp_path / "model")
    config = LlamaConfig(**SAVED)
    write_untrained(config, tmp_path / "a.safetensors", exit_layer=1, vocabulary_size=24)
    (tmp_path / "study.toml").write_text(STUDY)
    return tmp_path / "study.toml"


def request_in(folder: Path | str) -> Request:
    return read_manifest(Path(folder)).request


def test_a_study_is_run_into_a_folder_of_its_name(study: Path, tmp_path: Path) -> None:
    assert call("run", "--config", "study.toml") == 0
    (folder,) = (tmp_path / "results").iterdir()
    assert folder.name.endswith("Z-My-study-1")
    assert request_in(folder) == read_study(study)
    labels = ["vanilla", "kangaroo[threshold=0.2]", "kangaroo[threshold=0.5]", "stub"]
    assert list(read_run(folder).manifest.entries) == labels


def test_flags_that_are_given_replace_single_values_of_a_study(study: Path) -> None:
    more = ["--limit", "1", "--temperature", "0.7", "--backend", "eager", "--seed", "0"]
    more += ["--option", "kangaroo.steps=2", "--sweep", "kangaroo.threshold=0.3"]
    assert call("run", "--config", "study.toml", *more, "--output", "run") == 0
    found, asked = request_in("run"), read_study(study)
    assert found.target == asked.target
    assert found.questions == replace(asked.questions, limit=1)
    assert found.decoding == replace(asked.decoding, temperature=0.7, seed=0), (
        "a flag that says what would be the default anyway was given too"
    )
    assert [entry.name for entry in found.entries] == ["kangaroo", "stub"]
    assert found.entries[0].options == {"adapter": "a.safetensors", "steps": "2"}
    assert found.entries[0].sweep == {"threshold": ("0.3",)}


def test_a_run_is_made_again_from_its_folder(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("run", "--config", study, "--method", "stub", "--output", "first") == 0
    assert call("run", "--from", "first", "--output", "second") == 0
    first, second = (read_manifest(Path(name)) for name in ("first", "second"))
    assert second.request == first.request
    assert second.command == "specbench run --from first --output second"
    assert len(read_run(Path("second")).generations) == len(read_run(Path("first")).generations)
    assert call("run", "--from", "first", "--method", "again=vanilla", "--output", "third") == 0
    changed = request_in("third")
    assert [(entry.label, entry.method) for entry in changed.entries] == [("again", "vanilla")]
    assert changed.decoding == first.request.decoding
    capsys.readouterr()
    line = refused(capsys, "run", "--from", "first", "--output", "second")
    assert "second is not empty; go on with its run by specbench run --resume second" in line


def test_a_dry_run_shows_what_would_be_run_and_writes_nothing(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts)
    assert call("run", "--config", study, "--repeats", "3", "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:8] == [
        "entries:",
        "  vanilla                  vanilla",
        "  kangaroo[threshold=0.2]  kangaroo threshold=0.2 adapter=a.safetensors",
        "  kangaroo[threshold=0.5]  kangaroo threshold=0.5 adapter=a.safetensors",
        "  stub                     stub",
        "questions: 2 of questions.jsonl (mt_bench 2)",
        "answers: 48 (turns 4, repeats 3, entries 4), each of at most 8 tokens",
        "prompts: 8 tokens in the first turns of all questions, the shortest 4, the longest 4; "
        "the model's context 1,024",
    ]
    assert re.fullmatch(r"time: about \d+ s at most, float32 on cpu", lines[8])
    assert "8 tokens of one prompt by each entry" in lines[9]
    after = sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts)
    assert after == before


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--option", "kangaroo.step=2"], "unknown option of kangaroo 'step'; did you mean 'steps"),
        (["--option", "kangaroo.adapter=none.safetensors"], "none.safetensors"),
        (["--dtype", "fp8"], "unknown dtype 'fp8'"),
        (["--model", "nowhere"], "unknown model 'nowhere'"),
    ],
)
def test_a_dry_run_refuses_what_a_run_refuses(
    more: list[str], reason: str, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [refused(capsys, "run", "--config", study, *more, *dry) for dry in ([], ["--dry-run"])]
    assert lines[0] == lines[1]
    assert reason in lines[0]


def test_a_dry_run_tells_of_an_entry_that_fails(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question = {"question_id": 1, "category": "qa", "turns": ["w13 w7"]}
    (tmp_path / "questions.jsonl").write_text(json.dumps(question))
    assert call(*arguments, "--method", "raises", "--dry-run") == 0
    told = "failed: raises on a prompt of middle length: RuntimeError: w13 is bad luck"
    assert told in capsys.readouterr().out


def test_of_a_cluster_a_dry_run_says_what_it_can_know(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments, "--ray-address", "auto", "--dry-run") == 0
    assert "time: no estimate" in capsys.readouterr().out
    assert call(*arguments, "--workers", "2", "--dry-run") == 0
    assert "with one worker; whether there are devices for 2" in capsys.readouterr().out


def test_a_study_without_entries_is_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.toml").write_text("")
    assert call(*arguments, "--config", "empty.toml", "--output", "run") == 2
    assert capsys.readouterr().err == (
        "error: empty.toml names no entry to compare; add [[entries]], or give --method\n"
    )


def test_the_study_of_ones_own_model_runs(
    arguments: list[str], model: Path, tmp_path: Path
) -> None:
    del arguments
    study = Path(__file__).parents[2] / "docs" / "studies" / "own-model.toml"
    shutil.copytree(model, tmp_path / "my-model")  # where the study says that it is
    flags = ["--questions", "questions.jsonl", "--limit", "1", "--max-new-tokens", "4"]
    assert call("run", "--config", study, *flags, "--output", "run") == 0
    run = read_run(tmp_path / "run")
    assert list(run.manifest.entries)[1:] == [choice.name for choice in read_study(study).entries]
    assert set(run.generations["status"]) == {"ok"}
