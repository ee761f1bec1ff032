"""The loop, with methods that guess never, always, or only so far: exact records are asserted."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from specbench_kangaroo.bench.registry import method_class
from specbench_kangaroo.engine.clock import ClockError, WallClock, in_order
from specbench_kangaroo.engine.decode import Decoded, Limits, PromptTooLongError, decode
from specbench_kangaroo.engine.method import (
    Draft,
    Drafter,
    MethodOptions,
    PlainMethod,
    Session,
    Verified,
)
from specbench_kangaroo.engine.target import TargetOutput
from specbench_kangaroo.engine.tree import TokenTree
from specbench_kangaroo.record.schema import ExitReason

from .clocks import FakeClock
from .models import CONTEXT, VOCABULARY, target

FAMILY = "llama-gqa-tied"
PROMPT = (5, 9, 3, 14)
NO_EOS: frozenset[int] = frozenset()


class Oracle(PlainMethod):
    """Knows the text, and drafts its next tokens: the first ``right`` of them true, the rest not.

    ``obedient`` False ignores the budget, as a careless method would.
    """

    def __init__(self, text: Sequence[int], *, right: int, drafted: int, obedient: bool) -> None:
        super().__init__(MethodOptions())
        self._text, self._right, self._drafted = text, right, drafted
        self._obedient = obedient
        self.max_rows = 1 + drafted
        self.budgets: list[int] = []

    def start(self, session: Session, prompt: torch.Tensor, output: TargetOutput) -> Drafter:
        self._at = 1
        return self

    def propose(self, root: int, budget: int) -> Draft:
        assert root == self._text[self._at - 1], "the root must be the last emitted token"
        self.budgets.append(budget)
        count = min(self._drafted, budget) if self._obedient else self._drafted
        true = self._text[self._at : self._at + count]
        guesses = [
            token if i < self._right else (token + 1) % VOCABULARY for i, token in enumerate(true)
        ]
        return Draft(TokenTree.chain(torch.tensor([root, *guesses])))

    def observe(self, verified: Verified) -> None:
        self._at += len(verified.nodes)


@pytest.fixture(scope="module")
def text() -> list[int]:
    """Vanilla's answer, longer than any test asks for."""
    kind = method_class("vanilla")
    found = decode(
        target(FAMILY),
        kind.load(target(FAMILY), kind.Options()),
        PROMPT,
        limits=Limits(max_new_tokens=40, eos=NO_EOS),
        clock=WallClock(),
    )
    return list(found.output_ids)


def run(method: PlainMethod, new: int, eos: frozenset[int] = NO_EOS) -> Decoded:
    limits = Limits(max_new_tokens=new, eos=eos)
    return decode(target(FAMILY), method, PROMPT, limits=limits, clock=WallClock())


@pytest.mark.parametrize(
    ("right", "emitted"),
    [
        (0, [1] * 12),  # never right: the bonus token alone, every step
        (3, [4, 4, 4]),  # always right: three and the bonus token
        (2, [3, 3, 3, 3]),  # right up to the second
    ],
)
def test_accepted_and_emitted_are_what_was_right(
    text: list[int], right: int, emitted: list[int]
) -> None:
    oracle = Oracle(text, right=right, drafted=3, obedient=True)
    found = run(oracle, 13)
    assert list(found.output_ids) == text[:13]
    assert [step.emitted for step in found.steps] == emitted
    assert [step.accepted for step in found.steps] == [count - 1 for count in emitted]
    assert found.target_passes == 1 + len(emitted)


def test_the_budget_is_what_may_still_be_drafted(text: list[int]) -> None:
    oracle = Oracle(text, right=3, drafted=3, obedient=True)
    found = run(oracle, 7)
    assert oracle.budgets == [5, 1], "one place is the bonus token's"
    assert [step.drafted for step in found.steps] == [3, 1]
    assert list(found.output_ids) == text[:7]


def test_a_method_that_ignores_its_budget_cannot_make_the_loop_emit_more(text: list[int]) -> None:
    oracle = Oracle(text, right=3, drafted=3, obedient=False)
    for new in (2, 3, 4, 6):
        assert list(run(oracle, new).output_ids) == text[:new]


