"""``specbench export``: Spec-Bench's answer files, and upstream's arithmetic on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specbench_kangaroo.record.schema import Status
from specbench_kangaroo.record.writer import RunWriter, read_run
from specbench_kangaroo.report.spec_bench_answers import AnswerFile, answer_files, model_id
from specbench_kangaroo.stats.summary import summarise
from tests.changes import replace
from tests.command import call
from tests.unit.runs import make_generation, make_manifest, make_run, make_step, make_steps

MT_BENCH = (
    "writing",
    "roleplay",
    "reasoning",
    "math",
    "coding",
    "extraction",
    "stem",
    "humanities",
)
CATEGORIES = {"mt_bench": "writing", "qa": "qa"}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def upstream_speed(file: Path, base: Path, task: str) -> tuple[float, float]:
    """What evaluation/speed.py computes, but that the baseline's token ids are counted too."""

    def of_task(path: Path) -> list[dict[str, Any]]:
        def fits(line: dict[str, Any]) -> bool:
            categories = MT_BENCH if task == "mt_bench" else (task,)
            return task == "overall" or line["category"] in categories

        return [line["choices"][0] for line in lines(path) if fits(line)]

    def speeds(path: Path) -> list[float]:
        return [sum(choice["new_tokens"]) / sum(choice["wall_time"]) for choice in of_task(path)]

    accepted = [length for choice in of_task(file) for length in choice["accept_lengths"]]
    return float(np.mean(speeds(file)) / np.mean(speeds(base))), float(np.mean(accepted))


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """A run whose questions differ in speed, acceptance and turns, within and between tasks."""
    folder = tmp_path / "uneven"
    with RunWriter.create(folder, make_manifest()) as writer:
        for number, task in enumerate(["mt_bench", "mt_bench", "qa", "qa", "qa"]):
            for turn in range(2 if task == "mt_bench" else 1):
                plain = make_steps("vanilla")
                drafted = make_steps("kangaroo", accepted=(number % 4, 1, 3, turn))
                for method, steps, slower in (
                    ("vanilla", plain, 1.0 + 0.1 * number),
                    ("kangaroo", drafted, 1.0 + 0.3 * number),
                ):
                    answer = make_generation(
                        method,
                        80 + number,
                        steps=steps,
                        slower=slower,
                        task=task,
                        category=CATEGORIES[task],
                        turn=turn,
                    )
                    writer.append(answer, steps)
    return folder


def test_upstreams_arithmetic_gives_our_specbench_speedup(uneven: Path, tmp_path: Path) -> None:
    assert call("export", uneven, "--format", "spec-bench", "--output", tmp_path / "out") == 0
    run = read_run(uneven)
    files = {
        name: tmp_path / "out" / f"{model_id(run.manifest, name)}.jsonl"
        for name in ("vanilla", "kangaroo")
    }
    tasks = summarise(run).entries["kangaroo"].tasks
    assert set(tasks) == {"overall", "mt_bench", "qa"}
    for task, part in tasks.items():
        speedup, accepted = upstream_speed(files["kangaroo"], files["vanilla"], task)
        ours = part.estimates
        assert speedup == pytest.approx(ours["speedup_specbench"].value, rel=1e-12), (
            f"{task}: the leaderboard's figure would not be the one that the report shows"
        )
        assert accepted == pytest.approx(ours["mean_accepted_tokens"].value, rel=1e-12)
        if task == "overall":
            assert abs(ours["speedup"].value - speedup) > 0.01, "the run cannot tell the two apart"


def test_a_line_has_upstreams_fields_and_units(uneven: Path) -> None:
    first = answer_files(read_run(uneven))["kangaroo"].lines[0]
    assert list(first) == [
        "question_id",
        "category",
        "answer_id",
        "model_id",
        "choices",
        "tstamp",
    ]
    assert (first["question_id"], first["category"]) == (80, "writing")
    assert first["model_id"] == "smollm2-135m-kangaroo-float32-temp-0.0"
    assert first["tstamp"] == 1793491200.0
    (choice,) = first["choices"]
    assert choice == {
        "index": 0,
        "turns": ["ü", "ü"],
        "decoding_steps": [4, 4],
        "new_tokens": [9, 10],
        # Prefill 20 ms; a step drafts 4 ms, verifies 12 ms and accepts 1 ms.
        "wall_time": [pytest.approx(0.088), pytest.approx(0.088)],
        "accept_lengths": [1, 2, 4, 1, 1, 2, 4, 2],
    }


def test_the_same_run_gives_the_same_bytes(uneven: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert call("export", uneven, "--output", tmp_path / name) == 0
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    ids = [line["answer_id"] for p in (tmp_path / "one").iterdir() for line in lines(p)]
    assert len(set(ids)) == len(ids) == 10, "answers cannot be told apart by their ids"


def test_a_repeat_is_a_choice_with_its_turns_in_order(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", turns=2, repeats=3))
    for file in answer_files(run).values():
        assert [line["question_id"] for line in file.lines] == [1, 2, 3, 4]
        for line in file.lines:
            assert [choice["index"] for choice in line["choices"]] == [0, 1, 2]
            assert all(len(choice["new_tokens"]) == 2 for choice in line["choices"])


def test_failed_answers_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with RunWriter.create(folder, make_manifest(["vanilla", "kangaroo"])) as writer:
        for question in (1, 2):
            steps = [make_step()]
            writer.append(make_generation("vanilla", question, steps=steps), steps)
            broken = replace(
                make_generation("kangaroo", question), status=Status.ERROR, error="ValueError: x"
            )
            writer.append(broken, ())
    assert call("export", folder) == 0
    shown = capsys.readouterr()
    paths = [Path(line) for line in shown.out.splitlines()]
    assert [path.parent for path in paths] == [folder / "spec-bench"] * 2
    assert [len(lines(path)) for path in paths] == [2, 0]
    assert shown.err == "kangaroo: left out 2 answers that failed\n"


def test_an_answer_without_steps_is_a_line_too(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "run", make_manifest(["vanilla"])) as writer:
        writer.append(make_generation(), ())  # the prefill's token ended it
    (file,) = answer_files(read_run(tmp_path / "run")).values()
    assert isinstance(file, AnswerFile)
    choice = file.lines[0]["choices"][0]
    assert (choice["decoding_steps"], choice["accept_lengths"]) == ([0], [])
    assert choice["new_tokens"] == [1]


def test_a_model_from_a_folder_or_a_hub_names_a_file(tmp_path: Path) -> None:
    for name in ("/home/me/vicuna-7b", "lmsys/vicuna-7b"):
        manifest = make_manifest(model=name)
        assert model_id(manifest, "vanilla") == "vicuna-7b-vanilla-float32-temp-0.0"


def test_a_folder_that_cannot_be_written_is_one_line(
    uneven: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("a file")
    assert call("export", uneven, "--output", tmp_path / "taken") == 2
    shown = capsys.readouterr().err
    assert "cannot write" in shown
    assert shown.count("\n") == 1


def test_a_run_without_answers_has_empty_files(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", questions_per_task=0)
    assert [file.lines for file in answer_files(read_run(folder)).values()] == [(), ()]
