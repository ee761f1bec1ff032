"""Methods that transformers' ``generate`` has too: what it is given, and which they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from specbench_kangaroo.engine.method import Method
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.run.registry import method_class, method_names

GENERATE = "generate"


@runtime_checkable
class HasPeer(Protocol):
    """A method that transformers' ``generate`` has too; nothing else tells it from the others."""

    def generate_options(self) -> Mapping[str, Any]:
        """Keyword arguments with which ``generate`` of the untouched target drafts the same.

        Called once, before anything is timed, so an assistant is loaded here.  How an assistant
        drafts is read from its own ``generation_config`` and not from these arguments: a constant
        number of tokens and no confidence threshold are to be set there.

        Raises:
            UsageError: something that ``generate`` needs does not fit or work here.
        """
        ...


def peer_of(method: str) -> str:
    """The contestant that is ``generate`` doing the same as a method."""
    return f"{GENERATE}:{method}"


def peers_of(methods: Mapping[str, Method]) -> dict[str, Mapping[str, Any]]:
    """By contestant: the arguments of ``generate`` for every method that it has too."""
    return {
        peer_of(name): method.generate_options()
        for name, method in methods.items()
        if isinstance(method, HasPeer)
    }


def require_a_peer(methods: Sequence[str]) -> None:
    """Refuse a comparison without anything to compare.

    Raises:
        UsageError: ``generate`` has none of the methods; lists those that it has.
    """
    having = [name for name in method_names() if issubclass(method_class(name), HasPeer)]
    if not any(name in having for name in methods):
        raise UsageError(
            f"--peers: transformers' generate has no counterpart to {', '.join(methods)}; "
            f"it has one to: {', '.join(having) or 'none'}"
        )
