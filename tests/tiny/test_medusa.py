"""Medusa: the published layouts and tree, what a step drafts, the lossy rule, its training."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from specbench_kangaroo.engine.clock import WallClock
from specbench_kangaroo.engine.decode import Decoded, Limits, decode
from specbench_kangaroo.engine.method import Session
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.training.features import FINAL, Document, collect
from specbench_kangaroo.training.teacher import Teacher
from specbench_kangaroo.training.train import Trainer, TrainSettings
from specbench_kangaroo.training.trainable import Provenance
from specbench_methods.medusa import Medusa, MedusaOptions
from specbench_methods.medusa.drafter import PUBLISHED
from specbench_methods.medusa.heads import (
    KIND,
    Heads,
    HeadsShape,
    write_untrained,
)
from specbench_methods.medusa.heads import load_heads as load_source
from specbench_methods.medusa.training import HEADS, MedusaTrainee
from specbench_methods.shared.weight_sources import locate
from specbench_methods.shared.weights import LoadedWeights

from .models import VOCABULARY, count_parameters, random_model, target

FAMILY = "llama-gqa-tied"
PROMPT = [5, 9, 3, 14, 7, 11, 3, 14]


@pytest.fixture
def heads(tmp_path: Path) -> str:
    return write_untrained(target(FAMILY).config, tmp_path / "heads.safetensors", own=False)


def load_heads(path: Path, config: Any) -> LoadedWeights:
    return load_source(locate(str(path), KIND), config)


def answer(method: Medusa, new: int = 24) -> Decoded:
    limits = Limits(max_new_tokens=new, eos=frozenset())
    return decode(target(FAMILY), method, PROMPT, limits=limits, clock=WallClock())


def test_four_own_heads_on_a_7b_target_have_the_published_size() -> None:
    shape = HeadsShape(heads=4, hidden_size=4096, vocab_size=32000, own=True)
    assert count_parameters(lambda: Heads(shape)) == 591_413_248
    shared = replace(shape, own=False)
    assert count_parameters(lambda: Heads(shared)) == 4 * (4096 * 4096 + 4096), (
        "a shared head has no output"
    )


def test_the_published_tree_has_its_63_nodes() -> None:
    by_depth = Counter(len(path) for path in PUBLISHED.paths)
    assert by_depth == {1: 10, 2: 28, 3: 23, 4: 2}
    assert len(PUBLISHED.parents) == 64


@pytest.mark.parametrize("own", [False, True])
def test_published_files_are_read_as_they_are(tmp_path: Path, own: bool) -> None:
    config = target(FAMILY).config
    ours = Heads(HeadsShape.of(config, heads=2, own=own)).state_dict()
    torch.save(ours, tmp_path / "medusa_lm_head.pt")
    whole = {f"medusa_head.{key}": tensor for key, tensor in ours.items()}
    torch.save(whole | {"model.norm.weight": torch.ones(2)}, tmp_path / "whole.bin")
    for path in (tmp_path, tmp_path / "whole.bin"):
        loaded = load_heads(path, config)
        shape = HeadsShape.in_file(loaded, config)
        assert (shape.heads, shape.own, len(loaded.tensors)) == (2, own, len(ours))
        for key, tensor in loaded.tensors.items():
            assert torch.equal(tensor, ours[key]), f"{path}: {key} is not what was saved"


def test_files_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    config = target(FAMILY).config
    good = Heads(HeadsShape.of(config, heads=2)).state_dict()
    bad: dict[str, dict[str, Any]] = {
        "0.0.linear.bias is missing": {k: v for k, v in good.items() if k != "0.0.linear.bias"},
        "1.1.weight does not belong": good | {"1.1.weight": torch.ones(2, 2)},
        "no tensor named 0.0.linear.weight": {"lm_head.weight": torch.ones(2, 2)},
        "needs .32, 32.": good | {"0.0.linear.weight": torch.ones(3, 3)},
    }
    for message, tensors in bad.items():
        torch.save(tensors, tmp_path / "medusa_lm_head.pt")
        with pytest.raises(UsageError, match=message):
            load_heads(tmp_path, config)
    with pytest.raises(UsageError, match="no Medusa heads at"):
        load_heads(tmp_path / "nowhere.pt", config)


def test_a_tree_deeper_than_the_heads_is_an_error(heads: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the tree published is 4 deep, but there are 3 heads"):
        Medusa.load(target(FAMILY), MedusaOptions(heads=heads, tree="published"))
    (tmp_path / "tree.json").write_text(json.dumps([[0], [1], [1, 0]]))
    options = MedusaOptions(heads=heads, tree=str(tmp_path / "tree.json"))
    assert Medusa.load(target(FAMILY), options).max_rows == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (MedusaOptions(tree="bushy"), "no tree 'bushy'; there are: best, published, chain"),
        (MedusaOptions(nodes=99), "give 1..8 with medusa.tree=best"),
        (MedusaOptions(tree="chain", nodes=2), "but the tree is chain"),
        (MedusaOptions(acceptance="lucky"), "must be exact or typical, not 'lucky'"),
    ],
)
def test_what_cannot_be_drafted_is_refused(
    heads: str, options: MedusaOptions, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Medusa.load(target(FAMILY), replace(options, heads=heads))


def test_without_heads_the_error_says_where_they_come_from() -> None:
    with pytest.raises(UsageError, match="make your own with specbench train medusa"):
        Medusa.load(target(FAMILY), MedusaOptions())


@torch.inference_mode()
def test_a_step_drafts_what_each_head_ranks_first(heads: str) -> None:
    """The heads written out plainly: h + SiLU(W h + b), then the LM head over their vocabulary."""
    model = target(FAMILY)
    method = Medusa.load(model, MedusaOptions(heads=heads, full_vocabulary=True))
    cache = model.new_cache(40)
    prefill = model.prefill(torch.tensor(PROMPT), cache)
    session = Session(cache, method.max_rows, None, frozenset())
    draft = method.start(session, torch.tensor(PROMPT), prefill).propose(3, budget=10)
    weights = load_heads(Path(heads), model.config).tensors
    for row, path in enumerate(method.tree.paths, start=1):
        weight, bias = (weights[f"{len(path) - 1}.0.linear.{kind}"] for kind in ("weight", "bias"))
        product = torch.nn.functional.linear(prefill.normed, weight.double(), bias.double())
        state = prefill.normed + torch.nn.functional.silu(product)
        ranked = (state @ model.lm_head.T)[0].argsort(descending=True)
        assert int(draft.tree.tokens[row]) == int(ranked[path[-1]]), f"the node {path} is wrong"
        assert draft.tree.parents[row] == ([(), *method.tree.paths].index(path[:-1]))


def test_typical_acceptance_is_lossy_and_says_so(heads: str) -> None:
    exact = Medusa.load(target(FAMILY), MedusaOptions(heads=heads))
    typical = Medusa.load(
        target(FAMILY), MedusaOptions(heads=heads, acceptance="typical", epsilon=0.02)
    )
    assert (exact.lossy, typical.lossy) == (False, True)
    accepted = [sum(step.accepted for step in answer(m).steps) for m in (exact, typical)]
    assert accepted[1] > accepted[0], "a low threshold must accept more than the argmax rule"
    assert answer(typical).output_ids != answer(exact).output_ids


def documents(count: int) -> list[Document]:
    return [
        Document(tuple((i * 3 + step) % 20 + 3 for step in range(9 + i % 4)), 3, "qa")
        for i in range(count)
    ]


def test_head_i_imitates_what_the_target_says_i_plus_one_positions_later(tmp_path: Path) -> None:
    model = random_model(FAMILY, torch.float32)
    store = collect(model, documents(3), tmp_path, model_name="tiny", exit_layers=[])
    lm_head = model.lm_head.weight.detach()
    vocabulary = torch.arange(VOCABULARY)
    teacher = Teacher(store, lm_head, vocabulary, top_k=3, ahead=(1, 2))
    (batch,) = teacher.batches([1], FINAL, loss_tokens=99, seed=None)
    tokens = documents(3)[1].tokens
    end = len(tokens) - 2  # the last position whose next token is known
    for group, ahead in enumerate((1, 2)):
        assert batch.rows[group].tolist() == list(range(2, end + 1 - ahead))
    labels = batch.labels.split([len(rows) for rows in batch.rows])
    for group, ahead in enumerate((1, 2)):
        wanted = [tokens[row + ahead + 1] for row in batch.rows[group].tolist()]
        assert labels[group].tolist() == wanted, "a head was shown another position's token"


def test_training_writes_heads_that_load_with_their_likeliest_paths(tmp_path: Path) -> None:
    model = random_model(FAMILY, torch.float32)
    store = collect(model, documents(12), tmp_path / "features", model_name="tiny", exit_layers=[])
    trainee = MedusaTrainee.of(model, None)
    head = trainee.head(torch.arange(VOCABULARY))
    settings = TrainSettings(
        max_tokens=1500,
        batch_tokens=60,
        learning_rate=5e-3,
        validate_every=500,
        validation_share=0.2,
    )
    state = Trainer(head, store, model.lm_head.weight.detach(), settings).run()
    assert len(state.best.by_position) == HEADS
    assert state.validations[-1].loss < state.validations[0].loss, "training must teach"
    trainee.save(
        tmp_path / "heads.safetensors", head, Provenance("tiny", "ab", {}, state.best_ranks)
    )
    loaded = load_heads(tmp_path / "heads.safetensors", model.config)
    shares = dict(loaded.info.paths)
    right = (state.best_ranks[:, 0] == 0).float().mean()
    assert shares[(0,)] == pytest.approx(float(right)), "a path's share is how often it was right"
    with pytest.raises(UsageError, match="leave --exit-layer out"):
        MedusaTrainee.of(model, 3)


def test_entries_with_other_trees_share_the_heads(tmp_path: Path) -> None:
    model = target(FAMILY)
    heads = write_untrained(model.config, tmp_path / "own.safetensors", own=True)
    deep = Medusa.load(model, MedusaOptions(heads=heads, tree="chain"))
    (tmp_path / "tree.json").write_text(json.dumps([[0], [1], [1, 0]]))
    flat = Medusa.load(model, MedusaOptions(heads=heads, tree=str(tmp_path / "tree.json")))
    assert flat._heads._own == deep._heads._own[:2], "an output matrix is there twice"
    assert answer(flat).output_ids == answer(deep).output_ids
