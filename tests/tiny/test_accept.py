"""Acceptance: the greedy walk, and sampling enumerated over every random decision."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from specbench_kangaroo.engine.accept import (
    Acceptance,
    Typical,
    accept_greedy,
    accept_sampling,
    accept_typical,
)
from specbench_kangaroo.engine.sampling import Sampler, Sampling, SeededChance
from specbench_kangaroo.engine.tree import TokenTree

V = 5


def logits_for(*argmaxes: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(argmaxes), V).double() * 4


def test_greedy_takes_the_longest_path_that_the_target_agrees_with() -> None:
    #        0
    #      /   \        tokens: root 0; children 1, 2; below 2: 3; below 3: 4
    #     1     2
    #           3
    #           4
    tree = TokenTree(torch.tensor([0, 1, 2, 3, 4]), (-1, 0, 0, 2, 3), 5)
    assert accept_greedy(tree, logits_for(2, 0, 3, 4, 1)) == Acceptance((0, 2, 3, 4), 1)
    assert accept_greedy(tree, logits_for(2, 0, 4, 4, 1)) == Acceptance((0, 2), 4)
    assert accept_greedy(tree, logits_for(1, 3, 0, 0, 0)) == Acceptance((0, 1), 3)
    assert accept_greedy(tree, logits_for(4, 0, 0, 0, 0)) == Acceptance((0,), 4)


def test_greedy_never_accepts_rows_that_only_ride_along() -> None:
    tree = TokenTree(torch.tensor([0, 1, 2]), (-1, 0, 1), 2)
    assert accept_greedy(tree, logits_for(1, 2, 3)) == Acceptance((0, 1), 2)


@dataclass
class Enumerated:
    """Chance that follows given choices and keeps the probability of having made them."""

    choices: Sequence[int]
    probability: float = 1.0
    possible: list[list[int]] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)

    def _choose(self, probabilities: list[float]) -> int:
        possible = [i for i, p in enumerate(probabilities) if p > 0]
        at = len(self.taken)
        choice = self.choices[at] if at < len(self.choices) else possible[0]
        self.taken.append(choice)
        self.possible.append(possible)
        self.probability *= probabilities[choice]
        return choice

    def accepts(self, probability: float) -> bool:
        return self._choose([1 - probability, probability]) == 1

    def pick(self, probabilities: Tensor) -> int:
        return self._choose(probabilities.tolist())


def enumerate_texts(
    round_of: Callable[[Enumerated], tuple[int, ...]],
) -> dict[tuple[int, ...], float]:
    """The exact distribution of a round's result over all its random decisions."""
    found: dict[tuple[int, ...], float] = {}
    todo: list[list[int]] = [[]]
    while todo:
        prefix = todo.pop()
        chance = Enumerated(prefix)
        result = round_of(chance)
        found[result] = found.get(result, 0.0) + chance.probability
        for at in range(len(prefix), len(chance.taken)):
            others = [c for c in chance.possible[at] if c != chance.taken[at]]
            todo += [[*chance.taken[:at], other] for other in others]
    return found


def first_token_distribution(texts: dict[tuple[int, ...], float]) -> Tensor:
    total = torch.zeros(V, dtype=torch.float64)
    for text, probability in texts.items():
        total[text[0]] += probability
    return total


@pytest.mark.parametrize("siblings", [(0,), (1, 3), (4, 2, 0), (0, 1, 2, 3, 4)])
def test_chosen_siblings_leave_the_targets_distribution(siblings: tuple[int, ...]) -> None:
    """Tokens that were chosen, not drawn, have a one-hot proposal: still lossless."""
    torch.manual_seed(1)
    logits = torch.randn(1 + len(siblings), V, dtype=torch.float64)
    tree = TokenTree(torch.tensor([0, *siblings]), (-1, *[0] * len(siblings)), 1 + len(siblings))
    sampling = Sampling(temperature=0.8)

    def round_of(chance: Enumerated) -> tuple[int, ...]:
        found = accept_sampling(tree, logits, None, Sampler(sampling, chance))
        return (int(tree.tokens[found.nodes[1]]) if len(found.nodes) > 1 else found.bonus,)

    distribution = first_token_distribution(enumerate_texts(round_of))
    torch.testing.assert_close(distribution, sampling.probabilities(logits)[0], rtol=0, atol=1e-12)


