"""Draft heads that can be named: what a method tells of those that it knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownHeads:
    """Weights of one method for one model.

    Attributes:
        model: for ``--model``.
        revision: of the model, for ``--revision``: where it lies in a format that is read.
        given: the option that names these weights; empty for those that a run takes by itself.
        download: the page that they are fetched from by hand, where the hub does not have them.
        parameters: how many numbers are in the files.
        about: what else matters, such as the exit layer.
        sources: pages that say so.
    """

    model: str
    revision: str | None = None
    given: str = ""
    download: str = ""
    parameters: int
    about: str = ""
    sources: tuple[str, ...] = ()


@runtime_checkable
class NeedsHeads(Protocol):
    """A method that drafts with weights of its own; nothing else tells it from the others."""

    def known_heads(self) -> Sequence[KnownHeads]:
        """A class method: those shipped with the method, then those that others have published."""
        ...
