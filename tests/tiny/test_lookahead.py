"""Lookahead's own state: a wrong window or pool changes no output, only how good guesses are.

The reference below is written after the specification alone: lists as in the published code, and
every token of the window from a prefill of exactly what that token may see.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from specbench_kangaroo.engine.clock import WallClock
from specbench_kangaroo.engine.decode import Decoded, Limits, decode, verify
from specbench_kangaroo.engine.method import Draft, Drafter, Method, Session, Verified
from specbench_kangaroo.engine.target import TargetOutput
from specbench_kangaroo.engine.tree import attention_mask
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.schema import ExitReason
from specbench_methods.lookahead import Lookahead, LookaheadOptions
from specbench_methods.lookahead.method import LookaheadDrafter
from specbench_methods.lookahead.window import JacobiWindow, NgramPool

from .models import target

FAMILY, WINDOWED = "llama-gqa-tied", "mistral-window"
PROMPT = (5, 9, 3, 14, 7, 11, 3, 14)
REPEATED = (5, 9, 3, 14, 5, 9, 3, 14, 5, 9)
NEW = 30
SIZES = [(2, 1, 2), (2, 4, 3), (3, 1, 1), (3, 5, 2), (4, 2, 3), (5, 1, 2), (5, 7, 7)]  # N, W, G


@dataclass(frozen=True)
class Seen:
    """One step as it was proposed: the window and the pool of then, and the draft made of them."""

    draft: Draft
    levels: list[list[int]]
    full: bool
    found: list[tuple[int, ...]]
    budget: int


class Watched(Lookahead):
    """Keeps what every step of the last text was made of."""

    def start(self, session: Session, prompt: torch.Tensor, output: TargetOutput) -> Drafter:
        self.seen: list[Seen] = []
        return WatchedText(self.options, prompt.tolist(), self.seen)


class WatchedText(LookaheadDrafter):
    def __init__(self, options: LookaheadOptions, prompt: list[int], seen: list[Seen]) -> None:
        super().__init__(options, prompt)
        self._seen = seen

    def propose(self, root: int, budget: int) -> Draft:
        found = self._pool.after(root)
        draft = super().propose(root, budget)
        levels = [list(level) for level in self._window.levels]
        self._seen.append(Seen(draft, levels, self._window.full, found, budget))
        return draft


def make(ngram: int, window: int, guesses: int, **rest: object) -> Watched:
    options = LookaheadOptions(ngram=ngram, window=window, guesses=guesses, **rest)  # type: ignore[arg-type]
    return Watched.load(target(FAMILY), options)


def generate(
    method: Method, *, prompt: Sequence[int] = PROMPT, new: int = NEW, family: str = FAMILY
) -> Decoded:
    limits = Limits(max_new_tokens=new, eos=frozenset())
    return decode(target(family), method, prompt, limits=limits, clock=WallClock())


@torch.inference_mode()
def started(method: Lookahead, prompt: Sequence[int] = PROMPT) -> tuple[LookaheadDrafter, Session]:
    """A generation after its prefill, to be stepped by hand."""
    model, ids = target(FAMILY), torch.tensor(prompt)
    session = Session(
        model.new_cache(len(ids) + method.max_rows), method.max_rows, None, frozenset()
    )
    drafter = method.start(session, ids, model.prefill(ids, session.cache))
    assert isinstance(drafter, LookaheadDrafter)
    return drafter, session


Label = tuple[str, tuple[int, ...]]  # a guess by its path of tokens, the window by level and column
ROOT: Label = ("guess", ())


def labels(seen: Seen, ngram: int, *, published: bool) -> list[Label]:
    """What every row of the tree is, in their order: guesses once each, then level by level."""
    cut = [guess[: seen.budget] for guess in seen.found] if seen.full else []
    ordered = [guess[: ngram - 2] for guess in cut] + cut if published else cut
    paths = [guess[:size] for guess in ordered for size in range(1, len(guess) + 1)]
    cells = [(level, i) for level, row in enumerate(seen.levels) for i in range(len(row))]
    window = [("window", cell) for cell in cells[1:]]
    return [ROOT, *(("guess", path) for path in dict.fromkeys(paths)), *window]


def sees(row: Label, other: Label) -> bool:
    """Level l, column i sees level 0 columns 0..i and levels 1..l of its own column."""
    if other == ROOT:
        return True
    (kind, mine), (other_kind, others) = row, other
    if kind != other_kind:
        return False
    if kind == "guess":
        return mine[: len(others)] == others
    (level, column), (other_level, other_column) = mine, others
    if other_level == 0:
        return other_column <= column
    return other_column == column and other_level <= level


@pytest.mark.parametrize("prompt_pool", [False, True])
@pytest.mark.parametrize(
    ("ngram", "window", "guesses", "published"),
    [(*size, published) for size in SIZES for published in (False, True)[: size[0] - 1]],
)
def test_the_mask_is_who_may_see_whom(
    ngram: int, window: int, guesses: int, published: bool, prompt_pool: bool
) -> None:
    method = make(ngram, window, guesses, prompt_pool=prompt_pool, published_scoring=published)
    generate(method, prompt=REPEATED)
    with_guesses = 0
    for seen in filter(lambda seen: seen.budget, method.seen):
        rows, tree = labels(seen, ngram, published=published), seen.draft.tree
        wanted = [[True] * 4 + [sees(row, other) for other in rows] for row in rows]
        assert attention_mask(tree.parents, 4).tolist() == wanted
        tokens, depths = [seen.levels[0][0]], [0]
        for kind, where in rows[1:]:
            in_window = kind == "window"
            tokens.append(seen.levels[where[0]][where[1]] if in_window else where[-1])
            depths.append(sum(where) if in_window else len(where))
        assert tree.tokens.tolist() == tokens
        assert list(tree.depths) == depths, "a row's position is current + level + column"
        acceptable = ngram - 2 if published else ngram - 1
        candidates = [r for r in rows if r[0] == "guess" and len(r[1]) <= acceptable]
        assert tree.n_candidates == len(candidates), "the window must never be accepted"
        assert all(row in candidates for row in rows[: tree.n_candidates])
        with_guesses += len(candidates) > 1
    assert with_guesses > 0, "no step had guesses, so half of the mask was not tried"


@pytest.mark.parametrize(("ngram", "window"), [(2, 1), (2, 3), (3, 4), (5, 1), (5, 7), (7, 2)])
def test_level_sizes_in_the_fill_phase_and_after_it(ngram: int, window: int) -> None:
    method = make(ngram, window, 0)
    found = generate(method)
    for step, seen in enumerate(method.seen[: NEW - 2]):  # the last has no budget, so no window
        filling = step < ngram - 2
        beside_root = [len(seen.levels[0]) - 1, *map(len, seen.levels[1:])]
        if filling:
            width = window + ngram - 3 - step
            assert beside_root == [width, *[width + 1] * step]
            assert found.steps[step].emitted == 1, "a fill step emits one token"
            assert seen.draft.exit_reason is ExitReason.NO_DRAFT
        else:
            assert beside_root == [window - 1, *[window] * (ngram - 2)]
        assert seen.full is not filling
    largest = max(len(seen.draft.tree.parents) for seen in method.seen)
    assert largest == method.max_rows, "without guesses the window alone is what needs room"


def test_the_window_moves_on_by_one_column() -> None:
    window = JacobiWindow([11, 12, 13], ngram=4)  # W = 2
    window.set_current(1)
    assert (window.levels, window.full) == ([[1, 11, 12, 13]], False)
    window.advance([20, 21, 22, 23])  # the first is the target's own next token: no guess
    window.set_current(2)
    assert window.levels == [[2, 12, 13], [21, 22, 23]]
    window.advance([30, 31, 32])
    window.set_current(3)
    assert (window.levels, window.full) == ([[3, 13], [22, 23], [31, 32]], True)
    assert window.tokens() == [13, 22, 23, 31, 32]
    assert window.ngrams([40, 41]) == [(3, 22, 31, 40), (13, 23, 32, 41)]
    window.advance([40, 41])
    window.set_current(4)
    assert window.levels == [[4, 23], [31, 32], [40, 41]]


def test_the_pool_keeps_the_latest_of_each_key() -> None:
    pool = NgramPool(2)
    for ngram in [(1, 5, 6), (1, 7, 8), (2, 5, 6), (1, 5, 6), (1, 9, 9)]:
        pool.add(ngram)
    assert pool.after(1) == [(9, 9), (5, 6)], "the least recently added goes, not the first"
    assert pool.after(2) == [(5, 6)], "keys must not push out each other's entries"
    assert pool.after(3) == []
    nothing = NgramPool(0)
    nothing.add((1, 5, 6))
    assert nothing.after(1) == [], "guesses=0 asks for no guesses"


def test_one_seed_gives_the_same_trees_whatever_came_before() -> None:
    method = make(4, 3, 3)
    trees = []
    for _ in range(2):
        generate(method)
        trees.append([(s.draft.tree.tokens.tolist(), s.draft.tree.parents) for s in method.seen])
        generate(method, prompt=REPEATED, new=7)  # another conversation in between
    assert trees[0] == trees[1], "a generation depends on those before it"
    starts = []
    for seed in range(5):
        generate(make_seeded := make(4, 3, 3, seed=seed), new=3)
        starts.append(tuple(make_seeded.seen[0].levels[0][1:]))
    assert len(set(starts)) > 1, "the seed chooses nothing"
    assert {token for start in starts for token in start} <= set(PROMPT)
    assert {len(start) for start in starts} == {3 + 4 - 3}


class Oracle(NgramPool):
    """A pool that always has the target's own continuation."""

    def __init__(self, text: Sequence[int], size: int) -> None:
        super().__init__(1)
        self.at = 0  # of the current token
        self._text, self._size = list(text), size

    def after(self, token: int) -> list[tuple[int, ...]]:
        assert self._text[self.at] == token
        return [tuple(self._text[self.at + 1 : self.at + 1 + self._size])]


