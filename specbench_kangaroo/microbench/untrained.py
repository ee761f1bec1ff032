"""Draft heads that nobody has trained: what a draft costs on a model for which there is none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.training.trainable import Provenance, trainable, trainable_names


def untrained_drafts(
    model: Any, methods: Sequence[str], folder: Path, *, exit_layer: int | None
) -> dict[str, tuple[str, ...]]:
    """Write untrained heads for ``model``; returns by method the texts of the options they need.

    Args:
        model: a causal language model of transformers.
        methods: none means all whose draft can be trained for such a model; one that has nothing to
            train needs nothing and gets no options.
        folder: where the files are written.
        exit_layer: None leaves the choice to the method.

    Raises:
        UsageError: a method that was asked for by name cannot be made for this model.
    """
    known = trainable_names()
    found: dict[str, tuple[str, ...]] = {}
    for name in methods or known:
        try:
            found[name] = (
                _options(model, name, folder, exit_layer=exit_layer) if name in known else ()
            )
        except UsageError:
            if methods:
                raise
    return found


@torch.inference_mode()
def _options(model: Any, name: str, folder: Path, *, exit_layer: int | None) -> tuple[str, ...]:
    trainee = trainable(name).trainee(model, exit_layer=exit_layer)
    path = folder / f"{name}.safetensors"
    rows = len(model.get_output_embeddings().weight)
    head = trainee.head(torch.arange(rows, device=model.device))
    never_ranked = torch.zeros(1, len(head.ahead), dtype=torch.long)  # (R, O)
    trainee.save(path, head, Provenance("", "", {}, never_ranked))
    options = trainee.untrained_options(path)
    return tuple(f"{name}.{option}={value}" for option, value in options.items())
