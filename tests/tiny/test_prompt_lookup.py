"""Prompt lookup against a plain scan: its index must find what reading the whole text finds."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import PromptLookupCandidateGenerator

from specbench_kangaroo.engine.clock import WallClock
from specbench_kangaroo.engine.decode import Limits, decode
from specbench_kangaroo.engine.method import Draft, Drafter, Session, Verified
from specbench_kangaroo.engine.target import Target, TargetOutput
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.schema import ExitReason
from specbench_methods.prompt_lookup import LookupOptions, PromptLookup

from .models import FAMILIES, VOCABULARY, target

FAMILY = "llama-gqa-tied"
PROMPT = (5, 9, 3, 14, 7, 11, 3, 14)
NEW_TOKENS = 30
DEFAULTS = LookupOptions()
NO_EOS: frozenset[int] = frozenset()
UNREAD = TargetOutput(torch.empty(0, VOCABULARY), torch.empty(0, 32))  # lookup reads no output
TEXTS = st.lists(st.integers(0, 4), min_size=2, max_size=40)
OPTIONS = st.builds(LookupOptions, ngram=st.integers(1, 4), tokens=st.integers(1, 6))


def scan(context: Sequence[int], options: LookupOptions) -> list[int]:
    """The specification: the longest suffix that stands earlier, at the first of its places."""
    for size in range(min(options.ngram, len(context) - 1), 0, -1):
        for start in range(len(context) - size):
            if context[start : start + size] == context[-size:]:
                return list(context[start + size :][: options.tokens])
    return []


def begun(options: LookupOptions, prompt: Sequence[int], eos: frozenset[int]) -> Drafter:
    method = PromptLookup.load(target(FAMILY), options)
    session = Session(target(FAMILY).new_cache(1), method.max_rows, None, eos)
    return method.start(session, torch.tensor(prompt), UNREAD)


def propose(
    context: Sequence[int],
    *,
    options: LookupOptions = DEFAULTS,
    eos: frozenset[int] = NO_EOS,
    budget: int = 100,
) -> Draft:
    """The draft after a context whose last token is the root."""
    return begun(options, context[:-1], eos).propose(context[-1], budget)


def drafted(draft: Draft) -> list[int]:
    return draft.tree.tokens.tolist()[1:]


@torch.inference_mode()
def greedy(model: Target, prompt: Sequence[int], new: int) -> list[int]:
    """Greedy decoding with a fresh prefill for every token."""
    ids = list(prompt)
    for _ in range(new):
        ids.append(int(model.prefill(torch.tensor(ids), model.new_cache(len(ids))).logits.argmax()))
    return ids[len(prompt) :]


def steps_by_scan(
    prompt: Sequence[int], text: Sequence[int], options: LookupOptions
) -> list[tuple[int, int]]:
    """Drafted and accepted tokens of every step on the way to ``text``, the target's answer."""
    steps, done = [], 1
    while done < len(text):
        guess = scan([*prompt, *text[:done]], options)[: len(text) - done - 1]
        true = text[done : done + len(guess)]
        right = next((i for i in range(len(guess)) if guess[i] != true[i]), len(guess))
        steps.append((len(guess), right))
        done += right + 1
    return steps


NEVER_REPEAT = {"gemma2-capped", "gemma3-two-ropes"}  # themselves, within so few tokens


