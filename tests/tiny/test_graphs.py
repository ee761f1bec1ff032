"""Backend ``graph`` without a GPU: everything but the capture itself.

A CUDA graph freezes what the host decided while it was captured, reads and writes fixed addresses,
and overwrites its outputs in the next replay.  ``Traced`` is all of that on a CPU: the operations
are captured once and replayed, into memory that all replays share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from specbench_kangaroo.bench.generation import generate as answer
from specbench_kangaroo.bench.registry import method_class
from specbench_kangaroo.bench.schedule import Round
from specbench_kangaroo.engine.clock import clock_for
from specbench_kangaroo.engine.cuda_graphs import (
    ROWS,
    Capturer,
    CudaCapturer,
    Graphs,
    Replay,
    length_bucket,
    rows_bucket,
)
from specbench_kangaroo.engine.decode import Limits, decode, verify
from specbench_kangaroo.engine.method import Draft, Drafter, Method, MethodOptions
from specbench_kangaroo.engine.sampling import Sampler, Sampling, SeededChance
from specbench_kangaroo.engine.target import Target
from specbench_kangaroo.engine.tree import TokenTree, chain_parents
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.schema import Status
from specbench_methods.vanilla import Vanilla

from .bench import QUESTIONS, drafting_methods, make_bench
from .models import FAMILIES, VOCABULARY, Uncaptured, random_model
from .test_contract import assert_texts_do_not_mix

PLAIN = "llama-gqa-tied"
LONG = 300  # tokens of context: two borders between lengths of cache lie below it
Function = Callable[[], tuple[Tensor, ...]]


class Traced(Uncaptured):
    """Records operations as a capture does, outputs in memory that the next replay overwrites."""

    def __init__(self) -> None:
        super().__init__()
        self._memory = torch.zeros(64 * 1024, dtype=torch.float64)

    def capture(self, function: Function) -> Replay:
        self.captures += 1
        with torch.inference_mode(False), torch.no_grad():
            operations = make_fx(function)()
        return lambda: tuple(self._kept(operations()))

    def _kept(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        self._memory.fill_(torch.nan)  # what an earlier replay gave is gone
        parts = self._memory.split([output.numel() for output in outputs] + [self._left(outputs)])
        kept = [part.view_as(output) for part, output in zip(parts, outputs, strict=False)]
        for place, output in zip(kept, outputs, strict=True):
            place.copy_(output)
        return kept

    def _left(self, outputs: Sequence[Tensor]) -> int:
        return self._memory.numel() - sum(output.numel() for output in outputs)


def long_model(family: str) -> Any:
    """A model of the family whose context is longer than one bucket, if its angles allow it."""
    model = random_model(family)
    model.config.max_position_embeddings = max(LONG, model.config.max_position_embeddings)
    return model


@cache
def pair(family: str, kind: type[Uncaptured] = Uncaptured) -> tuple[Target, Target]:
    """A family's target, eager and on graphs."""
    name = f"tiny-{family}"
    return Target(long_model(family), name=name), Target(
        long_model(family), name=name, capturer=kind()
    )


def prompt_to(model: Target, border: int, *, before: int = 9) -> list[int]:
    """A prompt that ends a little below ``border``, or below the context's end."""
    length = min(border, model.context_length - 12) - before
    return [(7 * i * i + i) % (VOCABULARY - 3) + 3 for i in range(length)]


def generate(
    model: Target,
    method: Method,
    prompt: Sequence[int],
    *,
    new: int = 20,
    sampler: Sampler | None = None,
) -> tuple[int, ...]:
    limits = Limits(max_new_tokens=new, eos=frozenset())
    clock = clock_for(model.device)
    return decode(model, method, prompt, limits=limits, clock=clock, sampler=sampler).output_ids


def vanilla() -> Vanilla:
    return Vanilla(MethodOptions())


def segments_of(model: Target) -> Graphs:
    assert model._graphs is not None
    return model._graphs


# Shapes


def test_few_sizes_of_rows_and_lengths_hold_all() -> None:
    assert [rows_bucket(rows) for rows in (1, 5, 8, 9, 13, 33, 64)] == [1, 5, 8, 12, 16, 48, 64]
    assert all(rows_bucket(rows) >= rows for rows in range(1, ROWS[-1] + 1))
    lengths = (1, 128, 129, 1024, 1025, 2049)
    assert [length_bucket(slots) for slots in lengths] == [128, 128, 256, 1024, 2048, 3072]


# The same tokens