class AllRight(Lookahead):
    """Guesses whole n-grams rightly."""

    text: Sequence[int]

    def start(self, session: Session, prompt: torch.Tensor, output: TargetOutput) -> Drafter:
        return RightText(self.options, prompt.tolist(), self.text)


class RightText(LookaheadDrafter):
    def __init__(self, options: LookaheadOptions, prompt: list[int], text: Sequence[int]) -> None:
        super().__init__(options, prompt)
        self._pool = Oracle(text, options.ngram - 1)

    def observe(self, verified: Verified) -> None:
        super().observe(verified)
        assert isinstance(self._pool, Oracle)
        self._pool.at += len(verified.nodes)


@pytest.mark.parametrize("ngram", [3, 5])
def test_published_scoring_accepts_one_less_of_a_full_match(ngram: int) -> None:
    text = generate(make(ngram, 2, 0), new=NEW + 1).output_ids
    rows = {}
    for published in (False, True):
        options = LookaheadOptions(ngram=ngram, window=2, guesses=1, published_scoring=published)
        method = AllRight.load(target(FAMILY), options)
        method.text = text
        found = generate(method)
        assert found.output_ids == text[:NEW], "how guesses are scored must not change the output"
        most = ngram - 2 if published else ngram - 1
        whole = [step for step in found.steps if step.exit_reason == "max_steps"]
        assert len(whole) > 1, "no step had a whole n-gram"
        for step in whole:
            assert (step.drafted, step.accepted, step.emitted) == (most, most, most + 1)
        rows[published] = whole[0].nodes
    assert rows[True] == rows[False], "the last guess is scored, though it is never accepted"


