"""Who answers a prompt in a profile, and how: our methods, and transformers' own ``generate``.

End-of-text stops nobody, so that all emit the same number of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specbench_kangaroo.engine.clock import Clock, clock_for
from specbench_kangaroo.engine.decode import Decoded, Limits, decode
from specbench_kangaroo.microbench.peers import GENERATE
from specbench_kangaroo.microbench.subjects import Engine, Subjects

# A model's own generation config may bend greedy decoding, as Qwen2's repetition penalty does.
_PLAIN_GREEDY: Mapping[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "use_cache": True,
    "pad_token_id": 0,  # nothing is padded; without it every call would warn
}


_ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class Answer:
    """What a contestant gave.

    Attributes:
        decoded: its tokens and times; those of ``generate`` have no steps.
        passes: passes of the whole target, the prefill included.
        first_tokens: how many tokens were there after ``ttft_ms``: assisted generation drafts
            before the prefill, which then verifies that draft as well.
    """

    decoded: Decoded
    passes: int
    first_tokens: int = 1


def answer(
    subjects: Subjects,
    contestant: str,
    prompt: Sequence[int],
    new_tokens: int,
    *,
    backend: str | None = None,
) -> Answer:
    """Exactly ``new_tokens`` greedy tokens of a contestant, and how long they took.

    ``backend`` None is the first one's.
    """
    if contestant == GENERATE:
        return generate(subjects.untouched, prompt, new_tokens)
    if contestant in subjects.peers:
        return assisted(subjects.untouched, prompt, new_tokens, subjects.peers[contestant])
    engine = subjects.engines[0] if backend is None else subjects.engine(backend)
    return ours(engine, contestant, prompt, new_tokens)


def ours(engine: Engine, method: str, prompt: Sequence[int], new_tokens: int) -> Answer:
    """What our loop gives; again if the backend captured passes on the way.

    Raises:
        RuntimeError: it did so in every attempt.
    """
    target = engine.target
    for _ in range(_ATTEMPTS):
        captures = target.captures
        decoded = decode(
            target,
            engine.methods[method],
            prompt,
            limits=Limits(max_new_tokens=new_tokens, eos=frozenset()),
            clock=clock_for(target.device),
        )
        if target.captures == captures:
            return Answer(decoded, decoded.target_passes)
    raise RuntimeError(f"{method} captured passes in {_ATTEMPTS} attempts, which spoils the times")


def generate(model: Any, prompt: Sequence[int], new_tokens: int) -> Answer:
    """What ``model.generate`` gives without a draft: one token a pass."""
    clock = clock_for(model.device)
    # What generate does unless told otherwise: a model's config may ask for another cache.
    plain = {"cache_implementation": "dynamic", "logits_processor": [_FirstToken(clock)]}
    decoded = _generated(model, prompt, new_tokens, clock, **plain)
    return Answer(decoded, len(decoded.output_ids))


def assisted(
    model: Any, prompt: Sequence[int], new_tokens: int, options: Mapping[str, Any]
) -> Answer:
    """What ``model.generate`` gives with a draft; ``options`` name its kind."""
    clock = clock_for(model.device)
    passes = _Passes(clock)
    decoded = _generated(model, prompt, new_tokens, clock, streamer=passes, **options)
    return Answer(decoded, len(passes.tokens), passes.tokens[0])


@torch.inference_mode()
def _generated(
    model: Any, prompt: Sequence[int], new_tokens: int, clock: Clock, **options: Any
) -> Decoded:
    """One call of ``model.generate``; something in ``options`` stamps when its prefill is done."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    clock.stamp()
    ids = torch.tensor([prompt], device=model.device)  # [1, P]
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        # An id that no token has: the check for it costs what it always costs.
        eos_token_id=model.get_output_embeddings().weight.shape[0],
        **{**options, **_PLAIN_GREEDY},
    )  # [1, P + N]
    clock.stamp()
    _, ttft_ms, total_ms = clock.read()
    return Decoded(tuple(output[0, len(prompt) :].tolist()), (), ttft_ms, total_ms)


class _FirstToken:
    """Stamps when the first token's logits are there, and changes none.

    ``generate`` does not tell its prefill's time.  Subtracting a call for one token would leave
    the noise of two prefills in the decoding time: with few tokens even its sign is lost.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock: Clock | None = clock

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        """(1, S), (1, V) -> (1, V)."""
        del ids
        if self._clock is not None:
            self._clock.stamp()
            self._clock = None
        return logits


class _Passes:
    """A streamer: stamps after the first pass, and counts the tokens that every pass gave.

    Assisted generation calls logits processors for the draft as well, before the prefill, and once
    more for every drafted token: one of ours would stamp too early and cost time.  It streams its
    tokens once a pass, when they are on the host anyway.  Plain ``generate`` gets no streamer: on
    a GPU its tokens are not there yet, and fetching them would cost it a wait.
    """

    def __init__(self, clock: Clock) -> None:
        self.tokens: list[int] = []
        self._clock = clock
        self._prompt_seen = False

    def put(self, ids: Tensor) -> None:
        """The prompt (1, P) first, then what each pass gave, (1, E)."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        if not self.tokens:
            self._clock.stamp()
        self.tokens.append(ids.numel())

    def end(self) -> None:
        """Called after the last token."""
