"""The page that a method's author reads: what a decoding method is, and what it is given.

Every method is: *propose a tree of tokens, let the target score it once, learn from the verdict.*
The loop in :mod:`~specbench_kangaroo.engine.decode` owns prefill, verification, acceptance, EOS,
the token budget, time and records, so a method has none of them.  A method holds weights and
options, a drafter the state of one text.  A whole method::

    class RepeatLastToken(StatelessMethod):
        '''Guess that the last token comes once more.'''

        max_rows = 2

        def propose(self, root, budget):
            rows = [root] * (1 + min(1, budget))
            return Draft(TokenTree.chain(torch.tensor(rows)))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

from torch import Tensor

from specbench_kangaroo.engine.accept import Typical
from specbench_kangaroo.engine.cache import KVCache
from specbench_kangaroo.engine.sampling import Sampler
from specbench_kangaroo.engine.target import NOTHING, Needs, Target, TargetOutput
from specbench_kangaroo.engine.tree import TokenTree
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.schema import ExitReason


@dataclass(frozen=True, slots=True)
class Session:
    """One generation, as a drafter sees it.

    Attributes:
        cache: the target's cache.  A drafter that runs target layers itself writes scratch rows
            above ``cache.length``; committing is the loop's business.
        max_rows: the largest tree, root included, that there is room for.
        sampler: how tokens are drawn; None means greedy.
        eos: tokens that end the text; drafting past one is wasted.
    """

    cache: KVCache
    max_rows: int
    sampler: Sampler | None
    eos: frozenset[int]


@dataclass(frozen=True, slots=True)
class Resume:
    """Where verification goes on from, for a draft that ran the first layers on all rows."""

    layer: int  # the first layer that has not run
    hidden: Tensor  # (T, H) after the layers before it


@dataclass(frozen=True, slots=True)
class Draft:
    """A drafter's proposal for one step.

    Attributes:
        tree: the root and what may follow.
        resume: None runs all layers on the tree's tokens.
        probabilities: (T-1, V) row i-1 is the distribution that node i was drawn from, given that
            its earlier siblings were rejected; None says that tokens were chosen, not drawn.
        confidence: the draft's own probability of each depth's likeliest token, if it has one.
        exit_reason: why the draft is no deeper.
        typical: accept by this lossy rule; None keeps the target's own distribution.
    """

    tree: TokenTree
    resume: Resume | None = None
    probabilities: Tensor | None = None
    confidence: tuple[float, ...] = ()
    exit_reason: ExitReason = ExitReason.MAX_STEPS
    typical: Typical | None = None


@dataclass(frozen=True, slots=True)
class Verified:
    """What the target said of a draft.

    Attributes:
        nodes: accepted nodes, root first; they are committed by now.
        bonus: the target's own next token: the root of the next step.
        output: logits (T, V) and normed states (T, H) of every node of the tree, and the hidden
            states that the method needs.  With :class:`Resume` there are none after layers below
            ``Resume.layer``, which the drafter ran itself.
    """

    nodes: tuple[int, ...]
    bonus: int
    output: TargetOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodOptions:
    """A method's options with their defaults: subclass it, one :func:`option` field an option.

    Raises:
        UsageError: a value below its option's minimum.
    """

    def __post_init__(self) -> None:
        """A method is called what its module is, so that an error says what the user gave."""
        method = type(self).__module__.removesuffix(".method").rpartition(".")[2]
        for each in fields(self):
            value, least = getattr(self, each.name), each.metadata.get("minimum")
            if None not in (value, least) and value < least:
                raise UsageError(f"{method}.{each.name} must be at least {least}, not {value}")


def option(default: Any, description: str, *, minimum: int | None = None) -> Any:
    """A field of an options class; the description is what ``specbench list methods`` shows."""
    return field(default=default, metadata={"help": description, "minimum": minimum})


class Drafter(Protocol):
    """The state of one text; several may live side by side."""

    def propose(self, root: int, budget: int) -> Draft:
        """Draft what may follow ``root``, the last token, which is not in the cache yet.

        Args:
            budget: how many drafted tokens can still be emitted: a deeper tree is wasted work.
        """
        ...

    def observe(self, verified: Verified) -> None:
        """Learn which nodes were accepted, and from the target's output."""


