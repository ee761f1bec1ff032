"""What a profile measures, checked and loaded: prompts, target, methods, the untouched model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from specbench_kangaroo.engine.method import Method, MethodOptions
from specbench_kangaroo.engine.target import Target
from specbench_kangaroo.machine.devices import (
    check_device,
    check_dtype,
    default_device,
    default_dtype,
    environment,
    main_device,
)
from specbench_kangaroo.microbench.peers import GENERATE, HasPeer, peer_of, peers_of, require_a_peer
from specbench_kangaroo.microbench.prompts import chat_prompts, longest_prompt, random_prompts
from specbench_kangaroo.microbench.untrained import untrained_drafts
from specbench_kangaroo.models.load import load_model
from specbench_kangaroo.models.shapes import LATENCY_ONLY, Shape, random_model, shape_named
from specbench_kangaroo.models.templates import template_named
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.schema import BASELINE
from specbench_kangaroo.run.config import ModelChoice
from specbench_kangaroo.run.registry import method_class, method_names
from specbench_kangaroo.run.setup import capturer_of, check_backend, method_options


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRequest:
    """A profile as it was asked for.

    No methods means those with trained weights for the model, and with ``peers`` also those that
    transformers' ``generate`` has; for a shape, those whose draft can be trained.
    """

    model: ModelChoice  # its backend is not looked at
    backends: tuple[str, ...] = ("eager",)
    shape: str | None = None  # random weights of this size in place of the model's
    exit_layer: int | None = None  # of the untrained drafts of a shape
    methods: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    new_tokens: int = 64
    repeats: int = 7
    peers: bool = False  # whether generate competes with each method by the same method


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """The target as one backend runs it; ``methods`` has the baseline first."""

    backend: str
    target: Target
    methods: Mapping[str, Method]

    @property
    def captures(self) -> bool:
        """Whether passes are captured when they are first met."""
        return self.target.capturer is not None


class Turn(NamedTuple):
    """A contestant in its place; ``backend`` None is transformers' own."""

    name: str
    backend: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What is said of a model beside its weights; a shape's are random."""

    name: str
    dtype: str
    device: str
    shape: Shape | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Subjects:
    """All that a profile measures, loaded; every engine has the same methods."""

    model: Model
    engines: tuple[Engine, ...]  # one a backend; the first is the one that the others are set to
    untouched: Any  # the same model once more, attention and all as transformers loads it
    prompts: tuple[tuple[int, ...], ...]
    peers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # arguments of generate

    def engine(self, backend: str) -> Engine:
        """The engine of a backend."""
        return next(engine for engine in self.engines if engine.backend == backend)

    @property
    def turns(self) -> tuple[Turn, ...]:
        """``generate``, the baseline, and the methods by backend, each just before its peer."""
        found = [Turn(GENERATE)]
        for name in self.engines[0].methods:
            found += [Turn(name, engine.backend) for engine in self.engines]
            found += [Turn(peer_of(name))] if peer_of(name) in self.peers else []
        return tuple(found)


def open_subjects(request: ProfileRequest) -> Subjects:
    """Check and load everything that a profile needs, what costs least first.

    Raises:
        UsageError: a model, shape, backend, method or option that does not exist, fit or work here.
    """
    method_options(request.methods, request.options if request.methods else ())
    if request.peers and request.methods:
        require_a_peer(request.methods)
    template_named(request.model.template)
    for backend in request.backends:
        check_backend(replace(request.model, backend=backend))
    return (_of_model if request.shape is None else _of_shape)(request)


def _targets(request: ProfileRequest, model: Any, **about: Any) -> dict[str, Target]:
    """One a backend, all of the same modules; ``about`` is what the targets are told of them."""
    choices = {name: replace(request.model, backend=name) for name in request.backends}
    return {
        name: Target(model, **about, capturer=capturer_of(choice, model.device))
        for name, choice in choices.items()
    }


def _of_model(request: ProfileRequest) -> Subjects:
    if request.exit_layer is not None:
        raise UsageError("--exit-layer is for the untrained drafts of a --shape; leave it out")
    choice = request.model
    load = {"revision": choice.revision, "dtype": choice.dtype, "device": choice.device}
    loaded = load_model(choice.name, **load)
    longest = longest_prompt(loaded.name, loaded.context_length, new_tokens=request.new_tokens)
    prompts = chat_prompts(loaded, template=choice.template, longest=longest)
    targets = _targets(request, loaded.model, name=loaded.name, tokenizer=loaded.tokenizer)
    first = next(iter(targets.values()))
    chosen = request.methods or _chosen(first, peers=request.peers)
    engines = _engines(targets, method_options(chosen, request.options))
    return Subjects(
        model=Model(name=loaded.name, dtype=loaded.dtype, device=loaded.device),
        engines=engines,
        untouched=load_model(choice.name, **load).model,
        prompts=prompts,
        peers=peers_of(engines[0].methods) if request.peers else {},
    )


def _of_shape(request: ProfileRequest) -> Subjects:
    """The weights are there once for all but the targets, which lay them out anew."""
    if request.peers:
        raise UsageError("--peers compares what drafts are worth, and random weights' are nothing")
    shape, choice = shape_named(str(request.shape)), request.model
    device = main_device(check_device(choice.device or default_device()))
    dtype = check_dtype(choice.dtype or default_dtype(device), device)
    model: Any = random_model(shape, dtype=dtype, device=device, copies=1 + len(request.backends))
    untouched = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    targets = _targets(request, model)  # without a name: no shipped draft weights are for it
    with TemporaryDirectory() as folder:
        drafts = untrained_drafts(
            model, request.methods, Path(folder), exit_layer=request.exit_layer
        )
        options = method_options(tuple(drafts), (*chain(*drafts.values()), *request.options))
        engines = _engines(targets, options)
    target = engines[0].target
    longest = longest_prompt(shape.name, target.context_length, new_tokens=request.new_tokens)
    return Subjects(
        model=Model(name=shape.name, dtype=dtype, device=device, shape=shape),
        engines=engines,
        untouched=untouched,
        prompts=random_prompts(target.vocab_size, longest=longest),
    )


def _engines(
    targets: Mapping[str, Target], options: Mapping[str, MethodOptions]
) -> tuple[Engine, ...]:
    return tuple(
        Engine(
            backend=backend,
            target=target,
            methods={name: method_class(name).load(target, of) for name, of in options.items()},
        )
        for backend, target in targets.items()
    )


def about(subjects: Subjects, request: ProfileRequest) -> dict[str, Any]:
    """What is measured, how often, and on which machine."""
    model = subjects.model
    shape = {} if model.shape is None else {"weights": LATENCY_ONLY, "shape": model.shape.config}
    return {
        "model": model.name,
        **shape,
        "dtype": model.dtype,
        "device": model.device,
        "backend": subjects.engines[0].backend,
        **({} if shape else {"template": request.model.template}),
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
