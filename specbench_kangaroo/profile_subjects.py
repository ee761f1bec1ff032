"""What a profile measures, checked and loaded: prompts, target, methods, the untouched model.

Knows: how a request becomes loaded objects.  Does not know: how or in which order they are
measured, or any method by name but the baseline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from specbench_kangaroo.bench import method_options
from specbench_kangaroo.environment import environment
from specbench_kangaroo.errors import UsageError
from specbench_kangaroo.method import Method
from specbench_kangaroo.models import LoadedModel, chat_prompt, load_model
from specbench_kangaroo.questions import load_questions, select
from specbench_kangaroo.records import BASELINE
from specbench_kangaroo.registry import method_class, method_names
from specbench_kangaroo.request import ModelChoice
from specbench_kangaroo.target import Target

GENERATE = "generate"

# So short that decoding, not the prefill, is most of an answer.
MAX_PROMPT_TOKENS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRequest:
    """A profile as it was asked for; no methods means those with trained weights for the model."""

    model: ModelChoice
    methods: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    new_tokens: int = 64
    repeats: int = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Subjects:
    """All that a profile measures, loaded; ``methods`` has the baseline first."""

    loaded: LoadedModel
    target: Target
    untouched: Any  # the same model once more, attention and all as transformers loads it
    methods: Mapping[str, Method]
    prompts: tuple[tuple[int, ...], ...]

    @property
    def contestants(self) -> tuple[str, ...]:
        """``generate``, the baseline, and the methods."""
        return (GENERATE, *self.methods)


def open_subjects(request: ProfileRequest) -> Subjects:
    """Check and load everything that a profile needs, what costs least first.

    Raises:
        UsageError: a model, method or option that does not exist, fit or work here.
    """
    method_options(request.methods, request.options if request.methods else ())
    choice = request.model
    load = {"revision": choice.revision, "dtype": choice.dtype, "device": choice.device}
    loaded = load_model(choice.name, **load)
    prompts = _prompts(loaded, request.new_tokens)
    target = Target(loaded.model, name=loaded.name)
    chosen = request.methods or _trained(target)
    options = method_options(chosen, request.options)
    return Subjects(
        loaded=loaded,
        target=target,
        untouched=load_model(choice.name, **load).model,
        methods={name: method_class(name).load(target, given) for name, given in options.items()},
        prompts=prompts,
    )


def about(subjects: Subjects, request: ProfileRequest) -> dict[str, Any]:
    """What is measured, how often, and on which machine."""
    return {
        "model": subjects.loaded.name,
        "dtype": subjects.loaded.dtype,
        "device": subjects.loaded.device,
        "threads": torch.get_num_threads(),
        "prompt_tokens": [len(prompt) for prompt in subjects.prompts],
        "new_tokens": request.new_tokens,
        "repeats": request.repeats,
        "environment": environment(),
    }


def _trained(target: Target) -> tuple[str, ...]:
    """The methods that come with trained weights for this target."""
    found = []
    for name in method_names():
        kind = method_class(name)
        try:
            method = kind.load(target, kind.Options())
        except UsageError:  # no weights, or none that fit
            continue
        if method.weights and name != BASELINE:
            found.append(name)
    return tuple(found)


def _prompts(loaded: LoadedModel, new_tokens: int) -> tuple[tuple[int, ...], ...]:
    """The first built-in question of every task, as a chat prompt that leaves room to answer.

    Raises:
        UsageError: the context has no room for a prompt beside the answer.
    """
    longest = min(MAX_PROMPT_TOKENS, loaded.context_length - new_tokens)
    if longest < 1:
        raise UsageError(
            f"--new-tokens {new_tokens} leaves no room for a prompt: the context of {loaded.name} "
            f"has {loaded.context_length} tokens"
        )
    questions = select(load_questions("builtin").questions, limit=1)
    whole = [chat_prompt(loaded.tokenizer, question.turns[:1]) for question in questions]
    return tuple(_shortened(prompt, longest) for prompt in whole)


def _shortened(prompt: Sequence[int], longest: int) -> tuple[int, ...]:
    """Leave out the middle: the chat template stands at both ends."""
    if len(prompt) <= longest:
        return tuple(prompt)
    head = longest // 2
    return (*prompt[:head], *prompt[len(prompt) - (longest - head) :])
