"""What a device's errors mean: memory that ran out, to be given back, or a device that is lost."""

from __future__ import annotations

import gc

import torch

# Texts of plain RuntimeErrors: torch's allocator on the CPU, a CUDA library's own, a CUDA call's.
_TEXTS = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")
_LOST = "CUDA error: "


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory, on the host or on a device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


def is_device_lost(error: BaseException) -> bool:
    """Whether no later call of this process can succeed on the device.

    After an illegal access, a failed assertion in a kernel or a fault of the hardware every CUDA
    call of the process fails with the same error; another process may well work.
    """
    if is_out_of_memory(error):
        return False
    accelerator = getattr(torch, "AcceleratorError", None)  # torch 2.8 or newer
    known = accelerator is not None and isinstance(error, accelerator)
    return known or (isinstance(error, RuntimeError) and _LOST in str(error))


def reclaim() -> None:
    """Free what nobody refers to any more, and hand it back to the devices.

    Call it when the error is gone too: its traceback holds every tensor of the frames it crossed.
    """
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
