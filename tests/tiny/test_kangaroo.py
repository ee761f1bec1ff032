"""Kangaroo's own state: a wrong adapter cache changes no output, only how good drafts are."""

from pathlib import Path

import pytest
import torch

from specbench_kangaroo.engine.clock import WallClock
from specbench_kangaroo.engine.decode import Limits, decode
from specbench_kangaroo.engine.method import Session, Verified
from specbench_kangaroo.engine.target import TargetOutput
from specbench_methods.kangaroo import Kangaroo

from .models import FAMILIES, target

PROMPT = (5, 9, 3, 14, 7, 11, 3, 14)


class Watched(Kangaroo):
    """Compares the adapter's cache after every round with one that saw the text at once."""

    def begin(self, session: Session, prompt: torch.Tensor, output: TargetOutput) -> None:
        self.rounds = 0
        self._ids = prompt.tolist()
        super().begin(session, prompt, output)

    def observe(self, verified: Verified) -> None:
        self._ids += [self._growth.tokens[row] for row in verified.nodes]
        super().observe(verified)
        self.rounds += 1
        found, pending = self._adapter._cache, self._adapter._pending
        ids = torch.tensor(self._ids)
        fresh = self._target.prefill(ids, self._target.new_cache(len(ids)), taps=self.taps)
        states = fresh.taps[self.exit_layer]
        assert found.length + len(pending) == len(ids), "a committed position was lost"
        torch.testing.assert_close(pending, states[found.length :], rtol=0, atol=1e-10)
        cached = found.committed(0)
        kept = (cached.keys.clone(), cached.values.clone())
        self._adapter.begin(states, len(ids))
        whole = self._adapter._cache.committed(0)
        for mine, wanted in zip(kept, (whole.keys, whole.values), strict=True):
            error = (mine - wanted[:, :, : found.length]).abs().max()
            assert error < 1e-10, "the adapter's cache is not that of the committed text"
        self._adapter._cache, self._adapter._pending = found, pending


@pytest.mark.parametrize("family", FAMILIES)
def test_after_every_round_the_adapters_cache_is_that_of_the_text(
    family: str, tmp_path: Path
) -> None:
    model = target(family)
    for options in Watched.example_options(model, tmp_path):
        method = Watched.load(model, options)
        limits = Limits(max_new_tokens=30, eos=frozenset())
        decode(model, method, PROMPT, limits=limits, clock=WallClock())
        assert method.rounds > 0
