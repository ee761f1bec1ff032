"""The distillation loss behind a frozen LM head, without its logits ever being kept.

Autograd would hold several (M, V') matrices at once: for a thousand positions each is larger than
the caches, and training is then bound by memory.  Here each chunk of positions goes through the
head, the softmax and back within one piece of memory, and only the gradient of the states remains.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from specbench_kangaroo.engine.linear import Linear
from specbench_kangaroo.training.teacher import Batch

_CHUNK = 256  # positions: a chunk's logits stay in the last-level cache


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


class _Loss(torch.autograd.Function):
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
