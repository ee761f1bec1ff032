"""A model's passes over many texts that grow side by side, each in a place of its own.

The caches are made once and written by position, so nothing is copied as texts grow.  Attention
reads the keys of neighbouring places up to the longest text among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface

from specbench_kangaroo.engine.attention import attend_capped
from specbench_kangaroo.engine.families import layout_of, not_by_range
from specbench_kangaroo.engine.linear import capped

_ATTENTION = "specbench-many-texts"
_PLACES_TOGETHER = 16  # whose keys are read by one operation
_CHECK_TOKENS = 7
_CHECK_TOLERANCE = 0.1  # of the largest logit: bfloat16's rounding, while another model is far off


@dataclass(frozen=True, slots=True)
class _Visible:
    """What rows see in layers of one attention window.

    Attributes:
        mask: bool, of a step (B, 1, 1, S), of a prefill (P, P) or None for plain causal.
        lengths: of a step, how many keys each place has; empty for a prefill.
    """

    mask: Tensor | None
    lengths: Sequence[int] = ()


class Passes:
    """A model's passes over prompts and over one token of every place, layer by layer.

    It stands in for the cache that transformers' attention modules write to, and runs within
    :func:`our_attention`.

    Args:
        places: B, how many texts there is room for.
        capacity: positions of each.
    """

    def __init__(self, model: Any, places: int, capacity: int) -> None:
        self._model = model
        self._layout = layout_of(model)
        self._shape = (places, max(capacity, _CHECK_TOKENS))
        self._keys: dict[int, Tensor] = {}  # by layer: [B, n_kv, capacity, d]
        self._values: dict[int, Tensor] = {}
        self._where: Any = None  # the rows' places and positions in these

    @torch.inference_mode()
    def check(self) -> None:
        """Compare a prompt and a step with the model's own forward pass.

        Raises:
            UsageError: the family computes something else beside its layers.
        """
        ids = ((torch.arange(_CHECK_TOKENS) * 7919) % self._model.config.vocab_size).tolist()
        others = [0] * (self._shape[0] - 1)
        with our_attention(self._model, "eager"):  # the one that every family is written for
            own = self._model(torch.tensor([ids]).to(self._model.device), use_cache=False)
        with our_attention(self._model):
            first = self.prefill([0], [ids[:-1]])
            second = self.step([ids[-1], *others], [len(ids) - 1, *others])[:1]
        wanted = own.logits[0, -2:].float()
        error = (torch.cat((first, second)).float() - wanted).abs().max() / wanted.abs().max()
        if not error < _CHECK_TOLERANCE:
            reason = "its layers, run one by one, do not give its own logits"
            raise not_by_range(self._model, reason)

    def prefill(self, places: Sequence[int], prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read prompts into empty places: logits [P, V] after the last token of each."""
        ids = pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True)
        longest = ids.shape[1]  # padded on the right: no token sees it, and answers overwrite it
        self._where = (torch.tensor(places), slice(None), slice(longest))
        positions = torch.arange(longest)
        apart = positions[:, None] - positions
        visible = {
            window: _Visible(None if window is None else (apart >= 0) & (apart < window))
            for window in {*self._layout.windows}
        }
        hidden = self._run(ids, positions[None].expand_as(ids), visible)
        last = torch.tensor([len(prompt) - 1 for prompt in prompts], device=hidden.device)
        return self._logits(hidden[torch.arange(len(prompts), device=hidden.device), last])

    def step(self, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Read one token of every place, at its position there: logits [B, V]."""
        at = torch.tensor(positions)
        self._where = (torch.arange(len(tokens)), slice(None), at)
        lengths = [position + 1 for position in positions]
        apart = at[:, None, None, None] - torch.arange(max(lengths))  # [B, 1, 1, S]
        visible = {}
        for window in {*self._layout.windows}:
            within = apart >= 0 if window is None else (apart >= 0) & (apart < window)
            visible[window] = _Visible(within, lengths)
        states = self._run(torch.tensor(tokens)[:, None], at[:, None], visible)
        return self._logits(states[:, 0])

    def _run(
        self, ids: Tensor, positions: Tensor, visible: Mapping[int | None, _Visible]
    ) -> Tensor:
        """Token ids [b, T] at ``positions`` [b, T] -> normed final states [b, T, H]."""
        stack, layout = self._model.model, self._layout
        hidden: Tensor = self._model.get_input_embeddings()(ids.to(self._model.device))
        positions = positions.to(hidden.device)
        angles = {}
        for rotation in {*layout.rotations}:
            kind = rotation or layout.main_rotation
            angles[rotation] = stack.rotary_emb(hidden, positions, *([kind] if kind else []))
        for index, layer in enumerate(stack.layers):
            output = layer(
                hidden,
                attention_mask=visible[layout.windows[index]],  # reaches `_attention` untouched
                past_key_values=self,
                use_cache=True,
                position_embeddings=angles[layout.rotations[index]],
            )
            hidden = output if isinstance(output, Tensor) else output[0]
        normed: Tensor = stack.norm(hidden)
        return normed

    def _logits(self, normed: Tensor) -> Tensor:
        logits: Tensor = self._model.get_output_embeddings()(normed)
        return capped(logits, self._model.config)

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write [b, n_kv, T, d]: a prompt sees what it brings, a step's token the whole cache."""
        if layer not in self._keys:
            places, capacity = self._shape
            room = (places, keys.shape[1], capacity)
            self._keys[layer] = keys.new_zeros(*room, keys.shape[-1])
            self._values[layer] = values.new_zeros(*room, values.shape[-1])
        if isinstance(self._where[-1], slice):
            self._keys[layer][self._where], self._values[layer][self._where] = keys, values
            return keys, values
        self._keys[layer][self._where] = keys[:, :, 0]
        self._values[layer][self._where] = values[:, :, 0]
        return self._keys[layer], self._values[layer]


@contextmanager
def our_attention(model: Any, implementation: str = _ATTENTION) -> Iterator[None]:
    """Meanwhile the model's attention modules compute as :class:`Passes` needs it."""
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _attention(
    module: Any,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    visible: _Visible,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention behind the signature of ``transformers.AttentionInterface``."""
    if not visible.lengths:
        mixed = _mixed(queries, keys, values, visible.mask, scaling, softcap)
        return mixed.transpose(1, 2).contiguous(), None
    places, n_queries, _one, size = queries.shape
    folded = queries.view(places, keys.shape[1], -1, size)  # [B, n_kv, n_q / n_kv, d]
    parts = []
    for first in range(0, places, _PLACES_TOGETHER):
        group = slice(first, first + _PLACES_TOGETHER)
        longest = max(visible.lengths[group])
        seen = keys[group, :, :longest], values[group, :, :longest]
        assert visible.mask is not None
        parts.append(
            _mixed(folded[group], *seen, visible.mask[group, ..., :longest], scaling, softcap)
        )
    return torch.cat(parts).reshape(places, 1, n_queries, -1), None


def _mixed(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scale: float | None,
    softcap: float | None,
) -> Tensor:
    """[b, n, T, d] x [b, n_kv, S, d]; without a mask causal."""
    mask = None if mask is None else mask.to(queries.device)
    if softcap is None:
        return functional.scaled_dot_product_attention(
            queries, keys, values, mask, is_causal=mask is None, scale=scale, enable_gqa=True
        )
    groups = queries.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
    if mask is None:
        rows, slots = queries.shape[-2], keys.shape[-2]
        mask = torch.ones(rows, slots, dtype=torch.bool, device=keys.device).tril()
    scale = scale or queries.shape[-1] ** -0.5
    return attend_capped(queries, keys, values, mask, scale=scale, softcap=softcap)


AttentionInterface.register(_ATTENTION, _attention)
