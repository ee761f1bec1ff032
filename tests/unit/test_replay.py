"""What a log of long drafts says about shorter ones: the replay against steps made for real."""

from __future__ import annotations

import random

import numpy as np
import pandas as pd
import pytest

from specbench_kangaroo.record.schema import ExitReason, StepRecord
from specbench_kangaroo.tuning.replay import DraftLog, Walk, draft_log, walks
from tests.changes import replace
from tests.unit.drafting import (
    ALLOWED,
    DEEPEST,
    Answer,
    Costs,
    Token,
    as_frame,
    decode,
    make_answer,
)

SETTINGS = [(steps, eta) for steps in (1, 2, 3, 5, 8, 11, 12) for eta in (0, 0.3, 0.5, 0.75, 1.5)]


def log_of(answers: list[Answer], logged: list[list[StepRecord]] | None = None) -> DraftLog:
    if logged is None:
        logged = [decode(answer, DEEPEST, 0.0, Costs()) for answer in answers]
    frame = pd.DataFrame(
        {
            "question_id": range(len(answers)),
            "turn": 0,
            "repeat": 0,
            "new_tokens": [len(answer.tokens) for answer in answers],
        }
    )
    return draft_log(frame, as_frame(logged), max_new_tokens=ALLOWED)


def walk(log: DraftLog, steps: int, threshold: float) -> Walk:
    (found,) = walks(log, [steps], threshold)
    return found


def by_root(found: Walk) -> dict[tuple[int, int], tuple[int, int, bool]]:
    keys = zip(found.answer.tolist(), found.root.tolist(), strict=True)
    values = zip(
        found.drafted.tolist(), found.accepted.tolist(), found.guessed.tolist(), strict=True
    )
    return dict(zip(keys, values, strict=True))


def real(answers: list[Answer], steps: int, threshold: float) -> dict[tuple[int, int], StepRecord]:
    found = {}
    for number, answer in enumerate(answers):
        root = 0
        for step in decode(answer, steps, threshold, Costs()):
            found[number, root] = step
            root += step.emitted
    return found


@pytest.mark.parametrize(("steps", "threshold"), SETTINGS)
def test_a_replay_takes_the_steps_of_a_real_run(steps: int, threshold: float) -> None:
    rng = random.Random(5)
    answers = [make_answer(rng, hits=0.6) for _ in range(120)]
    replayed = by_root(walk(log_of(answers), steps, threshold))
    taken = real(answers, steps, threshold)
    compared = 0
    for key, (drafted, accepted, guessed) in replayed.items():
        if guessed or key not in taken:  # after a guess, a walk may come by other roots
            continue
        assert (drafted, accepted) == (taken[key].drafted, taken[key].accepted), (
            f"answer {key[0]}, root {key[1]}: a report of γ = {steps}, η = {threshold} would count "
            "tokens that no run drafts or accepts"
        )
        compared += 1
    assert compared > 0.97 * len(taken), "too much was guessed for this test to say anything"


def test_the_logged_setting_is_replayed_without_a_guess() -> None:
    rng = random.Random(6)
    answers = [make_answer(rng, hits=hits) for hits in (0.0, 0.5, 0.9, 1.0) for _ in range(20)]
    found = walk(log_of(answers), DEEPEST, 0.0)
    taken = real(answers, DEEPEST, 0.0)
    assert not found.guessed.any()
    assert by_root(found) == {
        key: (step.drafted, step.accepted, False) for key, step in taken.items()
    }


def test_where_nothing_is_unknown_whole_walks_are_equal() -> None:
    rng = random.Random(7)
    answers = [make_answer(rng, hits=0.3) for _ in range(60)]
    log = log_of(answers)
    assert log.unknown_share == 0.0
    for steps, threshold in SETTINGS:
        found, taken = walk(log, steps, threshold), real(answers, steps, threshold)
        assert list(by_root(found)) == list(taken), "other roots, so other steps"
        counts = found.steps_by_depth(len(answers), DEEPEST)
        assert counts.sum() == len(taken)
        assert (counts @ np.arange(DEEPEST + 1)).sum() == found.drafted.sum()


def test_only_the_token_after_a_whole_draft_is_unknown() -> None:
    sure = Token(0.9, True, (0.0,) * DEEPEST, 99)
    log = log_of([Answer((sure,) * ALLOWED)])
    # Roots 0, 13, 26 and 39: 13 and 26 were bonus tokens, and no draft reaches the last token.
    assert np.flatnonzero(~log.known).tolist() == [0, 13, 26, 39]
    assert log.unknown_share == pytest.approx(2 / (ALLOWED - 2))
    found = walk(log, 5, 0.5)
    assert found.root.tolist() == [0, 6, 12, 18, 24, 30, 36]
    assert found.guessed.tolist() == [False, False, True, False, True, False, False], (
        "steps that need the positions 13 and 26 must say that they are guesses"
    )
    assert set(found.accepted.tolist()) == {5, 2}


def test_an_unknown_tail_of_a_miss_is_drafted_on_and_said_to_be_a_guess() -> None:
    sure, wrong = Token(0.9, True, (), 99), Token(0.8, False, (0.7,) * DEEPEST, 99)
    # The first logged step misses at its eleventh token: one wrong token after it is known.
    log = log_of([Answer((sure,) * 11 + (wrong,) + (sure,) * (ALLOWED - 12))])
    found = walk(log, 8, 0.6)
    assert found.root.tolist()[:2] == [0, 9]
    assert (found.drafted[1], found.accepted[1]) == (8, 1)
    assert found.guessed[1], "five of the eight drafted tokens are not in the log"
    assert not walk(log, 3, 0.6).guessed[:4].any()


def test_a_draft_that_ended_by_itself_ends_there_in_every_replay() -> None:
    sure = Token(0.9, True, (), 99)
    answer = Answer((sure,) * ALLOWED)
    first = decode(answer, DEEPEST, 0.0, Costs())[0]
    cut = replace(
        first,
        drafted=4,
        accepted=4,
        emitted=5,
        confidence=(0.9,) * 4,
        exit_reason=ExitReason.NO_DRAFT,
    )
    none = replace(
        cut, drafted=0, accepted=0, emitted=1, confidence=(), exit_reason=ExitReason.NO_DRAFT
    )
    log = log_of([answer], [[cut, *[none] * (ALLOWED - 6)]])
    found = walk(log, 3, 0.0)
    assert found.drafted.tolist()[:3] == [3, 0, 0], "a token that no setting drafts was drafted"
    assert found.accepted.sum() == 3


def test_an_answer_of_one_token_has_no_step() -> None:
    rng = random.Random(1)
    log = log_of([make_answer(rng, length=1), make_answer(rng, length=2)])
    assert walk(log, 3, 0.5).answer.tolist() == [1]


def test_a_context_that_ends_the_answer_bounds_the_replay_too() -> None:
    sure = Token(0.9, True, (), 99)
    answer = Answer((sure,) * 7)
    whole = decode(Answer((sure,) * ALLOWED), 5, 0.0, Costs())[0]
    # Seven tokens fitted: five drafted, the bonus, and no EOS.
    cut = replace(whole, exit_reason=ExitReason.BUDGET)
    assert (cut.drafted, cut.emitted) == (5, 6)
    found = walk(log_of([answer], [[cut]]), 3, 0.0)
    assert found.drafted.tolist() == [3, 1], "the last token can only be a bonus token"