@pytest.mark.parametrize("name", drafting_methods())
@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_gives_the_tokens_of_eager(family: str, name: str, tmp_path: Path) -> None:
    eager, graph = pair(family)
    prompt = prompt_to(eager, 128)
    kind = method_class(name)
    for options in kind.example_options(eager, tmp_path):
        wanted = generate(eager, kind.load(eager, options), prompt)
        found = generate(graph, kind.load(graph, options), prompt)
        assert found == wanted, f"{options} gives another text on backend graph"


@pytest.mark.parametrize("name", drafting_methods())
def test_every_method_draws_the_tokens_of_eager(name: str, tmp_path: Path) -> None:
    eager, graph = pair(PLAIN)
    prompt, sampling = prompt_to(eager, 256), Sampling(temperature=0.8, top_p=0.9)
    kind = method_class(name)
    for options in kind.example_options(eager, tmp_path):
        wanted, found = (
            generate(
                model,
                kind.load(model, options),
                prompt,
                sampler=Sampler(sampling, SeededChance(5)),
            )
            for model in (eager, graph)
        )
        assert found == wanted, f"{options} draws another text on backend graph"


@pytest.mark.parametrize("name", drafting_methods())
def test_nothing_that_the_host_decides_is_frozen(name: str, tmp_path: Path) -> None:
    """Positions, lengths and trees change from step to step; a capture must not keep the first."""
    eager, graph = pair("qwen2-mixed-windows", Traced)
    prompt = prompt_to(eager, 128, before=2)
    kind = method_class(name)
    options = kind.example_options(eager, tmp_path)[0]
    wanted = generate(eager, kind.load(eager, options), prompt, new=10)
    assert generate(graph, kind.load(graph, options), prompt, new=10) == wanted


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_frozen_in_any_family(family: str) -> None:
    eager, graph = pair(family, Traced)
    prompt = prompt_to(eager, 128, before=2)
    assert generate(graph, vanilla(), prompt, new=5) == generate(eager, vanilla(), prompt, new=5)


@pytest.mark.parametrize("name", drafting_methods())
def test_texts_side_by_side_keep_their_caches(name: str, tmp_path: Path) -> None:
    """The second one's are not those that graphs know, and no drafter may take the first one's."""
    _, graph = pair(PLAIN)
    kind = method_class(name)
    for options in kind.example_options(graph, tmp_path):
        assert_texts_do_not_mix(graph, kind.load(graph, options), None)


def test_a_text_goes_on_to_the_contexts_end() -> None:
    eager, graph = pair(PLAIN)
    for length in (eager.context_length, eager.context_length - 7):
        prompt = [(5 * i) % VOCABULARY for i in range(length)]
        found = generate(graph, vanilla(), prompt)
        assert len(found) == eager.context_length - length + 1
        assert found == generate(eager, vanilla(), prompt)


# What is captured


def test_a_step_of_vanilla_is_one_replay_and_is_captured_once_for_each_length() -> None:
    model = Target(long_model(PLAIN), capturer=(capturer := Uncaptured()))
    before = capturer.captures
    prompt = prompt_to(model, 128)
    generate(model, vanilla(), prompt)
    assert capturer.captures - before == 2, "below and above 128 slots: one segment each"
    generate(model, vanilla(), prompt)
    assert capturer.captures - before == 2, "a second generation captures nothing"


def test_a_draft_model_and_a_draft_heads_layers_are_captured_too(tmp_path: Path) -> None:
    _, graph = pair(PLAIN)
    drafter = method_class("draft_model")
    method: Any = drafter.load(graph, drafter.example_options(graph, tmp_path)[0])
    generate(graph, method, prompt_to(graph, 128))
    assert len(segments_of(method._draft)) > 1
    storages = []
    for _ in range(2):
        graph.start()
        storages.append(method._draft.new_cache(9).storage)
    assert storages[0] is storages[1], "a generation of the target begins the draft model's too"
    kind = method_class("kangaroo")
    method = kind.load(graph, kind.example_options(graph, tmp_path)[0])
    generate(graph, method, prompt_to(graph, 128))
    bodies = {key.body for key in segments_of(graph)._segments}
    assert method._runner in bodies


def test_no_more_graphs_are_kept_than_allowed() -> None:
    eager, _ = pair(PLAIN)
    model = Target(long_model(PLAIN), capturer=(capturer := Uncaptured()))
    model._graphs = Graphs(capturer, most=2)
    prompt, before = prompt_to(model, 128), capturer.captures
    with torch.inference_mode():
        for rows in (1, 2, 1, 3, 1, 2):
            model.start()
            cache = model.new_cache(20)
            model.prefill(torch.tensor(prompt[:9]), cache)
            verify(model, Draft(TokenTree.chain(torch.tensor(prompt[:rows]))), cache)
            assert len(segments_of(model)) <= 2, "memory grows with every kind of pass"
    assert capturer.captures - before == 4, "only the one that was used least lately comes again"
    assert generate(model, vanilla(), prompt) == generate(eager, vanilla(), prompt)


