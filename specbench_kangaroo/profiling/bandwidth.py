"""What one token must read from memory, and how fast memory can be read: the floor of decoding.

Knows: the weights of a model, torch's streaming operations.  Does not know: how anything decodes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from specbench_kangaroo.clock import clock_for

# Far more than the last-level caches of servers (32 MB to some hundred) or GPUs (tens) hold.
BUFFER_BYTES = 2**29
_ATTEMPTS = 5


@torch.inference_mode()
def measured_bandwidth_gb_s(device: torch.device) -> float:
    """Bytes a second in units of 1e9, the best of several attempts: noise only ever slows one.

    A CPU is measured by reductions, which read as decoding does and write nothing; a GPU by a copy
    within its memory, whose reads and writes both count.
    """
    buffer = torch.ones(BUFFER_BYTES // 4, dtype=torch.float32, device=device)  # (N,)
    if device.type == "cuda":
        copied = torch.empty_like(buffer)
        fastest_ms = _fastest_ms(lambda: copied.copy_(buffer), device)
        return 2 * BUFFER_BYTES / fastest_ms / 1e6
    # Which of the two is less bound by arithmetic differs between processors.
    fastest_ms = min(_fastest_ms(buffer.sum, device), _fastest_ms(buffer.amax, device))
    return BUFFER_BYTES / fastest_ms / 1e6


def weight_bytes_per_token(model: Any) -> int:
    """Bytes of weights that a pass over one token reads: all but the other tokens' embeddings.

    A head that is tied to the embeddings reads all of them once.
    """
    embeddings: Tensor = model.get_input_embeddings().weight  # (V, H)
    head: Tensor = model.get_output_embeddings().weight  # (V, H)
    every = sum(_bytes(weight) for weight in model.parameters())  # a tied weight comes once
    unread = 0 if head is embeddings else _bytes(embeddings)
    return every - unread + _bytes(embeddings[0])


def _bytes(weight: Tensor) -> int:
    return weight.numel() * weight.element_size()


def _fastest_ms(stream: Callable[[], Tensor], device: torch.device) -> float:
    clock = clock_for(device)
    stream()  # the first touch of the pages is no reading
    times_ms = []
    for _ in range(_ATTEMPTS):
        clock.stamp()
        stream()
        clock.stamp()
        times_ms.append(clock.read()[-1])
    return min(times_ms)
