"""What every registered method must pass; no method is named here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch

from specbench_kangaroo.bench.registry import method_class
from specbench_kangaroo.engine.clock import WallClock
from specbench_kangaroo.engine.decode import Decoded, Limits, accept, decode, verify
from specbench_kangaroo.engine.method import Draft, Drafter, Method, Session, Verified
from specbench_kangaroo.engine.sampling import Sampler, Sampling, SeededChance
from specbench_kangaroo.engine.target import Target, TargetOutput

from .bench import drafting_methods
from .models import CONTEXT, FAMILIES, VOCABULARY, random_model, target

NO_EOS: frozenset[int] = frozenset()
PROMPT = (5, 9, 3, 14, 7, 11, 3, 14)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=drafting_methods())
def methods(request: pytest.FixtureRequest, family: str, tmp_path: Path) -> list[Method]:
    """One method in each of its example settings, on one family."""
    kind, model = method_class(request.param), target(family)
    return [kind.load(model, options) for options in kind.example_options(model, tmp_path)]


def generate(
    model: Target,
    method: Method,
    prompt: Sequence[int],
    *,
    new: int = 24,
    eos: frozenset[int] = NO_EOS,
    sampler: Sampler | None = None,
) -> Decoded:
    limits = Limits(max_new_tokens=new, eos=eos)
    return decode(model, method, prompt, limits=limits, clock=WallClock(), sampler=sampler)


@cache
@torch.inference_mode()
def plain_greedy(family: str, prompt: tuple[int, ...], new: int) -> list[int]:
    """Greedy decoding without loop or draft: a fresh prefill for every token."""
    model, ids = target(family), list(prompt)
    for _ in range(new):
        cache = model.new_cache(len(ids))
        ids.append(int(model.prefill(torch.tensor(ids), cache).logits[-1].argmax()))
    return ids[len(prompt) :]


def test_greedy_output_is_vanillas_token_by_token(methods: list[Method], family: str) -> None:
    expected = plain_greedy(family, PROMPT, 24)
    for method in methods:
        found = generate(target(family), method, PROMPT)
        assert list(found.output_ids) == expected, f"{method.options} changed the greedy output"


def test_a_method_object_serves_one_generation_after_the_other(
    methods: list[Method], family: str
) -> None:
    for method in methods:
        first = generate(target(family), method, PROMPT).output_ids
        generate(target(family), method, PROMPT[::-1], new=7)
        again = generate(target(family), method, PROMPT).output_ids
        assert again == first, f"{method.options} remembers an earlier generation"


def rounds(
    model: Target, method: Method, prompt: Sequence[int], sampler: Sampler | None, *, new: int = 14
) -> Iterator[tuple[Any, ...]]:
    """A text step by step: what was drafted, and what the target said of it."""
    ids = torch.tensor(prompt)
    session = Session(
        model.new_cache(len(prompt) + new + method.max_rows), method.max_rows, sampler, NO_EOS
    )
    prefill = model.prefill(ids, session.cache, method.needs)
    drafter, root = method.start(session, ids, prefill), int(prefill.logits.argmax())
    yield (root,)
    while new > 1:
        draft = drafter.propose(root, new - 2)
        output = verify(model, draft, session.cache, method.needs)
        found = accept(draft, output, sampler)
        session.cache.commit(found.nodes)
        drafter.observe(Verified(found.nodes, found.bonus, output))
        root, new = found.bonus, new - len(found.nodes)
        yield draft.tree.tokens.tolist(), draft.tree.parents, draft.exit_reason, found


@torch.inference_mode()
def assert_texts_do_not_mix(model: Target, method: Method, sampling: Sampling | None) -> None:
    """Two drafters of a method, a step of each in turn, against one after the other."""

    def texts() -> list[Iterator[tuple[Any, ...]]]:
        samplers = [sampling and Sampler(sampling, SeededChance(seed)) for seed in (3, 4)]
        prompts = (PROMPT, PROMPT[2:][::-1])
        return [rounds(model, method, *each) for each in zip(prompts, samplers, strict=True)]

    model.start()
    wanted = [list(text) for text in texts()]
    model.start()
    turns = list(zip_longest(*texts()))
    for number, alone in enumerate(wanted):
        found = [turn[number] for turn in turns if turn[number] is not None]
        assert found == alone, f"{method.options}: text {number} knows of the one beside it"


@pytest.mark.parametrize("sampling", [None, Sampling(temperature=0.8, top_p=0.9)])
def test_texts_side_by_side_are_those_of_one_after_the_other(
    methods: list[Method], family: str, sampling: Sampling | None
) -> None:
    for method in methods:
        assert_texts_do_not_mix(target(family), method, sampling)


def weights_of(model: Target) -> int:
    """Numbers in all tensors that are reached from what the target's methods share."""
    tensors: dict[int, torch.Tensor] = {}
    seen: set[int] = {id(model)}
    todo: list[Any] = list(model._shared.values())
    while todo:
        item = todo.pop()
        if isinstance(item, torch.Tensor):
            tensors[id(item)] = item
        elif id(item) not in seen:
            seen.add(id(item))
            todo += item.values() if isinstance(item, Mapping) else ()
            todo += item if isinstance(item, list | tuple) else ()
            fields = [*vars(type(item)).get("__slots__", ()), *getattr(item, "__dict__", ())]
            todo += [getattr(item, field) for field in fields if field[:2] != "__"]
    return sum(tensor.numel() for tensor in tensors.values())


