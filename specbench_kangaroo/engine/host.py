"""Numbers of several device tensors on the host, by one read.

A read waits for all that the device was given before, and every launch after it starts on an idle
device: a draft step that reads four times pays for four such gaps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def to_host(*tensors: Tensor) -> list[Any]:
    """Each tensor's values, as ``tolist`` gives them.

    They travel as float64, which holds token ids and every smaller float exactly.
    """
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return [tensor.tolist() for tensor in tensors]
    packed = torch.cat([tensor.reshape(-1).double() for tensor in tensors]).cpu()  # (N,)
    sizes = [tensor.numel() for tensor in tensors]
    return [
        part.view(tensor.shape).to(tensor.dtype).tolist()
        for part, tensor in zip(torch.split(packed, sizes), tensors, strict=True)
    ]
