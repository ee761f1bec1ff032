"""Medusa: several heads on the final state, each guessing a later token (Cai et al., 2401.10774).

Every step drafts a static tree: at depth d the likeliest guesses of head d-1, combined as the tree
says.  Heads do not see each other's guesses, so one product drafts all depths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor

from specbench_kangaroo.engine.accept import Typical
from specbench_kangaroo.engine.method import (
    Drafter,
    MethodOptions,
    PlainMethod,
    Session,
    option,
)
from specbench_kangaroo.engine.target import Target, TargetOutput
from specbench_kangaroo.models.heads import KnownHeads
from specbench_kangaroo.record.errors import UsageError
from specbench_methods.medusa.drafter import (
    HeadRunner,
    HeadsDrafter,
    SharedHeads,
    chosen_tree,
    default_tree,
)
from specbench_methods.medusa.heads import KIND, load_heads, write_untrained
from specbench_methods.medusa.training import MedusaTrainee
from specbench_methods.shared.draft_tree import TreeShape
from specbench_methods.shared.drafted_tokens import DraftedTokens
from specbench_methods.shared.weight_sources import build_once, known_heads


@dataclass(frozen=True, slots=True, kw_only=True)
class MedusaOptions(MethodOptions):
    """What is left out is the heads' own choice if their file names one."""

    heads: str | None = option(
        None, "file, folder or org/name[@revision]; default: those shipped for the model"
    )
    tree: str | None = option(None, "best (of the heads' file), published, chain, or a JSON file")
    nodes: int | None = option(None, "how many nodes of the best tree are drafted")
    acceptance: str = option("exact", "exact, or typical: the paper's lossy rule")
    epsilon: float = option(0.09, "ε: the typical rule's largest threshold")
    delta: float = option(0.3, "δ: the typical rule's threshold is δ·exp(-entropy)")
    full_vocabulary: bool = option(False, "draft over all tokens, not the heads' frequent ones")


class Medusa(PlainMethod):
    """Heads on the target's final state draft a static tree in one product."""

    Options: ClassVar[type[MethodOptions]] = MedusaOptions

    def __init__(
        self, target: Target, options: MedusaOptions, heads: SharedHeads, tree: TreeShape
    ) -> None:
        super().__init__(options)
        self.tree = tree
        self.max_rows = 1 + len(tree.paths)
        self.lossy = options.acceptance == "typical"
        self.weights: Mapping[str, Any] = heads.record
        self._typical = Typical(options.epsilon, options.delta) if self.lossy else None
        ids = None if options.full_vocabulary else heads.info.draft_vocabulary
        self._drafted = DraftedTokens.of(target, ids)
        self._heads = HeadRunner(heads, self._drafted, count=max(1, tree.depth))

    @classmethod
    def load(cls, target: Target, options: MedusaOptions) -> Self:
        """Find and read the heads, and choose the tree; see :class:`Method`."""
        if options.acceptance not in ("exact", "typical"):
            raise UsageError(
                f"medusa.acceptance must be exact or typical, not {options.acceptance!r}"
            )
        heads = build_once(
            target,
            options.heads,
            KIND,
            lambda source: SharedHeads(target, load_heads(source, target.config)),
        )
        kind = options.tree or default_tree(heads)
        tree = chosen_tree(kind, options.nodes, heads)
        named = replace(options, tree=kind, nodes=len(tree.paths))
        return cls(target, named, heads, tree)

    @classmethod
    def example_options(cls, target: Target, folder: Path) -> list[MedusaOptions]:
        """Trees and chains over untrained heads; see :class:`Method`."""
        heads = write_untrained(target.config, folder / "shared.safetensors", own=False)
        own = write_untrained(target.config, folder / "own.safetensors", own=True)
        return [
            MedusaOptions(heads=heads),
            MedusaOptions(heads=heads, tree="chain", full_vocabulary=True),
            MedusaOptions(heads=own, tree="best", nodes=5),
        ]

    @classmethod
    def known_heads(cls) -> list[KnownHeads]:
        """For ``specbench list``; see :class:`NeedsHeads`."""
        return known_heads(KIND)

    @classmethod
    def trainee(cls, model: Any, *, exit_layer: int | None) -> MedusaTrainee:
        """The heads as ``specbench train`` wants them; see :class:`Trainable`."""
        return MedusaTrainee.of(model, exit_layer)

    def start(self, session: Session, prompt: Tensor, output: TargetOutput) -> Drafter:
        """Start from the prompt's last final state."""
        return HeadsDrafter(self.tree, self._heads, self._drafted, self._typical, output.normed)


METHOD = Medusa
