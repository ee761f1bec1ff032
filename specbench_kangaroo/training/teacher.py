"""What a draft head learns from: batches of stored states with the target's predictions; the loss.

Position t's state predicts token t+1, so an answer that starts at P is predicted from P-1 on.
Either these positions alone carry loss, or all do, each text that several documents begin with
once; the others are seen by attention.  A head that looks further imitates at t what the target
predicts at ``t + ahead``, up to the text's end.

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

Rows = NDArray[np.int64]  # indices into a store's N rows

_ROWS_AT_ONCE = 4096
_CHUNK = 256  # positions: a chunk's logits stay in the last-level cache
_BATCHES_SORTED_TOGETHER = 16  # documents of like length share a batch, yet every epoch differs


@dataclass(frozen=True, slots=True)
class Batch:
    """Some documents, right-padded; some of their positions carry the loss.

    There are as many groups of rows as positions ahead are predicted; M is the sum over groups,
    and whatever has M entries holds one group after the other.
    """

    hidden: Tensor  # [B, S, H] float32
    rows: tuple[Tensor, ...]  # each (M_i,), ascending: positions in the flattened [B * S]
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
        rows: of every document, which of the store's rows carry loss; None: its answer's.
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
        rows: Sequence[Rows] | None = None,
    ) -> None:
        self._store = store
        self._config = config
        self._ahead = tuple(ahead)
        self._rows = answer_rows(store) if rows is None else rows
        count, top_k = len(store.tokens), min(top_k, len(vocabulary))
        fits = len(vocabulary) <= torch.iinfo(torch.int16).max  # gigabytes, with millions of rows
        self._ids = torch.zeros(count, top_k, dtype=torch.int16 if fits else torch.int32)
        self._probabilities = torch.zeros(count, top_k, dtype=torch.float16)
        index_of = torch.full((lm_head.shape[0],), -1, dtype=torch.long)
        index_of[vocabulary] = torch.arange(len(vocabulary))
        next_tokens = torch.from_numpy(np.append(store.tokens[1:], 0)).long()
        self._labels = index_of[next_tokens]  # (N,)
        self._predict(store, lm_head[vocabulary], np.concatenate(self._rows))

    def _predict(self, store: FeatureStore, head: Tensor, rows: Rows) -> None:
        final = store.hidden(FINAL)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            chunk = rows[start : start + _ROWS_AT_ONCE]
            logits = torch.from_numpy(final[chunk]).to(head) @ head.T  # (n, V')
            logits = capped(logits, self._config)
            top = torch.topk(logits, self._ids.shape[1])
            self._ids[chunk] = top.indices.to("cpu", self._ids.dtype)
            self._probabilities[chunk] = torch.softmax(top.values, -1).to("cpu", torch.float16)

    def batches(
        self, documents: Sequence[int], layer: int | str, *, loss_tokens: int, seed: int | None
    ) -> Iterator[Batch]:
        """One pass over ``documents`` in batches of about ``loss_tokens`` positions with loss.

        ``seed`` shuffles; None keeps documents in order of length.
        """
        hidden = self._store.hidden(layer)
        for group in self._groups(documents, loss_tokens, seed):
            yield self._batch(hidden, group)

    def _groups(
        self, documents: Sequence[int], loss_tokens: int, seed: int | None
    ) -> list[list[int]]:
        def length(document: int) -> int:
            start, end = self._store.spans[document]
            return end - start

        if seed is None:
            return _cut(sorted(documents, key=length), self._rows, loss_tokens)
        generator = np.random.default_rng(seed)
        order = generator.permutation(np.asarray(documents)).tolist()
        groups: list[list[int]] = []
        for pool in _cut(order, self._rows, loss_tokens * _BATCHES_SORTED_TOGETHER):
            groups += _cut(sorted(pool, key=length), self._rows, loss_tokens)
        generator.shuffle(groups)
        return groups

    def _batch(self, hidden: NDArray[np.float16], group: Sequence[int]) -> Batch:
        spans = [self._store.spans[i] for i in group]
        # Copies: torch warns of the memory map, which cannot be written.
        documents = [torch.from_numpy(hidden[slice(*span)].astype(np.float32)) for span in spans]
        states = pad_sequence(documents, batch_first=True)  # [B, S, H]
        lossy = [self._rows[i] for i in group]
        shifts = [row * states.shape[1] - start for row, (start, _) in enumerate(spans)]
        stored = torch.from_numpy(
            np.concatenate([rows[ahead:] for ahead in self._ahead for rows in lossy])
        )
        return Batch(
            hidden=states,
            rows=tuple(_shifted_rows(lossy, shifts, ahead) for ahead in self._ahead),
            teacher_ids=self._ids[stored].long(),
            teacher_probabilities=self._probabilities[stored].float(),
            labels=self._labels[stored],
        )


def frequent_tokens(store: FeatureStore, size: int, *, always: Sequence[int]) -> Tensor:
    """(size,) the answers' most frequent token ids, ascending; ``always`` is among them."""
    rows = np.concatenate(answer_rows(store))
    highest = max(int(store.tokens.max()), *always)
    counts = np.bincount(store.tokens[rows + 1], minlength=highest + 1 + size)
    counts[list(always)] = counts.max() + 1
    return torch.from_numpy(np.sort(np.argsort(-counts, kind="stable")[:size]).copy())


