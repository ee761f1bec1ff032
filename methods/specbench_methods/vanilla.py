"""Vanilla decoding, the baseline: no draft, one token a target pass.

Its draft is the root alone, so it runs through the same loop, cache and products as every method.
"""

from __future__ import annotations

import torch

from specbench_kangaroo.engine.method import Draft, StatelessMethod
from specbench_kangaroo.engine.tree import TokenTree
from specbench_kangaroo.record.schema import ExitReason


class Vanilla(StatelessMethod):
    """The denominator of every speedup."""

    def propose(self, root: int, budget: int) -> Draft:
        """The root alone."""
        return Draft(TokenTree.chain(torch.tensor([root])), exit_reason=ExitReason.NO_DRAFT)


METHOD = Vanilla
