"""Which drafted nodes the target agrees with: the one acceptance rule for all methods.

Greedy: follow the target's argmax through the tree.  Sampling: at every node try its children in
order; accept child t, drawn from q, with probability min(1, p(t)/q(t)); when it is rejected go on
with the residual norm(max(p - q, 0)) (Leviathan et al. 2211.17192, theorem 1; repeated over
siblings, Miao et al. 2305.09781).  A child that was chosen rather than drawn has a one-hot q.

One lossy rule stands beside them for comparison: the typical acceptance of Medusa's authors
(2401.10774, section 2.3.1).  A method that asks for it declares itself lossy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from specbench_kangaroo.engine.sampling import Sampler, to_host
from specbench_kangaroo.engine.tree import TokenTree


@dataclass(frozen=True, slots=True)
class Acceptance:
    """The accepted nodes, root first, and the target's own next token after the last of them."""

    nodes: tuple[int, ...]
    bonus: int


@dataclass(frozen=True, slots=True)
class Typical:
    """Accept what is not unlikely: ``p > min(epsilon, delta * exp(-entropy(p)))``."""

    epsilon: float
    delta: float


def accept_greedy(tree: TokenTree, logits: Tensor) -> Acceptance:
    """Follow the target's argmax. ``logits``: (T, V)."""
    wanted = logits.argmax(-1).tolist()
    tokens = tree.tokens.tolist()
    nodes = [0]
    while (match := _child_with_token(tree, tokens, nodes[-1], wanted[nodes[-1]])) is not None:
        nodes.append(match)
    return Acceptance(tuple(nodes), wanted[nodes[-1]])


def accept_sampling(
    tree: TokenTree, logits: Tensor, draft_probabilities: Tensor | None, sampler: Sampler
) -> Acceptance:
    """Multi-round rejection sampling: the emitted tokens are distributed as the target's.

    Args:
        logits: (T, V) of the target.
        draft_probabilities: (T-1, V): node i-1 is the distribution that node i's token was drawn
            from, given that its earlier siblings were rejected; None if tokens were chosen, not
            drawn.
    """
    target = sampler.sampling.probabilities(logits)  # [T, V]
    tokens = tree.tokens.tolist()
    nodes = [0]
    while True:
        residual = target[nodes[-1]]  # [V] what the next token is still to be drawn from
        for child in tree.children(nodes[-1]):
            proposal = _proposal(tokens[child], residual, draft_probabilities, child)
            if sampler.chance.accepts(_acceptance_chance(residual, proposal, tokens[child])):
                nodes.append(child)
                break
            residual = _residual(residual, proposal)
        else:
            return Acceptance(tuple(nodes), sampler.chance.pick(residual))


def accept_typical(
    tree: TokenTree, logits: Tensor, rule: Typical, sampler: Sampler | None
) -> Acceptance:
    """The longest path of typical tokens; among equals, the one whose tokens are likeliest.

    The bonus token is drawn as ever, or the likeliest if there is no sampler; p is then the plain
    softmax of ``logits`` (T, V).
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    p = wide.softmax(-1) if sampler is None else sampler.sampling.probabilities(wide)  # [T, V]
    entropy = torch.special.entr(p).sum(-1)  # (T,)
    tokens = tree.tokens.tolist()
    drafted = range(1, tree.n_candidates)
    parents = [tree.parents[node] for node in drafted]
    threshold, chances = to_host(
        (rule.delta * torch.exp(-entropy)).clamp(max=rule.epsilon),
        p[parents, [tokens[node] for node in drafted]],  # (n_candidates - 1,)
    )
    best: dict[int, tuple[int, float]] = {0: (0, 0.0)}  # accepted node -> depth, log-likelihood
    for node, parent, chance in zip(drafted, parents, chances, strict=True):
        if parent in best and chance > threshold[parent]:
            depth, likelihood = best[parent]
            best[node] = (depth + 1, likelihood + math.log(chance))
    nodes = [max(best, key=best.__getitem__)]
    while nodes[0] > 0:
        nodes.insert(0, tree.parents[nodes[0]])
    last = nodes[-1]
    bonus = int(p[last].argmax()) if sampler is None else sampler.chance.pick(p[last])
    return Acceptance(tuple(nodes), bonus)


def _child_with_token(tree: TokenTree, tokens: list[int], node: int, token: int) -> int | None:
    return next((child for child in tree.children(node) if tokens[child] == token), None)


def _proposal(token: int, like: Tensor, draft_probabilities: Tensor | None, child: int) -> Tensor:
    if draft_probabilities is not None:
        return draft_probabilities[child - 1]
    return torch.zeros_like(like).index_fill_(0, torch.tensor(token, device=like.device), 1.0)


def _acceptance_chance(target: Tensor, proposal: Tensor, token: int) -> float:
    return min(1.0, float(target[token]) / float(proposal[token]))


def _residual(target: Tensor, proposal: Tensor) -> Tensor:
    rest = (target - proposal).clamp_(min=0)
    return rest / rest.sum()