@pytest.mark.parametrize("name", drafting_methods())
def test_entries_of_one_method_hold_its_weights_once(name: str, tmp_path: Path) -> None:
    kind, model = method_class(name), Target(random_model(FAMILIES[0]))
    for options in kind.example_options(model, tmp_path):
        kind.load(model, options)
        before = weights_of(model)
        again = kind.load(model, replace(options))
        assert weights_of(model) == before, "another entry with the same weights took memory"
        assert not again.weights or before > 0, "the weights are not shared at all"


class Watched:
    """A method that checks the cache after every round, as the loop leaves it."""

    def __init__(self, inner: Method, model: Target) -> None:
        self.inner, self.model = inner, model
        self.needs, self.max_rows = inner.needs, inner.max_rows
        self.rounds = 0

    def start(self, session: Session, prompt: torch.Tensor, output: TargetOutput) -> Drafter:
        return WatchedText(self, self.inner.start(session, prompt, output), session, prompt)


class WatchedText:
    def __init__(
        self, method: Watched, inner: Drafter, session: Session, prompt: torch.Tensor
    ) -> None:
        self._method, self._inner, self._session = method, inner, session
        self._ids = prompt.tolist()

    def propose(self, root: int, budget: int) -> Draft:
        self._draft = self._inner.propose(root, budget)
        rows = self._draft.tree.parents
        assert self._draft.tree.tokens[0] == root, "row 0 must be the last committed token"
        assert len(rows) <= self._method.max_rows, "the tree is larger than announced"
        return self._draft

    def observe(self, verified: Verified) -> None:
        tokens, model = self._draft.tree.tokens.tolist(), self._method.model
        self._ids += [tokens[row] for row in verified.nodes]
        fresh = model.new_cache(len(self._ids))
        model.prefill(torch.tensor(self._ids), fresh)
        for layer in range(model.n_layers):
            found, wanted = self._session.cache.committed(layer), fresh.committed(layer)
            for kind in ("keys", "values"):
                error = (getattr(found, kind) - getattr(wanted, kind)).abs().max()
                assert error < 1e-10, f"{kind} of layer {layer} differ from a fresh prefill's"
        self._inner.observe(verified)
        self._method.rounds += 1


def test_after_every_round_the_cache_equals_a_fresh_prefill(
    methods: list[Method], family: str
) -> None:
    for method in methods:
        watched = Watched(method, target(family))
        generate(target(family), watched, PROMPT)  # type: ignore[arg-type]
        assert watched.rounds > 0


def test_records_add_up(methods: list[Method], family: str) -> None:
    for method in methods:
        for new in (1, 2, 3, 24):
            found = generate(target(family), method, PROMPT, new=new)
            emitted = sum(step.emitted for step in found.steps)
            assert len(found.output_ids) == new, "max_new_tokens must be hit exactly"
            assert 1 + emitted == new, "the prefill emits one token, the steps all others"
            assert found.target_passes == 1 + len(found.steps)
            for step in found.steps:
                assert 1 <= step.emitted <= step.drafted + 1
                assert step.emitted - 1 <= step.accepted <= step.drafted
                assert min(step.draft_ms, step.verify_ms, step.accept_ms) >= 0