@pytest.mark.parametrize("prompt", [PROMPT, (4,)], ids=["phrase", "one token"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_step_drafts_and_accepts_what_a_plain_scan_would(
    family: str, prompt: tuple[int, ...]
) -> None:
    model = target(family)
    text = greedy(model, prompt, NEW_TOKENS)
    limits = Limits(max_new_tokens=NEW_TOKENS, eos=NO_EOS)
    for options in (DEFAULTS, LookupOptions(ngram=1, tokens=2), LookupOptions(ngram=2, tokens=4)):
        method = PromptLookup.load(model, options)
        found = decode(model, method, prompt, limits=limits, clock=WallClock())
        assert list(found.output_ids) == text
        steps = [(step.drafted, step.accepted) for step in found.steps]
        assert steps == steps_by_scan(prompt, text, options), f"{options} drafts something else"
        accepted = sum(right for _, right in steps)
        assert accepted or family in NEVER_REPEAT, "nothing was accepted, so nothing was tested"


@settings(deadline=None)
@given(text=TEXTS, split=st.integers(0, 38), options=OPTIONS)
def test_the_index_finds_what_a_scan_finds(
    text: list[int], split: int, options: LookupOptions
) -> None:
    """The text is told token by token, as the target would: what is right of a draft is kept."""
    done = 1 + split % (len(text) - 1)
    drafter = begun(options, text[:done], NO_EOS)
    while done < len(text):
        found = drafted(drafter.propose(text[done], len(text) - done - 1))
        expected = scan(text[: done + 1], options)[: len(text) - done - 1]
        assert found == expected, f"after {text[: done + 1]}"
        true = text[done + 1 :]
        right = next((i for i in range(len(found)) if found[i] != true[i]), len(found))
        drafter.observe(Verified(tuple(range(right + 1)), 0, UNREAD))
        done += right + 1


@settings(deadline=None)
@given(context=TEXTS, options=OPTIONS, eos=st.frozensets(st.integers(0, 4), max_size=2))
def test_transformers_finds_the_same_candidates(
    context: list[int], options: LookupOptions, eos: frozenset[int]
) -> None:
    """It leaves out the EOS with which our draft ends; the target emits it as its own token."""
    theirs = PromptLookupCandidateGenerator(
        eos_token_id=torch.tensor(sorted(eos)),
        num_output_tokens=options.tokens,
        max_matching_ngram_size=options.ngram,
        max_length=1000,
    )
    ids, _ = theirs.get_candidates(torch.tensor([context]))
    found = drafted(propose(context, options=options, eos=eos))
    if found and found[-1] in eos:
        found.pop()
    assert ids[0, len(context) :].tolist() == found


def test_the_first_of_several_places_is_copied() -> None:
    assert drafted(propose([5, 9, 7, 9, 8, 9])) == [7, 9, 8, 9]


def test_a_longer_match_goes_before_an_earlier_one() -> None:
    assert drafted(propose([9, 1, 5, 9, 2, 5, 9])) == [2, 5, 9], "two tokens match at 5 9"
    one = LookupOptions(ngram=1)
    assert drafted(propose([9, 1, 5, 9, 2, 5, 9], options=one)) == [1, 5, 9, 2, 5, 9]


def test_a_draft_ends_with_the_first_eos() -> None:
    draft = propose([7, 1, 2, 3, 2, 7], eos=frozenset({2, 3}))
    assert drafted(draft) == [1, 2], "rows after an EOS can never be emitted"
    assert draft.exit_reason is ExitReason.EOS


@pytest.mark.parametrize(
    ("context", "budget", "reason"),
    [
        ([7, 1, 7], 9, ExitReason.MAX_STEPS),
        ([7, 1, 7], 2, ExitReason.MAX_STEPS),
        ([7, 1, 2, 7], 2, ExitReason.BUDGET),
        ([7, 1, 2, 7], 0, ExitReason.BUDGET),
        ([7, 1, 2, 8], 9, ExitReason.NO_DRAFT),
        ([7, 1, 2, 8], 0, ExitReason.NO_DRAFT),
    ],
)
def test_a_draft_says_why_it_is_no_longer(
    context: list[int], budget: int, reason: ExitReason
) -> None:
    draft = propose(context, budget=budget)
    assert draft.exit_reason is reason
    assert len(drafted(draft)) <= budget


def test_a_prompt_of_one_token_can_be_copied_from() -> None:
    assert drafted(propose([4, 4])) == [4]
    assert drafted(propose([4, 6])) == []


def test_a_text_copies_nothing_from_another() -> None:
    method = PromptLookup.load(target(FAMILY), DEFAULTS)
    session = Session(target(FAMILY).new_cache(1), method.max_rows, None, NO_EOS)
    first, second = (method.start(session, torch.tensor(p), UNREAD) for p in ([5, 9, 7], [4]))
    assert drafted(second.propose(5, 9)) == [], "5 stood in another text"
    assert drafted(first.propose(5, 9)) == [9, 7, 5]


@pytest.mark.parametrize("name", ["ngram", "tokens"])
def test_an_option_that_never_drafts_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=rf"prompt_lookup\.{name} must be at least 1, not 0"):
        PromptLookup.load(target(FAMILY), LookupOptions(**{name: 0}))
