"""The one decoding loop, for all methods: prefill, then propose, verify, accept, commit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

from specbench_kangaroo.engine.accept import (
    Acceptance,
    accept_greedy,
    accept_sampling,
    accept_typical,
)
from specbench_kangaroo.engine.cache import KVCache
from specbench_kangaroo.engine.clock import Clock, in_order
from specbench_kangaroo.engine.method import (
    DecodesItself,
    Draft,
    Drafter,
    Method,
    Session,
    Verified,
)
from specbench_kangaroo.engine.sampling import Sampler
from specbench_kangaroo.engine.target import NOTHING, Needs, Target, TargetOutput
from specbench_kangaroo.record.schema import ExitReason, StepRecord


class PromptTooLongError(Exception):
    """The prompt has more tokens than the target's context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When a generation ends: after ``max_new_tokens``, at EOS, or at the context's end."""

    max_new_tokens: int
    eos: frozenset[int]


@dataclass(frozen=True, slots=True)
class Decoded:
    """One generation.

    Attributes:
        output_ids: exactly the tokens that vanilla decoding would emit, EOS included.
        steps: one record a decode step; the prefill, which emits the first token, is none.
        ttft_ms: prefill, the method's ``start`` and the first token.
        total_ms: everything from the prompt to the last token.
        has_steps: False of a method that decodes by itself.
    """

    output_ids: tuple[int, ...]
    steps: tuple[StepRecord, ...]
    ttft_ms: float
    total_ms: float
    has_steps: bool = True

    @property
    def target_passes(self) -> int:
        """Passes of the whole target, the prefill included; 0 where nobody counts them."""
        return 1 + len(self.steps) if self.has_steps else 0


@dataclass(frozen=True, slots=True)
class _Step:
    """What a step did, before its times are known."""

    context_length: int
    draft: Draft
    accepted: int
    emitted: tuple[int, ...]
    verify_share: float


@dataclass(frozen=True, slots=True)
class _Text:
    """What the steps of one generation have in common."""

    target: Target
    drafter: Drafter
    session: Session
    needs: Needs
    clock: Clock


_STAMPS_A_STEP = 4  # before the draft, before verification, before acceptance, after it


@torch.inference_mode()
def decode(
    target: Target,
    method: Method,
    prompt: Sequence[int],
    *,
    limits: Limits,
    clock: Clock,
    sampler: Sampler | None = None,
) -> Decoded:
    """Generate an answer to ``prompt`` with ``method``; ``sampler`` None means greedy.

    Raises:
        PromptTooLongError: the prompt does not fit into the target's context.
        ClockError: the clock went back.
        Exception: whatever the method or the target raises; a note says how far the answer was.
    """
    allowed = _allowed_tokens(target, prompt, limits)
    if isinstance(method, DecodesItself):
        return _decoded_by(method, prompt, allowed, eos=limits.eos, clock=clock, sampler=sampler)
    output_ids: list[int] = []
    steps: list[_Step] = []
    clock.stamp()
    with _noted(len(prompt), output_ids), ExitStack() as held:
        tokens = torch.tensor(prompt, device=target.device)
        target.start()
        cache = target.new_cache(len(prompt) + allowed + method.max_rows)
        held.callback(cache.release)  # whoever still holds the session
        session = Session(cache, method.max_rows, sampler, limits.eos)
        prefill = target.prefill(tokens, cache, method.needs)
        output_ids.append(_next_token(prefill, sampler))
        text = _Text(target, method.start(session, tokens, prefill), session, method.needs, clock)
        clock.stamp()
        while len(output_ids) < allowed and output_ids[-1] not in limits.eos:
            step = _step(text, output_ids[-1], allowed - len(output_ids))
            steps.append(step)
            output_ids += step.emitted
        clock.stamp()
    return _decoded(output_ids, steps, in_order(clock.read()))


def _decoded_by(
    method: DecodesItself,
    prompt: Sequence[int],
    allowed: int,
    *,
    eos: frozenset[int],
    clock: Clock,
    sampler: Sampler | None,
) -> Decoded:
    clock.stamp()
    output_ids = method.generate(
        prompt, budget=allowed, eos=eos, sampler=sampler, on_first_token=clock.stamp
    )
    clock.stamp()
    begin, first_token, end = in_order(clock.read())
    return Decoded(tuple(output_ids), (), first_token - begin, end - begin, has_steps=False)


@contextmanager
def _noted(prompt_tokens: int, output_ids: Sequence[int]) -> Iterator[None]:
    """Adds to whatever is raised how far the answer was, for the user who reads of it later."""
    try:
        yield
    except Exception as error:
        error.add_note(f"after {len(output_ids)} new tokens on a prompt of {prompt_tokens}")
        raise


def _allowed_tokens(target: Target, prompt: Sequence[int], limits: Limits) -> int:
    """The budget: the last token is emitted but never fed, so it needs no position."""
    free = target.context_length - len(prompt)
    if free < 0:
        raise PromptTooLongError(
            f"the prompt has {len(prompt)} tokens, the model's context {target.context_length}"
        )
    return min(limits.max_new_tokens, free + 1)


def _next_token(output: TargetOutput, sampler: Sampler | None) -> int:
    if sampler is None:
        return int(output.logits[-1].argmax())
    return sampler.chance.pick(sampler.sampling.probabilities(output.logits[-1]))


def _step(text: _Text, root: int, left: int) -> _Step:
    """One round; ``left`` tokens may still be emitted, the bonus token among them."""
    session, clock = text.session, text.clock
    length = session.cache.length
    clock.stamp()
    draft = text.drafter.propose(root, left - 1)
    clock.stamp()
    output = verify(text.target, draft, session.cache, text.needs)
    clock.stamp()
    acceptance = accept(draft, output, session.sampler)
    emitted = _emitted(draft, acceptance, session.eos, left)
    session.cache.commit(acceptance.nodes)
    text.drafter.observe(Verified(acceptance.nodes, acceptance.bonus, output))
    clock.stamp()
    accepted = min(len(emitted), len(acceptance.nodes) - 1)
    first_layer = draft.resume.layer if draft.resume else 0
    return _Step(length + 1, draft, accepted, emitted, text.target.weight_share(first_layer))


def verify(target: Target, draft: Draft, cache: KVCache, needs: Needs = NOTHING) -> TargetOutput:
    """One target pass over a draft's rows, from where the draft left off."""
    rows = target.rows(cache.length, draft.tree.parents)
    if draft.resume is None:
        first_layer, hidden = 0, target.embed(draft.tree.tokens)
    else:
        first_layer, hidden = draft.resume.layer, draft.resume.hidden
    return target.predict(hidden, first_layer, target.n_layers, rows, cache, needs)


