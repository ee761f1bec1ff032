"""Kangaroo's own state: a wrong adapter cache changes no output, only how good drafts are."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from specbench_kangaroo.engine.clock import WallClock
from specbench_kangaroo.engine.decode import Limits, decode
from specbench_kangaroo.engine.method import Drafter, Session, Verified
from specbench_kangaroo.engine.target import TargetOutput
from specbench_methods.kangaroo import Kangaroo
from specbench_methods.kangaroo.adapter import write_untrained
from specbench_methods.kangaroo.drafter import AdapterText, KangarooDrafter

from .models import FAMILIES, target

PROMPT = (5, 9, 3, 14, 7, 11, 3, 14)


class Watched(Kangaroo):
    """Counts its rounds."""

    rounds = 0

    def start(self, session: Session, prompt: torch.Tensor, output: TargetOutput) -> Drafter:
        text = AdapterText(self._runner, output.hidden[self._exit_layer], session.cache.capacity)
        given = text, self._drafted, session, self._rule, self._exit_layer, self._width
        return WatchedText(self, prompt, *given)


class WatchedText(KangarooDrafter):
    """Compares the adapter's cache after every round with one that saw the text at once."""

    def __init__(self, method: Watched, prompt: torch.Tensor, *given: Any) -> None:
        super().__init__(*given)
        self._method, self._ids = method, prompt.tolist()

    def observe(self, verified: Verified) -> None:
        self._ids += [self.growth.tokens[row] for row in verified.nodes]
        super().observe(verified)
        self._method.rounds += 1
        found, pending = self.adapter.cache, self.adapter.pending
        ids, target = torch.tensor(self._ids), self.adapter.target
        fresh = target.prefill(ids, target.new_cache(len(ids)), self._method.needs)
        (states,) = fresh.hidden.values()
        assert found.length + len(pending) == len(ids), "a committed position was lost"
        torch.testing.assert_close(pending, states[found.length :], rtol=0, atol=1e-10)
        cached = found.committed(0)
        whole = AdapterText(self._method._runner, states, len(ids)).cache.committed(0)
        for mine, wanted in ((cached.keys, whole.keys), (cached.values, whole.values)):
            error = (mine - wanted[:, :, : found.length]).abs().max()
            assert error < 1e-10, "the adapter's cache is not that of the committed text"


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


def test_entries_with_other_options_share_the_adapter(tmp_path: Path) -> None:
    model = target(FAMILIES[0])
    first, *_ = Kangaroo.example_options(model, tmp_path)
    one, two = (Kangaroo.load(model, replace(first, steps=steps)) for steps in (1, 4))
    assert (one._runner, one._drafted) == (two._runner, two._drafted)
    assert (one.max_rows, two.max_rows) == (2, 5)
    whole = Kangaroo.load(model, replace(first, full_vocabulary=True))
    assert whole._runner is one._runner
    assert whole._drafted is not one._drafted, "it drafts over other rows of the head"
    (tmp_path / "other").mkdir()
    path = str(tmp_path / "other" / "kangaroo.safetensors")
    write_untrained(model.config, Path(path), exit_layer=2, vocabulary_size=4)
    assert Kangaroo.load(model, replace(first, adapter=path))._runner is not one._runner
    shutil.copy(path, str(first.adapter))
    assert Kangaroo.load(model, first)._runner is not one._runner, "the file is another one by now"