class FrozenHead:
    """The LM-head rows that a draft predicts over, laid out for both directions.

    Products are in the weight's dtype, what goes in and comes out in the draft's.

    Args:
        weight: (V', H).
    """

    def __init__(self, weight: Tensor) -> None:
        self._dtype = weight.dtype
        self._forward, self._backward = Linear(weight), Linear(weight.T.contiguous())

    def forward(self, states: Tensor) -> Tensor:
        """(M, H) -> logits (M, V')."""
        return self._forward(states.to(self._dtype)).to(states.dtype)

    def backward(self, gradient: Tensor) -> Tensor:
        """Of logits (M, V') -> of states (M, H)."""
        return self._backward(gradient.to(self._dtype)).to(gradient.dtype)


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


def answer_rows(store: FeatureStore) -> list[Rows]:
    """Of every document the rows that predict its answer's tokens; none of one without answer."""
    return [
        np.arange(start + prompt - 1, end - 1)
        for (start, end), prompt in zip(store.spans, store.prompt_lengths, strict=True)
    ]


def distinct_rows(store: FeatureStore, documents: Sequence[int]) -> list[Rows]:
    """Of every one of ``documents`` all rows that predict a token, but for what others have.

    Where documents begin alike (two answers to a prompt, two turns of a conversation), their
    states are the same, and the rows of only one of them are given.
    """
    rows: list[Rows] = [np.arange(0)] * len(store.spans)
    before = store.tokens[:0]
    # Of all documents that come before it in this order none begins with more of it than the last.
    for document in sorted(documents, key=lambda i: store.tokens[slice(*store.spans[i])].tobytes()):
        start, end = store.spans[document]
        tokens = store.tokens[start:end]
        size = min(len(tokens), len(before))
        differs = np.flatnonzero(tokens[:size] != before[:size])
        alike = int(differs[0]) if len(differs) else size
        # The one before has no row for its last token, as nothing follows it there.
        rows[document] = np.arange(start + max(0, min(alike, len(before) - 1)), end - 1)
        before = tokens
    return rows


def _shifted_rows(lossy: Sequence[Rows], shifts: Sequence[int], ahead: int) -> Tensor:
    """(M_i,) rows of the flattened states that have a prediction ``ahead`` of them to imitate."""
    kept = [
        rows[: max(0, len(rows) - ahead)] + shift for rows, shift in zip(lossy, shifts, strict=True)
    ]
    return torch.from_numpy(np.concatenate(kept))


def _cut(order: Sequence[int], lossy: Sequence[Rows], size: int) -> list[list[int]]:
    groups: list[list[int]] = [[]]
    filled = 0
    for document in order:
        if filled >= size:
            groups.append([])
            filled = 0
        groups[-1].append(document)
        filled += len(lossy[document])
    return groups