class Method(Protocol):
    """A decoding method: weights and options, loaded once, and no state of a text.

    What several entries of one method have in common, weights above all, is built through
    :meth:`Target.once`.

    Attributes:
        lossy: True if outputs may differ from the target's own; shown wherever a figure is.
        needs: the hidden states that its drafters are given.
        max_rows: the largest tree that ``propose`` returns, root included.
        options: a :class:`MethodOptions` instance with every default filled in.
        weights: hash and training record of the draft's weights; empty without any.
    """

    Options: ClassVar[type[MethodOptions]]
    lossy: bool
    needs: Needs
    max_rows: int
    options: MethodOptions
    weights: Mapping[str, Any]

    @classmethod
    def load(cls, target: Target, options: Any) -> Self:
        """Build the method for a target, its weights included.

        Raises:
            UsageError: the options or the weights do not fit this target.
        """
        ...

    @classmethod
    def example_options(cls, target: Target, folder: Path) -> Sequence[Any]:
        """Option sets for the contract tests, which every method passes on tiny random models.

        A method with weights writes untrained ones for ``target`` into ``folder``.
        """
        ...

    def start(self, session: Session, prompt: Tensor, output: TargetOutput) -> Drafter:
        """Begin a text.

        Args:
            prompt: (P,) token ids, by now committed to ``session.cache``.
            output: the prefill's logits (1, V), its normed state (1, H) and what ``needs`` names.
        """
        ...


class PlainMethod:
    """What most methods share: no options, no weights, no hidden states; subclass it or not."""

    Options: ClassVar[type[MethodOptions]] = MethodOptions
    lossy: bool = False
    needs: Needs = NOTHING
    max_rows: int = 1

    def __init__(self, options: Any) -> None:
        self.options = options
        self.weights: Mapping[str, Any] = {}

    @classmethod
    def load(cls, target: Target, options: Any) -> Self:
        """See :class:`Method`."""
        return cls(options)

    @classmethod
    def example_options(cls, target: Target, folder: Path) -> Sequence[Any]:
        """See :class:`Method`."""
        return [cls.Options()]

    def start(self, session: Session, prompt: Tensor, output: TargetOutput) -> Drafter:
        """See :class:`Method`."""
        raise NotImplementedError


class StatelessMethod(PlainMethod):
    """A method that remembers nothing of a text, and so is the drafter of all texts itself."""

    def start(self, session: Session, prompt: Tensor, output: TargetOutput) -> Drafter:
        """See :class:`Method`."""
        return self

    def propose(self, root: int, budget: int) -> Draft:
        """See :class:`Drafter`."""
        raise NotImplementedError

    def observe(self, verified: Verified) -> None:
        """See :class:`Drafter`."""


@runtime_checkable
class DecodesItself(Protocol):
    """A method with a loop of its own, which takes the place of ours; see ``decode``.

    Its generations have tokens and times, but no steps, and its passes of the target are not
    counted.  Everything else of a :class:`Method` it has too, but for what drafts.
    """

    def generate(
        self,
        prompt: Sequence[int],
        *,
        budget: int,
        eos: frozenset[int],
        sampler: Sampler | None,
        on_first_token: Callable[[], None],
    ) -> Sequence[int]:
        """The tokens that follow ``prompt``: those of vanilla decoding, up to EOS or the budget.

        Args:
            prompt: P token ids, no more than the target's context has positions.
            budget: how many tokens to emit, at least 1; the last one needs no position.
            eos: tokens that end the text, which are emitted as well.
            sampler: how tokens are drawn; None means greedy.
            on_first_token: to be called once, when the first token is there on the device.
        """
        ...