def test_the_prompts_ngrams_are_found_if_asked_for() -> None:
    method = make(3, 2, 2, prompt_pool=True)
    drafter, _ = started(method)
    assert drafter._pool.after(3) == [(14, 7)], "3 14 7 stands in the prompt; 3 14 ends it"
    assert drafter._pool.after(14) == [(7, 11)]
    other, _ = started(method, [6, 8])
    assert other._pool.after(3) == [], "one conversation's pool must not be another's"
    without, _ = started(make(3, 2, 2))
    assert without._pool.after(3) == []


def test_the_prompts_ngrams_are_guessed() -> None:
    drafter, _ = started(make(2, 2, 2, prompt_pool=True))  # bigrams: no fill phase
    tree = drafter.propose(3, 5).tree
    assert (tree.tokens[: tree.n_candidates].tolist(), tree.depth) == ([3, 14], 1)


def test_nothing_is_guessed_while_the_window_fills() -> None:
    drafter, _ = started(make(4, 3, 3, prompt_pool=True))
    assert drafter._pool.after(3), "the pool of this prompt should have something to guess"
    draft = drafter.propose(3, 5)
    assert (draft.tree.n_candidates, draft.exit_reason) == (1, ExitReason.NO_DRAFT)


def test_without_budget_there_is_neither_draft_nor_window() -> None:
    drafter, session = started(make(4, 3, 3, prompt_pool=True))
    before = [list(level) for level in drafter._window.levels]
    with torch.inference_mode():
        draft = drafter.propose(3, 0)
        assert (draft.tree.parents, draft.exit_reason) == ((-1,), ExitReason.BUDGET)
        drafter.observe(Verified((0,), 5, verify(target(FAMILY), draft, session.cache)))
    assert drafter._window.levels == before, "a window that was not scored cannot move"


def test_guesses_are_no_deeper_than_the_budget() -> None:
    method = make(5, 2, 2, prompt_pool=True)
    generate(method, prompt=REPEATED)
    for seen in method.seen:
        assert seen.draft.tree.depth <= seen.budget
        if seen.full and seen.found and 0 < seen.budget < 4:
            assert seen.draft.exit_reason is ExitReason.BUDGET


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ngram": 1}, "lookahead.ngram must be at least 2, not 1"),
        ({"window": 0}, "lookahead.window must be at least 1, not 0"),
        ({"guesses": -1}, "lookahead.guesses must be at least 0, not -1"),
        ({"ngram": 2, "published_scoring": True}, "accepts nothing"),
    ],
)
def test_sizes_that_make_no_window_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Lookahead.load(target(FAMILY), LookaheadOptions(**options))


