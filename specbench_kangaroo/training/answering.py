"""The target's answers to many prompts at once: a finished text's place takes the next prompt.

A step adds a token to every text.  Its cost goes by the longest texts, so prompts should come by
length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from specbench_kangaroo.models.load import LoadedModel
from specbench_kangaroo.training.passes import Passes, our_attention

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

    Raises:
        UsageError: the family's layers, run one by one, do not give what the model itself gives.
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
        self._model: Any = loaded.model
        self._passes = Passes(loaded.model, places, max_prompt_tokens + max_new_tokens)
        self._passes.check()

    def __iter__(self) -> Iterator[tuple[Question, tuple[int, ...]]]:
        """Until nothing is being answered and no question is left."""
        with our_attention(self._model):
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
