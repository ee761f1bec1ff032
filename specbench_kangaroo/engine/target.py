"""The target model as the engine needs it: embed, run decoder layers [a, b), read logits.

A model may lie on several devices (``device_map="auto"``).  Everything that a method sees, tokens,
states, logits, is on ``Target.device``, the embedding's.  Between two layers on different devices
the states are copied, angles and masks once a pass and device; keys and values are kept where their
layer is.  Copies between GPUs are ordered by their streams and stop nothing; the host waits where
weights are fetched from its memory or the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from transformers import AttentionInterface

from specbench_kangaroo.engine.cache import CacheShape, KVCache, Slots
from specbench_kangaroo.engine.cuda_graphs import Body, Capturer, Graphs
from specbench_kangaroo.engine.families import (
    home,
    layout_of,
    not_by_range,
    weight_bytes,
)
from specbench_kangaroo.engine.layers import (
    ATTENTION,
    Layer,
    LayerSpec,
    LeanLayer,
    ModuleLayer,
    attention,
    is_llama_shaped,
)
from specbench_kangaroo.engine.linear import LmHead, matrix_of
from specbench_kangaroo.engine.placement import Placement, Rows
from specbench_kangaroo.engine.tree import chain_parents
from specbench_kangaroo.record.errors import UsageError

AttentionInterface.register(ATTENTION, attention)

_CHECK_TOKENS = 7
_CHECK_TOLERANCE = {  # of the largest logit; float64 too, as transformers' norms are float32
    torch.float64: 1e-5,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}
_QUANTISED_TOLERANCE = 5e-2  # a row's int8 outliers may depend on the rows beside it (LLM.int8)


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Needs:
    """Hidden states that a drafter is given beside the logits: whatever is not asked is not kept.

    Attributes:
        layers: i asks for the states after i decoder layers: 0 for the embedded tokens, the number
            of layers for what goes into the final norm.  Of every position of the prompt, and of
            every verified row.
        final_normed: ask for the states after the final norm at every position of the prompt.
            Those of the last position and of verified rows are there in any case.
    """

    layers: tuple[int, ...] = ()
    final_normed: bool = False

    def __post_init__(self) -> None:
        """Sort the layers, each once: the order in which a pass comes by them."""
        object.__setattr__(self, "layers", tuple(sorted({*self.layers})))


NOTHING = Needs()


@dataclass(frozen=True, slots=True)
class TargetOutput:
    """What a pass of the target gives.

    Attributes:
        logits: (T, V); of a prefill (1, V), after the last position.
        normed: (T, H) after the final norm; of a prefill (1, H), or (P, H) if asked for.
        hidden: states (T, H), of a prefill (P, H), after the layers that were asked for.
    """

    logits: Tensor
    normed: Tensor
    hidden: Mapping[int, Tensor] = field(default_factory=dict)


class Target:
    """A causal language model whose layers can be run by range on our cache.

    Args:
        model: a ``transformers`` causal language model in eval mode.  It becomes the target's: its
            attention implementation is switched to ours.
        name: what packaged draft weights are looked up by.
        tokenizer: the model's own, whose vocabulary a second model must share; None: not known.
        capturer: captures passes of a few rows for replay; None launches every operation itself.

    Raises:
        UsageError: the family's layers, run one by one, do not give what the model itself gives.
    """

    def __init__(
        self,
        model: Any,
        *,
        name: str = "",
        tokenizer: Any = None,
        capturer: Capturer | None = None,
    ) -> None:
        self.layout = layout_of(model)
        self.model = model
        self.name = name
        self.tokenizer = tokenizer
        self.config = model.config
        self.n_layers: int = len(model.model.layers)
        self.hidden_size: int = model.config.hidden_size
        self.context_length: int = self.layout.context_length
        self._embedding = model.get_input_embeddings()
        self.dtype: torch.dtype = self._embedding.weight.dtype
        self.device: torch.device = home(self._embedding)
        self._head = LmHead(model.get_output_embeddings(), model.config)
        self.vocab_size: int = self._head.vocab_size
        self._homes = [home(layer) for layer in model.model.layers]
        self._is_spread = any(device != self.device for device in self._homes)
        self._norm_home = home(model.model.norm)
        like = torch.empty(1, dtype=self.dtype, device=self.device)
        placement = Placement(model, self.layout, like)
        self.rope = placement.rope
        self.rows, self.prompt_rows = placement.rows, placement.prompt_rows
        self._weight_shares = _weight_shares(model)
        self.capturer = capturer
        self._graphs: Graphs | None = None
        self._shared: dict[Hashable, Any] = {}
        self.companions: list[Target] = []  # draft models, whose generations are this one's
        with torch.inference_mode():
            self._layers = self._build()
            if capturer is not None:
                self._capture(capturer)

    def _build(self) -> list[Layer]:
        ids = self._check_ids()
        try:
            self.model.set_attn_implementation("eager")  # the one that every family is written for
            wanted = self.model(ids[None].to(self.device), use_cache=False).logits[0]
            self.model.set_attn_implementation(ATTENTION)
            for layers in self._attempts():
                self._layers = layers
                if self._agrees(ids, wanted.to(self.device)):
                    return layers
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            raise not_by_range(self.model, reason) from error
        raise not_by_range(self.model, "its layers, run one by one, do not give its own logits")

    def _attempts(self) -> Iterator[list[Layer]]:
        """Ways to run the layers, the fastest first."""
        layout = self.layout
        modules = [
            (module, LayerSpec(index, layout.windows[index], layout.rotations[index]))
            for index, module in enumerate(self.model.model.layers)
        ]
        if any(is_llama_shaped(module) for module, _ in modules):
            yield [
                LeanLayer(module, spec) if is_llama_shaped(module) else ModuleLayer(module, spec)
                for module, spec in modules
            ]
        yield [ModuleLayer(module, spec) for module, spec in modules]

    def _check_ids(self) -> Tensor:
        """(T,) a text that means nothing, on the host."""
        return (torch.arange(_CHECK_TOKENS) * 7919) % self.vocab_size

    def _agrees(self, ids: Tensor, wanted: Tensor) -> bool:
        cache = self.new_cache(len(ids))
        half = len(ids) // 2
        first = self.prefill(ids[:half], cache).logits
        rest = self.rows(cache.length, chain_parents(len(ids) - half))
        output = self.predict(self.embed(ids[half:]), 0, self.n_layers, rest, cache)
        found = torch.cat((first, output.logits))
        error = (found - wanted[half - 1 :]).abs().max() / wanted.abs().max()
        tolerance = _CHECK_TOLERANCE[self.dtype]
        if getattr(self.config, "quantization_config", None) is not None:
            tolerance = max(tolerance, _QUANTISED_TOLERANCE)
        return bool(error < tolerance)

    def _capture(self, capturer: Capturer) -> None:
        """From here on passes of a few rows are replayed; check that they give the same."""
        if {*self._homes, self._norm_home, self._head.device} != {self.device}:
            raise _not_captured(self.model, "it lies on several devices")
        ids = self._check_ids()
        everything = self.embed(ids), 0, self.n_layers, self.prompt_rows(len(ids))
        wanted = self.predict(*everything, self.new_cache(len(ids))).logits
        self._graphs = Graphs(capturer)
        try:
            agrees = self._agrees(ids, wanted)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise _not_captured(self.model, (str(error).splitlines() or [""])[0]) from error
        if not agrees:
            raise _not_captured(self.model, "replayed, they do not give the same logits")

    @property
    def captures(self) -> int:
        """How many passes were captured so far: if it grew, the times meanwhile are of no use."""
        return 0 if self.capturer is None else self.capturer.captures

    def start(self) -> None:
        """A generation begins: caches that were made before are done with, companions' too."""
        if self._graphs is not None:
            self._graphs.start()
        for companion in self.companions:
            companion.start()

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` gave for ``key`` the first time: weights that several methods share.

        Args:
            key: of all that the result depends on, such as a file's hash and where it goes.
            make: what it raises is raised, and tried again the next time.
        """
        if key not in self._shared:
            self._shared[key] = make()
        return cast("T", self._shared[key])

    @property
    def lm_head(self) -> Tensor:
        """The LM head's matrix (V, H) on ``device``, for draft heads that share it.

        Raises:
            UsageError: the head is quantised.
        """
        head = self.model.get_output_embeddings()
        return self.once("lm_head", lambda: matrix_of(head, self.device))

    def new_cache(self, capacity: int, *, layers: int | None = None) -> KVCache:
        """An empty cache of ``capacity`` slots for all layers, or for ``layers`` like the first.

        The target's own layers have theirs where they are, others on ``device``.
        """
        devices = self._homes if layers is None else [self.device] * layers
        layout = self.layout
        shapes = [CacheShape(layout.n_kv_heads, layout.head_dim, self.dtype, d) for d in devices]
        if self._graphs is not None:
            return self._graphs.cache(shapes, capacity)
        return KVCache(shapes, capacity)

    def embed(self, tokens: Tensor) -> Tensor:
        """(T,) token ids -> (T, H)."""
        tokens = tokens.to(self.device, non_blocking=True)
        embedded: Tensor = self._embedding(tokens)  # Gemma's scales them as well
        return embedded

    def layers(self, hidden: Tensor, first: int, last: int, rows: Rows, cache: KVCache) -> Tensor:
        """Run decoder layers ``first .. last-1``: (T, H) -> (T, H), both on ``device``."""
        return self.replay(_Pass(self, first, last), hidden, rows, cache)[0]

    def predict(
        self,
        hidden: Tensor,
        first: int,
        last: int,
        rows: Rows,
        cache: KVCache,
        needs: Needs = NOTHING,
    ) -> TargetOutput:
        """Run layers ``first .. last-1``, then final norm and LM head, over (T, H) states.

        Returns:
            As :meth:`output`, and the states after those of ``needs.layers`` that are not below
            ``first``: whoever ran the layers before has seen what is below.
        """
        inside = tuple(layer for layer in needs.layers if layer > first)
        body = _Pass(self, first, last, inside, head=True)
        logits, normed, *states = self.replay(body, hidden, rows, cache)
        if not needs.layers:
            return TargetOutput(logits, normed)
        start = {first: hidden} if first in needs.layers else {}
        return TargetOutput(logits, normed, start | dict(zip(inside, states, strict=True)))

    def replay(self, body: Body, hidden: Tensor, rows: Rows, cache: KVCache) -> tuple[Tensor, ...]:
        """``body(hidden, rows, cache)``, as a captured graph where the backend has them.

        Args:
            body: hashable, and equal to whatever does the same; layers of a draft head, say.
        """
        if self._graphs is None or not self._graphs.takes(hidden, rows, cache):
            return body(hidden, rows, cache)
        return self._graphs.run(body, hidden, rows, cache)

    def _through(self, hidden: Tensor, first: int, last: int, rows: Rows, cache: Slots) -> Tensor:
        """Layers ``first .. last-1``; the states stay where the last of them left them."""
        if not self._is_spread:
            for layer in self._layers[first:last]:
                hidden = layer(hidden, rows, cache)
            return hidden
        for layer, device in zip(self._layers[first:last], self._homes[first:last], strict=True):
            hidden = layer(hidden.to(device), rows.on(device), cache)
        return hidden

    def output(self, hidden: Tensor, *, last_alone: bool = False) -> TargetOutput:
        """Final norm and LM head over (T, H) states of the last layer; both on ``device``.

        Args:
            last_alone: give the last row's logits alone, (1, V), and all rows' normed states.
        """
        normed = self.model.model.norm(hidden.to(self._norm_home))
        scored = normed[-1:] if last_alone else normed
        return TargetOutput(self._head(scored).to(self.device), normed.to(self.device))

    def prefill(self, prompt: Tensor, cache: KVCache, needs: Needs = NOTHING) -> TargetOutput:
        """Commit a prompt (P,) to an empty cache.

        Returns:
            Logits and normed state of the last position alone, (1, V) and (1, H), and what
            ``needs`` asks for of all P positions.

        Raises:
            ValueError: ``needs`` names a layer that the target has not.
        """
        if needs.layers and not 0 <= needs.layers[0] <= needs.layers[-1] <= self.n_layers:
            raise ValueError(f"there are no states after layers {needs.layers} of {self.n_layers}")
        hidden, rows = self.embed(prompt), self.prompt_rows(len(prompt))
        body = _Pass(self, 0, self.n_layers, needs.layers)
        last, *states = self.replay(body, hidden, rows, cache)
        cache.commit(range(len(prompt)))
        output = self.output(last if needs.final_normed else last[-1:], last_alone=True)
        found = dict(zip(needs.layers, states, strict=True))
        return TargetOutput(output.logits, output.normed, found)

    def weight_share(self, first_layer: int) -> float:
        """The share of a pass's weight bytes that layers ``first_layer ..`` and the head read."""
        return self._weight_shares[first_layer]


@dataclass(frozen=True, slots=True)
class _Pass:
    """Some layers of a target, with or without the head: what can be captured.

    Attributes:
        keep: the layers, in their order, after which states are given beside the last ones.
    """

    target: Target
    first: int
    last: int
    keep: tuple[int, ...] = ()
    head: bool = False

    def __call__(self, hidden: Tensor, rows: Rows, cache: Slots) -> tuple[Tensor, ...]:
        """Logits and normed states, or else the last layer's; behind them those of ``keep``."""
        target, start, kept = self.target, self.first, []
        for stop in self.keep:
            hidden = target._through(hidden, start, stop, rows, cache)
            kept.append(hidden.to(target.device))
            start = stop
        hidden = target._through(hidden, start, self.last, rows, cache).to(target.device)
        if not self.head:
            return (hidden, *kept)
        output = target.output(hidden)
        return (output.logits, output.normed, *kept)


def _not_captured(model: Any, reason: str) -> UsageError:
    return UsageError(
        f"passes of {type(model).__name__} cannot be captured as graphs: {reason}; use "
        "--backend eager"
    )


def _weight_shares(model: Any) -> tuple[float, ...]:
    """For each layer, and for none: the share of all weight bytes that remain, with the head's."""
    sizes = [weight_bytes(layer) for layer in model.model.layers]
    head = weight_bytes(model.get_output_embeddings())
    return tuple((sum(sizes[i:]) + head) / (sum(sizes) + head) for i in range(len(sizes) + 1))
