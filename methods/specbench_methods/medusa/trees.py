"""Which tree Medusa drafts: by name, from the heads' own file, or from a user's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from specbench_kangaroo.record.errors import UsageError
from specbench_methods.medusa.drafter import SharedHeads
from specbench_methods.medusa.heads import KIND, Heads, HeadsShape
from specbench_methods.shared.draft_tree import TreeShape, read_shape
from specbench_methods.shared.weights import WeightInfo, save_weights

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


def write_untrained(config: Any, path: Path, *, own: bool) -> str:
    """Write three heads that change their state a little, with a small tree.

    For tests: with it a draft repeats what the target said one token earlier.
    """
    generator = torch.Generator().manual_seed(1 + own)
    heads = Heads(HeadsShape.of(config, heads=3, own=own))
    for tensor in heads.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    nodes = [(0,), (1,), (0, 0), (2,), (0, 1), (1, 0), (0, 0, 0), (3,)]
    info = WeightInfo(
        draft_vocabulary=None if own else tuple(range(config.vocab_size // 2)),
        paths=tuple((node, 1.0 / (1 + i)) for i, node in enumerate(nodes)),
    )
    heads.to(torch.float32)
    save_weights(path, heads, info, KIND)
    return str(path)