def test_one_token_needs_no_step(text: list[int]) -> None:
    found = run(Oracle(text, right=3, drafted=3, obedient=True), 1)
    assert (list(found.output_ids), found.steps) == (text[:1], ())


def test_an_accepted_eos_ends_the_step_without_a_bonus_token(text: list[int]) -> None:
    position = next(i for i in range(1, 12) if text[i] not in text[:i])
    oracle = Oracle(text, right=8, drafted=8, obedient=True)
    found = run(oracle, 30, eos=frozenset({text[position]}))
    assert list(found.output_ids) == text[: position + 1]
    last = found.steps[-1]
    assert last.emitted == last.accepted, "EOS was drafted, so no bonus token follows it"


def test_a_prompt_longer_than_the_context_is_refused(text: list[int]) -> None:
    oracle = Oracle(text, right=0, drafted=1, obedient=True)
    limits = Limits(max_new_tokens=4, eos=NO_EOS)
    with pytest.raises(PromptTooLongError, match=f"{CONTEXT + 1} tokens.*context {CONTEXT}"):
        decode(target(FAMILY), oracle, [1] * (CONTEXT + 1), limits=limits, clock=WallClock())


def test_phases_are_the_time_between_their_stamps(text: list[int]) -> None:
    """start, first token; then four stamps a step; then the end."""
    clock = FakeClock([100, 130, 131, 135, 142, 143, 150, 151, 160, 164, 170])
    oracle = Oracle(text, right=3, drafted=3, obedient=True)
    limits = Limits(max_new_tokens=7, eos=NO_EOS)
    found = decode(target(FAMILY), oracle, PROMPT, limits=limits, clock=clock)
    assert (found.ttft_ms, found.total_ms) == (30, 70)
    times = [(step.draft_ms, step.verify_ms, step.accept_ms) for step in found.steps]
    assert times == [(4, 7, 1), (1, 9, 4)]
    assert found.steps[0].context_length == len(PROMPT) + 1
    assert found.steps[1].context_length == len(PROMPT) + 5
    assert found.steps[0].exit_reason is ExitReason.MAX_STEPS
    assert found.steps[0].verify_share == 1.0


def timed(text: list[int], times_ms: Sequence[float]) -> Decoded:
    oracle = Oracle(text, right=3, drafted=3, obedient=True)
    limits = Limits(max_new_tokens=7, eos=NO_EOS)
    return decode(target(FAMILY), oracle, PROMPT, limits=limits, clock=FakeClock(times_ms))


@pytest.mark.parametrize("at", range(1, 11))
def test_a_clock_that_goes_back_makes_no_times(text: list[int], at: int) -> None:
    """Between any two stamps: a phase of negative time would make its method look fast."""
    times_ms = [100.0 + 10 * i - (25 if i >= at else 0) for i in range(11)]
    with pytest.raises(ClockError, match="went back by 15 ms during this answer"):
        timed(text, times_ms)


def test_a_clock_without_a_number_makes_no_times(text: list[int]) -> None:
    with pytest.raises(ClockError):
        timed(text, [100, 130, 131, float("nan"), *range(150, 157)])


def test_a_step_back_below_the_clocks_resolution_is_no_step() -> None:
    assert in_order([0.0, 2.0, 1.9995, 3.0]) == [0.0, 2.0, 2.0, 3.0]
    assert in_order([]) == []


class Unsure(Oracle):
    """Gives a confidence that ``shares`` makes."""

    shares: tuple[object, ...] = ()

    def propose(self, root: int, budget: int) -> Draft:
        return replace(super().propose(root, budget), confidence=self.shares)  # type: ignore[arg-type]


def test_a_confidence_is_written_down_as_plain_numbers(text: list[int]) -> None:
    unsure = Unsure(text, right=1, drafted=2, obedient=True)
    unsure.shares = (torch.tensor(0.5), 1)
    (step, *_) = run(unsure, 3).steps
    assert step.confidence == (0.5, 1.0)
    assert set(map(type, step.confidence)) == {float}, "JSON knows no tensors"
    unsure.shares = (float("nan"),)
    with pytest.raises(ValueError, match="a method must give finite numbers"):
        run(unsure, 3)
