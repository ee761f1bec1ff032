"""``specbench_kangaroo.run`` on a tiny model: what a script or a notebook gets."""

from __future__ import annotations

import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

import specbench_kangaroo
from specbench_kangaroo import Request, Run, UsageError, read_run, run, summarise
from specbench_kangaroo.bench import registry
from specbench_kangaroo.record.schema import Generation, GenerationKey
from tests.command import call

from .bench import Interrupts, Stub, save_model, save_questions

MODEL = "smollm2-135m"  # of the example


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def study(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Two questions of two turns, answered by vanilla and a stub."""
    monkeypatch.setenv("SPECBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    real = registry._loaders()
    stubs = {"stub": lambda: Stub, "interrupts": lambda: Interrupts}
    monkeypatch.setattr(registry, "_loaders", lambda: real | stubs)
    return {
        "target": {"model": str(model), "device": "cpu"},
        "questions": {"source": str(save_questions(tmp_path / "questions.jsonl", count=2))},
        "decoding": {"max_new_tokens": 8},
        "entries": [{"method": "stub"}],
    }


def test_the_example_of_the_package_runs(
    study: dict[str, Any], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del study
    _, after = (specbench_kangaroo.__doc__ or "").split("::\n", 1)
    lines = after.partition("\nRuns:")[0]
    assert f'"{MODEL}"' in lines
    exec(textwrap.dedent(lines).replace(MODEL, str(model)), {})
    shown = capsys.readouterr()
    *frame, last = shown.out.splitlines()
    assert frame[0] == "entry", "something else is printed than what the example prints"
    assert "times as fast, 95 % interval" in last
    assert read_run(tmp_path / "results" / "first").manifest.status == "complete"


def test_a_study_is_a_mapping_a_file_or_a_request(
    study: dict[str, Any], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = run(study, output="mapping")
    assert isinstance(made, Run)
    assert made.folder == Path("mapping")
    (tmp_path / "study.toml").write_text(
        f'[target]\nmodel = "{model}"\ndevice = "cpu"\n[questions]\nsource = "questions.jsonl"\n'
        '[decoding]\nmax_new_tokens = 8\n[[entries]]\nmethod = "stub"\n'
    )
    others = [run("study.toml"), run(tmp_path / "study.toml", output=tmp_path / "file")]
    assert isinstance(made.manifest.request, Request)
    others.append(run(made.manifest.request))
    for other in others:
        assert other.generations["output_ids"].equals(made.generations["output_ids"])
    assert len({other.folder for other in others}) == 3
    assert others[0].folder.parent == Path("results")
    assert others[0].folder.name.endswith("Z-vanilla+stub")
    assert summarise(made).overall("stub")["mean_accepted_tokens"].value > 3
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", ""), "a run from Python is silent"


def test_progress_is_told_after_each_answer(study: dict[str, Any]) -> None:
    told: list[Generation] = []
    made = run(study, progress=told.append)
    columns = ["entry", "question_id", "turn", "repeat"]
    answers = [GenerationKey(*row) for row in made.generations[columns].itertuples(index=False)]
    assert len(answers) == 8
    assert sorted(map(str, answers)) == sorted(str(item.key) for item in told)


def test_a_name_is_that_of_the_folder(study: dict[str, Any]) -> None:
    assert run(study | {"name": "my study: 1"}).folder.name.endswith("Z-my-study-1")


def test_ctrl_c_leaves_a_folder_that_can_go_on(
    study: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    study["entries"] = [{"method": "interrupts"}]
    with pytest.raises(KeyboardInterrupt) as stopped:
        run(study, output="a run")
    assert stopped.value.__notes__ == ["go on with: specbench run --resume 'a run'"]
    left = read_run("a run")
    assert left.manifest.status == "interrupted"
    assert 0 < len(left.generations) < 8
    with pytest.raises(UsageError, match="is not empty"):
        run(study, output="a run")
    monkeypatch.setattr(Interrupts, "at", 0)
    assert call("run", "--resume", "a run") == 0
    assert len(read_run("a run").generations) == 8


def test_a_thread_may_run_one(study: dict[str, Any]) -> None:
    """As some notebooks and servers do; only the main thread may set signal handlers."""
    made: list[Run] = []
    thread = threading.Thread(target=lambda: made.append(run(study)))
    thread.start()
    thread.join()
    assert [item.manifest.status for item in made] == ["complete"]
