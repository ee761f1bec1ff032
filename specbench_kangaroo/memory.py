"""Memory that ran out: how it shows, and giving back what the failed answer held.

Knows: torch's errors and allocators.  Does not know: who needed the memory, or for what.
"""

from __future__ import annotations

import gc

import torch

# Texts of plain RuntimeErrors: torch's allocator on the CPU, a CUDA library's own, a CUDA call's.
_TEXTS = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory, on the host or on a device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


def reclaim() -> None:
    """Free what nobody refers to any more, and hand it back to the devices.

    Call it when the error is gone too: its traceback holds every tensor of the frames it crossed.
    """
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
