"""What a pass of the target costs by how many rows it scores: the price of verifying a draft.

Knows: the target, chains of tokens, the clock.  Does not know: any method, or what is done with
the times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import torch
from torch import Tensor

from specbench_kangaroo.cache import KVCache
from specbench_kangaroo.clock import clock_for
from specbench_kangaroo.decode import verify
from specbench_kangaroo.method import Draft
from specbench_kangaroo.schedule import rotated
from specbench_kangaroo.target import Target
from specbench_kangaroo.tree import TokenTree

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 32)
_COMMITTED = 256  # tokens, if the target's context has room for them


@dataclass(frozen=True, slots=True)
class Scene:
    """A committed context, above which chains are scored and never committed."""

    target: Target
    cache: KVCache
    tokens: Tensor  # (max(ROWS),) what the chains consist of


@torch.inference_mode()
def open_scene(target: Target, tokens: Sequence[int]) -> Scene:
    """Commit ``tokens``, from the start again when they run out, up to the context's length."""
    committed = max(1, min(_COMMITTED, target.context_length - max(ROWS)))
    enough = committed + max(ROWS)
    text = torch.tensor(list(islice(cycle(tokens), enough)), device=target.device)  # (S + T,)
    cache = target.new_cache(enough)
    target.prefill(text[:committed], cache)
    return Scene(target, cache, text[committed:])


def sweep(scene: Scene, number: int) -> Mapping[int, float]:
    """Milliseconds of one pass for each of ``ROWS``; sweep ``number`` says where it begins."""
    order = rotated([str(rows) for rows in ROWS], number)
    times_ms = {int(rows): _pass_ms(scene, int(rows)) for rows in order}
    return {rows: times_ms[rows] for rows in ROWS}


@torch.inference_mode()
def _pass_ms(scene: Scene, rows: int) -> float:
    draft = Draft(TokenTree.chain(scene.tokens[:rows]))
    clock = clock_for(scene.target.device)
    clock.stamp()
    verify(scene.target, draft, scene.cache)
    clock.stamp()
    # The read-out waits for the device, as the loop does for its decision: the next pass is
    # launched on an idle device and pays for its launches as it would there.
    return clock.read()[-1]
