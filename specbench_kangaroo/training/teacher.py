"""What a draft head is trained on: batches of stored states with the target's own predictions.

Position t's state predicts token t+1, so an answer that starts at P is predicted from P-1 on; a
prompt's positions are seen by attention but carry no loss.  A head that looks further imitates at
t what the target predicts at ``t + ahead``, up to the answer's end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specbench_kangaroo.engine.lm_head import capped
from specbench_kangaroo.training.features import FINAL, FeatureStore

_Rows = NDArray[np.int64]  # indices into a store's N rows

_ROWS_AT_ONCE = 4096
_BATCHES_SORTED_TOGETHER = 16  # documents of like length share a batch, yet every epoch differs


@dataclass(frozen=True, slots=True)
class Batch:
    """Some documents, right-padded; answer positions among them carry the loss.

    There are as many groups of rows as positions ahead are predicted; M is the sum over groups,
    and whatever has M entries holds one group after the other.
    """

    hidden: Tensor  # [B, S, H] float32
    rows: tuple[Tensor, ...]  # each (M_i,), ascending: answer positions in the flattened [B * S]
    teacher_ids: Tensor  # (M, k) vocabulary indices of the target's k likeliest tokens
    teacher_probabilities: Tensor  # (M, k), renormalised to 1
    labels: Tensor  # (M,) vocabulary index of the text's token there, -1 outside it

    def to(self, device: torch.device) -> Batch:
        """This batch where the draft head computes."""
        return Batch(
            self.hidden.to(device),
            tuple(rows.to(device) for rows in self.rows),
            self.teacher_ids.to(device),
            self.teacher_probabilities.to(device),
            self.labels.to(device),
        )


class Teacher:
    """The target's top-k predictions within a draft vocabulary, computed once for every row.

    Args:
        lm_head: (V, H) the target's output matrix.
        vocabulary: (V',) its rows that the draft predicts over.
        top_k: how many predictions to keep, at most V': the rest of the mass is spread over them.
        ahead: whose predictions a position's state is to imitate; 0 is its own.
        config: the target's, which may cap its logits; None: they are not capped.
    """

    def __init__(
        self,
        store: FeatureStore,
        lm_head: Tensor,
        vocabulary: Tensor,
        *,
        top_k: int,
        ahead: Sequence[int] = (0,),
        config: Any = None,
    ) -> None:
        self._store = store
        self._config = config
        self._ahead = tuple(ahead)
        self._answers = [_answer_rows(store, i) for i in range(len(store.spans))]
        count, top_k = len(store.tokens), min(top_k, len(vocabulary))
        self._ids = torch.zeros(count, top_k, dtype=torch.int32)
        self._probabilities = torch.zeros(count, top_k, dtype=torch.float16)
        index_of = torch.full((lm_head.shape[0],), -1, dtype=torch.long)
        index_of[vocabulary] = torch.arange(len(vocabulary))
        next_tokens = torch.from_numpy(np.append(store.tokens[1:], 0)).long()
        self._labels = index_of[next_tokens]  # (N,)
        self._predict(store, lm_head[vocabulary], np.concatenate(self._answers))

    def _predict(self, store: FeatureStore, head: Tensor, rows: _Rows) -> None:
        final = store.hidden(FINAL)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            chunk = rows[start : start + _ROWS_AT_ONCE]
            logits = torch.from_numpy(final[chunk]).to(head) @ head.T  # (n, V')
            logits = capped(logits, self._config)
            top = torch.topk(logits, self._ids.shape[1])
            self._ids[chunk] = top.indices.to("cpu", torch.int32)
            self._probabilities[chunk] = torch.softmax(top.values, -1).to("cpu", torch.float16)

    def batches(
        self, documents: Sequence[int], layer: int | str, *, answer_tokens: int, seed: int | None
    ) -> Iterator[Batch]:
        """One pass over ``documents`` in batches of about ``answer_tokens`` positions with loss.

        ``seed`` shuffles; None keeps documents in order of length.
        """
        hidden = self._store.hidden(layer)
        for group in self._groups(documents, answer_tokens, seed):
            yield self._batch(hidden, group)

    def _groups(
        self, documents: Sequence[int], answer_tokens: int, seed: int | None
    ) -> list[list[int]]:
        def length(document: int) -> int:
            start, end = self._store.spans[document]
            return end - start

        if seed is None:
            return _cut(sorted(documents, key=length), self._answers, answer_tokens)
        generator = np.random.default_rng(seed)
        order = generator.permutation(np.asarray(documents)).tolist()
        groups: list[list[int]] = []
        for pool in _cut(order, self._answers, answer_tokens * _BATCHES_SORTED_TOGETHER):
            groups += _cut(sorted(pool, key=length), self._answers, answer_tokens)
        generator.shuffle(groups)
        return groups

    def _batch(self, hidden: NDArray[np.float16], group: Sequence[int]) -> Batch:
        spans = [self._store.spans[i] for i in group]
        longest = max(end - start for start, end in spans)
        states = torch.zeros(len(group), longest, hidden.shape[1])  # [B, S, H]
        for row, (start, end) in enumerate(spans):
            # A copy: torch warns of the memory map, which cannot be written.
            states[row, : end - start] = torch.from_numpy(hidden[start:end].astype(np.float32))
        answers = [self._answers[i] for i in group]
        shifts = [row * longest - start for row, (start, _) in enumerate(spans)]
        stored = torch.from_numpy(
            np.concatenate([answer[ahead:] for ahead in self._ahead for answer in answers])
        )
        return Batch(
            hidden=states,
            rows=tuple(_shifted_rows(answers, shifts, ahead) for ahead in self._ahead),
            teacher_ids=self._ids[stored].long(),
            teacher_probabilities=self._probabilities[stored].float(),
            labels=self._labels[stored],
        )


def frequent_tokens(store: FeatureStore, size: int, *, always: Sequence[int]) -> Tensor:
    """(size,) the answers' most frequent token ids, ascending; ``always`` is among them."""
    counts = np.zeros(max(int(store.tokens.max()), *always) + 1 + size, dtype=np.int64)
    for document in range(len(store.spans)):
        np.add.at(counts, store.tokens[_answer_rows(store, document) + 1], 1)
    counts[list(always)] = counts.max() + 1
    return torch.from_numpy(np.sort(np.argsort(-counts, kind="stable")[:size]).copy())


def _answer_rows(store: FeatureStore, document: int) -> _Rows:
    start, end = store.spans[document]
    return np.arange(start + store.prompt_lengths[document] - 1, end - 1)


def _shifted_rows(answers: Sequence[_Rows], shifts: Sequence[int], ahead: int) -> Tensor:
    """(M_i,) rows of the flattened states that have a prediction ``ahead`` of them to imitate."""
    kept = [
        answer[: max(0, len(answer) - ahead)] + shift
        for answer, shift in zip(answers, shifts, strict=True)
    ]
    return torch.from_numpy(np.concatenate(kept))


def _cut(order: Sequence[int], answers: Sequence[_Rows], size: int) -> list[list[int]]:
    groups: list[list[int]] = [[]]
    filled = 0
    for document in order:
        if filled >= size:
            groups.append([])
            filled = 0
        groups[-1].append(document)
        filled += len(answers[document])
    return groups
