from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from specbench_kangaroo.record.schema import Lossless, Status
from specbench_kangaroo.record.writer import RunWriter, read_run
from specbench_kangaroo.stats import summary as stats
from tests.changes import replace
from tests.pace import slowness
from tests.unit.runs import (
    SIDES,
    asked,
    make_comparison,
    make_generation,
    make_judgement,
    make_manifest,
    make_run,
    make_step,
    make_steps,
)


def written(folder, content, *, judgements=(), methods=("vanilla", "kangaroo")):
    """The run of (generation, steps) pairs."""
    with RunWriter.create(folder, make_manifest(methods)) as writer:
        for generation, steps in content:
            writer.append(generation, steps)
        for judgement in judgements:
            writer.judge(judgement)
    return read_run(folder)


def answer(method, question_id, *, accepted=(3, 1, 3, 1), **changes):
    steps = make_steps(method, accepted=accepted)
    return make_generation(method, question_id, steps=steps, **changes), steps


def overall(run, method="kangaroo"):
    return stats.summarise(run).entries[method].tasks["overall"].estimates


# --- definitions, by hand ---


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("run") / "run", turns=2, repeats=2)
    return stats.summarise(read_run(folder))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        # Vanilla: 20 + 12 * 10 = 140 ms.  Kangaroo: 20 + 4 * (4 + 12 + 1) = 88 ms.  13 tokens each.
        ("speedup", 140 / 88),
        ("speedup_decode", 120 / 68),
        ("speedup_specbench", 140 / 88),
        ("speedup_ideal", 140 / (20 + 4 * (4 + 10))),
        ("realised_over_ideal", (20 + 4 * (4 + 10)) / 88),
        ("tokens_per_second", 13 / 0.088),
        ("mean_accepted_tokens", 1 + 8 / 4),
        ("mean_accepted_tokens_per_request", 1 + 8 / 4),
        ("acceptance_rate", 8 / 16),
        ("compression_rate", 13 / 5),
        # A step of 4 ms of draft and 13 ms of verification, against 10 ms.
        ("draft_cost", 4 / 10),
        ("verify_cost", 13 / 10),
        ("nodes_per_step", 5.0),
        ("tokens_per_step", 12 / 4),
        ("ttft_ms", 20.0),
        ("tpot_ms", 68 / 12),
        ("harness_share", 0.0),
        ("draft_share", 16 / 88),
        ("verify_share_of_time", 48 / 88),
    ],
)
def test_the_figures_of_the_synthetic_run(summary, name, value):
    figure = summary.entries["kangaroo"].tasks["overall"].estimates[name]
    assert figure.value == pytest.approx(value)
    assert figure.low == figure.high == figure.value, "equal questions leave nothing uncertain"


def test_the_baseline_has_speeds_and_nothing_that_it_cannot_have(summary):
    figures_ = summary.entries["vanilla"].tasks["overall"].estimates
    assert set(figures_) == {
        "tokens_per_second",
        "compression_rate",
        "ttft_ms",
        "tpot_ms",
        "harness_share",
        "verify_share_of_time",
    }
    assert figures_["tokens_per_second"].value == pytest.approx(13 / 0.140)
    assert figures_["compression_rate"].value == pytest.approx(1.0)
    assert summary.entries["vanilla"].positions == []
    assert summary.entries["vanilla"].lossless is None


def test_tasks_come_overall_first_and_then_in_the_papers_order(tmp_path):
    run = read_run(make_run(tmp_path / "run", tasks=("mine", "rag", "qa", "mt_bench")))
    tasks = stats.summarise(run).entries["kangaroo"].tasks
    assert list(tasks) == ["overall", "mt_bench", "qa", "rag", "mine"]
    assert [task.n for task in tasks.values()] == [8, 2, 2, 2, 2]


