"""How Medusa's heads draft: one file's weights for all methods, the tree, and a text's state."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from specbench_kangaroo.engine.accept import Typical
from specbench_kangaroo.engine.linear import Linear
from specbench_kangaroo.engine.method import Draft, Verified
from specbench_kangaroo.engine.sampling import to_host
from specbench_kangaroo.engine.target import Target
from specbench_kangaroo.engine.tree import TokenTree
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.schema import ExitReason
from specbench_methods.medusa.heads import HeadsShape
from specbench_methods.shared.draft_tree import TreeShape, read_shape
from specbench_methods.shared.drafted_tokens import DraftedTokens
from specbench_methods.shared.weights import LoadedWeights

# The authors' tree of 63 nodes for Vicuna 7B (medusa_choices.py, mc_sim_7b_63), by depth: for each
# parent the number of its likeliest children.
_PUBLISHED_CHILDREN: dict[tuple[int, ...], int] = {
    (): 10,
    **{(0,): 10, (1,): 7, (2,): 3, (3,): 2},
    **{(rank,): 1 for rank in range(4, 10)},
    **{(0, 0): 10, (0, 1): 3, (0, 2): 2, (1, 0): 2, (2, 0): 1},
    **{(0, rank): 1 for rank in range(3, 8)},
    (0, 0, 0): 2,
}
PUBLISHED = TreeShape.of(
    (*parent, rank) for parent, children in _PUBLISHED_CHILDREN.items() for rank in range(children)
)
_BEST_NODES = 16
_KINDS = ("best", "published", "chain")


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


def default_tree(heads: SharedHeads) -> str:
    """What the heads' file names, its likeliest paths, or the published tree."""
    otherwise = "best" if heads.info.paths else "published"
    return str(heads.info.drafting.get("tree", otherwise))


def chosen_tree(kind: str, nodes: int | None, heads: SharedHeads) -> TreeShape:
    """The tree of this name or file; ``nodes`` is for the best one alone.

    Raises:
        UsageError: no such tree, or one that is deeper than there are heads.
    """
    paths = heads.info.paths
    if nodes is not None and (kind != "best" or not 1 <= nodes <= len(paths)):
        raise UsageError(
            f"medusa.nodes={nodes} asks for the best tree of {len(paths)} known paths, but the "
            f"tree is {kind}: leave it out, or give 1..{len(paths)} with medusa.tree=best"
        )
    tree = _tree(kind, nodes or heads.info.drafting.get("nodes", _BEST_NODES), heads)
    if tree.depth > heads.count:
        raise UsageError(
            f"the tree {kind} is {tree.depth} deep, but there are {heads.count} heads: give a tree "
            f"of at most {heads.count} levels, or more heads"
        )
    return tree


def _tree(kind: str, nodes: int, heads: SharedHeads) -> TreeShape:
    if kind == "published":
        return PUBLISHED
    if kind == "chain":
        return TreeShape.chain(heads.count)
    if kind == "best":
        if not heads.info.paths:
            raise UsageError(
                "these heads do not say which paths are likely: give medusa.tree=published, chain "
                "or a JSON file"
            )
        return TreeShape.of(path for path, _ in heads.info.paths[:nodes])
    if not Path(kind).is_file():
        raise UsageError(f"no tree {kind!r}; there are: {', '.join(_KINDS)}, or give a JSON file")
    return read_shape(Path(kind))


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


@dataclass(slots=True, eq=False)
class HeadsDrafter:
    """One text: the final state that the next draft is made of."""

    tree: TreeShape
    heads: HeadRunner
    drafted: DraftedTokens
    typical: Typical | None
    state: Tensor  # [1, H] at the token before the next root

    def propose(self, root: int, budget: int) -> Draft:
        """Fill the tree with the heads' likeliest tokens."""
        tree = self.tree.up_to(budget)
        if tree.depth == 0:
            return Draft(TokenTree.chain(torch.tensor([root])), exit_reason=ExitReason.BUDGET)
        logits = self.heads(self.state, tree.depth)  # [D, V']
        likeliest = logits.topk(tree.width, dim=-1)
        confidence = (likeliest.values[:, 0].float() - logits.float().logsumexp(-1)).exp()  # (D,)
        tokens = self.drafted.ids_of(likeliest.indices)  # [D, width]
        guesses, chances = to_host(tokens, confidence)
        drafted = [guesses[len(path) - 1][path[-1]] for path in tree.paths]
        rows = torch.tensor([root, *drafted])
        drafted_tree = TokenTree(rows, tree.parents, len(rows))
        reason = ExitReason.MAX_STEPS if tree is self.tree else ExitReason.BUDGET
        return Draft(
            drafted_tree,
            confidence=tuple(chances),
            exit_reason=reason,
            typical=self.typical,
        )

    def observe(self, verified: Verified) -> None:
        """Keep the final state of the last accepted row."""
        self.state = verified.output.normed[verified.nodes[-1] :][:1]
