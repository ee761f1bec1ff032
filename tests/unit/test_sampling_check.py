"""Sampled answers against the baseline's: no false alarms, and wrong samplers are caught."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import pytest

from specbench_kangaroo.cli.conclusion import conclude
from specbench_kangaroo.record.schema import EntryRecord, Status
from specbench_kangaroo.record.writer import Run, RunWriter, read_run
from specbench_kangaroo.stats.sampling_check import (
    LEAST_PROMPTS,
    SamplingCheck,
    check_sampling,
    compare_answers,
)
from tests.changes import replace
from tests.unit.runs import make_generation, make_manifest

VOCABULARY = 30
Answer = list[int]
Sampler = Callable[[random.Random, "Prompt"], tuple[Answer, Answer]]


class Prompt:
    """What answers of 5 to 40 tokens are drawn from: some tokens are common in all prompts."""

    def __init__(self, rng: random.Random, *, favoured: float = 0.0) -> None:
        weights = [rng.gammavariate(1.0, 1.0) / (1 + token) for token in range(VOCABULARY)]
        weights[0] += favoured * sum(weights)
        self.length = rng.randint(5, 40)
        self.cumulative = list(accumulate(weights))

    def goes_on(self, rng: random.Random, begun: Answer) -> Answer:
        """A text from ``begun`` on; every second token is one that came before."""
        answer = list(begun)
        while len(answer) < self.length:
            repeats = answer and rng.random() < 0.5
            pool = answer if repeats else range(VOCABULARY)
            answer += rng.choices(pool, cum_weights=None if repeats else self.cumulative)
        return answer


def independent(rng: random.Random, prompt: Prompt) -> tuple[Answer, Answer]:
    return prompt.goes_on(rng, []), prompt.goes_on(rng, [])


def same_seed(rng: random.Random, prompt: Prompt) -> tuple[Answer, Answer]:
    """Both answers begin alike, as two methods' do that draw from the same seed."""
    ours = prompt.goes_on(rng, [])
    return ours, prompt.goes_on(rng, ours[: rng.randrange(len(ours))])


def cold(rng: random.Random, prompt: Prompt) -> tuple[Answer, Answer]:
    """Ours takes the likelier of two draws, as at a lower temperature."""
    first, second = (prompt.goes_on(rng, []) for _ in range(2))
    weight = [b - a for a, b in zip([0, *prompt.cumulative], prompt.cumulative, strict=False)]
    ours = [max(pair, key=weight.__getitem__) for pair in zip(first, second, strict=True)]
    return ours, prompt.goes_on(rng, [])


