"""One decoder layer over a few rows, by way of the transformers module or in fewer operations.

``ModuleLayer`` runs any module as it is, accelerate's hooks and quantised projections included.
``LeanLayer`` does the same arithmetic for Llama-shaped layers with fused projections and half of
the operations, which on a CPU is a third of a pass.  The target compares what it built with the
model's own forward pass before it is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from specbench_kangaroo.engine.attention import Visibility, attend
from specbench_kangaroo.engine.cache import Slots
from specbench_kangaroo.engine.families import is_plain
from specbench_kangaroo.engine.linear import Linear
from specbench_kangaroo.engine.placement import Rows, rotate

ATTENTION = "specbench"
_LLAMA_SHAPED = frozenset(
    {
        "LlamaDecoderLayer",
        "MistralDecoderLayer",
        "Phi3DecoderLayer",
        "Qwen2DecoderLayer",
        "Qwen3DecoderLayer",
        "SmolLM3DecoderLayer",
    }
)


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """Where a layer stands among the others: its index, attention window and rotation."""

    index: int
    window: int | None
    rotation: str | None = None


class Layer(Protocol):
    """Hidden states [T, H] to hidden states [T, H]; keys and values go into the cache."""

    def __call__(self, hidden: Tensor, rows: Rows, cache: Slots) -> Tensor:
        """Run the layer."""
        ...


class ModuleLayer:
    """A decoder layer as transformers wrote it."""

    def __init__(self, module: Any, spec: LayerSpec) -> None:
        self._module = module
        self._spec = spec

    def __call__(self, hidden: Tensor, rows: Rows, cache: Slots) -> Tensor:
        """See :class:`Layer`."""
        angles = rows.angles_of(self._spec.rotation)
        output = self._module(
            hidden[None],
            attention_mask=rows.visible[self._spec.window],  # reaches `attention` untouched
            position_ids=None,
            past_key_values=_Slot(cache, rows.slot),
            use_cache=True,
            position_embeddings=(angles.cos, angles.sin),
        )
        states: Tensor = output[0]
        return states.view_as(hidden)


class _Slot:
    """The cache protocol of transformers' attention modules, at a fixed slot of our cache."""

    def __init__(self, cache: Slots, slot: int) -> None:
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
    """Whether :class:`LeanLayer` knows this layer's arithmetic and can read its weights."""
    if type(module).__name__ not in _LLAMA_SHAPED:
        return False
    found = _Projections.of(module)
    every = (*found.qkv, found.output, *found.gate_up, found.down)
    return all(is_plain(projection) for projection in every)


@dataclass(frozen=True, slots=True)
class _Projections:
    """A layer's products, which Phi-3 has fused and the other families have not."""

    qkv: tuple[Any, ...]
    output: Any
    gate_up: tuple[Any, ...]
    down: Any

    @classmethod
    def of(cls, module: Any) -> _Projections:
        attention, mlp = module.self_attn, module.mlp
        if hasattr(attention, "qkv_proj"):
            return cls((attention.qkv_proj,), attention.o_proj, (mlp.gate_up_proj,), mlp.down_proj)
        qkv = (attention.q_proj, attention.k_proj, attention.v_proj)
        return cls(qkv, attention.o_proj, (mlp.gate_proj, mlp.up_proj), mlp.down_proj)


class LeanLayer:
    """A Llama-shaped decoder layer: fused projections, residuals added by the products."""

    def __init__(self, module: Any, spec: LayerSpec) -> None:
        attention, mlp = module.self_attn, module.mlp
        self._spec = spec
        self._size = attention.head_dim
        self._scale = attention.scaling
        found = _Projections.of(module)
        heads = sum(projection.out_features for projection in found.qkv) // self._size
        n_queries = found.output.in_features // self._size
        self._n_kv = (heads - n_queries) // 2
        self._n_rotated = n_queries + self._n_kv
        self._qkv, self._output = _fuse(*found.qkv), _fuse(found.output)
        self._gate_up, self._down = _fuse(*found.gate_up), _fuse(found.down)
        self._activation = getattr(mlp, "act_fn", None) or mlp.activation_fn
        self._norm_in, self._norm_mlp = module.input_layernorm, module.post_attention_layernorm
        self._norm_q = getattr(attention, "q_norm", None)
        self._norm_k = getattr(attention, "k_norm", None)
        self._rotates = bool(getattr(attention, "use_rope", True))  # SmolLM3: not every layer does

    def __call__(self, hidden: Tensor, rows: Rows, cache: Slots) -> Tensor:
        """See :class:`Layer`."""
        hidden = self._output.add_to(hidden, self._attend(hidden, rows, cache))
        gate, up = self._gate_up(rms_norm(hidden, self._norm_mlp)).chunk(2, dim=-1)  # [T, I] each
        return self._down.add_to(hidden, self._activation(gate) * up)

    def _attend(self, hidden: Tensor, rows: Rows, cache: Slots) -> Tensor:
        count = len(hidden)
        heads = self._qkv(rms_norm(hidden, self._norm_in)).view(count, -1, self._size)  # [T, n, d]
        rotated, values = heads[:, : self._n_rotated], heads[:, self._n_rotated :]
        if self._norm_q is not None:
            rotated = self._normed(rotated)
        if self._rotates:
            rotated = rotate(rotated, rows.angles_of(self._spec.rotation))
        rotated = rotated.transpose(0, 1)[None]  # [1, n_q + n_kv, T, d]
        queries, keys = rotated[:, : -self._n_kv], rotated[:, -self._n_kv :]
        stored = cache.write(self._spec.index, rows.slot, keys, values.transpose(0, 1)[None])
        visible = rows.visible[self._spec.window]
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
    weights = [projection.weight.detach() for projection in projections]
    weight = torch.cat(weights) if len(weights) > 1 else weights[0]  # not a copy of a single one
    if projections[0].bias is None:
        return Linear(weight)
    return Linear(weight, torch.cat([projection.bias.detach() for projection in projections]))
