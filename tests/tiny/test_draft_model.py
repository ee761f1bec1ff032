"""The draft model's state and vocabulary: a mistake changes no output, only what is accepted."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from specbench_kangaroo.bench.setup import load_bench, plan_of
from specbench_kangaroo.engine.clock import WallClock
from specbench_kangaroo.engine.decode import Decoded, Limits, decode
from specbench_kangaroo.engine.method import Drafter, Session, Verified
from specbench_kangaroo.engine.sampling import Sampler, Sampling, SeededChance
from specbench_kangaroo.engine.target import Target, TargetOutput
from specbench_kangaroo.models.load import load_model
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.request import EntryChoice, Request, TargetChoice
from specbench_kangaroo.record.schema import ExitReason
from specbench_methods.draft_model import ChainDrafter, DraftModel, DraftModelOptions
from specbench_methods.shared.draft_models import write_draft_model, write_tokenizer

from .bench import save_model
from .chains import assert_drawn_as_told, assert_same_steps, expected_steps, last_logits
from .models import CONTEXT, FAMILIES, VOCABULARY, random_model, target

FAMILY = "llama-mha-untied"
PROMPT = (5, 9, 3, 14, 7, 11, 3, 14)
NO_EOS: frozenset[int] = frozenset()
UNREAD = TargetOutput(torch.empty(0, VOCABULARY), torch.empty(0, 32))  # no output is read


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A draft model of one layer for the target of FAMILY."""
    return write_draft_model(target(FAMILY), tmp_path / "draft", layers=1)


def with_tokenizer(family: str, folder: Path) -> Target:
    """The target of a family with a tokenizer of one word an id."""
    model = copy.copy(target(family))
    model.tokenizer = load_model(write_draft_model(model, folder, layers=1)).tokenizer
    return model


def generate(model: Target, method: DraftModel, *, new: int = 30, prompt: Any = PROMPT) -> Decoded:
    limits = Limits(max_new_tokens=new, eos=NO_EOS)
    return decode(model, method, prompt, limits=limits, clock=WallClock())


def greedy(model: Target, new: int) -> list[int]:
    ids = list(PROMPT)
    for _ in range(new):
        ids.append(int(last_logits(model, ids).argmax()))
    return ids[len(PROMPT) :]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("steps", "threshold"), [(1, 0.0), (5, 0.0), (4, 0.3)])
def test_what_is_accepted_is_what_a_draft_without_a_cache_gets_accepted(
    family: str, steps: int, threshold: float, tmp_path: Path
) -> None:
    model = target(family)
    name = write_draft_model(model, tmp_path / "draft", layers=2)
    options = DraftModelOptions(model=name, steps=steps, threshold=threshold)
    found = generate(model, DraftModel.load(model, options))
    draft = Target(load_model(name, dtype="float64").model)
    expected = expected_steps(
        model,
        lambda committed, chain: last_logits(draft, [*committed, *chain]),
        PROMPT,
        new=30,
        steps=steps,
        threshold=threshold,
    )
    assert_same_steps(found, expected)
    assert sum(step.accepted for step in expected), "nothing was accepted, so nothing was tested"


class Watched(DraftModel):
    """Counts the drafts that were accepted whole, and those that were cut."""

    full = cut = 0

    def start(self, session: Session, prompt: torch.Tensor, output: TargetOutput) -> Drafter:
        size = self._target.vocab_size
        return WatchedText(self, self._draft, self._rule, session, prompt, size)


