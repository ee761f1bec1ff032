"""From distilled text to a file of weights: what is kept, what is refused, what a kill costs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from specbench_kangaroo import __version__
from specbench_kangaroo.bench.registry import method_class, parse_options
from specbench_kangaroo.cli import training
from specbench_kangaroo.engine.target import Target
from specbench_kangaroo.machine.cache_folder import sha256_of
from specbench_kangaroo.models import load
from specbench_kangaroo.models.load import LoadedModel
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.training.features import Document
from specbench_kangaroo.training.fit import FitPlan, fit
from specbench_kangaroo.training.train import Hooks, Validation
from specbench_kangaroo.training.trainable import Provenance, trainable, trainable_names

from .models import CONTEXT, VOCABULARY, random_model
from .test_distil import Words, one_by_one
from .test_training import EOS, SETTINGS, counting


@pytest.fixture(scope="module")
def model() -> Any:
    return random_model("llama-gqa-tied", torch.float32)


@pytest.fixture(scope="module")
def distilled(model: Any) -> list[Document]:
    """The target's own answers: a random target soon repeats itself, so they can be learnt."""
    documents = []
    for document in counting(40):
        prompt = document.tokens[: document.prompt_length]
        answer = one_by_one(loaded(model), " ".join(map(str, prompt)), 16)
        documents.append(Document((*prompt, *answer), len(prompt), "qa"))
    return documents


def loaded(model: Any) -> LoadedModel:
    ends = frozenset({EOS})
    return LoadedModel("tiny", model, Words(), "float32", "cpu", "ab" * 32, None, ends, CONTEXT)