def early_end(rng: random.Random, prompt: Prompt) -> tuple[Answer, Answer]:
    """Ours stops after half an answer."""
    ours, theirs = independent(rng, prompt)
    return ours[: len(ours) // 2], theirs


def check(sampler: Sampler, *, prompts: int, seed: int, permutations: int = 1999) -> SamplingCheck:
    rng = random.Random(seed)
    pairs = [sampler(rng, Prompt(rng)) for _ in range(prompts)]
    ours, theirs = zip(*pairs, strict=True)
    return compare_answers(ours, theirs, permutations=permutations)


@pytest.mark.parametrize("sampler", [independent, same_seed])
def test_lossless_methods_raise_no_more_alarms_than_stated(sampler: Sampler) -> None:
    # Of 1500, a share of 1 % has a standard error of 0.26 points, and one of 5 % of 0.56.
    found = [check(sampler, prompts=20, seed=i, permutations=199).p_value for i in range(1500)]
    for level, least, most in ((0.01, 0.0, 0.015), (0.05, 0.03, 0.08), (0.5, 0.45, 0.55)):
        share = sum(p <= level for p in found) / len(found)
        assert least <= share <= most, (
            f"{share:.1%} of lossless methods have a p-value up to {level}: p-values mean nothing"
        )


@pytest.mark.parametrize("sampler", [cold, early_end])
def test_another_distribution_is_caught(sampler: Sampler) -> None:
    assert all(check(sampler, prompts=96, seed=seed).alarm for seed in range(10))


def test_a_token_that_is_favoured_is_caught() -> None:
    rng = random.Random(0)
    ours, theirs = [], []
    for seed in range(96):
        ours.append(Prompt(random.Random(seed), favoured=0.3).goes_on(rng, []))
        theirs.append(Prompt(random.Random(seed)).goes_on(rng, []))
    assert compare_answers(ours, theirs).alarm


def test_equal_answers_and_none_at_all_are_no_evidence() -> None:
    answers = [[1, 2, 2], [3]] * 20
    assert compare_answers(answers, answers) == SamplingCheck(p_value=1.0, prompts=40, tokens=160)
    assert compare_answers([], []) == SamplingCheck(p_value=1.0, prompts=0, tokens=0)
    assert compare_answers([[]], [[]]) == SamplingCheck(p_value=1.0, prompts=1, tokens=0)


def test_few_prompts_never_raise_an_alarm_and_the_constant_says_how_many_can() -> None:
    def opposite(prompts: int) -> SamplingCheck:
        return compare_answers([[1] * 9] * prompts, [[2] * 9] * prompts)

    assert not any(opposite(prompts).alarm for prompts in range(1, LEAST_PROMPTS))
    assert opposite(LEAST_PROMPTS).alarm


def test_rare_tokens_are_counted_as_one() -> None:
    ours = [[100 + i, 200 + i, 300 + i] for i in range(40)]
    theirs = [[400 + i, 500 + i, 600 + i] for i in range(40)]
    assert compare_answers(ours, theirs).p_value == 1.0, "tokens that came once prove nothing"


def test_the_same_answers_give_the_same_p_value() -> None:
    first, again = (check(independent, prompts=20, seed=3) for _ in range(2))
    assert first == again
    assert first.p_value < 1.0


# --- in a run ---


def sampled_run(
    folder: Path, sampler: Sampler, *, prompts: int = 48, lossy: bool = False, **settings: float
) -> Run:
    manifest = make_manifest(["vanilla"], settings={"temperature": 1.0, **settings})
    record = EntryRecord("kangaroo", {}, lossy=lossy)
    manifest = replace(manifest, entries={**manifest.entries, "kangaroo": record})
    rng = random.Random(0)
    answers: list[tuple[str, int, Answer]] = []
    for number in range(prompts):
        pair = zip(("kangaroo", "vanilla"), sampler(rng, Prompt(rng)), strict=True)
        # Methods take turns, so that lines of the file do not pair by their order.
        answers += sorted(((name, number, ids) for name, ids in pair), reverse=bool(number % 2))
    with RunWriter.create(folder, manifest) as writer:
        for name, number, ids in answers:
            changes = {"output_ids": tuple(ids), "new_tokens": len(ids), "total_ms": 20.0}
            writer.append(make_generation(name, number, **changes), [])
    return read_run(folder)


def test_a_run_is_checked_prompt_by_prompt(tmp_path: Path) -> None:
    run = sampled_run(tmp_path / "run", same_seed)
    rng = random.Random(0)
    ours, theirs = zip(*(same_seed(rng, Prompt(rng)) for _ in range(48)), strict=True)
    assert check_sampling(run, "kangaroo") == compare_answers(ours, theirs)
    assert check_sampling(run, "vanilla") is None


def test_a_greedy_run_is_not_checked(tmp_path: Path) -> None:
    assert check_sampling(sampled_run(tmp_path / "run", cold, temperature=0.0), "kangaroo") is None


def test_failed_answers_are_left_out_with_their_partners(tmp_path: Path) -> None:
    run = sampled_run(tmp_path / "run", independent)
    failed = run.generations["question_id"].lt(8) & run.generations["entry"].eq("kangaroo")
    status = run.generations["status"].mask(failed, Status.ERROR.value)
    found = check_sampling(
        replace(run, generations=run.generations.assign(status=status)), "kangaroo"
    )
    assert found is not None
    assert found.prompts == 40
    none = replace(run, generations=run.generations.assign(status=Status.ERROR.value))
    assert check_sampling(none, "kangaroo") is None, "nothing was compared, so nothing is said"


@pytest.mark.parametrize("lossy", [False, True])
def test_an_alarm_ends_the_run_with_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lossy: bool
) -> None:
    run = sampled_run(tmp_path / "run", cold, prompts=96, lossy=lossy)
    assert conclude(run) == (0 if lossy else 1), "a lossy method may differ, no other"
    told = capsys.readouterr().err
    line = "lossless check failed: kangaroo's tokens have other frequencies than vanilla's on 96"
    assert (line in told) is not lossy, told


def test_a_lossless_sampled_run_ends_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert conclude(sampled_run(tmp_path / "run", same_seed)) == 0
    shown = capsys.readouterr()
    assert not shown.err
    assert "sampling: token frequencies as vanilla's, p = " in shown.out
