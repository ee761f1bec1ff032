"""A whole run on a tiny model: order, prompts, errors, verdicts, and resuming after Ctrl-C."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from specbench_kangaroo.bench.questions import Question
from specbench_kangaroo.bench.runner import execute, gap_to_best
from specbench_kangaroo.bench.setup import Bench, manifest
from specbench_kangaroo.record.schema import Generation
from specbench_kangaroo.record.writer import Run, RunWriter, read_run
from specbench_kangaroo.stats.summary import summarise, to_json

from .bench import (
    FAMILY,
    QUESTIONS,
    TOO_LONG,
    Cheats,
    Interrupts,
    Raises,
    Stub,
    StubDrafter,
    make_bench,
    make_tokenizer,
)
from .models import target

DETERMINISTIC = ("mean_accepted_tokens", "acceptance_rate", "compression_rate")


def stub(kind: type[Stub] = Stub, **options: Any) -> Stub:
    return kind(target(FAMILY), **options)


def run(bench: Bench, folder: Path, *, resume: bool = False) -> Run:
    record = manifest(bench, name="run", command="specbench run")
    with (RunWriter.resume if resume else RunWriter.create)(folder, record) as writer:
        execute(bench, writer, on_finished=lambda _: None)
    return read_run(folder)


def deterministic(run_: Run) -> dict[str, Any]:
    """Everything of a report that no clock goes into."""
    document = to_json(summarise(run_))["entries"]
    for entry in document.values():
        for task, part in entry["tasks"].items():
            entry["tasks"][task] = {key: part[key] for key in ("n", *DETERMINISTIC) if key in part}
    return dict(document)


def answers(run_: Run) -> list[tuple[Any, ...]]:
    columns = ["entry", "question_id", "turn", "repeat", "status", "output_ids"]
    rows = [tuple(map(str, row)) for row in run_.generations[columns].itertuples(index=False)]
    return sorted(rows)


@pytest.mark.parametrize(("right", "mean"), [(0, 1.0), (1, 2.0), (2, 3.0), (3, 4.0)])
def test_drafts_accepted_never_partly_and_always(tmp_path: Path, right: int, mean: float) -> None:
    # 13 tokens: the prefill's and twelve more, which steps of 1, 2, 3 or 4 tokens divide.
    found = run(make_bench({"stub": stub(right=right)}, max_new_tokens=13), tmp_path / "run")
    summary = summarise(found).entries["stub"]
    assert summary.tasks["overall"].estimates["mean_accepted_tokens"].value == mean
    assert summary.lossless == {"exact": 4, "near_tie": 0, "violation": 0}
    assert set(found.generations["new_tokens"]) == {13}
    assert found.generations["peak_rss_mb"].notna().all()


def test_methods_take_turns_in_an_order_that_rotates(tmp_path: Path) -> None:
    bench = make_bench({"a": stub(), "b": stub()}, questions=QUESTIONS[1:], repeats=2)
    found = run(bench, tmp_path / "run").generations
    order = [found["entry"][start : start + 3].tolist() for start in range(0, 12, 3)]
    assert order == [
        ["vanilla", "a", "b"],
        ["a", "b", "vanilla"],
        ["a", "b", "vanilla"],  # the first question again: its repeat moves it on by one
        ["b", "vanilla", "a"],
    ]
    assert found["question_id"].tolist() == [2] * 3 + [3] * 3 + [2] * 3 + [3] * 3


def test_a_second_turn_continues_vanillas_answer_for_every_method(tmp_path: Path) -> None:
    cheat, honest = stub(Cheats), stub()
    bench = make_bench({"cheat": cheat, "honest": honest}, questions=QUESTIONS[:1])
    found = run(bench, tmp_path / "run").generations.set_index(["entry", "turn"])
    first = found.loc[("vanilla", 0), "text"]
    assert found.loc[("cheat", 0), "text"] != first, "the test needs a method that goes astray"
    expected = make_tokenizer()(f"u w5 w9 w14 w7 a {first} u w8 w8 a")["input_ids"]
    assert cheat.prompts[1] == honest.prompts[1] == tuple(expected)
    assert found.loc[("vanilla", 1), "prompt_tokens"] == len(expected)


def test_a_changed_token_is_a_violation(tmp_path: Path) -> None:
    found = run(make_bench({"cheat": stub(Cheats)}), tmp_path / "run").judgements
    assert (found["verdict"] == "violation").all()
    assert (found["logit_gap"] > 0).all()


def test_an_error_is_recorded_and_the_run_goes_on(tmp_path: Path) -> None:
    found = run(make_bench({"unlucky": stub(Raises)}), tmp_path / "run")
    failed = found.generations[found.generations["status"] == "error"]
    assert failed[["entry", "question_id"]].to_numpy().tolist() == [["unlucky", 3]]
    assert failed["error"].item() == "RuntimeError: w13 is bad luck"
    assert failed["prompt_tokens"].item() == 7
    summary = summarise(found).entries["unlucky"]
    assert (summary.errors, summary.excluded) == (1, 1)
    assert summary.lossless == {"exact": 3, "near_tie": 0, "violation": 0}


def test_after_a_failure_of_vanilla_no_method_answers_later_turns(tmp_path: Path) -> None:
    questions = [Question(5, "writing", ("w13", "w8"))]
    bench = make_bench({"vanilla": stub(Raises), "stub": stub()}, questions=questions)
    found = run(bench, tmp_path / "run").generations.set_index(["entry", "turn"])
    assert found["status"].to_dict() == {
        ("vanilla", 0): "error",
        ("stub", 0): "ok",
        ("vanilla", 1): "error",
        ("stub", 1): "error",
    }
    assert "vanilla failed on turn 0" in found.loc[("stub", 1), "error"]


def test_a_prompt_that_is_too_long_is_recorded_as_such(tmp_path: Path) -> None:
    bench = make_bench({"stub": stub()}, questions=[TOO_LONG, QUESTIONS[1]])
    found = run(bench, tmp_path / "run").generations
    assert found["status"].tolist() == ["prompt_too_long"] * 4 + ["ok"] * 2
    assert found["prompt_tokens"][0] == 66
    assert "66 tokens" in found["error"][0]


def test_warm_up_reaches_every_method_and_is_not_recorded(tmp_path: Path) -> None:
    method = stub()
    found = run(make_bench({"stub": method}, warmup=4), tmp_path / "run").generations
    assert len(method.prompts) == 4 + 4, "three questions, so the fourth warm-up asks the first"
    assert method.prompts[3] == method.prompts[0]
    assert len(found) == 8


def test_garbage_is_not_collected_within_a_generation(tmp_path: Path) -> None:
    class Watches(Stub):
        def start(self, *given: Any) -> StubDrafter:
            return Watching(self, super().start(*given).ids)

    class Watching(StubDrafter):
        def propose(self, root: int, budget: int) -> Any:
            assert not gc.isenabled(), "a pause would be charged to this method"
            return super().propose(root, budget)

    found = run(make_bench({"stub": stub(Watches)}), tmp_path / "run").generations
    assert set(found["status"]) == {"ok"}, found["error"].tolist()
    assert gc.isenabled(), "the rest of the process must get its collector back"


def test_a_seed_fixes_sampled_texts(tmp_path: Path) -> None:
    def sampled(folder: str, seed: int) -> Run:
        bench = make_bench({"idle": stub(depth=0)}, temperature=1.0, repeats=2, seed=seed)
        return run(bench, tmp_path / folder)

    first = sampled("a", 0)
    assert answers(first) == answers(sampled("b", 0))
    assert answers(first) != answers(sampled("c", 1))
    assert first.judgements.empty, "sampled texts are not compared token by token"
    texts = first.generations.groupby(["question_id", "turn", "repeat"])["text"].nunique()
    assert (texts == 1).all(), "a method that drafts nothing draws vanilla's very tokens"


def test_progress_hears_of_every_generation(tmp_path: Path) -> None:
    bench, heard = make_bench({"stub": stub()}), list[Generation]()
    record = manifest(bench, name="run", command="")
    with RunWriter.create(tmp_path / "run", record) as writer:
        execute(bench, writer, on_finished=heard.append)
    assert [item.key for item in heard] == list(writer.finished)


@pytest.mark.parametrize("at", [1, 2, 4])
def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path, at: int) -> None:
    whole = run(make_bench({"stub": stub()}), tmp_path / "whole")
    stopped = stub(Interrupts)
    stopped.at = at  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        run(make_bench({"stub": stopped}), tmp_path / "run")
    before = read_run(tmp_path / "run")
    assert before.manifest.status == "interrupted"
    again = stub()
    found = run(make_bench({"stub": again}), tmp_path / "run", resume=True)
    done = (before.generations["entry"] == "stub").sum()
    assert len(again.prompts) == 4 - done, "what was finished must not be repeated"
    kept = found.generations.head(len(before.generations))
    assert kept["total_ms"].tolist() == before.generations["total_ms"].tolist()
    assert answers(found) == answers(whole)
    assert deterministic(found) == deterministic(whole)


def test_missing_verdicts_are_made_up_for(tmp_path: Path) -> None:
    method = stub()
    bench = make_bench({"stub": method, "cheat": stub(Cheats)}, warmup=1)
    whole = run(bench, tmp_path / "run")
    asked = len(method.prompts)
    (tmp_path / "run" / "lossless.jsonl").unlink()
    found = run(bench, tmp_path / "run", resume=True)
    assert len(method.prompts) == asked, "verdicts need neither a warm-up nor a generation"
    assert found.judgements.equals(whole.judgements)


@torch.inference_mode()
def test_only_the_two_best_tokens_can_be_a_near_tie() -> None:
    model, prompt = target(FAMILY), [5, 9, 3]
    logits = model.prefill(torch.tensor(prompt), model.new_cache(3)).logits[0]
    best, second, third = logits.topk(3).indices.tolist()
    gap = float(logits[best] - logits[second])
    assert gap_to_best(model, prompt, [best, second]) == pytest.approx(gap)
    assert gap_to_best(model, prompt, [best, third]) > gap, "a third token is no tie's other side"
