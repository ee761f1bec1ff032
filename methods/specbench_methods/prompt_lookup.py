"""Prompt lookup: propose what followed the same n-gram earlier in the text (Saxena, 2023).

As in transformers, the longest n-gram that stands earlier decides, and among its places the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from specbench_kangaroo import (
    Draft,
    Drafter,
    ExitReason,
    MethodOptions,
    PlainMethod,
    Session,
    Target,
    TargetOutput,
    TokenTree,
    Verified,
    option,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupOptions(MethodOptions):
    """How much is matched, and how much is proposed."""

    ngram: int = option(3, "the longest suffix that is looked for", minimum=1)
    tokens: int = option(10, "the most tokens drafted in a step", minimum=1)


class PromptLookup(PlainMethod):
    """Copy what followed the same words before."""

    Options: ClassVar[type[MethodOptions]] = LookupOptions

    def __init__(self, options: LookupOptions) -> None:
        super().__init__(options)
        self.max_rows = 1 + options.tokens

    @classmethod
    def example_options(cls, target: Target, folder: Path) -> list[LookupOptions]:
        """The defaults, and short drafts after a single matching token."""
        return [LookupOptions(), LookupOptions(ngram=1, tokens=2)]

    def start(self, session: Session, prompt: Tensor, output: TargetOutput) -> Drafter:
        """Copy from the prompt's tokens (P,), and from what follows them."""
        return LookupDrafter(self.options, session.eos, prompt.tolist())


class LookupDrafter:
    """One text, and what followed each of its n-grams."""

    def __init__(self, options: LookupOptions, eos: frozenset[int], prompt: list[int]) -> None:
        self._options = options
        self._eos = eos
        self._text: list[int] = []
        self._follows: dict[tuple[int, ...], int] = {}  # n-gram: index of what first followed it
        self._remember(prompt)

    def propose(self, root: int, budget: int) -> Draft:
        """A chain: the root, then what followed the longest match."""
        found = self._continuation(root)
        self._chain = [root, *found[:budget]]
        tree = TokenTree.chain(torch.tensor(self._chain))  # [T]
        return Draft(tree, exit_reason=self._reason(found, budget))

    def observe(self, verified: Verified) -> None:
        """Keep the committed tokens; the bonus token is the next root."""
        self._remember([self._chain[node] for node in verified.nodes])

    def _remember(self, tokens: list[int]) -> None:
        """Append to the text, and note every n-gram that ends there for the first time."""
        for token in tokens:
            self._text.append(token)
            end = len(self._text)
            for start in range(max(0, end - self._options.ngram), end):
                self._follows.setdefault(tuple(self._text[start:end]), end)

    def _continuation(self, root: int) -> list[int]:
        """What followed the longest suffix of text and root that stands earlier, up to EOS."""
        size, most = self._options.ngram, self._options.tokens
        suffix = (*self._text[-size:], root)[-size:]
        for first in range(len(suffix)):
            start = self._follows.get(suffix[first:])
            if start is not None:
                found = [*self._text[start : start + most], root][:most]
                ends = (i for i, token in enumerate(found, start=1) if token in self._eos)
                return found[: next(ends, most)]
        return []

    def _reason(self, found: list[int], budget: int) -> ExitReason:
        if not found:
            return ExitReason.NO_DRAFT
        if len(found) > budget:
            return ExitReason.BUDGET
        return ExitReason.EOS if found[-1] in self._eos else ExitReason.MAX_STEPS


METHOD = PromptLookup