def test_speedup_sums_times_where_spec_bench_averages_rates(tmp_path):
    run = written(
        tmp_path / "run",
        [
            answer("vanilla", 1, total_ms=1000.0),
            answer("vanilla", 2, total_ms=3000.0),
            answer("kangaroo", 1, total_ms=500.0),
            answer("kangaroo", 2, total_ms=3000.0),
        ],
    )
    found = overall(run)
    assert found["speedup"].value == pytest.approx(4000 / 3500)
    assert found["speedup_specbench"].value == pytest.approx(
        (1 / 500 + 1 / 3000) / (1 / 1000 + 1 / 3000)
    )


def test_mean_accepted_tokens_weighs_steps_and_its_sibling_requests(tmp_path):
    run = written(
        tmp_path / "run",
        [
            answer("vanilla", 1),
            answer("vanilla", 2),
            answer("kangaroo", 1, accepted=(4, 4, 4)),
            answer("kangaroo", 2, accepted=(0,)),
        ],
    )
    found = overall(run)
    assert found["mean_accepted_tokens"].value == pytest.approx(1 + 12 / 4)
    assert found["mean_accepted_tokens_per_request"].value == pytest.approx(1 + (4 + 0) / 2)


def test_a_longer_answer_after_a_near_tie_is_not_a_slower_one(tmp_path):
    ten, twenty = make_steps("vanilla")[:9], make_steps("kangaroo", accepted=(3, 3, 3, 3, 2))
    run = written(
        tmp_path / "run",
        [
            (make_generation("vanilla", 1, steps=ten, total_ms=100.0), ten),
            (make_generation("kangaroo", 1, steps=twenty, total_ms=100.0), twenty),
        ],
    )
    assert overall(run)["speedup"].value == pytest.approx(2.0)


def test_the_ideal_takes_the_baselines_step_of_the_same_question(tmp_path):
    slow = [replace(step, verify_ms=29.0) for step in make_steps("vanilla")]  # 30 ms a step
    half = [replace(step, verify_share=0.5) for step in make_steps("kangaroo")]
    run = written(
        tmp_path / "run",
        [
            answer("vanilla", 1),
            (make_generation("vanilla", 2, steps=slow), slow),
            answer("kangaroo", 1),
            (make_generation("kangaroo", 2, steps=half), half),
        ],
    )
    ideal_ms = (20 + 4 * (4 + 10)) + (20 + 4 * (4 + 0.5 * 30))
    assert overall(run)["speedup_ideal"].value == pytest.approx((140 + 380) / ideal_ms)


def test_costs_and_tokens_of_a_step_make_the_speedup_of_decoding(tmp_path):
    summary = stats.summarise(read_run(make_comparison(tmp_path / "run", questions_per_task=2)))
    for name in SIDES:
        figures_ = summary.entries[name].tasks["overall"].estimates
        found = {key: figure.value for key, figure in figures_.items()}
        cost = found["draft_cost"] + found["verify_cost"]
        assert found["speedup_decode"] == pytest.approx(found["tokens_per_step"] / cost), (
            f"the costs shown for {name} do not explain its speedup"
        )


def test_a_token_that_eos_cut_off_is_no_token_of_its_step(tmp_path):
    steps = [*make_steps("kangaroo")[:-1], make_step(3, drafted=4, accepted=2, emitted=2)]
    run = written(
        tmp_path / "run",
        [answer("vanilla", 1), (make_generation("kangaroo", 1, steps=steps), steps)],
    )
    found = overall(run)
    assert found["tokens_per_step"].value == pytest.approx((4 + 2 + 4 + 2) / 4)
    assert found["mean_accepted_tokens"].value == pytest.approx(1 + (3 + 1 + 3 + 2) / 4)


def test_time_that_no_phase_accounts_for_is_the_harness_share(tmp_path):
    run = read_run(make_run(tmp_path / "run", spread=0.1, questions_per_task=1))
    # Question 1 has none of it, question 2 a tenth of its 88 ms.
    assert overall(run)["harness_share"].value == pytest.approx(8.8 / (88 + 96.8))


# --- acceptance by position ---


