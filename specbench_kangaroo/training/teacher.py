"""What a draft head learns from: batches of stored states with the target's predictions; the loss.

Position t's state predicts token t+1, so an answer that starts at P is predicted from P-1 on; a
prompt's positions are seen by attention but carry no loss.  A head that looks further imitates at
t what the target predicts at ``t + ahead``, up to the answer's end.

The loss is the soft cross entropy of arXiv 2404.18911, section 3.2, between the target's and the
draft's next-token distributions at the same position.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from specbench_kangaroo.engine.linear import Linear, capped
from specbench_kangaroo.training.features import FINAL, FeatureStore

_Rows = NDArray[np.int64]  # indices into a store's N rows

_ROWS_AT_ONCE = 4096
_CHUNK = 256  # positions: a chunk's logits stay in the last-level cache
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
        ids, probabilities = self.teacher_ids.to(device), self.teacher_probabilities.to(device)
        rows = tuple(group.to(device) for group in self.rows)
        return Batch(self.hidden.to(device), rows, ids, probabilities, self.labels.to(device))


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
        # Copies: torch warns of the memory map, which cannot be written.
        documents = [torch.from_numpy(hidden[slice(*span)].astype(np.float32)) for span in spans]
        states = pad_sequence(documents, batch_first=True)  # [B, S, H]
        answers = [self._answers[i] for i in group]
        shifts = [row * states.shape[1] - start for row, (start, _) in enumerate(spans)]
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
    rows = np.concatenate([_answer_rows(store, i) for i in range(len(store.spans))])
    highest = max(int(store.tokens.max()), *always)
    counts = np.bincount(store.tokens[rows + 1], minlength=highest + 1 + size)
    counts[list(always)] = counts.max() + 1
    return torch.from_numpy(np.sort(np.argsort(-counts, kind="stable")[:size]).copy())


class FrozenHead:
    """The LM-head rows that a draft predicts over, laid out for both directions.

    Args:
        weight: (V', H).
    """

    def __init__(self, weight: Tensor) -> None:
        self.forward = Linear(weight)  # states -> logits
        self.backward = Linear(weight.T.contiguous())  # gradient of logits -> of states


def distillation_loss(states: Tensor, head: FrozenHead, batch: Batch) -> Tensor:
    """Mean over rows of ``-sum_k p_k log q_k`` with q = softmax(head(states)).

    Args:
        states: (M, H) that the draft gives to the LM head.
    """
    loss: Tensor = _Loss.apply(states, head, batch)  # type: ignore[no-untyped-call]
    return loss


def soft_cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """The same loss from ready logits (M, V'), without its gradient: for validation."""
    chosen = logits.gather(-1, batch.teacher_ids)  # (M, k)
    expected = (chosen * batch.teacher_probabilities).sum(-1)
    return (torch.logsumexp(logits, -1) - expected).mean()


def label_ranks(logits: Tensor, batch: Batch) -> Tensor:
    """(R, O) how many tokens each position's predictions put before the text's own; int32.

    Row r is the r-th position of the first group.  A token outside the vocabulary comes last, and
    -1 stands where the answer has ended.
    """
    chosen = logits.gather(-1, batch.labels.clamp(min=0)[:, None])  # (M, 1)
    found = (logits > chosen).sum(-1).masked_fill(batch.labels < 0, logits.shape[-1])  # (M,)
    ranks = found.new_full((len(batch.rows[0]), len(batch.rows)), -1)
    for group, part in enumerate(torch.split(found, [len(rows) for rows in batch.rows])):
        ranks[torch.searchsorted(batch.rows[0], batch.rows[group]), group] = part
    return ranks.int()


class _Loss(torch.autograd.Function):
    """The loss with its gradient, without the logits of all rows ever being kept.

    Autograd would hold several (M, V') matrices at once: for a thousand positions each is larger
    than the caches, and training is then bound by memory.  Each chunk of positions goes through
    the head, the softmax and back within one piece of memory; the gradient of the states remains.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, head: FrozenHead, batch: Batch) -> Tensor:
        gradient = torch.empty_like(states)
        total = states.new_zeros(())
        for start in range(0, len(states), _CHUNK):
            rows = slice(start, start + _CHUNK)
            ids, wanted = batch.teacher_ids[rows], batch.teacher_probabilities[rows]
            logits = head.forward(states[rows].detach())  # (m, V')
            highest = logits.amax(-1, keepdim=True)
            expected = (logits.gather(-1, ids) * wanted).sum(-1, keepdim=True)
            weights = logits.sub_(highest).exp_()
            mass = weights.sum(-1, keepdim=True)
            total += (mass.log() + highest - expected).sum()
            weights.div_(mass).scatter_add_(-1, ids, -wanted)  # d loss / d logits
            gradient[rows] = head.backward(weights)
        ctx.save_for_backward(gradient.div_(len(states)))
        return total / len(states)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0], None, None


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