def accept(draft: Draft, output: TargetOutput, sampler: Sampler | None) -> Acceptance:
    """Which rows of a draft are accepted; ``sampler`` None means greedy."""
    if draft.typical is not None:
        return accept_typical(draft.tree, output.logits, draft.typical, sampler)
    if sampler is None:
        return accept_greedy(draft.tree, output.logits)
    return accept_sampling(draft.tree, output.logits, draft.probabilities, sampler)


def _emitted(
    draft: Draft, acceptance: Acceptance, eos: frozenset[int], left: int
) -> tuple[int, ...]:
    """Accepted tokens and the bonus token, cut after EOS and at the budget."""
    tokens = draft.tree.tokens.tolist()
    found = [*(tokens[row] for row in acceptance.nodes[1:]), acceptance.bonus][:left]
    end = next((i + 1 for i, token in enumerate(found) if token in eos), len(found))
    return tuple(found[:end])


def _decoded(
    output_ids: Sequence[int], steps: Sequence[_Step], stamps_ms: Sequence[float]
) -> Decoded:
    begin, first_token, *phases, end = stamps_ms
    records = []
    for index, step in enumerate(steps):
        start = index * _STAMPS_A_STEP
        before, drafted, verified, accepted = phases[start : start + _STAMPS_A_STEP]
        records.append(
            StepRecord(
                step=index,
                context_length=step.context_length,
                drafted=step.draft.tree.depth,
                accepted=step.accepted,
                emitted=len(step.emitted),
                nodes=len(step.draft.tree.parents),
                exit_reason=ExitReason(step.draft.exit_reason),
                confidence=_finite(step.draft.confidence),
                verify_share=step.verify_share,
                draft_ms=drafted - before,
                verify_ms=verified - drafted,
                accept_ms=accepted - verified,
            )
        )
    return Decoded(tuple(output_ids), tuple(records), first_token - begin, end - begin)


def _finite(confidence: Sequence[float]) -> tuple[float, ...]:
    """Plain numbers, whatever the method gave; a NaN would go into every figure made of them."""
    found = tuple(float(share) for share in confidence)
    if not all(map(math.isfinite, found)):
        raise ValueError(f"the draft's confidence is {found}: a method must give finite numbers")
    return found