def test_eos_ends_the_text_wherever_it_comes(methods: list[Method], family: str) -> None:
    """Every position of the greedy text in turn is its end, drafted, corrected or bonus alike."""
    text = plain_greedy(family, PROMPT, 12)
    for method in methods:
        for token in sorted(set(text)):
            found = generate(target(family), method, PROMPT, new=12, eos=frozenset({token}))
            assert list(found.output_ids) == text[: text.index(token) + 1]


def test_prompts_of_one_token_and_to_the_end_of_the_context(
    methods: list[Method], family: str
) -> None:
    model = target(family)
    full = tuple((7 * i) % VOCABULARY for i in range(CONTEXT))
    for method in methods:
        assert list(generate(model, method, [4]).output_ids) == plain_greedy(family, (4,), 24)
        for length in (CONTEXT, CONTEXT - 1, CONTEXT - 5):
            found = generate(model, method, full[:length]).output_ids
            assert len(found) == CONTEXT - length + 1, "the last token needs no position"
            assert list(found) == plain_greedy(family, full[:length], len(found))


class Script:
    """Chance that follows a list of choices, and notes their probability and what else there was.

    Only choices up to the first decided token count: whatever comes after an acceptance cannot
    change that token, so it is followed along one branch alone.
    """

    def __init__(self, choices: Sequence[int]) -> None:
        self._choices = iter(choices)
        self.taken: list[int] = []
        self.possible: list[list[int]] = []
        self.probability = 1.0
        self._decided = False

    def _choose(self, probabilities: list[float]) -> int:
        possible = [index for index, p in enumerate(probabilities) if p > 0]
        if self._decided:
            return possible[0]
        choice = next(self._choices, possible[0])
        self.taken.append(choice)
        self.possible.append(possible)
        self.probability *= probabilities[choice]
        return choice

    def accepts(self, probability: float) -> bool:
        accepted = self._choose([1 - probability, probability]) == 1
        self._decided = self._decided or accepted
        return accepted

    def pick(self, probabilities: torch.Tensor) -> int:
        return self._choose(probabilities.tolist())


@torch.inference_mode()
def first_token(model: Target, method: Method, sampler: Sampler) -> int:
    """The first token that one step of a method emits after the prompt and the root 3."""
    cache = model.new_cache(len(PROMPT) + 1 + method.max_rows)
    prompt = torch.tensor(PROMPT)
    prefill = model.prefill(prompt, cache, method.needs)
    session = Session(cache, method.max_rows, sampler, NO_EOS)
    draft = method.start(session, prompt, prefill).propose(3, 1)
    acceptance = accept(draft, verify(model, draft, cache), sampler)
    if len(acceptance.nodes) > 1:
        return int(draft.tree.tokens[acceptance.nodes[1]])
    return acceptance.bonus


def enumerate_first_token(model: Target, method: Method, sampling: Sampling) -> torch.Tensor:
    """Exact distribution (V,) of that token: every sequence of random decisions is followed."""
    found = torch.zeros(model.vocab_size, dtype=torch.float64)
    todo: list[list[int]] = [[]]
    while todo:
        prefix = todo.pop()
        script = Script(prefix)
        found[first_token(model, method, Sampler(sampling, script))] += script.probability
        for depth in range(len(prefix), len(script.taken)):
            others = (c for c in script.possible[depth] if c != script.taken[depth])
            todo += [[*script.taken[:depth], other] for other in others]
    return found


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0.7, top_k=5), Sampling(temperature=1.3, top_p=0.8)]
)
def test_sampling_emits_the_targets_distribution(
    methods: list[Method], family: str, sampling: Sampling
) -> None:
    """Lossless sampling, enumerated over every random decision instead of tried."""
    model = target(family)
    with torch.inference_mode():
        cache = model.new_cache(len(PROMPT) + 1)
        wanted = sampling.probabilities(model.prefill(torch.tensor([*PROMPT, 3]), cache).logits[0])
    for method in methods:
        found = enumerate_first_token(model, method, sampling)
        error = float((found - wanted).abs().max())
        assert error < 1e-9, f"{method.options} shifts the sampled distribution by {error:.2e}"


def test_sampling_is_reproducible(methods: list[Method], family: str) -> None:
    sampling = Sampling(temperature=0.8, top_p=0.9)
    for method in methods:
        runs = [
            generate(
                target(family), method, PROMPT, sampler=Sampler(sampling, SeededChance(11))
            ).output_ids
            for _ in range(2)
        ]
        assert runs[0] == runs[1], "a seed must fix the text"
