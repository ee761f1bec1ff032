"""Training a draft head: what it reads, what it aims at, and that a kill changes nothing."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.training import features
from specbench_kangaroo.training.features import FINAL, Document, FeatureStore, collect
from specbench_kangaroo.training.teacher import (
    Batch,
    FrozenHead,
    Teacher,
    distillation_loss,
    distinct_rows,
    frequent_tokens,
    soft_cross_entropy,
)
from specbench_kangaroo.training.train import Hooks, Trainer, TrainSettings
from specbench_kangaroo.training.trainable import trainable

from .models import VOCABULARY, random_model

EOS = 2
SETTINGS = TrainSettings(
    max_tokens=9000,
    batch_tokens=150,
    learning_rate=1e-2,
    validation_share=0.2,
    validate_every=1000,
    patience=100,
)


def counting(count: int) -> list[Document]:
    """Documents of many lengths that count upwards."""
    documents = []
    for index in range(count):
        prompt, answer = 2 + index % 3, 9 + index % 4
        tokens = [4 + (index * 3 + step) % 20 for step in range(prompt + answer)]
        documents.append(Document((*tokens, EOS), prompt, "qa"))
    return documents


@pytest.fixture(scope="module")
def model() -> Any:
    return random_model("llama-gqa-tied", torch.float32)


@pytest.fixture(scope="module")
def store(model: Any, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    folder = tmp_path_factory.mktemp("features")
    return collect(model, counting(40), folder, model_name="tiny", exit_layers=[1, 2])


@pytest.fixture(scope="module")
def lm_head(model: Any) -> Tensor:
    weight: Tensor = model.lm_head.weight
    return weight.detach()


def everything(teacher: Teacher, store: FeatureStore, *, seed: int | None = None) -> list[Batch]:
    documents = range(len(store.spans))
    return list(teacher.batches(documents, 2, loss_tokens=60, seed=seed))


@torch.inference_mode()
def test_features_are_the_models_hidden_states(model: Any, store: FeatureStore) -> None:
    for document, (start, end) in zip(counting(40), store.spans, strict=True):
        assert store.tokens[start:end].tolist() == list(document.tokens)
        states = model.model(torch.tensor([document.tokens]), output_hidden_states=True)
        wanted: dict[int | str, Tensor] = {1: states.hidden_states[1], FINAL: states[0]}
        for layer, expected in wanted.items():
            found = store.hidden(layer)[start:end].astype(np.float32)
            # float16 keeps eleven bits; padding would show as a far larger error.
            np.testing.assert_allclose(found, expected[0].numpy(), rtol=1e-3, atol=1e-3)
    assert store.begins(counting(41))
    assert not store.begins(counting(39))
    with pytest.raises(KeyError, match=r"there are \(1, 2\)"):
        store.hidden(3)


def test_a_store_grows_when_it_was_stopped_or_the_text_did(
    model: Any, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "BATCH_TOKENS", 40)
    monkeypatch.setattr(features, "_SHARD_TOKENS", 70)

    def grow(documents: list[Document], stop_at: int = 10**6) -> FeatureStore:
        def check(done: int, total: int) -> None:
            assert total == sum(len(document.tokens) for document in documents)
            seen.append(done)
            if done >= stop_at:
                raise KeyboardInterrupt

        return collect(
            model, documents, tmp_path, model_name="tiny", exit_layers=[1, 2], on_progress=check
        )

    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        grow(counting(30), stop_at=200)
    kept = len(FeatureStore(tmp_path).tokens)
    assert 100 < kept < 200, "finished shards must be there after a kill"
    for name in ("tokens.bin", "hidden_2.bin"):  # as a kill between rows and index leaves them
        with (tmp_path / name).open("ab") as file:
            file.write(b"torn")
    seen.clear()
    grow(counting(30))
    assert kept < seen[0] <= kept + 70, "what was on disk was read again, or rows were left out"
    grown = grow(counting(40))
    assert grown.begins(counting(40))
    assert grown.spans == store.spans
    for layer in (1, 2, FINAL):
        np.testing.assert_allclose(grown.hidden(layer), store.hidden(layer), rtol=1e-2, atol=1e-3)
    with pytest.raises(UsageError, match="only grow at its end"):
        grow(counting(39))


def test_a_document_has_a_prompt() -> None:
    for prompt_length in (0, 4):
        with pytest.raises(ValueError, match="needs a prompt, but"):
            Document((5, 6, 7), prompt_length, "qa")


def test_the_loss_is_on_predictions_of_answer_tokens_alone(
    store: FeatureStore, lm_head: Tensor
) -> None:
    teacher = Teacher(store, lm_head, torch.arange(VOCABULARY), top_k=4)
    for index, document in enumerate(counting(40)):
        (batch,) = teacher.batches([index], 2, loss_tokens=60, seed=None)
        first, last = document.prompt_length - 1, len(document.tokens) - 2
        assert batch.rows[0].tolist() == list(range(first, last + 1)), (
            "the loss begins where the first answer token is predicted and ends before EOS's own "
            "position, whose next token nobody knows"
        )
        assert batch.labels.tolist() == list(document.tokens[first + 1 : last + 2])
        states = torch.from_numpy(store.hidden(2)[slice(*store.spans[index])].astype(np.float32))
        assert torch.equal(batch.hidden[0], states), "the adapter must see the prompt from BOS on"


def test_the_teacher_is_the_target_within_the_draft_vocabulary(
    store: FeatureStore, lm_head: Tensor
) -> None:
    vocabulary = torch.tensor([EOS, 4, 5, 6, 9, 13, 20])
    teacher = Teacher(store, lm_head, vocabulary, top_k=64)  # more than there are
    (batch,) = teacher.batches([3], 2, loss_tokens=60, seed=None)
    start, end = store.spans[3]
    final = torch.from_numpy(store.hidden(FINAL)[start:end].astype(np.float32))
    expected = (final[batch.rows[0]] @ lm_head[vocabulary].T).softmax(-1)  # (M, V')
    found = torch.zeros_like(expected).scatter(1, batch.teacher_ids, batch.teacher_probabilities)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    for label, row in zip(batch.labels.tolist(), batch.rows[0].tolist(), strict=True):
        token = int(store.tokens[start + row + 1])
        assert label == (vocabulary.tolist().index(token) if token in vocabulary else -1)


def test_an_epoch_holds_every_document_once(store: FeatureStore, lm_head: Tensor) -> None:
    teacher = Teacher(store, lm_head, torch.arange(VOCABULARY), top_k=4)
    expected = sorted(document.tokens[document.prompt_length :] for document in counting(40))
    orders = []
    for seed in (None, 1, 1, 2):
        order = []
        for batch in everything(teacher, store, seed=seed):
            longest = batch.hidden.shape[1]
            for row in range(len(batch.hidden)):
                order.append(tuple(batch.labels[batch.rows[0] // longest == row].tolist()))
        assert sorted(order) == expected, f"seed {seed} lost or repeated an answer"
        orders.append(order)
    assert orders[1] == orders[2], "a resumed epoch must bring the same batches"
    assert orders[1] != orders[3], "every epoch should bring other batches"


def test_padding_does_not_reach_the_predictions(
    model: Any, store: FeatureStore, lm_head: Tensor
) -> None:
    head = trainable("kangaroo").trainee(model, exit_layer=2).head(torch.arange(VOCABULARY))
    teacher = Teacher(store, lm_head, head.vocabulary, top_k=4)
    (together,) = teacher.batches([0, 1, 2, 3], 2, loss_tokens=1000, seed=None)
    alone = [
        next(teacher.batches([index], 2, loss_tokens=1, seed=None))
        for index in sorted(range(4), key=lambda i: store.spans[i][1] - store.spans[i][0])
    ]
    with torch.no_grad():
        found = head.states(together.hidden, together.rows)
        expected = torch.cat([head.states(batch.hidden, batch.rows) for batch in alone])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_soft_cross_entropy_is_the_sum_over_tokens() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 7, dtype=torch.float64)
    ids = torch.stack([torch.randperm(7)[:3] for _ in range(5)])
    probabilities = torch.rand(5, 3, dtype=torch.float64).softmax(-1)
    batch = Batch(torch.zeros(1, 5, 1), (torch.arange(5),), ids, probabilities, torch.zeros(5))
    total = 0.0
    for row in range(5):
        for token, p in zip(ids[row].tolist(), probabilities[row].tolist(), strict=True):
            total -= p * float(logits[row].softmax(-1)[token].log())
    assert abs(float(soft_cross_entropy(logits, batch)) - total / 5) < 1e-12


def test_the_chunked_loss_is_soft_cross_entropy_and_so_is_its_gradient() -> None:
    """More rows than a chunk has, so that the seams are in it."""
    torch.manual_seed(0)
    rows, size, vocabulary = 600, 8, 50
    weight = torch.randn(vocabulary, size, dtype=torch.float64)
    ids = torch.stack([torch.randperm(vocabulary)[:3] for _ in range(rows)])
    probabilities = torch.rand(rows, 3, dtype=torch.float64).softmax(-1)
    batch = Batch(torch.zeros(1), (torch.arange(rows),), ids, probabilities, torch.zeros(rows))
    states = torch.randn(rows, size, dtype=torch.float64, requires_grad=True)
    plain = soft_cross_entropy(states @ weight.T, batch)
    (wanted,) = torch.autograd.grad(plain, states)
    loss = distillation_loss(states, FrozenHead(weight), batch)
    (found,) = torch.autograd.grad(loss, states)
    torch.testing.assert_close(loss, plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_frequent_tokens_are_the_answers_own(store: FeatureStore) -> None:
    answers = [t for d in counting(40) for t in d.tokens[d.prompt_length :]]
    by_count = sorted(set(answers) - {23}, key=lambda token: (-answers.count(token), token))
    expected = sorted([*by_count[:7], 23])
    assert frequent_tokens(store, 8, always=[23]).tolist() == expected
    whole = frequent_tokens(store, VOCABULARY, always=[EOS])
    assert whole.tolist() == list(range(VOCABULARY)), "ids beyond the LM head, or one twice"


def alike(model: Any, folder: Path) -> FeatureStore:
    """Documents of which some begin alike, and some have no answer."""
    texts = [(5, 6, 7, 8, 9), (5, 6, 7, 10, 11, 12), (5, 6), (13, 6, 7, 8), (5, 6, 7, 8, 9, 14)]
    prompts = [3, 3, 2, 4, 6]
    documents = [Document(*each, "qa") for each in zip(texts, prompts, strict=True)]
    return collect(model, documents, folder, model_name="tiny", exit_layers=[1])


def test_what_documents_begin_with_alike_is_learnt_once(model: Any, tmp_path: Path) -> None:
    store = alike(model, tmp_path)
    rows = distinct_rows(store, range(5))
    read: list[tuple[int, ...]] = []
    for document, (start, end) in enumerate(store.spans):
        tokens = store.tokens[start:end].tolist()
        assert end - 1 not in rows[document], "nobody knows what follows a text's last token"
        read += [tuple(tokens[: row - start + 1]) for row in rows[document]]
    assert len(read) == len(set(read)), "a position was to be learnt from twice"
    everything = {
        tuple(store.tokens[start:stop].tolist())
        for start, end in store.spans
        for stop in range(start + 1, end)
    }
    assert set(read) == everything, "positions were lost"
    assert [len(r) for r in distinct_rows(store, [1, 3])] == [0, 5, 0, 3, 0]


def test_everywhere_learns_from_prompts_and_is_validated_on_answers(
    model: Any, lm_head: Tensor, tmp_path: Path
) -> None:
    store = alike(model, tmp_path)
    seen: list[int] = []
    for everywhere, expected in ((False, 3), (True, 5 + 3 + 2)):
        settings = replace(SETTINGS, everywhere=everywhere, max_tokens=1, batch_tokens=100)
        trainer = Trainer(Follower(lm_head), store, lm_head, settings, held_back=[0])
        state = trainer.run(Hooks(on_tokens=seen.append))
        # Held back: 8 and 9 are the answer.  Documents without one teach only everywhere.
        assert len(state.best_ranks) == 2
        assert seen == [expected]
        seen.clear()


def test_products_in_bfloat16_give_nearly_the_same_gradient() -> None:
    torch.manual_seed(0)
    weight = torch.randn(50, 64)
    ids = torch.stack([torch.randperm(50)[:3] for _ in range(40)])
    probabilities = torch.rand(40, 3).softmax(-1)
    batch = Batch(torch.zeros(1), (torch.arange(40),), ids, probabilities, torch.zeros(40))
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        states = (torch.randn(40, 64, generator=torch.manual_seed(1)) / 8).requires_grad_()
        loss = distillation_loss(states, FrozenHead(weight.to(dtype)), batch)
        assert loss.dtype is torch.float32
        found.append((float(loss.detach()), *torch.autograd.grad(loss, states)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-2)
    distance = (found[0][1] - found[1][1]).norm() / found[0][1].norm()
    assert 0 < distance < 2e-2, "equal: bfloat16 was not used; far: it is wrong"


def test_bfloat16_is_taken_only_where_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "probe_dtype", lambda *_: False)
    assert features.quick_dtype("cpu") is None
    monkeypatch.setattr(features, "probe_dtype", lambda *_: True)
    clock = iter(range(10**6))
    monkeypatch.setattr(features.time, "process_time", lambda: next(clock))
    assert features.quick_dtype("cpu") is None, "it is no quicker by this clock"
    assert features.quick_dtype("cuda") is None, "a GPU's default is bfloat16 already"
    # Two readings a product, float32 first: 3 s for float32, 1 s for bfloat16.
    ticks = cycle((3, 0, 1, 0))
    passed = [0]

    def uneven() -> int:
        passed[0] += next(ticks)
        return passed[0]

    next(ticks), next(ticks), next(ticks)
    monkeypatch.setattr(features.time, "process_time", uneven)
    assert features.quick_dtype("cpu") == "bfloat16"


class Follower:
    """A head that can learn what follows a token, to be trained without a method."""

    def __init__(self, lm_head: Tensor) -> None:
        torch.manual_seed(1)
        self.module: torch.nn.Module = torch.nn.Linear(lm_head.shape[1], lm_head.shape[1])
        self.exit_layer: int | str = 1
        self.vocabulary = torch.arange(VOCABULARY)
        self.ahead: tuple[int, ...] = (0,)

    def states(self, hidden: Tensor, rows: Sequence[Tensor]) -> Tensor:
        predicted: Tensor = self.module(hidden.flatten(0, 1)[rows[0]])
        return predicted


def test_a_killed_training_goes_on_as_if_it_had_not_stopped(
    store: FeatureStore, lm_head: Tensor, tmp_path: Path
) -> None:
    whole = Follower(lm_head)
    state = Trainer(whole, store, lm_head, SETTINGS).run()
    assert len(state.validations) > 5

    class KilledError(Exception):
        pass

    def kill_at(tokens: int) -> Callable[[int], None]:
        def check(seen: int) -> None:
            if seen >= tokens:
                raise KilledError

        return check

    checkpoint = tmp_path / "x.checkpoint"
    for tokens in (1700, 4300):  # in the middle of an epoch, and long after a validation
        trainer = Trainer(Follower(lm_head), store, lm_head, SETTINGS, checkpoint=checkpoint)
        with pytest.raises(KilledError):
            trainer.run(Hooks(on_tokens=kill_at(tokens)))
    resumed = Follower(lm_head)
    trainer = Trainer(resumed, store, lm_head, SETTINGS, checkpoint=checkpoint)
    assert 3000 < trainer.state.tokens_seen < 4300, "it must begin at the last validation"
    again = trainer.run()
    assert again.validations == state.validations, "the resumed training went another way"
    for key, tensor in whole.module.state_dict().items():
        assert torch.equal(tensor, resumed.module.state_dict()[key]), f"{key} differs"

    other = replace(SETTINGS, seed=5)
    with pytest.raises(UsageError, match="seed = 0, not 5"):
        Trainer(Follower(lm_head), store, lm_head, other, checkpoint=checkpoint)


def test_it_stops_when_nothing_gets_better(store: FeatureStore, lm_head: Tensor) -> None:
    settings = replace(SETTINGS, learning_rate=0.0, patience=2, validate_every=500)
    state = Trainer(Follower(lm_head), store, lm_head, settings).run()
    assert len(state.validations) == 3, "patience is the number of validations without a gain"
    assert state.best is state.validations[0], "of equal validations the first is the best"


def test_the_learning_rate_warms_up_and_decays() -> None:
    settings = TrainSettings(max_tokens=1000, learning_rate=1.0, warmup_share=0.1)
    rates = [settings.learning_rate_at(seen) for seen in (0, 50, 100, 500, 1000, 2000)]
    assert rates[0] < rates[1] < rates[2] > rates[3] > rates[4] > 0
    assert rates[4] == rates[5] == pytest.approx(settings.final_rate_share)
