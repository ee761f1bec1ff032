"""The parts of a Kangaroo draft: the tree while it grows, and the adapter over its cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional

from specbench_kangaroo.engine.attention import attend
from specbench_kangaroo.engine.cache import Slots
from specbench_kangaroo.engine.linear import Linear
from specbench_kangaroo.engine.method import Draft, Resume
from specbench_kangaroo.engine.placement import PlainRotary, Rope, Rows, rotate
from specbench_kangaroo.engine.target import Target
from specbench_kangaroo.engine.tree import TokenTree
from specbench_kangaroo.record.schema import ExitReason
from specbench_methods.kangaroo.adapter import AdapterShape
from specbench_methods.shared.weights import LoadedWeights


@dataclass(slots=True)
class Growth:
    """A draft tree in the making; rows of one depth are neighbours, the likeliest first."""

    tokens: list[int]
    parents: list[int]
    scores: list[float]  # cumulative draft probability
    newest: int = 0  # first row of the deepest depth
    depth: int = 0
    states: list[Tensor] = field(default_factory=list)  # exit-layer states (W, H) of every depth
    confidence: list[float] = field(default_factory=list)
    proposals: list[Tensor] = field(default_factory=list)  # (V,) what each token was drawn from

    @classmethod
    def from_root(cls, root: int) -> Growth:
        """A tree of one row."""
        return cls([root], [-1], [1.0])

    def add(self, tokens: Sequence[int], parents: Sequence[int], scores: Sequence[float]) -> None:
        """Append one depth."""
        self.newest = len(self.tokens)
        self.depth += 1
        self.tokens += tokens
        self.parents += parents
        self.scores += scores

    def draft(self, exit_layer: int, reason: ExitReason) -> Draft:
        """The finished tree, to be verified from its exit-layer states."""
        tree = TokenTree(torch.tensor(self.tokens), tuple(self.parents), len(self.tokens))
        probabilities = torch.stack(self.proposals) if self.proposals else None
        resume = Resume(exit_layer, torch.cat(self.states))
        return Draft(tree, resume, probabilities, tuple(self.confidence), reason)


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
        base = loaded.info.rope_base
        self.rope = target.rope if base is None else _plain_rope(target, base, self._shape.head_dim)

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
        self._runner, self._target = runner, runner.target
        self.cache = self._target.new_cache(capacity, layers=1)
        self.pending = states[:0]  # [m, H], m is 0 or 1
        runner(states, self._target.prompt_rows(len(states), rope=runner.rope), self.cache)
        self.cache.commit(range(len(states)))

    def __call__(self, growth: Growth) -> Tensor:
        """States (W, H) for the LM head, of the growth's newest rows."""
        pending = len(self.pending)
        parents = [*range(-1, pending - 1), *(parent + pending for parent in growth.parents)]
        first = 0 if growth.depth == 0 else growth.newest + pending
        rows = self._target.rows(self.cache.length, parents, first=first, rope=self._runner.rope)
        states = growth.states[-1]
        if growth.depth == 0:
            states = torch.cat((self.pending, states))
        (found,) = self._target.replay(self._runner, states, rows, self.cache)
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


def _plain_rope(target: Target, base: float, head_dim: int) -> Rope:
    like = torch.empty(1, dtype=target.dtype, device=target.device)
    return Rope(PlainRotary(base, head_dim), None, like)
