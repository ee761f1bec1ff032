"""The tables behind the figures, against values worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from specbench_kangaroo.record.schema import Status, StepRecord
from specbench_kangaroo.record.writer import Run, RunWriter, read_run
from specbench_kangaroo.report.figures.paired_steps import paired_steps
from specbench_kangaroo.report.figures.step_tables import (
    accepted_lengths,
    by_context,
    calibration,
    step_times,
)
from specbench_kangaroo.stats import summary as stats
from tests.changes import replace
from tests.unit.runs import make_generation, make_manifest, make_run, make_step, make_steps


def write(folder: Path, answers: Sequence[tuple[str, int, list[StepRecord]]], **changes) -> Run:
    """A run of answers (method, question, steps); ``changes`` are of the last answer."""
    with RunWriter.create(folder, make_manifest()) as writer:
        for place, (method, question, steps) in enumerate(answers):
            last = place == len(answers) - 1
            generation = make_generation(method, question, steps=steps)
            writer.append(replace(generation, **changes) if last else generation, steps)
    return read_run(folder)


def drafted(accepted: int, *confidence: float, eos: bool = False, **changes) -> StepRecord:
    """A step whose draft came with confidences; at an ``eos`` there is no bonus token."""
    emitted = accepted + (not eos)
    return make_step(
        drafted=len(confidence),
        accepted=accepted,
        confidence=confidence,
        emitted=emitted,
        **changes,
    )


def test_a_step_is_split_into_its_phases_and_the_rest(tmp_path):
    run = read_run(make_run(tmp_path / "run", spread=0.1))
    table = step_times(paired_steps(run)).set_index(["entry", "phase"])
    vanilla = table.loc["vanilla"]["ms_per_step"]
    assert vanilla.to_dict() == pytest.approx(
        {"draft": 0.0, "verify": 9.0, "accept": 1.0, "other": 0.0, "total": 10.0}
    )
    kangaroo = table.loc["kangaroo"]["ms_per_step"]
    assert kangaroo[["draft", "verify", "accept"]].tolist() == pytest.approx([4.0, 12.0, 1.0])
    # An answer takes 20 + 4 * 17 = 88 ms; those of the four questions 0, 10, 20 and 30 % more.
    assert kangaroo["other"] == pytest.approx(0.15 * 88 / 4)
    assert kangaroo["total"] == pytest.approx(17.0 + 0.15 * 88 / 4)
    assert table.loc[("kangaroo", "total"), ["steps", "questions"]].tolist() == [16, 4]
    assert table.loc[("kangaroo", "total"), "low"] < kangaroo["total"]


def test_accepted_lengths_are_the_differences_of_ctar(tmp_path):
    run = read_run(make_run(tmp_path / "run"))
    table = accepted_lengths(stats.summarise(run), "kangaroo")
    assert table["length"].tolist() == [0, 1, 2, 3, 4]
    assert table["at_least"].tolist() == pytest.approx([1.0, 1.0, 0.5, 0.5, 0.0])
    assert table["exactly"].tolist() == pytest.approx([0.0, 0.5, 0.0, 0.5, 0.0])


def test_calibration_judges_only_what_the_target_judged(tmp_path):
    plain = make_steps("vanilla")
    ours = [
        drafted(2, 0.95, 0.85, 0.75, 0.65),  # the fourth is behind the rejected third
        drafted(0, 0.75, 0.95),
        drafted(1, 0.97, 0.15, eos=True),  # accepted an EOS, so nothing of what came after it
        drafted(0),
    ]
    run = write(tmp_path / "run", [("vanilla", 1, plain), ("kangaroo", 1, ours)])
    table = calibration(paired_steps(run)["kangaroo"])
    found = table[["left", "confidence", "accepted", "tokens"]].to_numpy().tolist()
    assert found == [
        pytest.approx([0.7, 0.75, 0.0, 2]),
        pytest.approx([0.8, 0.85, 1.0, 1]),
        pytest.approx([0.9, 0.96, 1.0, 2]),
    ]


def test_a_certain_draft_falls_into_the_last_bin(tmp_path):
    plain = make_steps("vanilla")
    run = write(tmp_path / "run", [("vanilla", 1, plain), ("kangaroo", 1, [drafted(1, 1.0, 0.0)])])
    table = calibration(paired_steps(run)["kangaroo"])
    assert table["left"].tolist() == pytest.approx([0.0, 0.9])
    assert table["right"].tolist() == pytest.approx([0.1, 1.0])


def test_a_method_without_confidences_has_no_calibration(tmp_path):
    plain = make_steps("vanilla")
    silent = [make_step(i, drafted=2, accepted=1, confidence=()) for i in range(3)]
    run = write(tmp_path / "run", [("vanilla", 1, plain), ("kangaroo", 1, silent)])
    assert calibration(paired_steps(run)["kangaroo"]).empty
    assert calibration(paired_steps(run)["vanilla"]).empty


def test_a_tree_is_told_from_a_chain(tmp_path):
    plain = make_steps("vanilla")
    tree = [drafted(1, 0.9, 0.8, nodes=7)]
    run = write(tmp_path / "tree", [("vanilla", 1, plain), ("kangaroo", 1, tree)])
    assert paired_steps(run)["kangaroo"].has_branches
    chains = read_run(make_run(tmp_path / "chains"))
    assert not paired_steps(chains)["kangaroo"].has_branches


def test_contexts_are_binned_by_the_baselines_steps(tmp_path):
    def steps(method: str, slow: float) -> list[StepRecord]:
        near = [make_step(i, context_length=100, verify_ms=9.0) for i in range(4)]
        far = [make_step(i, context_length=900, verify_ms=9.0 + slow) for i in range(4, 8)]
        if method == "vanilla":
            return [*near, *far]
        return [replace(step, drafted=3, accepted=1, emitted=2) for step in (*near, *far)]

    answers = [(name, q, steps(name, 10.0)) for q in (1, 2) for name in ("vanilla", "kangaroo")]
    table = by_context(paired_steps(write(tmp_path / "run", answers)), "vanilla")
    times = table.set_index(["entry", "context_length"])["ms_per_token"]
    assert times.to_dict() == pytest.approx(
        {
            ("vanilla", 100.0): 10.0,
            ("vanilla", 900.0): 20.0,
            ("kangaroo", 100.0): 5.0,
            ("kangaroo", 900.0): 10.0,
        }
    )
    accepted = table.set_index("entry")["mean_accepted_tokens"]
    assert accepted["vanilla"].isna().all(), "a method that drafts nothing accepts nothing"
    assert accepted["kangaroo"].tolist() == pytest.approx([2.0, 2.0])
    assert table["steps"].tolist() == [8, 8, 8, 8]
    assert table["questions"].tolist() == [2, 2, 2, 2]


def test_a_prompt_that_one_side_failed_counts_for_neither(tmp_path):
    plain, ours = make_steps("vanilla"), make_steps("kangaroo")
    answers = [("vanilla", 1, plain), ("kangaroo", 1, ours), ("kangaroo", 2, ours)]
    answers.append(("vanilla", 2, plain[:3]))
    run = write(tmp_path / "run", answers, status=Status.ERROR, error="out of memory")
    parts = paired_steps(run)
    assert len(parts["vanilla"].rows) == len(plain)
    assert len(parts["kangaroo"].rows) == len(ours), "its second answer has no baseline"
    assert set(parts["kangaroo"].generations["question_id"]) == {1}


def test_turns_and_repeats_are_prompts_of_their_own(tmp_path):
    run = read_run(make_run(tmp_path / "run", turns=2, repeats=3))
    kept = run.generations
    failed = (kept["entry"] == "kangaroo") & (kept["turn"] == 1) & (kept["repeat"] == 2)
    fixed = kept.assign(status=kept["status"].mask(failed, Status.ERROR.value))
    parts = paired_steps(replace(run, generations=fixed))
    assert len(parts["vanilla"].generations) == 4 * 2 * 3
    assert len(parts["kangaroo"].generations) == 4 * (2 * 3 - 1)
    assert len(parts["kangaroo"].rows) == 4 * 4 * (2 * 3 - 1)


def test_a_run_without_any_answer_has_no_tables(tmp_path):
    run = read_run(make_run(tmp_path / "run", questions_per_task=0))
    assert paired_steps(run) == {}
    assert step_times({}).empty
    assert by_context({}, "vanilla").empty