def test_drawn_siblings_without_replacement_leave_the_targets_distribution() -> None:
    """Two siblings drawn one after the other, the second from what the first left of q."""
    torch.manual_seed(2)
    logits = torch.randn(3, V, dtype=torch.float64)
    q = torch.randn(V, dtype=torch.float64).softmax(-1)
    sampling = Sampling(temperature=1.0)

    def round_of(chance: Enumerated) -> tuple[int, ...]:
        first = chance.pick(q)
        rest = q.clone()
        rest[first] = 0
        rest /= rest.sum()
        second = chance.pick(rest)
        tree = TokenTree(torch.tensor([0, first, second]), (-1, 0, 0), 3)
        found = accept_sampling(tree, logits, torch.stack((q, rest)), Sampler(sampling, chance))
        return (int(tree.tokens[found.nodes[1]]) if len(found.nodes) > 1 else found.bonus,)

    distribution = first_token_distribution(enumerate_texts(round_of))
    torch.testing.assert_close(distribution, sampling.probabilities(logits)[0], rtol=0, atol=1e-12)


def test_a_drawn_chain_leaves_the_targets_joint_distribution() -> None:
    """Two drafted tokens: the pair that comes out is distributed as two draws from the target."""
    torch.manual_seed(3)
    target = torch.randn(V + 1, V, dtype=torch.float64)  # row: the token before, V for the root
    draft = torch.randn(V + 1, V, dtype=torch.float64).softmax(-1)
    sampling = Sampling(temperature=1.0)

    def round_of(chance: Enumerated) -> tuple[int, ...]:
        first = chance.pick(draft[V])
        second = chance.pick(draft[first])
        tree = TokenTree.chain(torch.tensor([0, first, second]))
        logits = target[[V, first, second]]
        sampler = Sampler(sampling, chance)
        found = accept_sampling(tree, logits, draft[[V, first]], sampler)
        text = (*tree.tokens[list(found.nodes[1:])].tolist(), found.bonus)
        if len(text) == 1:  # the target goes on by itself
            text = (*text, chance.pick(sampling.probabilities(target[text[0]])))
        return text[:2]

    p = sampling.probabilities(target)
    for (first, second), probability in enumerate_texts(round_of).items():
        wanted = float(p[V, first] * p[first, second])
        assert abs(probability - wanted) < 1e-12, f"the pair {first}, {second} has another chance"


def test_a_certain_token_of_the_draft_that_the_target_excludes_is_rejected() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 1.0], [0.0, 0.0, 0.0]])
    tree = TokenTree.chain(torch.tensor([0, 1]))
    found = accept_sampling(tree, logits, None, Sampler(Sampling(temperature=1.0), SeededChance(0)))
    assert found.nodes == (0,)
    assert found.bonus != 1


def test_typical_acceptance_takes_the_longest_path_of_tokens_that_are_not_unlikely() -> None:
    """Thresholds written out: min(ε, δ·exp(-entropy)) of the parent's distribution."""
    p = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.97, 0.01, 0.01, 0.01], [0.25] * 4, [0.25] * 4])
    tree = TokenTree(torch.tensor([0, 0, 1, 1]), (-1, 0, 0, 1), 4)  # 0 -> {0 -> 1, 1}
    found = accept_typical(tree, p.log(), Typical(0.09, 0.3), None)
    assert found.nodes == (0, 1), "1 % after a sure token is not typical; of equals the likelier"
    assert found.bonus == 0
    lenient = accept_typical(tree, p.log(), Typical(0.005, 0.3), None)
    assert lenient.nodes == (0, 1, 3), "with a lower ε the longer path is typical"
    strict = accept_typical(tree, p.log(), Typical(0.9, 3.0), None)
    assert strict.nodes == (0,), "a threshold above every chance accepts nothing"
