"""From distilled text to a method's trained weights: documents, features, training, the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specbench_kangaroo import __version__
from specbench_kangaroo.engine.families import home
from specbench_kangaroo.engine.linear import matrix_of
from specbench_kangaroo.machine.cache_folder import sha256_of
from specbench_kangaroo.models.load import LoadedModel
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.files import replacing
from specbench_kangaroo.training.features import Document, FeatureStore, collect
from specbench_kangaroo.training.teacher import frequent_tokens
from specbench_kangaroo.training.text import read_documents
from specbench_kangaroo.training.train import Hooks, Trainer, TrainSettings, TrainState, Validation
from specbench_kangaroo.training.trainable import Provenance, trainable


@dataclass(frozen=True, slots=True, kw_only=True)
class FitPlan:
    """What is trained on what, and where it is kept."""

    texts: tuple[Path, ...]  # written by ``specbench distil``, or only to be read
    held_back: Path | None = None  # answers to validate on; None: a share of those in ``texts``
    features: Path  # folder: made, or used again if it holds these texts' features
    output: Path
    exit_layer: int | None = None  # None: the method's choice
    draft_vocabulary: int = 0  # the answers' most frequent tokens; 0: all there are
    resume: bool = False
    settings: TrainSettings

    @property
    def checkpoint(self) -> Path:
        """Beside the output; removed when training has ended."""
        return self.output.with_name(f"{self.output.name}.checkpoint")


def fit(
    method: str, loaded: LoadedModel, plan: FitPlan, *, hooks: Hooks | None = None
) -> TrainState:
    """Train ``method``'s draft for a target; the best weights so far are always in the output.

    Raises:
        UsageError: a method with nothing to train, text that cannot be used, features of other
            text, or a checkpoint that nobody asked to resume.
    """
    hooks = hooks or Hooks()
    _prepare_output(plan)
    trainee = trainable(method).trainee(loaded.model, exit_layer=plan.exit_layer)
    hooks.on_stage("reading text")
    text = _read(plan, loaded.tokenizer)
    hooks.on_stage("collecting features")
    store = _features(loaded, text.documents, plan.features, trainee.exit_layer, hooks)
    lm_head = _lm_head(loaded)
    head = trainee.head(_vocabulary(store, loaded, plan.draft_vocabulary, len(lm_head)))
    hooks.on_stage("training")  # begins with the target's predictions
    config, checkpoint = loaded.model.config, plan.checkpoint
    trainer = Trainer(
        head,
        store,
        lm_head,
        plan.settings,
        checkpoint=checkpoint,
        config=config,
        held_back=text.held_back,
    )
    about = {"method": method, "start": trainee.start, "text": text.files}
    about |= {"package_version": __version__, "dtype": loaded.dtype}

    def write(state: TrainState) -> None:
        record = {**state.record(plan.settings), **about}
        provenance = Provenance(loaded.name, loaded.sha256, record, state.best_ranks)
        with replacing(plan.output) as scratch:
            trainee.save(scratch, head, provenance)

    def on_validation(validation: Validation) -> None:
        if trainer.state.best is validation:  # these are the module's weights now
            write(trainer.state)
        hooks.on_validation(validation)

    state = trainer.run(replace(hooks, on_validation=on_validation))
    write(state)
    checkpoint.unlink()
    return state


@dataclass(frozen=True, slots=True)
class _Text:
    """All documents, what of them is held back, and each file as the weights' record names it."""

    documents: list[Document]
    held_back: range | None  # None: the trainer chooses
    files: list[dict[str, str | int]]  # their tokens include the prompts'


def _read(plan: FitPlan, tokenizer: Any) -> _Text:
    documents: list[Document] = []
    files: list[dict[str, str | int]] = []
    # What is held back comes first: the store of features can grow where the text does.
    for path in (*([plan.held_back] if plan.held_back else []), *plan.texts):
        found = read_documents(path, tokenizer)
        tokens = sum(len(document.tokens) for document in found)
        named: dict[str, str | int] = {"file": path.name, "sha256": sha256_of(path)}
        files.append({**named, "documents": len(found), "tokens": tokens})
        documents += found
    held_back = range(int(files[0]["documents"])) if plan.held_back else None
    _check(documents, held_back)
    return _Text(documents, held_back, files)


def _check(documents: Sequence[Document], held_back: range | None) -> None:
    def answered(some: Sequence[Document]) -> set[tuple[int, ...]]:
        return {d.tokens[: d.prompt_length] for d in some if d.prompt_length < len(d.tokens)}

    if held_back is None and len(answered(documents)) < 2:
        raise UsageError(
            f"{len(answered(documents))} answers to train on: at least one to train and one to "
            "validate are needed; give more --text"
        )
    if held_back is not None:
        prompts = answered(documents[: held_back.stop])
        both = sum(d.tokens[: d.prompt_length] in prompts for d in documents[held_back.stop :])
        if both or not prompts:
            reason = f"has {both} prompts of --text" if both else "has no answers"
            raise UsageError(f"the --held-back file {reason}; give answers to other prompts")


def _features(
    loaded: LoadedModel, documents: Sequence[Document], folder: Path, layer: int | str, hooks: Hooks
) -> FeatureStore:
    return collect(
        loaded.model,
        documents,
        folder,
        model_name=loaded.name,
        model_sha256=loaded.sha256,
        exit_layers=[layer] if isinstance(layer, int) else [],  # the final states always are
        on_progress=hooks.on_features,
    )


def _vocabulary(store: FeatureStore, loaded: LoadedModel, size: int, whole: int) -> Tensor:
    if 0 < size < whole:
        return frequent_tokens(store, size, always=sorted(loaded.eos_token_ids))
    return torch.arange(whole)


def _prepare_output(plan: FitPlan) -> None:
    """Find out now, not after hours, that the output cannot be written."""
    try:
        plan.output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {plan.output}: {error.strerror}") from error
    if plan.checkpoint.exists() and not plan.resume:
        raise UsageError(
            f"{plan.checkpoint} is left of a training that was stopped: add --resume to go on with "
            "it, or remove it"
        )


def _lm_head(loaded: LoadedModel) -> Tensor:
    """(V, H), frozen: bfloat16 where the target is, else float32."""
    module: Any = loaded.model.get_output_embeddings()
    weight = matrix_of(module, home(module))
    return weight if weight.dtype is torch.bfloat16 else weight.float()
