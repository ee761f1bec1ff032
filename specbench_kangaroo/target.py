"""The target model as the engine needs it: embed, run decoder layers [a, b), read logits.

Knows: transformers' models (the only file beside layers.py that does).  Does not know: methods,
acceptance, time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from specbench_kangaroo.attention import ALL_VISIBLE, Visibility
from specbench_kangaroo.cache import CacheShape, KVCache
from specbench_kangaroo.errors import UsageError
from specbench_kangaroo.layers import (
    ATTENTION,
    Layer,
    LeanLayer,
    ModuleLayer,
    Rows,
    attention,
    is_llama_shaped,
)
from specbench_kangaroo.packed import Linear
from specbench_kangaroo.rope import Rope
from specbench_kangaroo.tree import attention_mask, chain_parents, depths

AttentionInterface.register(ATTENTION, attention)

_CHECK_TOKENS = 7
_CHECK_TOLERANCE = {  # of the largest logit; float64 too, as transformers' norms are float32
    torch.float64: 1e-5,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}


@dataclass(frozen=True, slots=True)
class TargetOutput:
    """What a pass of the target gives.

    Attributes:
        logits: (T, V).
        hidden: (T, H) after the final norm.
        taps: hidden states (T, H) after the layers that were asked for.
    """

    logits: Tensor
    hidden: Tensor
    taps: Mapping[int, Tensor] = field(default_factory=dict)


class Target:
    """A causal language model whose layers can be run by range on our cache.

    Args:
        model: a ``transformers`` causal language model in eval mode.  It becomes the target's: its
            attention implementation is switched to ours.
        name: what packaged draft weights are looked up by.
        tokenizer: the model's own, whose vocabulary a second model must share; None: not known.

    Raises:
        UsageError: the family's layers, run one by one, do not give what the model itself gives.
    """

    def __init__(self, model: Any, *, name: str = "", tokenizer: Any = None) -> None:
        self.model = model
        self.name = name
        self.tokenizer = tokenizer
        self.config = model.config
        self.n_layers: int = len(_decoder_layers(model))
        self.hidden_size: int = model.config.hidden_size
        self.context_length: int = model.config.max_position_embeddings
        self._embedding = model.get_input_embeddings()
        self.dtype: torch.dtype = self._embedding.weight.dtype
        self.device: torch.device = self._embedding.weight.device
        self.lm_head: Tensor = model.get_output_embeddings().weight.detach()  # (V, H)
        self.vocab_size: int = len(self.lm_head)
        self._windows = _windows(model.config, self.n_layers)
        self.rope = Rope(model.model.rotary_emb, model.config, self._embedding.weight[:1])
        self._head = Linear(self.lm_head)
        self._weight_shares = _weight_shares(model, self.lm_head.numel())
        with torch.inference_mode():
            self._layers = self._build()

    def _build(self) -> list[Layer]:
        modules = list(self.model.model.layers)
        ids = (torch.arange(_CHECK_TOKENS) * 7919) % self.vocab_size
        wanted = self.model(ids[None].to(self.device), use_cache=False).logits[0]
        self.model.set_attn_implementation(ATTENTION)
        for kind in (LeanLayer, ModuleLayer):
            if kind is LeanLayer and not all(is_llama_shaped(module) for module in modules):
                continue
            self._layers = [
                kind(module, index, self._windows[index]) for index, module in enumerate(modules)
            ]
            if self._agrees(ids, wanted):
                return self._layers
        raise _not_by_range(self.model, "its layers, run one by one, do not give its own logits")

    def _agrees(self, ids: Tensor, wanted: Tensor) -> bool:
        cache = self.new_cache(len(ids))
        half = len(ids) // 2
        first = self.prefill(ids[:half], cache).logits
        rest = self.rows(cache.length, chain_parents(len(ids) - half))
        hidden = self.layers(self.embed(ids[half:]), 0, self.n_layers, rest, cache)
        found = torch.cat((first, self.output(hidden).logits))
        error = (found - wanted[half - 1 :]).abs().max() / wanted.abs().max()
        return bool(error < _CHECK_TOLERANCE[self.dtype])

    def new_cache(self, capacity: int, *, layers: int | None = None) -> KVCache:
        """An empty cache of ``capacity`` slots for all layers, or for ``layers`` like the first."""
        count = self.n_layers if layers is None else layers
        return KVCache([self._cache_shape()] * count, capacity)

    def _cache_shape(self) -> CacheShape:
        projection = self.model.model.layers[0].self_attn.k_proj
        size = self.model.model.layers[0].self_attn.head_dim
        return CacheShape(projection.out_features // size, size, self.dtype, self.device)

    def embed(self, tokens: Tensor) -> Tensor:
        """(T,) token ids -> (T, H)."""
        embedded: Tensor = self._embedding(tokens.to(self.device))
        return embedded

    def rows(
        self, length: int, parents: Sequence[int], *, first: int = 0, rope: Rope | None = None
    ) -> Rows:
        """Place rows ``first ..`` of a tree above ``length`` committed positions.

        Args:
            rope: rotary angles other than the target's own, for a draft head that has its own.
        """
        parents = tuple(parents)
        positions = [length + depth for depth in depths(parents)[first:]]
        visible = {window: self._visible(parents, length, first, window) for window in self.windows}
        return Rows(length + first, (rope or self.rope).at(positions), visible)

    def prompt_rows(self, count: int, *, rope: Rope | None = None) -> Rows:
        """Place the ``count`` rows of a prompt in an empty cache; see :meth:`rows` for ``rope``."""
        visible = {
            window: Visibility(causal=True)
            if window is None or window >= count
            else Visibility(attention_mask(chain_parents(count), 0, window=window).to(self.device))
            for window in self.windows
        }
        return Rows(0, (rope or self.rope).at(range(count)), visible)

    def layers(self, hidden: Tensor, first: int, last: int, rows: Rows, cache: KVCache) -> Tensor:
        """Run decoder layers ``first .. last-1``: (T, H) -> (T, H)."""
        for layer in self._layers[first:last]:
            hidden = layer(hidden, rows, cache)
        return hidden

    def output(self, hidden: Tensor) -> TargetOutput:
        """Final norm and LM head over (T, H) states of the last layer."""
        normed = self.model.model.norm(hidden)
        return TargetOutput(self._head(normed), normed)

    def prefill(self, prompt: Tensor, cache: KVCache, *, taps: Sequence[int] = ()) -> TargetOutput:
        """Commit a prompt (P,) to an empty cache.

        Returns:
            Logits and hidden state of the last position alone, (1, V) and (1, H); ``taps`` keep all
            P positions after the named layers.
        """
        hidden = self.embed(prompt)
        rows = self.prompt_rows(len(prompt))
        tapped: dict[int, Tensor] = {}
        for stop, start in zip([*sorted(taps), self.n_layers], [0, *sorted(taps)], strict=True):
            hidden = self.layers(hidden, start, stop, rows, cache)
            if stop in taps:
                tapped[stop] = hidden
        cache.commit(range(len(prompt)))
        last = self.output(hidden[-1:])
        return TargetOutput(last.logits, last.hidden, tapped)

    @property
    def windows(self) -> frozenset[int | None]:
        """The attention windows that layers may use; None, full attention, is always there."""
        return frozenset({None, *self._windows})

    def weight_share(self, first_layer: int) -> float:
        """The share of a pass's weight bytes that layers ``first_layer ..`` and the head read."""
        return self._weight_shares[first_layer]

    def _visible(
        self, parents: tuple[int, ...], length: int, first: int, window: int | None
    ) -> Visibility:
        if window is not None and length + len(parents) <= window:
            window = None
        single = len(parents) - first == 1
        if window is None and single and parents == chain_parents(len(parents)):
            return ALL_VISIBLE
        mask = attention_mask(parents, length, first=first, window=window)
        return Visibility(mask.to(self.device))


def _decoder_layers(model: Any) -> Any:
    layers = getattr(getattr(model, "model", None), "layers", None)
    if layers is None:
        raise _not_by_range(model, "it has no stack of decoder layers at model.layers")
    return layers


def _not_by_range(model: Any, reason: str) -> UsageError:
    return UsageError(
        f"{type(model).__name__} cannot be run layer by layer: {reason}; use a Llama, Mistral, "
        "Qwen2 or Qwen3 model"
    )


def _weight_shares(model: Any, head: int) -> tuple[float, ...]:
    """For each layer, and for none: the share of all weights that remain, the head's included."""
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in model.model.layers]
    return tuple((sum(sizes[i:]) + head) / (sum(sizes) + head) for i in range(len(sizes) + 1))


def _windows(config: Any, n_layers: int) -> list[int | None]:
    """The sliding window of every layer, None where attention is full."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return [window if getattr(config, "use_sliding_window", True) else None] * n_layers
    known = {"full_attention": None, "sliding_attention": window}
    if unknown := set(kinds) - known.keys():
        raise UsageError(f"layers of type {', '.join(sorted(unknown))} cannot be run by range yet")
    return [known[kind] for kind in kinds]
