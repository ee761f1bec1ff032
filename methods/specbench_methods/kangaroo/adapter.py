"""Kangaroo's adapter: the trained part of its draft model, and the files that hold it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specbench_kangaroo.record.errors import UsageError
from specbench_methods.shared.weight_sources import WeightKind, WeightSource
from specbench_methods.shared.weights import (
    LoadedWeights,
    WeightInfo,
    check_tensors,
    read_weights,
    save_weights,
)

PUBLISHED_ROPE_BASE = 10_000.0  # fixed in the authors' code, whatever the target's own base
PUBLISHED_EXIT_LAYERS = {67_117_056: 2, 104_867_840: 3}  # of Vicuna 7B and 13B, by parameters
KIND = WeightKind(
    method="kangaroo",
    option="adapter",
    title="Kangaroo adapter",
    names=("kangaroo.safetensors", "model.safetensors", "pytorch_model.bin"),
)

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q [B, n_q, T, d], k [B, n_kv, T, d], v [B, n_kv, T, d]) -> [B, n_q, T, d]."""


@dataclass(frozen=True, slots=True)
class AdapterShape:
    """The target's head layout, which the adapter shares."""

    hidden_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    rms_norm_eps: float

    @classmethod
    def of(cls, config: Any) -> AdapterShape:
        """The layout of a ``transformers`` decoder config."""
        head_dim = getattr(config, "head_dim", None)
        return cls(
            hidden_size=config.hidden_size,
            n_heads=config.num_attention_heads,
            n_kv_heads=config.num_key_value_heads,
            head_dim=head_dim or config.hidden_size // config.num_attention_heads,
            rms_norm_eps=getattr(config, "rms_norm_eps", 1e-6),
        )


class _Attention(nn.Module):
    def __init__(self, shape: AdapterShape) -> None:
        super().__init__()
        self.shape = shape
        queries, keys = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, shape.hidden_size, bias=False)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        batch, rows, _ = hidden.shape
        heads = (batch, rows, -1, self.shape.head_dim)
        q = _rotate(self.q_proj(hidden).view(heads).transpose(1, 2), cos, sin)  # [B, n_q, T, d]
        k = _rotate(self.k_proj(hidden).view(heads).transpose(1, 2), cos, sin)  # [B, n_kv, T, d]
        v = self.v_proj(hidden).view(heads).transpose(1, 2)
        mixed = attend(q, k, v).transpose(1, 2).reshape(batch, rows, -1)  # [B, T, n_q * d]
        projected: Tensor = self.o_proj(mixed)
        return projected


class _Layer(nn.Module):
    def __init__(self, shape: AdapterShape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = _Attention(shape)


class Adapter(nn.Module):
    """``RMSNorm_out(h + Attention(RMSNorm_in(h)))``: no feed-forward part, no biases.

    Module names are those of the published checkpoint, so its keys are ours.
    """

    def __init__(self, shape: AdapterShape) -> None:
        super().__init__()
        self.shape = shape
        self.layers = nn.ModuleList([_Layer(shape)])
        self.norm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """Map exit-layer states to states that the target's LM head can read.

        Args:
            hidden: [B, T, H] after the exit layer.
            cos: RoPE cosines, broadcastable to [B, heads, T, d]; ``sin`` likewise.
            attend: attention over these rows and whatever the caller keeps of earlier ones.

        Returns:
            [B, T, H], normed.
        """
        (layer,) = self.layers
        assert isinstance(layer, _Layer)
        mixed = layer.self_attn(layer.input_layernorm(hidden), cos, sin, attend)
        normed: Tensor = self.norm(hidden + mixed)
        return normed


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE in the Llama layout: the two halves of a head are the two coordinates. [B, n, T, d]."""
    left, right = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-right, left), dim=-1) * sin


def write_untrained(config: Any, path: Path, *, exit_layer: int, vocabulary_size: int) -> str:
    """Write an adapter that changes its states a little, and drafts over the first tokens.

    For tests: with it a draft is what the exit layer alone would say.
    """
    generator = torch.Generator().manual_seed(exit_layer)
    adapter = Adapter(AdapterShape.of(config))
    for tensor in adapter.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1 + (tensor.dim() == 1))
    vocabulary = tuple(range(vocabulary_size))
    info = WeightInfo(exit_layer=exit_layer, draft_vocabulary=vocabulary)
    save_weights(path, adapter, info, KIND)
    return str(path)


def load_adapter(source: WeightSource, shape: AdapterShape) -> LoadedWeights:
    """Read a checkpoint strictly: our own file, or one in the authors' layout.

    Raises:
        UsageError: a file that is not whole, another target's adapter, or a tensor that is missing,
            extra or misshapen.
    """
    loaded = read_weights(source, KIND)
    sizes = {"hidden size": ("norm.weight", shape.hidden_size)}
    check_tensors(loaded, lambda: Adapter(shape), sizes, owner="a Kangaroo adapter")
    if not loaded.published:
        return loaded
    return replace(loaded, info=replace(loaded.info, rope_base=PUBLISHED_ROPE_BASE))


def exit_layer_of(loaded: LoadedWeights, given: int | None) -> int:
    """The exit layer that an adapter is for.

    A published checkpoint does not say it.  It is known for the authors' two adapters by their size
    and must be given for others.

    Raises:
        UsageError: it is not known, or it is not ``given``.
    """
    if loaded.published:
        known = given or PUBLISHED_EXIT_LAYERS.get(loaded.record["parameters"])
        if known is None:
            raise UsageError(
                f"{loaded.path} does not say its exit layer; add kangaroo.exit_layer=N"
            )
        return known
    if given not in (None, loaded.info.exit_layer):
        raise UsageError(
            f"{loaded.path} was trained for exit layer {loaded.info.exit_layer}, not {given}: "
            "leave kangaroo.exit_layer out"
        )
    return loaded.info.exit_layer
