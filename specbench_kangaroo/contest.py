"""Who answers a prompt in a profile, and how: our methods, and transformers' own ``generate``.

Knows: the decoding loop, ``generate`` of an untouched model.  Does not know: the order of a
profile, or what is computed from its answers.

End-of-text stops nobody, so that all emit the same number of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from specbench_kangaroo.clock import Clock, clock_for
from specbench_kangaroo.decode import Decoded, Limits, decode
from specbench_kangaroo.profile_subjects import GENERATE, Subjects

# A model's own generation config may bend greedy decoding, as Qwen2's repetition penalty does.
_PLAIN_GREEDY: Mapping[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "use_cache": True,
    "pad_token_id": 0,  # nothing is padded; without it every call would warn
}


def answer(subjects: Subjects, contestant: str, prompt: Sequence[int], new_tokens: int) -> Decoded:
    """Exactly ``new_tokens`` greedy tokens of a contestant, and how long they took."""
    if contestant == GENERATE:
        return generate(subjects.untouched, prompt, new_tokens)
    return decode(
        subjects.target,
        subjects.methods[contestant],
        prompt,
        limits=Limits(max_new_tokens=new_tokens, eos=frozenset()),
        clock=clock_for(subjects.target.device),
    )


@torch.inference_mode()
def generate(model: Any, prompt: Sequence[int], new_tokens: int) -> Decoded:
    """What ``model.generate`` gives, in the form of our own loop's answers, without steps."""
    clock = clock_for(model.device)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    clock.stamp()
    ids = torch.tensor([prompt], device=model.device)  # [1, P]
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        logits_processor=[_FirstToken(clock)],
        # An id that no token has: the check for it costs what it always costs.
        eos_token_id=model.get_output_embeddings().weight.shape[0],
        **_PLAIN_GREEDY,
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