class WatchedText(ChainDrafter):
    """Compares the draft's cache after every round with one that reads the text at once."""

    def __init__(self, method: Watched, *given: Any) -> None:
        super().__init__(*given)
        self._method, self._ids = method, given[3].tolist()

    def observe(self, verified: Verified) -> None:
        self._ids += [self._chain.tokens[row] for row in verified.nodes]
        super().observe(verified)
        accepted = len(verified.nodes) - 1
        self._method.full += accepted == self._chain.depth
        self._method.cut += accepted < self._chain.depth
        assert [*self._ids[: self._cache.length], *self._pending] == self._ids, "a token was lost"
        fresh = self._draft.new_cache(len(self._ids))
        self._draft.prefill(torch.tensor(self._ids), fresh)
        for layer in range(self._draft.n_layers):
            mine, wanted = self._cache.committed(layer), fresh.committed(layer)
            for kind in ("keys", "values"):
                whole = getattr(wanted, kind)[:, :, : self._cache.length]
                error = (getattr(mine, kind) - whole).abs().max()
                assert error < 1e-10, f"{kind} of layer {layer} are not those of the text"


# Their later layers change so little that the draft, their first ones, is right every time.
ALWAYS_RIGHT = {"gemma2-capped", "gemma3-two-ropes"}


@pytest.mark.parametrize("family", FAMILIES)
def test_after_every_round_the_drafts_cache_is_that_of_the_text(
    family: str, tmp_path: Path
) -> None:
    model = target(family)
    full = cut = 0
    for options in Watched.example_options(model, tmp_path):
        method = Watched.load(model, options)
        generate(model, method)
        full, cut = full + method.full, cut + method.cut
    assert full, "no draft was accepted whole, so no token was ever pending"
    assert cut or family in ALWAYS_RIGHT, "no draft was rejected, so no cache was rolled back"


def test_sampled_tokens_come_with_the_distribution_they_were_drawn_from(folder: str) -> None:
    model, sampling = target(FAMILY), Sampling(temperature=0.9, top_k=7)
    method = DraftModel.load(model, DraftModelOptions(model=folder, steps=4))
    draft = Target(load_model(folder, dtype="float64").model)
    with torch.inference_mode():
        cache, prompt = model.new_cache(20), torch.tensor(PROMPT)
        sampler = Sampler(sampling, SeededChance(5))
        session = Session(cache, 5, sampler, NO_EOS)
        proposal = method.start(session, prompt, model.prefill(prompt, cache)).propose(3, 4)
    assert_drawn_as_told(
        proposal, sampling, lambda chain: last_logits(draft, [*PROMPT, *chain]), drafted=4
    )


def test_a_draft_with_a_shorter_context_drafts_while_there_is_room(tmp_path: Path) -> None:
    model, room = target(FAMILY), 16
    small = copy.copy(model)
    small.config = copy.deepcopy(model.config)
    small.config.max_position_embeddings = room
    name = write_draft_model(small, tmp_path / "draft", layers=2)
    method = DraftModel.load(model, DraftModelOptions(model=name, steps=3))
    found = generate(model, method)
    assert list(found.output_ids) == greedy(model, 30)
    for step in found.steps[:-1]:
        free = max(0, room + 1 - step.context_length)
        assert step.drafted == min(3, free), f"{step.context_length} of {room} positions are taken"
        assert (step.exit_reason is ExitReason.NO_DRAFT) == (free < 3)
    assert found.steps[0].drafted == 3, "there was room for a draft at first"
    for length in (room - 1, room, room + 1, CONTEXT):
        prompt = [(7 * i) % VOCABULARY for i in range(length)]
        output_ids = generate(model, method, new=3, prompt=prompt).output_ids
        session = Session(model.new_cache(length + 4), 4, None, NO_EOS)
        with torch.inference_mode():
            drafter = method.start(session, torch.tensor(prompt), UNREAD)
        assert isinstance(drafter, ChainDrafter)
        read = drafter._cache.length > 0
        assert read == (length < room), "a prompt is read if a draft may follow, else it is wasted"
        assert output_ids[0] == int(last_logits(model, prompt).argmax())