def test_acceptance_by_position_keeps_never_drafted_from_rejected(tmp_path):
    steps = [
        make_step(0, drafted=4, accepted=3),
        make_step(1, drafted=1, accepted=1),
        make_step(2, drafted=2, accepted=0),
        make_step(3, drafted=0, accepted=0),
    ]
    run = written(
        tmp_path / "run",
        [answer("vanilla", 1), (make_generation("kangaroo", 1, steps=steps), steps)],
    )
    found = stats.summarise(run).entries["kangaroo"].positions
    assert [item.position for item in found] == [1, 2, 3, 4]
    assert [item.marginal.value for item in found] == [2 / 4, 1 / 4, 1 / 4, 0]
    assert [item.conditional.value for item in found] == pytest.approx([2 / 3, 1 / 2, 1, 0])


def test_mean_accepted_tokens_is_one_plus_the_marginals(tmp_path):
    rng = np.random.default_rng(0)
    content = []
    for question in range(5):
        drafted = rng.integers(0, 9, size=20)
        steps = [
            make_step(i, drafted=int(d), accepted=int(rng.integers(0, d + 1)))
            for i, d in enumerate(drafted)
        ]
        content += [
            answer("vanilla", question),
            (make_generation("kangaroo", question, steps=steps), steps),
        ]
    run = written(tmp_path / "run", content)
    positions = stats.summarise(run).entries["kangaroo"].positions
    marginal = sum(item.marginal.value for item in positions)
    assert overall(run)["mean_accepted_tokens"].value == pytest.approx(1 + marginal)


def test_an_entry_that_drafts_nothing_has_no_positions(tmp_path):
    run = read_run(make_run(tmp_path / "run"))
    assert not stats.summarise(run).entries["vanilla"].positions


# --- what is left out, and counted ---


def test_errors_are_excluded_in_pairs_and_counted(tmp_path):
    failed = {"status": Status.ERROR, "error": "boom", "total_ms": 1e9}
    run = written(
        tmp_path / "run",
        [
            answer("vanilla", 1),
            answer("vanilla", 2, total_ms=1e9),  # its partner failed
            answer("vanilla", 3, **failed),
            answer("vanilla", 4, status=Status.PROMPT_TOO_LONG),
            answer("kangaroo", 1),
            answer("kangaroo", 2, **failed),
            answer("kangaroo", 3, total_ms=1e9),
            answer("kangaroo", 4, status=Status.PROMPT_TOO_LONG),
        ],
    )
    method = stats.summarise(run).entries["kangaroo"]
    assert (method.errors, method.prompt_too_long, method.excluded) == (1, 1, 3)
    assert method.tasks["overall"].n == 1
    assert method.tasks["overall"].estimates["speedup"].value == pytest.approx(140 / 88)


def test_a_method_that_never_succeeded_has_no_figures(tmp_path):
    run = written(
        tmp_path / "run", [answer("vanilla", 1), answer("kangaroo", 1, status=Status.ERROR)]
    )
    method = stats.summarise(run).entries["kangaroo"]
    assert method.tasks == {}
    assert (method.errors, method.excluded) == (1, 1)
    json.dumps(stats.to_json(stats.summarise(run)))


def test_a_run_without_generations_has_a_summary(tmp_path):
    summary = stats.summarise(written(tmp_path / "run", []))
    assert [method.tasks for method in summary.entries.values()] == [{}, {}]


def test_answers_of_one_token_have_no_steps_and_no_tpot(tmp_path):
    run = written(
        tmp_path / "run",
        [(make_generation("vanilla", 1), []), (make_generation("kangaroo", 1), [])],
    )
    found = overall(run)
    assert "tpot_ms" not in found, "0/0 is absent, not 0"
    assert "mean_accepted_tokens" not in found
    assert found["speedup"].value == pytest.approx(1.0)


# --- the document ---


