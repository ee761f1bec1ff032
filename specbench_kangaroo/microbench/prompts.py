"""What is asked in a profile: short chat prompts of every task, or token ids that mean nothing."""

from __future__ import annotations

import random
from collections.abc import Sequence

from specbench_kangaroo.models.load import LoadedModel
from specbench_kangaroo.models.templates import chat_prompt
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.run.questions import load_questions, select

# So short that decoding, not the prefill, is most of an answer.
MAX_PROMPT_TOKENS = 200
_RANDOM_PROMPTS = (32, 64, 96, 128, 160, 200)  # tokens of a shape's prompts


def chat_prompts(
    loaded: LoadedModel, *, template: str, longest: int
) -> tuple[tuple[int, ...], ...]:
    """The first built-in question of every task, as a chat prompt that leaves room to answer."""
    questions = select(load_questions("builtin").questions, limit=1)
    whole = [
        chat_prompt(loaded.tokenizer, question.turns[:1], template=template)
        for question in questions
    ]
    return tuple(_shortened(prompt, longest) for prompt in whole)


def random_prompts(vocab_size: int, *, longest: int) -> tuple[tuple[int, ...], ...]:
    """Token ids that mean nothing, as many as chat prompts have."""
    chance = random.Random(0)
    return tuple(
        tuple(chance.randrange(vocab_size) for _ in range(min(length, longest)))
        for length in _RANDOM_PROMPTS
    )


def longest_prompt(name: str, context_length: int, *, new_tokens: int) -> int:
    """Tokens that a prompt may have beside its answer.

    Raises:
        UsageError: the context has no room for one.
    """
    longest = min(MAX_PROMPT_TOKENS, context_length - new_tokens)
    if longest < 1:
        raise UsageError(
            f"--new-tokens {new_tokens} leaves no room for a prompt: the context of {name} "
            f"has {context_length} tokens"
        )
    return longest


def _shortened(prompt: Sequence[int], longest: int) -> tuple[int, ...]:
    """Leave out the middle: the chat template stands at both ends."""
    if len(prompt) <= longest:
        return tuple(prompt)
    head = longest // 2
    return (*prompt[:head], *prompt[len(prompt) - (longest - head) :])