def test_prompts_and_large_trees_run_as_in_eager() -> None:
    model = Target(long_model(PLAIN), capturer=(capturer := Uncaptured()))
    before = capturer.captures
    with torch.inference_mode():
        model.start()
        cache = model.new_cache(100)
        model.prefill(torch.tensor([3, 4, 5]), cache)
        verify(model, Draft(TokenTree.chain(torch.tensor([3] * 65))), cache)
    assert capturer.captures == before


# Memory


def test_generations_follow_each_other_in_one_place() -> None:
    model = Target(long_model(PLAIN), capturer=Uncaptured())
    places = []
    for capacity in (30, 90, 50):
        model.start()
        places.append(model.new_cache(capacity).committed(0).keys.data_ptr())
    assert len(set(places)) == 1, "a graph would write to an address that is gone"


def test_what_earlier_generations_left_behind_is_never_seen() -> None:
    eager, graph = pair(PLAIN)
    prompt = prompt_to(graph, 128)
    for storage in segments_of(graph)._storages.values():
        for layer in storage.layers:
            layer.keys.fill_(1e20)
            layer.values.fill_(-1e20)
    assert generate(graph, vanilla(), prompt) == generate(eager, vanilla(), prompt)


@pytest.mark.parametrize("family", ["mistral-window", "gemma2-capped"])
@torch.inference_mode()
def test_padding_rows_write_finite_states_to_the_spare_slot_alone(family: str) -> None:
    eager, graph = pair(family)
    tree = TokenTree.merged(3, [[4, 5, 6], [4, 7, 8], [9, 10], [11]])  # 9 rows, padded to 12
    outputs, caches = [], []
    for model in (eager, graph):
        model.start()
        cache = model.new_cache(40)
        model.prefill(torch.tensor([5, 9, 3, 14, 7]), cache)
        verify(model, Draft(TokenTree.chain(torch.tensor([3] * 12))), cache)  # no padding
        for layer in cache.storage.layers:
            layer.keys[:, :, 5:] = 77.0
        outputs.append(verify(model, Draft(tree), cache))
        caches.append(cache)
    torch.testing.assert_close(outputs[1].logits, outputs[0].logits)
    torch.testing.assert_close(outputs[1].normed, outputs[0].normed)
    for layer in caches[1].storage.layers:
        assert layer.keys[:, :, 14:-1].eq(77.0).all(), "rows that are none were stored among slots"
        assert layer.keys[:, :, -1].isfinite().all()


def test_memory_that_is_too_small_is_replaced_and_its_graphs_are_dropped() -> None:
    model = Target(long_model(PLAIN), capturer=(capturer := Uncaptured()))
    prompt = prompt_to(model, 128)
    first = generate(model, vanilla(), prompt)
    kept = len(segments_of(model))
    model.start()
    model.new_cache(5000)
    assert kept > 0
    assert len(segments_of(model)) == 0, "a graph on memory that was given back"
    captures = capturer.captures
    assert generate(model, vanilla(), prompt) == first
    assert capturer.captures > captures


@torch.inference_mode()
def test_a_second_cache_in_a_generation_has_memory_of_its_own() -> None:
    _, model = pair(PLAIN)
    model.start()
    first, second = model.new_cache(30), model.new_cache(30)
    model.prefill(torch.tensor([5, 9, 3]), first)
    model.prefill(torch.tensor([8, 8, 4]), second)
    rows = model.rows(3, chain_parents(1))
    embedded = model.embed(torch.tensor([7]))
    captured, plain = (
        model.layers(embedded, 0, model.n_layers, rows, cache) for cache in (first, second)
    )
    assert not torch.equal(captured, plain), "two texts share a cache"


@torch.inference_mode()
def test_a_cache_of_an_earlier_generation_is_refused() -> None:
    _, model = pair(PLAIN)
    model.start()
    old = model.new_cache(30)
    model.prefill(torch.tensor([5, 9, 3]), old)
    model.start()
    model.new_cache(30)
    rows = model.rows(3, chain_parents(1))
    with pytest.raises(RuntimeError, match="a cache of an earlier generation is used"):
        model.layers(model.embed(torch.tensor([7])), 0, 1, rows, old)


# What does not work


class Wrong(Uncaptured):
    def capture(self, function: Function) -> Replay:
        return lambda: tuple(output + 1 for output in function())


class Fails(Uncaptured):
    def capture(self, function: Function) -> Replay:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")


