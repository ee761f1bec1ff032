"""Processed next-token distributions, their numbers on the host, and the one source of chance.

Draft and target must be processed alike (temperature, top-k, top-p), or losslessness is lost; both
call :meth:`Sampling.probabilities`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn.

    Raises:
        ValueError: a temperature that is not positive, or a ``top_p`` outside (0, 1].
    """

    temperature: float
    top_p: float = 1.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], not {self.top_p}")

    def probabilities(self, logits: Tensor) -> Tensor:
        """(…, V) logits to probabilities, in float32 or the logits' wider dtype."""
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32)) / self.temperature
        if self.top_k is not None and self.top_k < wide.shape[-1]:
            least = wide.topk(self.top_k, dim=-1).values[..., -1:]
            wide = wide.masked_fill(wide < least, float("-inf"))
        probabilities = wide.softmax(-1)
        if self.top_p < 1:
            probabilities = _nucleus(probabilities, self.top_p)
        return probabilities


class Chance(Protocol):
    """Every random decision of a generation, so that a test can enumerate them all."""

    def accepts(self, probability: float) -> bool:
        """True with the given probability."""
        ...

    def pick(self, probabilities: Tensor) -> int:
        """An index drawn from (V,) probabilities."""
        ...


class SeededChance:
    """Chance from a generator of its own, so that other methods' draws do not shift it."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def accepts(self, probability: float) -> bool:
        """See :class:`Chance`."""
        return bool(torch.rand((), generator=self._generator, dtype=torch.float64) < probability)

    def pick(self, probabilities: Tensor) -> int:
        """See :class:`Chance`."""
        drawn = torch.multinomial(probabilities.cpu(), 1, generator=self._generator)
        return int(drawn)


@dataclass(frozen=True, slots=True)
class Sampler:
    """A way of drawing with its chance: what a generation with temperature > 0 is given."""

    sampling: Sampling
    chance: Chance


def to_host(*tensors: Tensor) -> list[Any]:
    """Each tensor's values, as ``tolist`` gives them, by one read.

    A read waits for all that the device was given before, and every launch after it starts on an
    idle device: a draft step that reads four times pays for four such gaps.  The values travel as
    float64, which holds token ids and every smaller float exactly.
    """
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return [tensor.tolist() for tensor in tensors]
    packed = torch.cat([tensor.reshape(-1).double() for tensor in tensors]).cpu()  # (N,)
    sizes = [tensor.numel() for tensor in tensors]
    return [
        part.view(tensor.shape).to(tensor.dtype).tolist()
        for part, tensor in zip(torch.split(packed, sizes), tensors, strict=True)
    ]


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of tokens whose mass reaches ``top_p`` (Holtzman et al. 1904.09751)."""
    ordered, order = probabilities.sort(dim=-1, descending=True)
    outside = ordered.cumsum(-1) - ordered >= top_p
    ordered = ordered.masked_fill(outside, 0.0)
    kept = torch.zeros_like(probabilities).scatter(-1, order, ordered)
    return kept / kept.sum(-1, keepdim=True)
