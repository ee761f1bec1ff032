"""How Kangaroo drafts: shallow passes and the adapter in turn, until the draft is unsure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional

from specbench_kangaroo.engine.attention import attend
from specbench_kangaroo.engine.cache import Slots
from specbench_kangaroo.engine.linear import Linear
from specbench_kangaroo.engine.method import Draft, Session, Verified
from specbench_kangaroo.engine.placement import PlainRotary, Rope, Rows, rotate
from specbench_kangaroo.engine.sampling import to_host
from specbench_kangaroo.engine.target import Target
from specbench_methods.kangaroo.adapter import AdapterShape
from specbench_methods.shared.drafted_tokens import DraftedTokens
from specbench_methods.shared.growth import Growth, StopRule
from specbench_methods.shared.weights import LoadedWeights


class AdapterRunner:
    """The adapter's weights on the target's device: what all texts share.

    Called with states (T, H), their rows and a cache of one layer, it gives states (T, H) for the
    LM head, as the one member of a tuple: a :data:`Body`.
    """

    def __init__(self, target: Target, loaded: LoadedWeights) -> None:
        self.about = replace(loaded, tensors={})
        weights = {
            key: tensor.to(target.device, target.dtype) for key, tensor in loaded.tensors.items()
        }
        attention = "layers.0.self_attn.{}_proj.weight"
        self._qkv = Linear(torch.cat([weights[attention.format(name)] for name in "qkv"]))
        self._output = Linear(weights[attention.format("o")])
        self._norm_in = weights["layers.0.input_layernorm.weight"]
        self._norm_out = weights["norm.weight"]
        self._shape = AdapterShape.of(target.config)
        self.target = target
        self.rope = target.rope
        if (base := loaded.info.rope_base) is not None:
            like = torch.empty(1, dtype=target.dtype, device=target.device)
            self.rope = Rope(PlainRotary(base, self._shape.head_dim), None, like)

    def __call__(self, states: Tensor, rows: Rows, cache: Slots) -> tuple[Tensor]:
        """See the class."""
        count, size = len(states), self._shape.head_dim
        heads = self._qkv(self._normed(states, self._norm_in)).view(count, -1, size)  # [T, n, d]
        n_kv = self._shape.n_kv_heads
        rotated = rotate(heads[:, :-n_kv], rows.angles).transpose(0, 1)[None]
        keys, values = rotated[:, -n_kv:], heads[:, -n_kv:].transpose(0, 1)[None]
        stored = cache.write(0, rows.slot, keys, values)
        visible = rows.visible[None]
        mixed = attend(rotated[:, :-n_kv], stored.keys, stored.values, visible)
        mixed = mixed[0].transpose(0, 1).reshape(count, -1)  # [T, n_q * d]
        return (self._normed(self._output.add_to(states, mixed), self._norm_out),)

    def _normed(self, states: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(states, weight.shape, weight, self._shape.rms_norm_eps)


class AdapterText:
    """The adapter over one text, one slot a position in a cache of its own.

    After a fully accepted draft the newest exit-layer state has not been through the adapter yet:
    it is kept as ``pending`` and goes first in the next call.

    Args:
        states: (P, H) a prompt's exit-layer states.
        capacity: slots of the cache.
    """

    def __init__(self, runner: AdapterRunner, states: Tensor, capacity: int) -> None:
        self._runner, self.target = runner, runner.target
        self.cache = self.target.new_cache(capacity, layers=1)
        self.pending = states[:0]  # [m, H], m is 0 or 1
        runner(states, self.target.prompt_rows(len(states), rope=runner.rope), self.cache)
        self.cache.commit(range(len(states)))

    def __call__(self, growth: Growth) -> Tensor:
        """States (W, H) for the LM head, of the growth's newest rows."""
        pending = len(self.pending)
        parents = [*range(-1, pending - 1), *(parent + pending for parent in growth.parents)]
        first = 0 if growth.depth == 0 else growth.newest + pending
        rows = self.target.rows(self.cache.length, parents, first=first, rope=self._runner.rope)
        states = growth.states[-1]
        if growth.depth == 0:
            states = torch.cat((self.pending, states))
        (found,) = self.target.replay(self._runner, states, rows, self.cache)
        return found[-len(growth.states[-1]) :]

    def commit(self, growth: Growth, accepted: Sequence[int]) -> None:
        """Keep the accepted rows that went through the adapter; the one that did not is pending."""
        states = torch.cat(growth.states)  # [T, H]
        ran = growth.newest if growth.depth else 0
        pending = len(self.pending)
        kept = [pending + row for row in accepted if row < ran]
        if ran:
            self.cache.commit([*range(pending), *kept])
            self.pending = states[:0]
        missing = [row for row in accepted if row >= ran]
        self.pending = torch.cat((self.pending, states[missing]))


@dataclass(slots=True, eq=False)
class KangarooDrafter:
    """One text, drafted by the target's first layers and the adapter; ``width`` rows a depth."""

    adapter: AdapterText
    drafted: DraftedTokens
    session: Session
    rule: StopRule
    exit_layer: int
    width: int
    growth: Growth = field(init=False)

    def propose(self, root: int, budget: int) -> Draft:
        """Draft until γ, the budget, EOS, or a depth whose likeliest token is under η."""
        target, cache = self.adapter.target, self.session.cache
        growth = self.growth = Growth([root])
        growth.run_first(target, cache, self.exit_layer)
        while (reason := self.rule.reason(growth, budget, self.session.eos)) is None:
            self._expand(growth, self.drafted.lm_head(self.adapter(growth)))
            growth.run_first(target, cache, self.exit_layer)
        return growth.draft(reason, self.exit_layer)

    def observe(self, verified: Verified) -> None:
        """Roll the adapter's cache back to what was accepted."""
        self.adapter.commit(self.growth, verified.nodes)

    def _expand(self, growth: Growth, logits: Tensor) -> None:
        """Add the next depth from the newest rows' draft logits (W, V')."""
        probabilities = logits.float().softmax(-1)
        best, width = probabilities[0].max(), self.width
        if self.session.sampler is not None and width == 1:
            growth.draw(self.drafted.over_all(logits[0]), best, self.session.sampler)
            return
        scores = torch.tensor(growth.scores, device=logits.device)  # (W,)
        likeliest = probabilities.topk(width, dim=-1)  # [W, K]
        kept = (likeliest.values * scores[:, None]).flatten().topk(width)
        tokens = self.drafted.ids_of(likeliest.indices.flatten()[kept.indices])
        parents = kept.indices.div(width, rounding_mode="floor") + growth.newest
        confidence, *depth = to_host(best, tokens, parents, kept.values)
        growth.confidence.append(confidence)
        growth.add(*depth)
