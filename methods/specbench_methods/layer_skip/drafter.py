"""A draft by some of the target's layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specbench_kangaroo.engine.method import Draft, Resume, Session, Verified
from specbench_kangaroo.engine.placement import Rows
from specbench_kangaroo.engine.target import NOTHING, Needs, Target, TargetOutput
from specbench_kangaroo.engine.tree import chain_parents
from specbench_methods.shared.chain import Chain, StopRule


class LayerDrafter:
    """One text, drafted over the target's own cache.

    Args:
        drafting: the layers that draft, as runs of neighbours.
        exit_layer: where the only run ends, for verification to go on from; None: it runs anew.
    """

    def __init__(
        self,
        target: Target,
        session: Session,
        rule: StopRule,
        drafting: Sequence[range],
        *,
        exit_layer: int | None,
    ) -> None:
        self._target, self._session, self._rule = target, session, rule
        *self._before, self._last = drafting
        self._exit_layer = exit_layer
        self._kept = NOTHING if self._exit_layer is None else Needs(layers=(self._exit_layer,))

    def propose(self, root: int, budget: int) -> Draft:
        """Draft until γ, the budget, EOS, or a token less likely than the threshold."""
        chain = Chain([root])
        states: list[Tensor] = []  # (1, H) of every row that ran, if they are kept
        while (reason := self._rule.reason(chain, budget, self._session.eos)) is None:
            output = self._predict(chain)
            states += output.hidden.values()
            chain.extend(output.logits[0], self._session.sampler)
        if self._exit_layer is None:
            return chain.draft(reason)
        hidden, rows = self._newest(chain)  # nothing is drafted after it, but it is verified
        cache = self._session.cache
        states.append(self._target.layers(hidden, 0, self._exit_layer, rows, cache))
        return chain.draft(reason, Resume(self._exit_layer, torch.cat(states)))

    def observe(self, verified: Verified) -> None:
        """Nothing: what was accepted is in the target's cache."""

    def _predict(self, chain: Chain) -> TargetOutput:
        """The chain's newest row through the drafting layers, above the committed cache.

        Without some of the layers the others write keys and values that are not the target's;
        verification writes every row of every layer again before anything is committed.
        """
        hidden, rows = self._newest(chain)
        target, cache = self._target, self._session.cache
        for layers in self._before:
            hidden = target.layers(hidden, layers.start, layers.stop, rows, cache)
        return target.predict(hidden, self._last.start, self._last.stop, rows, cache, self._kept)

    def _newest(self, chain: Chain) -> tuple[Tensor, Rows]:
        """The chain's newest row, embedded (1, H), and its place."""
        length, newest = self._session.cache.length, chain.depth
        rows = self._target.rows(length, chain_parents(newest + 1), first=newest)
        return self._target.embed(torch.tensor(chain.tokens[newest:])), rows
