"""Methods whose draft head can be trained: what they offer to ``specbench train``.

A method that can be trained has a class method ``trainee(model, *, exit_layer)`` beside what
:class:`specbench_kangaroo.engine.method.Method` asks for; nothing else tells it from the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from specbench_kangaroo.bench.registry import method_class, method_names
from specbench_kangaroo.record.errors import UsageError, look_up

if TYPE_CHECKING:
    from torch import Tensor

    from specbench_kangaroo.training.train import DraftHead


@dataclass(frozen=True, slots=True)
class Provenance:
    """What trained weights say of their making.

    ``ranks`` (R, O) is the rank that the head gave to the text's own token at every held-back
    position, for each of the positions ahead that it predicts; -1 past the answer's end.
    """

    target: str
    target_sha256: str
    record: Mapping[str, Any]  # settings, validations, text; JSON-ready
    ranks: Tensor


class Trainee(Protocol):
    """A method's draft, before and after training.

    Attributes:
        exit_layer: whose hidden states it reads: after so many layers, or ``features.FINAL``.
        start: where its first weights come from, in words, for the record.
    """

    exit_layer: int | str
    start: str

    def head(self, vocabulary: Tensor) -> DraftHead:
        """The untrained head over the LM-head rows ``vocabulary`` (V',), on the model's device."""
        ...

    def save(self, path: Path, head: DraftHead, provenance: Provenance) -> None:
        """Write the file that the method loads; ``head`` is one that :meth:`head` made."""
        ...


class Trainable(Protocol):
    """The class of a method whose draft can be trained."""

    @classmethod
    def trainee(cls, model: Any, *, exit_layer: int | None) -> Trainee:
        """Prepare to train for ``model``, a ``transformers`` causal language model.

        Args:
            model: the target; it is read, never changed.
            exit_layer: None leaves the choice to the method.

        Raises:
            UsageError: the model has no such layer.
        """
        ...


def trainable_names() -> list[str]:
    """The methods that can be trained; imports every method, and so torch."""
    return [name for name in method_names() if hasattr(method_class(name), "trainee")]


def trainable(name: str) -> type[Trainable]:
    """The class of a method that can be trained.

    Raises:
        UsageError: no such method, or nothing in it to train; lists those that can be trained.
    """
    names = trainable_names()
    if name in method_names() and name not in names:
        raise UsageError(f"{name} has nothing to train; these have: {', '.join(names) or 'none'}")
    look_up("method to train", name, dict.fromkeys(names))
    return cast("type[Trainable]", method_class(name))
