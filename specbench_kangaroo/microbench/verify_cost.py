"""What a pass of the target costs by how many rows it scores: the price of verifying a draft."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import torch
from torch import Tensor

from specbench_kangaroo.engine.cache import KVCache
from specbench_kangaroo.engine.clock import clock_for
from specbench_kangaroo.engine.decode import verify
from specbench_kangaroo.engine.method import Draft
from specbench_kangaroo.engine.target import Target
from specbench_kangaroo.engine.tree import TokenTree
from specbench_kangaroo.run.schedule import rotated

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_COMMITTED = 256  # tokens, if the target's context has room for them
_ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class Scene:
    """A committed context, above which chains are scored and never committed."""

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
def open_scene(target: Target, tokens: Sequence[int]) -> Scene:
    """Commit ``tokens``, from the start again when they run out, up to the context's length.

    A scene serves until the next generation, which may take over the memory of its cache.
    """
    rows = rows_of(target)
    committed = max(1, min(_COMMITTED, target.context_length - max(rows)))
    enough = committed + max(rows)
    text = torch.tensor(list(islice(cycle(tokens), enough)), device=target.device)  # (S + T,)
    target.start()
    cache = target.new_cache(enough)
    target.prefill(text[:committed], cache)
    return Scene(target, cache, text[committed:], rows)


def sweep(scene: Scene, number: int) -> Mapping[int, float]:
    """Milliseconds of one pass for each of the rows; ``number`` says where it begins."""
    order = rotated([str(rows) for rows in scene.rows], number)
    times_ms = {int(rows): _pass_ms(scene, int(rows)) for rows in order}
    return {rows: times_ms[rows] for rows in scene.rows}


@torch.inference_mode()
def _pass_ms(scene: Scene, rows: int) -> float:
    """Again if the backend captured the pass on the way, which no later one pays for."""
    target = scene.target
    draft = Draft(TokenTree.chain(scene.tokens[:rows]))
    clock = clock_for(target.device)
    for _ in range(_ATTEMPTS):
        captures = target.captures
        clock.stamp()
        verify(target, draft, scene.cache)
        clock.stamp()
        # The read-out waits for the device, as the loop does for its decision: the next pass is
        # launched on an idle device and pays for its launches as it would there.
        pass_ms = clock.read()[-1]
        if target.captures == captures:
            return pass_ms
    raise RuntimeError(f"a pass of {rows} rows was captured in {_ATTEMPTS} attempts")
