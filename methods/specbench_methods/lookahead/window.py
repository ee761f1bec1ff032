"""Lookahead's two memories: the Jacobi window and the n-gram pool (Fu et al., arXiv 2402.02057)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

Ngram = tuple[int, ...]


class JacobiWindow:
    """Guesses at coming tokens, as N-1 levels of one Jacobi iteration each (the lookahead branch).

    Level l, column i is a guess at the token l + i places after the current one, which itself is
    level 0, column 0.  A guess follows the one above it in its column; in level 0 it follows its
    left neighbour.

    The window begins as level 0 alone, N-2 columns too wide.  While it fills, a step adds a level
    and gives up the first column; then it has W columns, and a step adds a level and gives up the
    oldest.  Either way it moves on by one token, however many were accepted.

    Args:
        start: W+N-3 tokens to begin with, for level 0 right of the current token.
        ngram: N, at least 2.
    """

    def __init__(self, start: Sequence[int], *, ngram: int) -> None:
        self._most = ngram - 1
        self.levels: list[list[int]] = [[0, *start]]  # all of one width; the 0 is a place holder

    @property
    def full(self) -> bool:
        """Whether there are N-1 levels, so that a column and its next guess are an n-gram."""
        return len(self.levels) == self._most

    @property
    def columns(self) -> int:
        """The width of every level, the current token counted."""
        return len(self.levels[0])

    def set_current(self, token: int) -> None:
        """Replace what was guessed for the current token by the token itself."""
        self.levels[0][0] = token

    def tokens(self) -> list[int]:
        """All tokens but the current one, level by level."""
        return [token for level in self.levels for token in level][1:]

    def parents(self, first: int) -> tuple[int, ...]:
        """Whom each of :meth:`tokens` follows, if they are rows ``first ..`` of a tree."""
        return _parents(len(self.levels), self.columns, first)

    def ngrams(self, newest: Sequence[int]) -> list[Ngram]:
        """Every column of a full window with what the target says comes next, N tokens each."""
        return list(zip(*self.levels, newest, strict=True))

    def advance(self, newest: list[int]) -> None:
        """Move on by one token.

        Args:
            newest: the target's next token after every column of the newest level.
        """
        filling = not self.full
        self.levels.append(newest)
        self.levels = [level[1:] for level in self.levels] if filling else self.levels[1:]


@lru_cache(maxsize=512)
def _parents(levels: int, columns: int, first: int) -> tuple[int, ...]:
    def row(level: int, column: int) -> int:
        """The root is level 0, column 0; all others lie behind the guesses."""
        return first - 1 + level * columns + column if level or column else 0

    return tuple(
        row(level - 1, column) if level else row(0, column - 1)
        for level in range(levels)
        for column in range(columns)
        if level or column
    )


def most_rows(ngram: int, window: int, guesses: int) -> int:
    """The largest tree: of the steps that fill the window, or of a later one with all guesses."""
    filling = [(window + ngram - 2 - step) * (step + 1) for step in range(ngram - 2)]
    return max([*filling, (window + guesses) * (ngram - 1)])


class NgramPool:
    """What followed a token lately: the last ``limit`` distinct continuations of each (LRU)."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._found: dict[int, dict[Ngram, None]] = {}  # a dict as an ordered set, newest last

    def add(self, ngram: Sequence[int]) -> None:
        """Note that the first token was followed by the others, as the newest of its entries."""
        rest = tuple(ngram[1:])
        entries = self._found.setdefault(ngram[0], {})
        entries.pop(rest, None)
        entries[rest] = None
        if len(entries) > self._limit:
            del entries[next(iter(entries))]

    def after(self, token: int) -> list[Ngram]:
        """What may follow ``token``, newest first."""
        return list(reversed(self._found.get(token, {})))