@pytest.fixture
def plan(tmp_path: Path, distilled: list[Document]) -> FitPlan:
    """Two files of distilled text, and everything else still to be made."""
    texts = (tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    for path, documents in zip(texts, (distilled[:25], distilled[25:]), strict=True):
        records = []
        for document in documents:
            prompt = " ".join(map(str, document.tokens[: document.prompt_length]))
            response = document.tokens[document.prompt_length :]
            records.append({"task": "qa", "prompt": prompt, "response_ids": response})
        path.write_text("\n".join(map(json.dumps, records)))
    return FitPlan(
        texts=texts,
        features=tmp_path / "features",
        output=tmp_path / "new" / "draft.safetensors",
        exit_layer=2,
        settings=SETTINGS,
    )


def read_metadata(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        (text,) = file.metadata().values()
    metadata: dict[str, Any] = json.loads(text)
    return metadata


def test_training_teaches_and_the_file_says_how(
    model: Any, plan: FitPlan, distilled: list[Document]
) -> None:
    stages: list[str] = []
    state = fit("kangaroo", loaded(model), plan, hooks=Hooks(on_stage=stages.append))
    assert stages[-1] == "training"
    losses = [validation.loss for validation in state.validations]
    assert min(losses[1:]) < losses[0] - 0.03, "training on text that repeats itself must teach"
    assert not plan.checkpoint.exists(), "a finished training leaves no checkpoint"
    metadata = read_metadata(plan.output)
    assert (metadata["target"], metadata["target_sha256"]) == ("tiny", "ab" * 32)
    assert (metadata["exit_layer"], metadata["draft_vocabulary"]) == (2, None)
    record = metadata["record"]
    assert record["method"] == "kangaroo"
    assert record["start"] == "from the target's layer 2"
    assert record["package_version"] == __version__
    assert record["settings"]["learning_rate"] == SETTINGS.learning_rate
    assert record["validation_agreement"] == state.best.agreement
    seen = [{**each, "by_position": tuple(each["by_position"])} for each in record["validations"]]
    assert [Validation(**each) for each in seen] == state.validations
    assert record["tokens_seen"] == state.tokens_seen
    assert record["seconds"] >= 0
    assert [text["file"] for text in record["text"]] == ["a.jsonl", "b.jsonl"]
    assert record["text"][0]["sha256"] == sha256_of(plan.texts[0])
    for text, documents in zip(record["text"], (distilled[:25], distilled[25:]), strict=True):
        # An answer of one token has nothing to draft.
        usable = [d for d in documents if len(d.tokens) - d.prompt_length > 1]
        assert text["documents"] == len(usable)
        assert text["tokens"] == sum(len(document.tokens) for document in usable)


def test_the_method_runs_what_was_trained(model: Any, plan: FitPlan) -> None:
    plan = replace(plan, draft_vocabulary=12, settings=replace(SETTINGS, max_tokens=500))
    fit("kangaroo", loaded(model), plan)
    metadata = read_metadata(plan.output)
    assert len(metadata["draft_vocabulary"]) == 12
    assert EOS in metadata["draft_vocabulary"], "a draft that cannot end the text wastes its steps"
    options = parse_options("kangaroo", {"adapter": str(plan.output)})
    target = Target(random_model("llama-gqa-tied", torch.float32), name="tiny")
    method = method_class("kangaroo").load(target, options)
    assert method.weights["text"][0]["file"] == "a.jsonl"


def test_the_best_weights_are_on_disk_at_every_validation(model: Any, plan: FitPlan) -> None:
    kept: list[float] = []

    def look(validation: Validation) -> None:
        record = read_metadata(plan.output)["record"]
        kept.append(record["validation_agreement"])
        assert kept[-1] >= validation.agreement, "a kill now would lose the best weights"
        if len(kept) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit("kangaroo", loaded(model), plan, hooks=Hooks(on_validation=look))
    with pytest.raises(UsageError, match="add --resume"):
        fit("kangaroo", loaded(model), plan)
    resumed = fit("kangaroo", loaded(model), replace(plan, resume=True))

    whole = replace(plan, output=plan.output.with_name("whole.safetensors"))
    uninterrupted = fit("kangaroo", loaded(model), whole)
    assert resumed.validations == uninterrupted.validations
    first, second = load_file(plan.output), load_file(whole.output)
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), f"{key} differs after a resumed training"


def test_features_are_made_once_and_never_mistaken(
    model: Any, plan: FitPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = replace(plan, settings=replace(SETTINGS, max_tokens=300))
    made: list[int] = []
    hooks = Hooks(on_features=lambda done, total: made.append(done))
    fit("kangaroo", loaded(model), short, hooks=hooks)
    count = len(made)
    assert count > 0
    fit("kangaroo", loaded(model), short, hooks=hooks)
    assert len(made) == count, "finished features were computed again"

    refused = {
        "lacks layer 1, it has 2": (loaded(model), replace(short, exit_layer=1)),
        "features of other text": (loaded(model), replace(short, texts=plan.texts[:1])),
        "features of tiny, not of this": (replace(loaded(model), sha256="cd" * 32), short),
    }
    for message, (other, wanted) in refused.items():
        with pytest.raises(UsageError, match=message):
            fit("kangaroo", other, wanted)
    (plan.features / "meta.json").unlink()  # as a kill in the middle of it leaves the folder
    fit("kangaroo", loaded(model), short, hooks=hooks)
    assert len(made) == 2 * count


def test_what_cannot_be_trained_is_said_at_once(model: Any, plan: FitPlan) -> None:
    with pytest.raises(UsageError, match=r"vanilla has nothing to train; these have: .*kangaroo"):
        fit("vanilla", loaded(model), plan)
    with pytest.raises(UsageError, match="did you mean 'kangaroo'"):
        fit("kangaro", loaded(model), plan)
    for layer in (0, 4):
        with pytest.raises(UsageError, match=r"give one of 1\.\.3"):
            fit("kangaroo", loaded(model), replace(plan, exit_layer=layer))
    plan.texts[0].write_text(json.dumps({"prompt": "5", "response_ids": [6, 7]}))
    with pytest.raises(UsageError, match="1 answers to train on"):
        fit("kangaroo", loaded(model), replace(plan, texts=plan.texts[:1]))


@pytest.mark.parametrize("name", trainable_names())
def test_every_trainable_method_loads_what_it_saved(name: str, model: Any, tmp_path: Path) -> None:
    trainee = trainable(name).trainee(model, exit_layer=None)
    assert trainee.start
    head = trainee.head(torch.arange(VOCABULARY))
    assert list(head.vocabulary) == list(range(VOCABULARY))
    assert any(parameter.requires_grad for parameter in head.module.parameters())
    ranks = torch.zeros(3, len(head.ahead), dtype=torch.int32)
    record = {"start": trainee.start}
    trainee.save(tmp_path / "draft", head, Provenance("tiny", "ab", record, ranks))
    assert (tmp_path / "draft").stat().st_size > 0


def test_the_commands_pass_their_flags_on(
    model: Any, plan: FitPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "load_model", lambda *_, **__: loaded(model))
    app = typer.Typer()
    app.command("distil")(training.distil)
    app.add_typer(training.train, name="train")
    prompts, answers = plan.texts[0], tmp_path / "answers.jsonl"
    flags = "--max-new-tokens 5 --max-prompt-tokens 20 --batch 4 --limit 6"
    command = ["distil", str(prompts), "--output", str(answers), *flags.split()]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "6 prompts answered" in result.stderr, "progress and summary belong on standard error"
    records = [json.loads(line) for line in answers.read_text().splitlines()]
    assert max(len(record["response_ids"]) for record in records) == 5

    where = ["--text", str(answers), "--features", str(plan.features), "--output"]
    flags = "--max-tokens 40 --batch-tokens 9 --validate-every 20 --exit-layer 3 --seed 4"
    command = ["train", "kangaroo", *where, str(plan.output), *flags.split()]
    result = CliRunner().invoke(app, [*command, "--draft-vocabulary", "7"])
    assert result.exit_code == 0, result.output
    metadata = read_metadata(plan.output)
    assert (metadata["exit_layer"], len(metadata["draft_vocabulary"])) == (3, 7)
    settings = metadata["record"]["settings"]
    assert (settings["max_tokens"], settings["batch_tokens"], settings["seed"]) == (40, 9, 4)
