"""Kangaroo's side of training: the adapter as a draft head over stored exit-layer states.

The published exit layers are 2 of 32 and 3 of 40 (arXiv 2404.18911, section 4.1): one in sixteen.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from specbench_kangaroo.engine.layers import is_llama_shaped
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.training.train import DraftHead
from specbench_kangaroo.training.trainable import Provenance
from specbench_methods.kangaroo.adapter import KIND, Adapter, AdapterShape
from specbench_methods.shared.weights import WeightInfo, save_weights

_PUBLISHED_DEPTH = 16  # target layers for each one of the draft's


@dataclass(frozen=True, slots=True)
class KangarooTrainee:
    """An adapter for one target and exit layer, to be trained; see :class:`Trainee`."""

    model: Any
    exit_layer: int | str
    start: str

    @classmethod
    def of(cls, model: Any, exit_layer: int | None) -> KangarooTrainee:
        """Check the exit layer, or choose the published share of the target's depth."""
        _check_family(model)
        n_layers = len(model.model.layers)
        layer = math.ceil(n_layers / _PUBLISHED_DEPTH) if exit_layer is None else exit_layer
        if not 0 < layer < n_layers:
            raise UsageError(
                f"the exit layer is {layer}, but the target has {n_layers} layers: "
                f"give one of 1..{n_layers - 1}"
            )
        return cls(model, layer, f"from the target's layer {layer}")

    def head(self, vocabulary: Tensor) -> AdapterHead:
        """An adapter that begins as the target's own attention of the first layer left out."""
        head = AdapterHead(self.model, exit_layer=int(self.exit_layer), vocabulary=vocabulary)
        start_from_target(head.module, self.model, int(self.exit_layer))
        return head

    def save(self, path: Path, head: DraftHead, provenance: Provenance) -> None:
        """Write the safetensors file that Kangaroo loads."""
        restricted = len(head.vocabulary) < len(self.model.lm_head.weight)
        info = WeightInfo(
            exit_layer=int(self.exit_layer),
            target=provenance.target,
            target_sha256=provenance.target_sha256,
            draft_vocabulary=tuple(head.vocabulary.tolist()) if restricted else None,
            record=provenance.record,
        )
        save_weights(path, head.module, info, KIND)


def _check_family(model: Any) -> None:
    layer = model.model.layers[0]
    if not is_llama_shaped(layer) or not hasattr(layer.self_attn, "q_proj"):
        raise UsageError(
            f"a Kangaroo adapter cannot be trained for {type(model).__name__}: it starts from the "
            "target's own attention, which must be Llama's, neither fused nor quantised; "
            "medusa can be trained"
        )


class AdapterHead:
    """The adapter over whole documents at once; its states go to the target's LM head.

    Args:
        model: the target, a ``transformers`` causal language model; it is read, never changed.
        vocabulary: (V',) the LM-head rows that the draft predicts over.
    """

    def __init__(self, model: Any, *, exit_layer: int, vocabulary: Tensor) -> None:
        self.exit_layer: int | str = exit_layer
        self.vocabulary = vocabulary
        self.ahead: tuple[int, ...] = (0,)
        weight = model.lm_head.weight.detach()
        self.module: nn.Module = Adapter(AdapterShape.of(model.config)).to(weight.device)
        self._rotary = copy.deepcopy(model.model.rotary_emb)

    def states(self, hidden: Tensor, rows: Sequence[Tensor]) -> Tensor:
        """(M, H) at ``rows`` of the flattened ``hidden`` [B, S, H]; each document starts at 0."""
        (own,) = rows
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]  # [1, S]
        cos, sin = self._rotary(hidden, positions)  # [1, S, d] each
        states: Tensor = self.module(hidden, cos[:, None], sin[:, None], _causal)  # [B, S, H]
        return states.flatten(0, 1)[own]


def start_from_target(adapter: nn.Module, model: Any, exit_layer: int) -> None:
    """Begin from the attention of the first layer that is left out, and the target's final norm.

    A random start needs millions of tokens to learn what this layer's attention already does.
    """
    source = model.model.layers[exit_layer]
    wanted = adapter.state_dict()
    tensors = {
        "norm.weight": model.model.norm.weight,
        "layers.0.input_layernorm.weight": source.input_layernorm.weight,
    }
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        tensors[f"layers.0.self_attn.{name}.weight"] = getattr(source.self_attn, name).weight
    adapter.load_state_dict({key: tensors[key].detach().float().clone() for key in wanted})


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
