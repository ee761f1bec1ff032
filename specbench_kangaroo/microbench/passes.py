"""What a pass of the target costs by how many rows it scores: the price of verifying a draft."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from specbench_kangaroo.bench.pauses import without_captures
from specbench_kangaroo.engine.cache import KVCache
from specbench_kangaroo.engine.clock import clock_for
from specbench_kangaroo.engine.decode import verify
from specbench_kangaroo.engine.method import Draft
from specbench_kangaroo.engine.target import Target
from specbench_kangaroo.engine.tree import TokenTree

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_COMMITTED = 256  # tokens, if the target's context has room for them


@dataclass(frozen=True, slots=True)
class Scene:
    """A committed context, above which chains are scored and never committed.

    It serves until its target generates, which may take over the memory of the cache.
    """

    target: Target
    cache: KVCache
    tokens: Tensor  # (max(rows),) what the chains consist of
    rows: tuple[int, ...]


def rows_of(target: Target) -> tuple[int, ...]:
    """The sizes that are timed, as far as the context has room for them.

    Where a pass takes milliseconds these are all up to the largest.  A backend that captures passes
    pads them to sizes of its own, so that the sizes between say nothing.
    """
    dense = target.device.type == "cuda" and target.capturer is None
    sizes = range(1, max(ROWS) + 1) if dense else ROWS
    return tuple(rows for rows in sizes if rows < target.context_length)


@torch.inference_mode()
def open_scene(target: Target) -> Scene:
    """Commit a text that means nothing: which tokens a pass is about costs nothing."""
    rows = rows_of(target)
    committed = max(1, min(_COMMITTED, target.context_length - max(rows)))
    count = committed + max(rows)
    text = (torch.arange(count, device=target.device) * 7919) % target.vocab_size  # (S + T,)
    target.start()
    cache = target.new_cache(count)
    target.prefill(text[:committed], cache)
    return Scene(target, cache, text[committed:], rows)


def sweep(scene: Scene, number: int) -> Mapping[int, float]:
    """Milliseconds of one pass for each of the rows; ``number`` says where it begins."""
    start = number % len(scene.rows)
    order = (*scene.rows[start:], *scene.rows[:start])
    times_ms = {
        rows: without_captures(scene.target, partial(_pass_ms, scene, rows)) for rows in order
    }
    return {rows: times_ms[rows] for rows in scene.rows}


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