@pytest.mark.parametrize(
    ("capturer", "reason"),
    [(Wrong(), "do not give the same logits"), (Fails(), "stream is capturing; use")],
)
def test_a_model_that_graphs_cannot_run_is_refused(capturer: Capturer, reason: str) -> None:
    with pytest.raises(UsageError, match=f"LlamaForCausalLM cannot be captured .*{reason}"):
        Target(random_model(PLAIN), capturer=capturer)


# Times


class Begun(Vanilla):
    """Counts the generations that it was started for."""

    begun = 0

    def start(self, *arguments: Any) -> Drafter:
        self.begun += 1
        return super().start(*arguments)


class Endless(Uncaptured):
    """Counts a capture whenever it is asked."""

    @property
    def captures(self) -> int:
        self._count += 1
        return self._count

    @captures.setter
    def captures(self, count: int) -> None:
        self._count = count


def answered(capturer: Capturer) -> tuple[Begun, list[Any]]:
    """Two answers to one prompt on a fresh target."""
    method = Begun(MethodOptions())
    bench = replace(
        make_bench({"begun": method}), target=Target(random_model(PLAIN), capturer=capturer)
    )
    item = Round(QUESTIONS[1], 0, 0, ("begun",))
    return method, [answer(bench, item, "begun", {}) for _ in range(2)]


def test_an_answer_in_which_something_was_captured_is_made_again() -> None:
    method, results = answered(Uncaptured())
    assert method.begun == 4, "the first answer: captured, warm, measured; the second measured"
    texts = [generation.output_ids for generation, _ in results]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 12
    assert [len(steps) for _, steps in results] == [11, 11], "steps of a dropped attempt are kept"


def test_times_that_stay_spoilt_are_an_error_and_no_measurement() -> None:
    _, results = answered(Endless())
    assert [generation.status for generation, _ in results] == [Status.ERROR] * 2
    assert "captured in 5 attempts" in results[0][0].error


# On a GPU

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@cache
def gpu_pair(family: str) -> tuple[Target, Target]:
    """Eager and captured, in float64: sums in another order do not decide a token."""
    device = torch.device("cuda", 0)
    name = f"tiny-{family}"
    return Target(long_model(family).to(device), name=name), Target(
        long_model(family).to(device), name=name, capturer=CudaCapturer(device)
    )


@pytest.mark.cuda
@needs_gpu
@pytest.mark.parametrize("name", drafting_methods())
@pytest.mark.parametrize("family", FAMILIES)
def test_captured_graphs_give_the_tokens_of_eager(family: str, name: str, tmp_path: Path) -> None:
    eager, graph = gpu_pair(family)
    prompt = prompt_to(eager, 128)
    kind = method_class(name)
    for options in kind.example_options(eager, tmp_path):
        wanted = generate(eager, kind.load(eager, options), prompt)
        method = kind.load(graph, options)
        assert generate(graph, method, prompt) == wanted, f"{options} gives another text"
        captures = graph.captures
        assert generate(graph, method, prompt) == wanted, "replays do not repeat the captures"
        assert graph.captures == captures, "the same text needs another graph"


@pytest.mark.cuda
@needs_gpu
def test_many_captured_graphs_stay_bounded_and_right() -> None:
    eager, _ = gpu_pair(PLAIN)
    device = torch.device("cuda", 0)
    model = Target(long_model(PLAIN).to(device), capturer=(capturer := CudaCapturer(device)))
    model._graphs = Graphs(capturer, most=3)
    for rows in (*range(1, 9), 1, 2, 3):
        logits = []
        for each in (eager, model):
            with torch.inference_mode():
                each.start()
                cache = each.new_cache(40)
                each.prefill(torch.tensor([5, 9, 3], device=device), cache)
                draft = Draft(TokenTree.chain(torch.tensor([4 + row for row in range(rows)])))
                logits.append(verify(each, draft, cache).logits)
        torch.testing.assert_close(logits[1], logits[0])
        assert len(segments_of(model)) <= 3
    assert capturer.captures > 8


@pytest.mark.cuda
@needs_gpu
@torch.inference_mode()
def test_verifying_a_tree_by_replay_waits_for_nothing() -> None:
    _, graph = gpu_pair(PLAIN)
    graph.start()
    cache = graph.new_cache(40)
    graph.prefill(torch.tensor([5, 9, 3], device=graph.device), cache)
    draft = Draft(TokenTree.merged(3, [[4, 5, 6], [7, 8]]))
    verify(graph, draft, cache)  # captures
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        verify(graph, draft, cache)
    finally:
        torch.cuda.set_sync_debug_mode("default")
