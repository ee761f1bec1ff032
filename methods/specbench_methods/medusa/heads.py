"""Medusa's heads: the modules, and the files that hold them.

Head i predicts token t+2+i from the target's final, normed state at t:
``p = softmax(W2 (h + SiLU(W1 h + b1)))``, with W2 of its own or the target's LM head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from specbench_kangaroo.record.errors import UsageError
from specbench_methods.shared.weight_sources import CONFIG, WeightKind, WeightSource
from specbench_methods.shared.weights import (
    LoadedWeights,
    WeightInfo,
    check_tensors,
    read_weights,
    save_weights,
)

KIND = WeightKind(
    method="medusa",
    option="heads",
    title="Medusa heads",
    names=(
        *("medusa.safetensors", "medusa_lm_head.safetensors", "medusa_lm_head.pt"),
        *("model.safetensors.index.json", "pytorch_model.bin.index.json"),  # whole models, v1.0
        *("model.safetensors", "pytorch_model.bin"),
    ),
    prefix="medusa_head.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadsShape:
    """How many heads for which target, and whether each has an output matrix of its own."""

    heads: int
    hidden_size: int
    vocab_size: int
    own: bool = False

    @classmethod
    def of(cls, config: Any, *, heads: int, own: bool = False) -> HeadsShape:
        """For a target with this ``transformers`` config."""
        return cls(
            heads=heads, hidden_size=config.hidden_size, vocab_size=config.vocab_size, own=own
        )

    @classmethod
    def in_file(cls, loaded: LoadedWeights, config: Any) -> HeadsShape:
        """Of all heads in a file.

        Raises:
            UsageError: there are none.
        """
        numbers = [int(key.split(".")[0]) for key in loaded.tensors if re.match(r"\d+\.", key)]
        if not numbers:
            raise UsageError(
                f"{loaded.path} holds no Medusa heads: no tensor named 0.0.linear.weight"
            )
        return cls.of(config, heads=1 + max(numbers), own="0.1.weight" in loaded.tensors)


class _ResBlock(nn.Module):
    """``x + SiLU(Linear(x))``; it starts as the identity, as the authors' does."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + functional.silu(self.linear(hidden))


class Heads(nn.ModuleList):
    """All heads; names are those of the published files: ``{i}.0.linear.weight``, ``{i}.1.weight``.

    Args:
        shape: with ``own`` each head ends in a bias-free (V, H) product.
    """

    def __init__(self, shape: HeadsShape) -> None:
        super().__init__(nn.ModuleList(_layers(shape)) for _ in range(shape.heads))
        self.shape = shape


def _layers(shape: HeadsShape) -> list[nn.Module]:
    own = [nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)] if shape.own else []
    return [_ResBlock(shape.hidden_size), *own]


def load_heads(source: WeightSource, config: Any) -> LoadedWeights:
    """Read heads strictly: our own file, a published one, or the heads of a whole model.

    Raises:
        UsageError: a file that is not whole, no heads in it, another target's heads, or a tensor
            that is missing, extra or misshapen.
    """
    loaded = read_weights(source, KIND)
    shape = HeadsShape.in_file(loaded, config)
    _check_layout(source, loaded.tensors, shape)
    sizes = {
        "hidden size": ("0.0.linear.bias", shape.hidden_size),
        "vocabulary size": ("0.1.weight", shape.vocab_size),
    }
    check_tensors(loaded, lambda: Heads(shape), sizes, owner=f"{shape.heads} Medusa heads")
    if not loaded.published:
        return loaded
    made_for = source.config.get("base_model_name_or_path")
    told = {"heads": shape.heads} | ({"target": str(made_for)} if made_for else {})
    return replace(loaded, record={**loaded.record, **told})


def _check_layout(source: WeightSource, tensors: Mapping[str, Tensor], shape: HeadsShape) -> None:
    """What tensors' names tell of the layout, against the config.

    The config's number of heads is a lower bound: that of FasterDecoding/medusa-vicuna-7b-v1.3
    says 2, and its file holds 5.
    """
    named = int(source.config.get("medusa_num_heads") or 0)
    if named > shape.heads:
        raise UsageError(
            f"{source.path} holds {shape.heads} heads, but the {CONFIG} beside it says {named}: "
            "fetch the file again"
        )
    if deeper := [key for key in tensors if re.match(r"\d+\.[1-9]\d*\.linear\.", key)]:
        raise UsageError(
            f"{source.path} has heads of several layers ({deeper[0]}): only those of one layer, as "
            "published, can be read"
        )


def write_untrained(config: Any, path: Path, *, own: bool) -> str:
    """Write three heads that change their state a little, with a small tree.

    For tests: with it a draft repeats what the target said one token earlier.
    """
    generator = torch.Generator().manual_seed(1 + own)
    heads = Heads(HeadsShape.of(config, heads=3, own=own))
    for tensor in heads.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    nodes = [(0,), (1,), (0, 0), (2,), (0, 1), (1, 0), (0, 0, 0), (3,)]
    info = WeightInfo(
        draft_vocabulary=None if own else tuple(range(config.vocab_size // 2)),
        paths=tuple((node, 1.0 / (1 + i)) for i, node in enumerate(nodes)),
    )
    heads.to(torch.float32)
    save_weights(path, heads, info, KIND)
    return str(path)
