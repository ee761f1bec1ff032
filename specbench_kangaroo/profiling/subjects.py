"""What a profile measures, checked and loaded: prompts, target, methods, the untouched model.

Knows: how a request becomes loaded objects.  Does not know: how or in which order they are
measured, or any method by name but the baseline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import torch

from specbench_kangaroo.bench import method_options
from specbench_kangaroo.environment import environment
from specbench_kangaroo.errors import UsageError
from specbench_kangaroo.loading.models import LoadedModel, chat_prompt, load_model
from specbench_kangaroo.method import Method
from specbench_kangaroo.questions import load_questions, select
from specbench_kangaroo.records import BASELINE
from specbench_kangaroo.registry import method_class, method_names
from specbench_kangaroo.request import ModelChoice
from specbench_kangaroo.target import Target

GENERATE = "generate"

# So short that decoding, not the prefill, is most of an answer.
MAX_PROMPT_TOKENS = 200


@runtime_checkable
class HasPeer(Protocol):
    """A method that transformers' ``generate`` has too; nothing else tells it from the others."""

    def generate_options(self) -> Mapping[str, Any]:
        """Keyword arguments with which ``generate`` of the untouched target drafts the same.

        Called once, before anything is timed, so an assistant is loaded here.  How an assistant
        drafts is read from its own ``generation_config`` and not from these arguments: a constant
        number of tokens and no confidence threshold are to be set there.

        Raises:
            UsageError: something that ``generate`` needs does not fit or work here.
        """
        ...


def peer_of(method: str) -> str:
    """The contestant that is ``generate`` doing the same as a method."""
    return f"{GENERATE}:{method}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRequest:
    """A profile as it was asked for.

    No methods means those with trained weights for the model, and with ``peers`` also those that
    transformers' ``generate`` has.
    """

    model: ModelChoice
    methods: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    new_tokens: int = 64
    repeats: int = 7
    peers: bool = False  # whether generate competes with each method by the same method


@dataclass(frozen=True, slots=True, kw_only=True)
class Subjects:
    """All that a profile measures, loaded; ``methods`` has the baseline first."""

    loaded: LoadedModel
    target: Target
    untouched: Any  # the same model once more, attention and all as transformers loads it
    methods: Mapping[str, Method]
    prompts: tuple[tuple[int, ...], ...]
    peers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # arguments of generate

    @property
    def contestants(self) -> tuple[str, ...]:
        """``generate``, the baseline, and the methods, each just before its peer."""
        pairs = chain.from_iterable((name, peer_of(name)) for name in self.methods)
        return (GENERATE, *(name for name in pairs if name in self.methods or name in self.peers))


def open_subjects(request: ProfileRequest) -> Subjects:
    """Check and load everything that a profile needs, what costs least first.

    Raises:
        UsageError: a model, method or option that does not exist, fit or work here.
    """
    method_options(request.methods, request.options if request.methods else ())
    if request.peers and request.methods:
        _require_a_peer(request.methods)
    choice = request.model
    load = {"revision": choice.revision, "dtype": choice.dtype, "device": choice.device}
    loaded = load_model(choice.name, **load)
    prompts = _prompts(loaded, request.new_tokens)
    target = Target(loaded.model, name=loaded.name, tokenizer=loaded.tokenizer)
    chosen = request.methods or _chosen(target, peers=request.peers)
    options = method_options(chosen, request.options)
    methods = {name: method_class(name).load(target, given) for name, given in options.items()}
    return Subjects(
        loaded=loaded,
        target=target,
        untouched=load_model(choice.name, **load).model,
        methods=methods,
        prompts=prompts,
        peers=_peers(methods) if request.peers else {},
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


def _chosen(target: Target, *, peers: bool) -> tuple[str, ...]:
    """The methods with trained weights for this target, then with ``peers`` those that have one.

    Those with weights come first: the document's ``draft_step_ms`` is the first method's.
    """
    trained, paired = [], []
    for name in method_names():
        kind = method_class(name)
        try:
            method = kind.load(target, kind.Options())
        except UsageError:  # no weights, or none that fit
            continue
        if method.weights and name != BASELINE:
            trained.append(name)
        elif peers and isinstance(method, HasPeer):
            paired.append(name)
    return (*trained, *paired)


def _peers(methods: Mapping[str, Method]) -> dict[str, Mapping[str, Any]]:
    """By contestant: the arguments of ``generate`` for every method that it has too."""
    return {
        peer_of(name): method.generate_options()
        for name, method in methods.items()
        if isinstance(method, HasPeer)
    }


def _require_a_peer(methods: Sequence[str]) -> None:
    """Refuse a comparison without anything to compare.

    Raises:
        UsageError: ``generate`` has none of the methods; lists those that it has.
    """
    having = [name for name in method_names() if issubclass(method_class(name), HasPeer)]
    if not any(name in having for name in methods):
        raise UsageError(
            f"--peers: transformers' generate has no counterpart to {', '.join(methods)}; "
            f"it has one to: {', '.join(having) or 'none'}"
        )


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
