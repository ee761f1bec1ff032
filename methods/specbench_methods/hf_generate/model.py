"""A target's model as transformers itself runs it, and what is told and drawn on the way."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from specbench_kangaroo.engine.sampling import Sampler
from specbench_kangaroo.engine.target import Target
from specbench_kangaroo.record.errors import UsageError


def sharing_weights(target: Target, *, who: str) -> Any:
    """Other modules, buffers and configs, transformers' own attention, and the very same weights.

    Raises:
        UsageError: weights that ``who`` cannot share.
    """
    model: Any = target.model
    weights = list(model.parameters())
    if getattr(model.config, "quantization_config", None) is not None:
        raise UsageError(f"{who} shares the target's weights, which are quantised: leave it out")
    if any(weight.device != target.device for weight in weights):
        raise UsageError(
            f"{who} shares the target's weights, which are offloaded or on several devices: give "
            "--device cpu or cuda, or leave it out"
        )
    found = copy.deepcopy(model, {id(weight): weight for weight in weights})
    # What transformers would take by itself; its sdpa knows no capped logits, as Gemma 2 has them.
    found.set_attn_implementation("sdpa" if found._supports_sdpa else "eager")
    return found


class FirstToken:
    """Tells once, at a call's number: as a logits processor or as a streamer of ``generate``.

    Without drafts it is a processor: fetching tokens for a streamer would cost a wait on a GPU.
    With drafts processors are called for each drafted token, and before the prefill already; but
    then tokens are streamed once a pass, after the prompt, when the host has them anyway.
    """

    def __init__(self, tell: Callable[[], None], *, drafts: bool) -> None:
        self._tell, self._calls_left = tell, 2 if drafts else 1
        self.arguments: dict[str, Any] = (
            {"streamer": self} if drafts else {"logits_processor": [self]}
        )

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        """(1, S), (1, V) -> (1, V), the logits as they are."""
        self.put(ids)
        return logits

    def put(self, ids: Tensor) -> None:
        """The prompt (1, P) first, then what each pass gave, (1, E)."""
        self._calls_left -= 1
        if self._calls_left == 0:
            self._tell()

    def end(self) -> None:
        """After the last token."""


@contextmanager
def seeded(sampler: Sampler | None, device: torch.device) -> Iterator[None]:
    """``generate`` draws from torch's global generators: seed them by our chance, for a while."""
    if sampler is None:
        yield
        return
    digits = [sampler.chance.pick(torch.full((256,), 1 / 256)) for _ in range(4)]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(digits))
        yield
