"""transformers' own ``generate`` as a method: vanilla's tokens, its own times, shared weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload

from specbench_kangaroo.bench.registry import method_class
from specbench_kangaroo.bench.runner import execute
from specbench_kangaroo.bench.setup import Bench, manifest
from specbench_kangaroo.engine.clock import WallClock
from specbench_kangaroo.engine.decode import Decoded, Limits, decode
from specbench_kangaroo.engine.method import Method
from specbench_kangaroo.engine.sampling import Sampler, Sampling, SeededChance
from specbench_kangaroo.engine.target import Target
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.schema import Status
from specbench_kangaroo.record.writer import Run, RunWriter, read_run
from specbench_methods.draft_model import DraftModel, DraftModelOptions
from specbench_methods.hf_generate.method import GenerateOptions, HfGenerate
from specbench_methods.prompt_lookup import LookupOptions, PromptLookup
from specbench_methods.shared.draft_models import write_draft_model

from .bench import FAMILY, drafting_methods, make_bench
from .clocks import FakeClock
from .models import CONTEXT, FAMILIES, VOCABULARY, random_model, target

PROMPT = (5, 9, 3, 14, 7, 11, 3, 14)
REPETITIVE = (7, 5, 9, 14) * 4
NO_EOS: frozenset[int] = frozenset()
PLAIN = GenerateOptions()
LOOKUP = GenerateOptions(prompt_lookup_num_tokens=4, max_matching_ngram_size=2)


def answer(
    model: Target,
    method: Any,
    prompt: Sequence[int] = PROMPT,
    *,
    new: int = 24,
    eos: frozenset[int] = NO_EOS,
    sampler: Sampler | None = None,
) -> Decoded:
    limits = Limits(max_new_tokens=new, eos=eos)
    return decode(model, method, prompt, limits=limits, clock=WallClock(), sampler=sampler)


def vanilla(model: Target, prompt: Sequence[int] = PROMPT, **settings: Any) -> tuple[int, ...]:
    kind = method_class("vanilla")
    return answer(model, kind.load(model, kind.Options()), prompt, **settings).output_ids


def loaded(options: GenerateOptions = PLAIN, family: str = FAMILY) -> HfGenerate:
    return HfGenerate.load(target(family), options)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def methods(family: str, tmp_path: Path) -> list[HfGenerate]:
    """Plain, with prompt lookup, and with an assistant at two settings."""
    model = target(family)
    return [HfGenerate.load(model, o) for o in HfGenerate.example_options(model, tmp_path)]


def watched(method: HfGenerate) -> list[int]:
    """Grows by the rows of each pass of the target."""
    seen: list[int] = []
    method._model.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    return seen


def test_it_is_a_method_that_our_loop_does_not_ask_for_drafts() -> None:
    assert "hf_generate" not in drafting_methods()
    assert {"vanilla", "prompt_lookup", "draft_model"} <= {*drafting_methods()}


# --- the tokens of vanilla ---


def test_greedy_tokens_are_vanillas(methods: list[HfGenerate], family: str) -> None:
    model = target(family)
    for prompt, new in ((PROMPT, 24), (PROMPT, 1), (PROMPT, 2), ((4,), 24), (REPETITIVE, 13)):
        wanted = vanilla(model, prompt, new=new)
        assert len(wanted) == new
        for method in methods:
            found = answer(model, method, prompt, new=new).output_ids
            assert found == wanted, f"{method.options}: {new} tokens after {prompt}"


def test_a_text_ends_where_the_context_does(methods: list[HfGenerate], family: str) -> None:
    model = target(family)
    full = [(7 * i) % VOCABULARY for i in range(CONTEXT)]
    for length in (CONTEXT, CONTEXT - 1, CONTEXT - 5):
        wanted = vanilla(model, full[:length])
        assert len(wanted) == CONTEXT - length + 1, "the last token needs no position"
        for method in methods:
            found = answer(model, method, full[:length]).output_ids
            if family == "phi3-longrope" and method._drafts:
                # A draft may reach past the context, where transformers rotates all rows again.
                assert len(found) == len(wanted)
            else:
                assert found == wanted, f"{method.options}: {length} tokens of prompt"


def test_eos_ends_the_text_wherever_it_comes(methods: list[HfGenerate], family: str) -> None:
    """Every position of the greedy text in turn is its end: the first, those between, the last."""
    text = vanilla(target(family), new=12)
    for method in methods:
        for token in sorted(set(text)):
            for eos in (frozenset({token}), frozenset({token, text[-1]})):
                end = min(text.index(each) for each in eos) + 1
                assert answer(target(family), method, new=12, eos=eos).output_ids == text[:end]


def test_a_models_own_generation_config_bends_nothing() -> None:
    bent = random_model(FAMILY)
    bent.generation_config.update(
        repetition_penalty=9.0,
        do_sample=True,
        temperature=3.0,
        no_repeat_ngram_size=2,
        return_dict_in_generate=True,
        stop_strings=["w5"],
        max_length=9,
        cache_implementation="static",
        suppress_tokens=[vanilla(target(FAMILY))[0]],
    )
    bent.generation_config.eos_token_id = "2"
    model = Target(bent)
    for options in (PLAIN, LOOKUP):
        method = HfGenerate.load(model, options)
        assert answer(model, method).output_ids == vanilla(target(FAMILY))


# --- sampling ---


def chance(seed: int, **settings: Any) -> Sampler:
    return Sampler(Sampling(**{"temperature": 0.8} | settings), SeededChance(seed))


def test_a_seed_fixes_the_text_and_another_one_changes_it(tmp_path: Path) -> None:
    model = target(FAMILY)
    for options in HfGenerate.example_options(model, tmp_path):
        method = HfGenerate.load(model, options)
        torch.manual_seed(1)
        first = answer(model, method, sampler=chance(11)).output_ids
        torch.manual_seed(2)
        assert answer(model, method, sampler=chance(11)).output_ids == first
        others = {answer(model, method, sampler=chance(seed)).output_ids for seed in range(5)}
        assert len(others) > 1, f"{method.options}: the run's seed does not reach it"


def test_nobody_elses_chance_is_shifted() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    answer(target(FAMILY), loaded(), sampler=chance(11))
    assert torch.equal(torch.rand(4), wanted)


@pytest.mark.parametrize(
    "how", [{"temperature": 0.7}, {"temperature": 1.3, "top_p": 0.8}, {"top_k": 5}]
)
@pytest.mark.parametrize("options", [PLAIN, LOOKUP])
def test_tokens_are_drawn_from_our_distribution(
    how: dict[str, Any], options: GenerateOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, method, given = target(FAMILY), loaded(options), []
    real = torch.multinomial

    def drawing(weights: torch.Tensor, *more: Any, **settings: Any) -> torch.Tensor:
        given.append(weights)
        return real(weights, *more, **settings)

    sampler = chance(5, **how)
    monkeypatch.setattr(torch, "multinomial", drawing)
    answer(model, method, new=1, sampler=sampler)
    monkeypatch.undo()
    with torch.inference_mode():
        logits = model.prefill(torch.tensor(PROMPT), model.new_cache(len(PROMPT))).logits[0]
    wanted = sampler.sampling.probabilities(logits)
    torch.testing.assert_close(given[-1][0], wanted.float(), rtol=0, atol=1e-5)


def test_many_seeds_draw_with_the_targets_frequencies() -> None:
    model, method, count = target(FAMILY), loaded(), 400
    found = torch.zeros(VOCABULARY)
    for seed in range(count):
        found[answer(model, method, new=1, sampler=chance(seed)).output_ids[0]] += 1 / count
    with torch.inference_mode():
        logits = model.prefill(torch.tensor(PROMPT), model.new_cache(len(PROMPT))).logits[0]
    wanted = chance(0).sampling.probabilities(logits).float()
    assert (found - wanted).abs().sum() / 2 < 0.1, "seeds that are alike draw alike"


# --- times and passes ---


@pytest.fixture
def kinds(tmp_path: Path) -> list[HfGenerate]:
    """One of each kind; the assistant is the target itself, so that its drafts are right."""
    folder = write_draft_model(target(FAMILY), tmp_path / "assistant", layers=4)
    same = GenerateOptions(
        assistant_model=folder, num_assistant_tokens=2, assistant_confidence_threshold=0.0
    )
    return [loaded(PLAIN), loaded(LOOKUP), loaded(same)]


def test_the_first_token_is_stamped_after_the_prefill_and_before_more(
    kinds: list[HfGenerate],
) -> None:
    """The clock shows how many passes of the target have run."""
    for method in kinds:
        passes = watched(method)
        clock = FakeClock(iter(lambda: float(len(passes)), None))  # noqa: B023 (used at once)
        limits = Limits(max_new_tokens=20, eos=NO_EOS)
        found = decode(target(FAMILY), method, REPETITIVE, limits=limits, clock=clock)
        assert found.ttft_ms == 1, f"{method.options}: the prefill is one pass"
        assert found.total_ms == len(passes) > 1


def test_it_has_times_but_no_steps_and_no_passes(kinds: list[HfGenerate]) -> None:
    for method in kinds:
        found = answer(target(FAMILY), method)
        assert 0 < found.ttft_ms < found.total_ms
        assert (found.steps, found.target_passes) == ((), 0)


def test_drafts_are_made_and_accepted(kinds: list[HfGenerate]) -> None:
    counts = []
    for method in kinds:
        passes = watched(method)
        answer(target(FAMILY), method, REPETITIVE, new=20)
        counts.append(len(passes))
    assert counts[0] == 20, "plain generate: one token a pass"
    assert counts[1] < 20
    assert counts[2] == 7, "two drafted tokens and one more a pass"


@pytest.mark.parametrize("size", [1, 2, 3])
def test_prompt_lookup_needs_as_many_passes_as_ours_give_or_take_one(size: int) -> None:
    """Both copy the same tokens, but generate drafts before its prefill already."""
    model = target(FAMILY)
    ours = PromptLookup.load(model, LookupOptions(ngram=size, tokens=4))
    theirs = loaded(GenerateOptions(prompt_lookup_num_tokens=4, max_matching_ngram_size=size))
    passes = watched(theirs)
    for prompt in (PROMPT, (8, 8, 3), REPETITIVE):
        passes.clear()
        answer(model, theirs, prompt)
        assert abs(answer(model, ours, prompt).target_passes - len(passes)) <= 1


@pytest.mark.parametrize(("threshold", "rows"), [(0.0, 5), (1.1, 2)])
def test_an_assistant_drafts_as_our_draft_model_does(
    threshold: float, rows: int, tmp_path: Path
) -> None:
    """Rows of a pass: the root and γ tokens, or one if the assistant is never sure enough."""
    model, folder = target(FAMILY), write_draft_model(target(FAMILY), tmp_path / "d", layers=1)
    method = loaded(
        GenerateOptions(
            assistant_model=folder,
            num_assistant_tokens=4,
            assistant_confidence_threshold=threshold,
        )
    )
    seen = watched(method)
    assert answer(model, method, new=30).output_ids == vanilla(model, new=30)
    assert seen[0] == len(PROMPT) + rows - 1
    assert set(seen[1:-3]) == {rows}, "transformers drafts more or fewer tokens than it was told"
    options = DraftModelOptions(model=folder, steps=4, threshold=threshold)
    ours = answer(model, DraftModel.load(model, options), new=30)
    assert abs(len(seen) - ours.target_passes) <= 2


# --- weights ---


def test_weights_are_the_targets_and_nothing_else_is(family: str) -> None:
    model = target(family)
    ids = torch.tensor(PROMPT)
    with torch.inference_mode():
        before = model.prefill(ids, model.new_cache(len(ids))).logits
    own, shared = model.model, loaded(family=family)._model
    pointers = {name: weight.data_ptr() for name, weight in own.named_parameters()}
    assert pointers == {name: weight.data_ptr() for name, weight in shared.named_parameters()}
    assert shared.lm_head.weight.data_ptr() == own.lm_head.weight.data_ptr()
    assert shared.config is not own.config
    assert not {id(module) for module in shared.modules()} & {id(m) for m in own.modules()}
    answer(model, loaded(family=family))
    assert own.config._attn_implementation == "specbench"
    with torch.inference_mode():
        after = model.prefill(ids, model.new_cache(len(ids))).logits
    assert torch.equal(before, after), "generate left something in the target's modules"


def test_the_record_says_which_model_assists(tmp_path: Path) -> None:
    assert loaded().weights == {}
    folder = write_draft_model(target(FAMILY), tmp_path / "d", layers=1)
    weights = loaded(GenerateOptions(assistant_model=folder)).weights
    assert weights["model"] == folder
    assert len(weights["sha256"]) == 64


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"prompt_lookup_num_tokens": 0}, "prompt_lookup_num_tokens must be at least 1, not 0"),
        ({"max_matching_ngram_size": 0}, "max_matching_ngram_size must be at least 1, not 0"),
        ({"num_assistant_tokens": -1}, "num_assistant_tokens must be at least 1, not -1"),
        ({"prompt_lookup_num_tokens": 3, "assistant_model": "m"}, "not by both"),
    ],
)
def test_options_that_draft_nothing_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        loaded(GenerateOptions(**options))


def test_an_assistant_with_other_token_ids_is_refused(tmp_path: Path) -> None:
    folder = write_draft_model(target(FAMILY), tmp_path / "d", layers=1)
    resized = random_model(FAMILY)
    resized.resize_token_embeddings(VOCABULARY + 8, mean_resizing=False)
    resized.save_pretrained(folder)
    with pytest.raises(UsageError, match="no assistant of 32 token ids for a target of 24"):
        loaded(GenerateOptions(assistant_model=folder))


def test_weights_that_are_packed_or_away_cannot_be_shared() -> None:
    away = Target(cpu_offload(random_model(FAMILY), execution_device=torch.device("cpu")))
    with pytest.raises(UsageError, match="offloaded or on several devices: give --device"):
        HfGenerate.load(away, PLAIN)
    packed = Target(random_model(FAMILY))
    packed.config.quantization_config = {"quant_method": "awq"}
    with pytest.raises(UsageError, match="which are quantised"):
        HfGenerate.load(packed, PLAIN)


# --- a run ---


@pytest.fixture
def entries() -> dict[str, Method]:
    model = target(FAMILY)
    lookup = PromptLookup.load(model, LookupOptions())
    return {"hf": loaded(), "hf_lookup": loaded(LOOKUP), "lookup": lookup}


def run(bench: Bench, folder: Path) -> Run:
    record = manifest(bench, name="run", command="specbench run")
    with RunWriter.create(folder, record) as writer:
        execute(bench, writer, on_finished=lambda _: None)
    return read_run(folder)


def test_a_run_judges_it_like_any_other(entries: dict[str, Method], tmp_path: Path) -> None:
    found = run(make_bench(entries, warmup=1, repeats=2), tmp_path / "run")
    assert set(found.generations["status"]) == {Status.OK}
    verdicts = found.judgements.groupby("entry")["verdict"].agg(set).to_dict()
    assert verdicts == {name: {"exact"} for name in entries}
    by_itself = found.generations[found.generations["entry"].str.startswith("hf")]
    assert set(by_itself["target_passes"]) == {0}
    assert set(by_itself["new_tokens"]) == {12}
    assert (by_itself["total_ms"] > by_itself["ttft_ms"]).all()
    assert set(found.steps["entry"]) == {"vanilla", "lookup"}


def test_a_sampled_run_draws_by_the_runs_seed(entries: dict[str, Method], tmp_path: Path) -> None:
    def texts(folder: str, seed: int) -> list[Any]:
        bench = make_bench(entries, temperature=0.9, seed=seed)
        rows = run(bench, tmp_path / folder).generations
        return list(rows[rows["entry"] == "hf"]["output_ids"].map(tuple))

    first = texts("a", 1)
    assert texts("b", 1) == first
    assert texts("c", 2) != first


@pytest.mark.parametrize(
    ("error", "told"), [(RuntimeError("no such cache"), "no such cache"), (MemoryError(), "memory")]
)
def test_what_goes_wrong_in_it_is_recorded_and_the_run_goes_on(
    error: Exception, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = loaded()
    real: Callable[..., Any] = method._model.generate
    calls: Iterator[int] = iter(range(99))

    def failing(*given: Any, **settings: Any) -> Any:
        if next(calls) == 1:
            raise error
        return real(*given, **settings)

    monkeypatch.setattr(method._model, "generate", failing)
    rows = run(make_bench({"hf": method}), tmp_path / "run").generations
    failed = rows[rows["status"] == Status.ERROR]
    assert list(failed["entry"]) == ["hf"]
    assert told in failed["error"].iloc[0].lower()
    assert (rows["status"] == Status.OK).sum() == len(rows) - 1