@pytest.mark.parametrize("size", [VOCABULARY - 6, VOCABULARY + 8])
def test_models_that_pad_one_vocabulary_differently_never_draft_the_padding(
    size: int, tmp_path: Path
) -> None:
    model = with_tokenizer(FAMILY, tmp_path / "words")
    resized = random_model(FAMILY)
    resized.resize_token_embeddings(size, mean_resizing=False)
    with (
        torch.no_grad()
    ):  # the draft likes its last ids best, and these are padding if size is larger
        resized.lm_head.weight[-8:] *= 5
    resized.save_pretrained(tmp_path / "draft")
    write_tokenizer(tmp_path / "draft", words=VOCABULARY)
    options = DraftModelOptions(model=str(tmp_path / "draft"), steps=4)
    method = DraftModel.load(model, options)
    assert list(generate(model, method).output_ids) == greedy(model, 30)
    sampler = Sampler(Sampling(temperature=2.0), SeededChance(1))
    with torch.inference_mode():
        cache, prompt = model.new_cache(20), torch.tensor([*PROMPT, VOCABULARY - 1])
        drafter = method.start(
            Session(cache, 5, sampler, NO_EOS), prompt, model.prefill(prompt, cache)
        )
        draft = drafter.propose(VOCABULARY - 1, 4)
    assert draft.probabilities is not None
    assert draft.probabilities.shape == (4, VOCABULARY), "acceptance needs the target's vocabulary"
    assert max(draft.tree.tokens.tolist()[1:]) < min(size, VOCABULARY)
    assert draft.probabilities[:, size:].sum() == 0
    torch.testing.assert_close(draft.probabilities.sum(-1), torch.ones(4, dtype=torch.float64))


def test_the_draft_model_must_be_named(folder: str) -> None:
    with pytest.raises(UsageError, match=r"give draft_model\.model=NAME or FOLDER"):
        DraftModel.load(target(FAMILY), DraftModelOptions())
    with pytest.raises(UsageError, match=r"draft_model\.steps must be at least 1, not 0"):
        DraftModel.load(target(FAMILY), DraftModelOptions(model=folder, steps=0))


def test_another_vocabulary_is_refused_by_what_differs(folder: str, tmp_path: Path) -> None:
    model = with_tokenizer(FAMILY, tmp_path / "words")
    write_tokenizer(Path(folder), words=VOCABULARY - 2)
    with pytest.raises(UsageError) as caught:
        DraftModel.load(model, DraftModelOptions(model=folder))
    message = str(caught.value)
    assert "22 tokens against 24, 2 differ ('w22' is missing, not 22; 'w23' is missing" in message
    assert "\n" not in message
    tokenizer = Path(folder) / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"w3"', '"W3"'))
    with pytest.raises(UsageError, match=r"4 differ \('W3' is 3, not missing; 'w3' is mis"):
        DraftModel.load(model, DraftModelOptions(model=folder))


def test_a_run_compares_the_tokenizers(folder: str, tmp_path: Path) -> None:
    """Both have 24 ids, so nothing but the run's own tokenizer can tell that they differ."""
    request = Request(
        target=TargetChoice(model=str(save_model(tmp_path)), device="cpu"),
        entries=(EntryChoice(method="draft_model", options={"model": folder}),),
    )
    with pytest.raises(UsageError, match="has another tokenizer than"):
        load_bench(plan_of(request))


def test_without_a_tokenizer_only_equal_sizes_are_taken(tmp_path: Path) -> None:
    resized = random_model(FAMILY)
    resized.resize_token_embeddings(VOCABULARY + 8, mean_resizing=False)
    resized.save_pretrained(tmp_path / "draft")
    write_tokenizer(tmp_path / "draft", words=VOCABULARY)
    with pytest.raises(UsageError, match="has 32 token ids and the target 24: give Target"):
        DraftModel.load(target(FAMILY), DraftModelOptions(model=str(tmp_path / "draft")))


def test_the_record_says_which_model_drafted(folder: str) -> None:
    method = DraftModel.load(target(FAMILY), DraftModelOptions(model=folder))
    sha256 = load_model(folder, dtype="float64").sha256
    assert method.weights == {"sha256": sha256, "model": folder}
