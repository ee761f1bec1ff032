"""What one token must read from memory, how fast memory is read, and how fast products are.

The first two are the floor of decoding one token; the third bounds how many rows a pass can score
for the price of one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from specbench_kangaroo.engine.clock import clock_for
from specbench_kangaroo.engine.families import weight_bytes

# Far more than the last-level caches of servers (32 MB to some hundred) or GPUs (tens) hold.
BUFFER_BYTES = 2**29
_ATTEMPTS = 5
# Square products so large that they are bound by arithmetic, and short enough to be repeated.
PRODUCT_SIZE = {"cpu": 1024, "cuda": 8192}


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


@torch.inference_mode()
def measured_matmul_tflop_s(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second in units of 1e12, of a large square product."""
    size = PRODUCT_SIZE.get(device.type, PRODUCT_SIZE["cpu"])
    left = torch.full((size, size), 0.5, dtype=dtype, device=device)
    right = torch.full((size, size), 0.5, dtype=dtype, device=device)
    fastest_ms = _fastest_ms(lambda: torch.mm(left, right), device)
    return 2 * size**3 / fastest_ms / 1e9


def weight_bytes_per_token(model: Any) -> int:
    """Bytes of weights that a pass over one token reads: all but the other tokens' embeddings.

    Packed weights count as they are packed.  A head that is tied to the embeddings reads all of
    them once.
    """
    row: Tensor = model.get_input_embeddings().weight[0]  # (H,)
    read = (*model.model.layers, model.model.norm, model.get_output_embeddings())
    return sum(weight_bytes(module) for module in read) + row.numel() * row.element_size()


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
