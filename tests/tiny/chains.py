"""What a method that drafts chains should do, worked out without its caches, loop or tree.

Every logit comes from a fresh pass over the whole text, so nothing can be left over from a draft.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from specbench_kangaroo.engine.decode import Decoded
from specbench_kangaroo.engine.method import Draft
from specbench_kangaroo.engine.sampling import Sampling
from specbench_kangaroo.engine.target import Target

DraftLogits = Callable[[list[int], list[int]], Tensor]
"""(committed tokens, [root, *drafted]) -> (V,) the draft's logits after them."""


@dataclass(frozen=True)
class Step:
    """One round: how much was drafted and accepted, and how sure the draft was."""

    drafted: int
    accepted: int
    confidence: tuple[float, ...]


@torch.inference_mode()
def last_logits(model: Target, ids: Sequence[int]) -> Tensor:
    """(V,) after ``ids``."""
    return model.prefill(torch.tensor(ids), model.new_cache(len(ids))).logits[0]


def expected_steps(
    model: Target,
    draft: DraftLogits,
    prompt: Sequence[int],
    *,
    new: int,
    steps: int,
    threshold: float,
) -> list[Step]:
    """Greedy chains of at most ``steps`` tokens, until ``new`` tokens are emitted."""
    text = [*prompt, int(last_logits(model, prompt).argmax())]
    found = []
    while (left := len(prompt) + new - len(text)) > 0:
        chain, confidence = [text[-1]], [1.0]
        while len(chain) <= min(steps, left - 1) and confidence[-1] >= threshold:
            logits = draft(text[:-1], chain)
            chain.append(int(logits.argmax()))
            confidence.append(float(logits.softmax(-1).max()))
        drafted, accepted = chain[1:], 0
        while True:
            text.append(int(last_logits(model, text).argmax()))
            if accepted == len(drafted) or text[-1] != drafted[accepted]:
                break
            accepted += 1
        found.append(Step(len(drafted), accepted, tuple(confidence[1:])))
    return found


def assert_same_steps(found: Decoded, expected: Sequence[Step]) -> None:
    """Compare a generation's records with what they should be."""
    pairs = [(step.drafted, step.accepted) for step in found.steps]
    assert pairs == [(step.drafted, step.accepted) for step in expected], (
        "(drafted, accepted) of the steps are not those of a draft that sees the text afresh: the "
        "draft's cache or positions are wrong, or it stops elsewhere"
    )
    for mine, wanted in zip(found.steps, expected, strict=True):
        assert mine.confidence == pytest.approx(wanted.confidence, abs=1e-6)


def assert_drawn_as_told(
    draft: Draft, sampling: Sampling, logits_after: Callable[[list[int]], Tensor], *, drafted: int
) -> None:
    """Every drafted token comes with the distribution that a fresh pass gives for its place.

    Args:
        draft: of ``drafted`` tokens.
        sampling: how they were drawn.
        logits_after: [root, *drafted] -> (V,) the draft's logits after them.
        drafted: how many there should be.
    """
    tokens = draft.tree.tokens.tolist()
    assert draft.probabilities is not None
    assert len(draft.probabilities) == drafted
    for row, drawn_from in enumerate(draft.probabilities, start=1):
        wanted = sampling.probabilities(logits_after(tokens[:row]))
        torch.testing.assert_close(drawn_from, wanted, rtol=0, atol=1e-9)
        assert wanted[tokens[row]] > 0, "a token was drafted that the draft never draws"
