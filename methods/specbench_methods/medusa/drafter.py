"""How Medusa's heads draft: one file's weights for all methods, and the state of one text."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from specbench_kangaroo.engine.accept import Typical
from specbench_kangaroo.engine.linear import Linear
from specbench_kangaroo.engine.method import Draft, Verified
from specbench_kangaroo.engine.sampling import to_host
from specbench_kangaroo.engine.target import Target
from specbench_kangaroo.engine.tree import TokenTree
from specbench_kangaroo.record.schema import ExitReason
from specbench_methods.medusa.heads import HeadsShape
from specbench_methods.shared.draft_tree import TreeShape
from specbench_methods.shared.drafted_tokens import DraftedTokens
from specbench_methods.shared.weights import LoadedWeights


class SharedHeads:
    """One file's heads on the target's device, each moved there when a tree first needs it.

    Args:
        loaded: the host's copy of an output matrix is let go of as it is moved.
    """

    def __init__(self, target: Target, loaded: LoadedWeights) -> None:
        shape = HeadsShape.in_file(loaded, target.config)
        self.info, self.record, self.count = loaded.info, loaded.record, shape.heads
        self._own, self._target, self._tensors = shape.own, target, dict(loaded.tensors)
        self._blocks: dict[int, Linear] = {}
        self._outputs: list[Linear] = []

    def blocks(self, count: int) -> Linear:
        """(1, H) -> (1, K * H): the first K = ``count`` heads before SiLU, in one product."""
        if count not in self._blocks:
            names = [f"{i}.0.linear" for i in range(count)]
            self._blocks[count] = Linear(
                torch.cat([self._moved(self._tensors[f"{name}.weight"]) for name in names]),
                torch.cat([self._moved(self._tensors[f"{name}.bias"]) for name in names]),
            )
        return self._blocks[count]

    def outputs(self, count: int) -> list[Linear]:
        """(1, H) -> (1, V) each: the first heads' own output matrices; empty without any."""
        for i in range(len(self._outputs), count if self._own else 0):
            self._outputs.append(Linear(self._moved(self._tensors.pop(f"{i}.1.weight"))))
        return self._outputs[:count]

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._target.device, self._target.dtype)


class HeadRunner:
    """The first heads on one state, in two products.

    Args:
        count: how many heads are asked at most; the others take no memory of the device.
        drafted: the tokens that heads without an output matrix of their own predict over.
    """

    def __init__(self, heads: SharedHeads, drafted: DraftedTokens, *, count: int) -> None:
        self._count = count
        self._blocks, self._own = heads.blocks(count), heads.outputs(count)
        if not self._own:
            self._shared = drafted.lm_head

    def __call__(self, hidden: Tensor, count: int) -> Tensor:
        """The first ``count`` heads' logits (count, V') from one final state (1, H)."""
        states = hidden + functional.silu(self._blocks(hidden)).view(self._count, -1)  # [K, H]
        if self._own:
            return torch.cat([self._own[i](states[i : i + 1]) for i in range(count)])
        return self._shared(states[:count])


class HeadsDrafter:
    """One text: the final state that the next draft is made of."""

    def __init__(
        self,
        tree: TreeShape,
        heads: HeadRunner,
        drafted: DraftedTokens,
        typical: Typical | None,
        state: Tensor,
    ) -> None:
        self._tree, self._heads, self._drafted, self._typical = tree, heads, drafted, typical
        self._state = state  # [1, H] at the token before the next root

    def propose(self, root: int, budget: int) -> Draft:
        """Fill the tree with the heads' likeliest tokens."""
        tree = self._tree.up_to(budget)
        if tree.depth == 0:
            return Draft(TokenTree.chain(torch.tensor([root])), exit_reason=ExitReason.BUDGET)
        logits = self._heads(self._state, tree.depth)  # [D, V']
        likeliest = logits.topk(tree.width, dim=-1)
        confidence = (likeliest.values[:, 0].float() - logits.float().logsumexp(-1)).exp()  # (D,)
        tokens = self._drafted.ids_of(likeliest.indices)  # [D, width]
        guesses, chances = to_host(tokens, confidence)
        drafted = [guesses[len(path) - 1][path[-1]] for path in tree.paths]
        rows = torch.tensor([root, *drafted])
        drafted_tree = TokenTree(rows, tree.parents, len(rows))
        reason = ExitReason.MAX_STEPS if tree is self._tree else ExitReason.BUDGET
        return Draft(
            drafted_tree,
            confidence=tuple(chances),
            exit_reason=reason,
            typical=self._typical,
        )

    def observe(self, verified: Verified) -> None:
        """Keep the final state of the last accepted row."""
        self._state = verified.output.normed[verified.nodes[-1] :][:1]
