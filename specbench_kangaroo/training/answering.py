"""The target's answers to many prompts at once: a finished text's place takes the next prompt.

Each of a fixed number of places has room in caches that are made once and written by position, so
nothing is copied as texts grow.  A step adds a token to every text; attention reads the keys of
neighbouring places up to the longest text among them, so prompts should come by length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface

from specbench_kangaroo.engine.families import layout_of
from specbench_kangaroo.engine.linear import capped
from specbench_kangaroo.models.load import LoadedModel

_ATTENTION = "specbench-many-texts"
_PLACES_TOGETHER = 16  # whose keys are read by one operation
_REFILL_SHARE = 16  # a 16th of the places is empty when prompts are read: few rows are slow
_PREFILL_TOKENS = 2048  # padded, in one pass
_LOOP_NGRAM, _LOOP_COUNT = 6, 3


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """A prompt, and how the tokens of its answer are chosen.

    ``draws`` has a number in [0, 1) for every token that the answer may have: the same draws
    choose the same tokens, whatever else is being answered.
    """

    ids: tuple[int, ...]
    temperature: float = 0.0  # 0 is greedy
    draws: Sequence[float] = ()


@dataclass(slots=True)
class _Text:
    """A question that is being answered."""

    question: Question
    answer: list[int] = field(default_factory=list)
    _ngrams: Counter[tuple[int, ...]] = field(default_factory=Counter)

    def add(self, token: int) -> None:
        self.answer.append(token)
        self._ngrams[tuple(self.answer[-_LOOP_NGRAM:])] += 1

    @property
    def loops(self) -> bool:
        """Whether its last six tokens have come for the third time; shorter ones begin it."""
        last = tuple(self.answer[-_LOOP_NGRAM:])
        return len(last) == _LOOP_NGRAM and self._ngrams[last] >= _LOOP_COUNT

    @property
    def length(self) -> int:
        """Positions whose keys are known: the last token has not been read yet."""
        return len(self.question.ids) + len(self.answer) - 1


class Answering:
    """Questions with their answers, in the order in which they end.

    An answer ends with EOS, at ``max_new_tokens``, or where six tokens in a row have come for the
    third time.

    Args:
        take: the next question, or None if there is none now.  It is asked again after every
            answer, so an answer may bring a question.
        places: how many texts grow side by side.
        max_prompt_tokens: of any question; with ``max_new_tokens`` the room of a place.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        take: Callable[[], Question | None],
        *,
        places: int,
        max_prompt_tokens: int,
        max_new_tokens: int,
    ) -> None:
        self._take = take
        self._eos = loaded.eos_token_ids
        self._max_new_tokens = max_new_tokens
        self._places = places
        self._texts: dict[int, _Text] = {}  # by place
        self._passes = _Passes(loaded.model, places, max_prompt_tokens + max_new_tokens)

    def __iter__(self) -> Iterator[tuple[Question, tuple[int, ...]]]:
        """Until nothing is being answered and no question is left."""
        with self._passes:
            while self._refill() or self._texts:
                yield from self._ended()
                if self._texts:
                    self._step()
                    yield from self._ended()

    def _ended(self) -> Iterator[tuple[Question, tuple[int, ...]]]:
        for place, text in list(self._texts.items()):
            full = len(text.answer) >= self._max_new_tokens
            if full or text.answer[-1] in self._eos or text.loops:
                del self._texts[place]
                yield text.question, tuple(text.answer)

    @torch.inference_mode()
    def _refill(self) -> bool:
        """Read new prompts and choose their answers' first tokens; whether there were any."""
        empty = [place for place in range(self._places) if place not in self._texts]
        if len(empty) * _REFILL_SHARE < self._places:
            return False
        filled = []
        for place in empty:
            question = self._take()
            if question is None:
                break
            self._texts[place] = _Text(question)
            filled.append(place)
        for places in self._together(filled):
            prompts = [self._texts[place].question.ids for place in places]
            logits = self._passes.prefill(places, prompts)
            self._choose(dict(zip(places, range(len(places)), strict=True)), logits)
        return bool(filled)

    def _together(self, places: Sequence[int]) -> Iterator[list[int]]:
        """Places whose prompts go through one pass: of like length, and not too many."""
        group: list[int] = []
        for place in sorted(places, key=lambda place: self._texts[place].length):
            size = len(self._texts[place].question.ids)
            if group and (len(group) + 1) * size > _PREFILL_TOKENS:
                yield group
                group = []
            group.append(place)
        if group:
            yield group

    @torch.inference_mode()
    def _step(self) -> None:
        tokens, positions = [0] * self._places, [0] * self._places
        for place, text in self._texts.items():
            tokens[place], positions[place] = text.answer[-1], text.length
        logits = self._passes.step(tokens, positions)  # [B, V]
        self._choose({place: place for place in self._texts}, logits)

    def _choose(self, row_of: Mapping[int, int], logits: Tensor) -> None:
        """Add a token to the text at each place, from the row of logits (R, V) that is its own."""
        greedy = logits.argmax(-1).tolist()
        for place, row in row_of.items():
            text, token = self._texts[place], greedy[row]
            if text.question.temperature > 0:
                draw = text.question.draws[len(text.answer)]
                token = drawn(logits[row], text.question.temperature, draw)
            text.add(token)


def drawn(logits: Tensor, temperature: float, draw: float) -> int:
    """The token of softmax(logits (V,) / temperature) at the ``draw``-th part of its mass."""
    sums = torch.softmax(logits.float() / temperature, -1).cumsum(-1)
    token = int(torch.searchsorted(sums, sums[-1] * draw, right=True))
    return min(token, len(logits) - 1)


@dataclass(frozen=True, slots=True)
class _Visible:
    """What rows see in layers of one attention window.

    Attributes:
        mask: bool, of a step (B, 1, 1, S), of a prefill (P, P) or None for plain causal.
        lengths: of a step, how many keys each place has; empty for a prefill.
    """

    mask: Tensor | None
    lengths: Sequence[int] = ()


class _Passes:
    """A model's passes over prompts and over one token of every place, layer by layer.

    While entered, the model's attention is this one.  It stands in for the cache that
    transformers' attention modules write to.
    """

    def __init__(self, model: Any, places: int, capacity: int) -> None:
        self._model = model
        self._layout = layout_of(model)
        self._shape = (places, capacity)
        self._keys: dict[int, Tensor] = {}  # by layer: [B, n_kv, capacity, d]
        self._values: dict[int, Tensor] = {}
        self._where: Any = None  # the rows' places and positions in these

    def __enter__(self) -> None:
        self._attention = self._model.config._attn_implementation
        self._model.set_attn_implementation(_ATTENTION)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._model.set_attn_implementation(self._attention)

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
    logits = queries @ keys.transpose(-1, -2) * (scale or queries.shape[-1] ** -0.5)
    logits = softcap * torch.tanh(logits / softcap)
    if mask is None:
        rows, slots = logits.shape[-2:]
        mask = torch.ones(rows, slots, dtype=torch.bool, device=logits.device).tril()
    return logits.masked_fill(~mask, float("-inf")).softmax(-1) @ values


AttentionInterface.register(_ATTENTION, _attention)