def test_the_json_document_has_the_documented_shape(tmp_path):
    key = make_generation("kangaroo", 1).key
    run = written(
        tmp_path / "run",
        [answer("vanilla", 1, peak_rss_mb=512.0), answer("kangaroo", 1, peak_rss_mb=640.0)],
        judgements=[make_judgement(key, Lossless.NEAR_TIE)],
    )
    document = stats.to_json(stats.summarise(run))
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["schema_version"] == 3
    assert (document["run"], document["baseline"], document["model"], document["questions"]) == (
        "synthetic",
        "vanilla",
        "smollm2-135m",
        "builtin",
    )
    assert document["peak_rss_mb"] == 640.0
    assert "lossless" not in document["entries"]["vanilla"]
    kangaroo = document["entries"]["kangaroo"]
    assert kangaroo["method"] == "kangaroo"
    assert kangaroo["options"] == {"threshold": 0.6, "exit_layer": 4}
    assert kangaroo["lossless"] == {"exact": 0, "near_tie": 1, "violation": 0}
    assert kangaroo["errors"] == 0
    assert list(kangaroo["tasks"]) == ["overall", "mt_bench"]
    part = kangaroo["tasks"]["overall"]
    assert part["n"] == 1
    assert part["speedup"] == {"value": pytest.approx(140 / 88), "low": None, "high": None}
    first = kangaroo["acceptance_by_position"][0]
    assert (first["position"], first["marginal"]["value"]) == (1, 1.0)
    assert [share["value"] for share in kangaroo["ctar"].values()] == [1.0, 0.5, 0.5, 0.0]


def test_a_lossy_method_is_marked_wherever_its_name_stands(tmp_path):
    folder = make_comparison(tmp_path / "run", tasks=("qa",), questions_per_task=1)
    summary = stats.summarise(read_run(folder))
    marks = {name: part["lossy"] for name, part in stats.to_json(summary)["entries"].items()}
    assert marks == {"vanilla": False} | {name: side.lossy for name, side in SIDES.items()}
    assert summary.label("medusa") == "medusa (lossy)"
    assert summary.label("kangaroo") == "kangaroo"


def test_a_sampled_run_has_a_check_in_place_of_verdicts(tmp_path):
    sampled = asked(**{**make_manifest().settings, "temperature": 1.0})
    run = written(tmp_path / "run", [answer("vanilla", 1), answer("kangaroo", 1)])
    run = replace(run, manifest=replace(run.manifest, **sampled))
    entries = stats.to_json(stats.summarise(run))["entries"]
    assert entries["kangaroo"]["sampling_check"] == {"p_value": 1.0, "prompts": 1, "tokens": 26}
    assert "lossless" not in entries["kangaroo"]
    assert "sampling_check" not in entries["vanilla"], "the baseline is compared with nothing"


# --- size and dependencies ---


def test_a_large_run_is_summarised_in_seconds(tmp_path):
    run = read_run(make_run(tmp_path / "run", tasks=("qa", "rag"), questions_per_task=25))
    # 200 000 steps: the run's 50 questions, each answer's steps repeated.
    steps = pd.concat([run.steps] * 250, ignore_index=True)
    began = time.process_time()
    summary = stats.summarise(replace(run, steps=steps))
    assert time.process_time() - began < 10 * slowness(), (
        "a report must not keep its reader waiting"
    )
    assert len(steps) == 200_000
    mean = summary.entries["kangaroo"].tasks["overall"].estimates["mean_accepted_tokens"]
    assert mean.value == pytest.approx(3.0)


def test_reports_need_no_torch():
    root = Path(stats.__file__).parents[1]
    code = (
        "import sys, specbench_kangaroo.stats.summary, specbench_kangaroo.report.tables;"
        "import specbench_kangaroo.report.figures.speedups;"
        "import specbench_kangaroo.bench.lossless;"
        "sys.exit(bool({'torch', 'transformers', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_the_order_in_which_workers_answered_changes_no_interval() -> None:
    run = read_run(Path(__file__).parents[2] / "results" / "reference" / "regression")
    shuffled = replace(run, generations=run.generations.sample(frac=1, random_state=3))
    assert stats.to_json(stats.summarise(shuffled)) == stats.to_json(stats.summarise(run))