@dataclass(frozen=True)
class ReferenceStep:
    """What the specification's step has beside the current token, and how much was accepted."""

    past: list[list[int]]  # level 0 without the current token, then the other levels
    guesses: set[tuple[int, ...]]
    accepted: int


class Reference:
    """Lookahead as specified, for a function that gives the target's token after any text."""

    def __init__(
        self, options: LookaheadOptions, prompt: Sequence[int], after: Callable[[list[int]], int]
    ) -> None:
        self._n, self._w, self._g = options.ngram, options.window, options.guesses
        self._after = after
        self._text = [*prompt, after(list(prompt))]
        size = self._w + self._n - 3
        self._past = [random.Random(options.seed).choices(prompt, k=size)]
        self._pool: dict[int, list[tuple[int, ...]]] = {}
        if options.prompt_pool:
            for i in range(len(prompt) - self._n + 1):
                self._add(prompt[i], tuple(prompt[i + 1 : i + self._n]))

    def _add(self, key: int, ngram: tuple[int, ...]) -> None:
        kept = [other for other in self._pool.get(key, []) if other != ngram]
        self._pool[key] = [*kept, ngram][-self._g :]

    def _result(self, column: int) -> int:
        """The target's token after the newest level's column, from all that it may see."""
        upper = [level[column] for level in self._past[1:]]
        return self._after([*self._text, *self._past[0][:column], *upper])

    def _fill(self) -> None:
        if len(self._past) == 1:
            newest = [self._result(column) for column in range(1, len(self._past[0]) + 1)]
            self._past = [self._past[0][1:], newest]
        else:
            newest = [self._result(column) for column in range(1, len(self._past[1]))]
            self._past = [*(level[1:] for level in self._past), newest]

    def _look_ahead(self) -> None:
        newest = [self._result(column) for column in range(self._w)]
        for column, last in enumerate(newest):
            key = self._past[0][column - 1] if column else self._text[-1]
            self._add(key, (*(level[column] for level in self._past[1:]), last))
        levels = [*self._past[1:], newest]
        self._past = [levels[0][1:], *levels[1:]]

    def _longest(self, guesses: set[tuple[int, ...]], budget: int) -> tuple[int, ...]:
        best: tuple[int, ...] = ()
        for guess in guesses:
            size = 0
            while size < min(len(guess), budget):
                if self._after([*self._text, *guess[:size]]) != guess[size]:
                    break
                size += 1
            best = max(best, guess[:size], key=len)
        return best

    def step(self, budget: int) -> ReferenceStep:
        past, full = [list(level) for level in self._past], len(self._past) == self._n - 1
        guesses = set(self._pool.get(self._text[-1], [])) if full else set()
        accepted = self._longest(guesses, budget)
        if full:
            self._look_ahead()
        else:
            self._fill()
        self._text += accepted
        self._text.append(self._after(self._text))
        return ReferenceStep(past, guesses, len(accepted))


def target_of(family: str) -> Callable[[list[int]], int]:
    """The target's greedy token after a text: a fresh prefill for every new one."""
    model, known = target(family), dict[tuple[int, ...], int]()

    @torch.inference_mode()
    def after(text: list[int]) -> int:
        key = tuple(text)
        if key not in known:
            cache = model.new_cache(len(text))
            known[key] = int(model.prefill(torch.tensor(text), cache).logits[-1].argmax())
        return known[key]

    return after


@pytest.mark.parametrize("prompt_pool", [False, True])
@pytest.mark.parametrize(
    ("family", "ngram", "window", "guesses"),
    [*((FAMILY, *size) for size in SIZES), (WINDOWED, 4, 2, 3)],
)
def test_every_step_is_the_specifications(
    family: str, ngram: int, window: int, guesses: int, prompt_pool: bool
) -> None:
    method = make(ngram, window, guesses, prompt_pool=prompt_pool, seed=3)
    found = generate(method, family=family)
    reference = Reference(method.options, PROMPT, target_of(family))
    accepted = []
    for seen in method.seen:
        if seen.budget == 0:
            accepted.append(0)
            break
        wanted = reference.step(seen.budget)
        accepted.append(wanted.accepted)
        current, *levels = seen.levels
        assert [current[1:], *levels] == wanted.past, "the window's tokens differ"
        guessed = set(seen.found) if seen.full else set()
        assert guessed == wanted.guesses, "the pool differs"
    assert [step.accepted for step in found.steps] == accepted
    assert len(set(accepted)) > 1, "nothing was ever accepted, so that was not compared"
