"""One decoder layer over a few rows, by way of the transformers module or in fewer operations.

Knows: transformers' decoder-layer modules, the cache, attention.  Does not know: whole models.

``ModuleLayer`` runs any module as it is.  ``LeanLayer`` does the same arithmetic for Llama-shaped
layers with fused projections and half of the operations, which on a CPU is a third of a pass.  The
target compares what it built with the model's own forward pass before it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from specbench_kangaroo.attention import Visibility, attend
from specbench_kangaroo.cache import KVCache
from specbench_kangaroo.packed import Linear
from specbench_kangaroo.rope import Angles, rotate

ATTENTION = "specbench"
_LLAMA_SHAPED = frozenset(
    {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}
)


@dataclass(frozen=True, slots=True)
class Rows:
    """Where some rows of a tree stand: their first cache slot, angles, and whom they see.

    ``visible`` has one entry per attention window that the target's layers use; None is full.
    """

    slot: int
    angles: Angles
    visible: Mapping[int | None, Visibility]


class Layer(Protocol):
    """Hidden states [T, H] to hidden states [T, H]; keys and values go into the cache."""

    def __call__(self, hidden: Tensor, rows: Rows, cache: KVCache) -> Tensor:
        """Run the layer."""
        ...


class ModuleLayer:
    """A decoder layer as transformers wrote it."""

    def __init__(self, module: Any, index: int, window: int | None) -> None:
        self._module = module
        self._index = index
        self._window = window

    def __call__(self, hidden: Tensor, rows: Rows, cache: KVCache) -> Tensor:
        """See :class:`Layer`."""
        output = self._module(
            hidden[None],
            attention_mask=rows.visible[self._window],  # reaches `attention` untouched
            position_ids=None,
            past_key_values=_Slot(cache, rows.slot),
            use_cache=True,
            position_embeddings=(rows.angles.cos, rows.angles.sin),
        )
        states: Tensor = output[0]
        return states.view_as(hidden)


class _Slot:
    """The cache protocol of transformers' attention modules, at a fixed slot of our cache."""

    def __init__(self, cache: KVCache, slot: int) -> None:
        self._cache = cache
        self._slot = slot

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        stored = self._cache.write(layer, self._slot, keys, values)
        return stored.keys, stored.values


def attention(
    module: Any,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    visible: Visibility,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Our attention behind the signature of ``transformers.AttentionInterface``."""
    mixed = attend(queries, keys, values, visible, scale=scaling, softcap=softcap)
    return mixed.transpose(1, 2).contiguous(), None


def is_llama_shaped(module: Any) -> bool:
    """Whether :class:`LeanLayer` knows this layer's arithmetic."""
    return type(module).__name__ in _LLAMA_SHAPED


class LeanLayer:
    """A Llama-shaped decoder layer: fused projections, residuals added by the products."""

    def __init__(self, module: Any, index: int, window: int | None) -> None:
        attention, mlp = module.self_attn, module.mlp
        self._index = index
        self._window = window
        self._size = attention.head_dim
        self._scale = attention.scaling
        self._n_kv = attention.k_proj.out_features // self._size
        self._n_rotated = attention.q_proj.out_features // self._size + self._n_kv
        self._qkv = _fuse(attention.q_proj, attention.k_proj, attention.v_proj)
        self._output = _fuse(attention.o_proj)
        self._gate_up = _fuse(mlp.gate_proj, mlp.up_proj)
        self._down = _fuse(mlp.down_proj)
        self._activation = mlp.act_fn
        self._norm_in, self._norm_mlp = module.input_layernorm, module.post_attention_layernorm
        self._norm_q = getattr(attention, "q_norm", None)
        self._norm_k = getattr(attention, "k_norm", None)

    def __call__(self, hidden: Tensor, rows: Rows, cache: KVCache) -> Tensor:
        """See :class:`Layer`."""
        hidden = self._output.add_to(hidden, self._attend(hidden, rows, cache))
        gate, up = self._gate_up(rms_norm(hidden, self._norm_mlp)).chunk(2, dim=-1)  # [T, I] each
        return self._down.add_to(hidden, self._activation(gate) * up)

    def _attend(self, hidden: Tensor, rows: Rows, cache: KVCache) -> Tensor:
        count = len(hidden)
        heads = self._qkv(rms_norm(hidden, self._norm_in)).view(count, -1, self._size)  # [T, n, d]
        rotated, values = heads[:, : self._n_rotated], heads[:, self._n_rotated :]
        if self._norm_q is not None:
            rotated = self._normed(rotated)
        rotated = rotate(rotated, rows.angles).transpose(0, 1)[None]  # [1, n_q + n_kv, T, d]
        queries, keys = rotated[:, : -self._n_kv], rotated[:, -self._n_kv :]
        stored = cache.write(self._index, rows.slot, keys, values.transpose(0, 1)[None])
        visible = rows.visible[self._window]
        mixed = attend(queries, stored.keys, stored.values, visible, scale=self._scale)
        return mixed[0].transpose(0, 1).reshape(count, -1)  # [T, n_q * d]

    def _normed(self, rotated: Tensor) -> Tensor:
        queries, keys = rotated[:, : -self._n_kv], rotated[:, -self._n_kv :]
        return torch.cat((rms_norm(queries, self._norm_q), rms_norm(keys, self._norm_k)), dim=1)


def rms_norm(hidden: Tensor, module: Any) -> Tensor:
    """The Llama-style norm ``module`` over the last dimension, as one operation."""
    weight = module.weight
    return functional.rms_norm(hidden, weight.shape, weight, module.variance_epsilon)


def _fuse(*projections: Any) -> Linear:
    weights = torch.cat([projection.weight.detach() for projection in projections])
    if projections[0].bias is None:
        return Linear(weights)
    return Linear(weights, torch.cat([projection.bias.detach() for projection in projections]))
