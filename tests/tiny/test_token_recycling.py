"""Token Recycling's table and tree: a wrong one changes no output, only how good drafts are."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from specbench_kangaroo.engine.clock import WallClock
from specbench_kangaroo.engine.decode import Decoded, Limits, decode
from specbench_kangaroo.engine.method import Draft, Session, Verified
from specbench_kangaroo.engine.target import Target, TargetOutput
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.schema import ExitReason
from specbench_methods.shared.draft_tree import TreeShape
from specbench_methods.token_recycling import (
    RecyclingDrafter,
    TokenRecycling,
    TokenRecyclingOptions,
)

from .models import FAMILIES, VOCABULARY, target

NO_EOS: frozenset[int] = frozenset()
PROMPT = (5, 9, 3, 14, 7, 11, 3, 14)
MAX_NEW_TOKENS = 30
TREE = TreeShape.of([(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (1, 0, 0)])
TABLE = {1: [7, 8, 9], 7: [2, 3], 8: [7], 2: [5], 5: [1]}


def begun(
    options: TokenRecyclingOptions = TokenRecyclingOptions(),  # noqa: B008 (frozen)
    *,
    prompt: Sequence[int] = (0,),
) -> RecyclingDrafter:
    """A text after its prompt, on a target that need not exist."""
    return start(TokenRecycling(options), prompt)


def start(method: TokenRecycling, prompt: Sequence[int]) -> RecyclingDrafter:
    session = Session(target(FAMILIES[0]).new_cache(1), method.max_rows, None, NO_EOS)
    logits = -torch.arange(float(VOCABULARY))[None]  # (1, V)
    drafter = method.start(session, torch.tensor(prompt), TargetOutput(logits, torch.zeros(1, 1)))
    assert isinstance(drafter, RecyclingDrafter)
    return drafter


def by_hand(
    shape: TreeShape, table: dict[int, list[int]], *, topk: int = 8, eos: frozenset[int] = NO_EOS
) -> RecyclingDrafter:
    return RecyclingDrafter(shape, topk, table, eos)


def drafted(*, budget: int = 9, eos: frozenset[int] = NO_EOS) -> Draft:
    """The draft after token 1 from the table and in the tree of above."""
    return by_hand(TREE, TABLE, eos=eos).propose(1, budget)


def test_a_node_is_its_parents_successor_of_the_nodes_rank() -> None:
    draft = drafted()
    assert draft.tree.tokens.tolist() == [1, 7, 8, 9, 2, 3, 7, 5, 2]
    assert draft.tree.parents == (-1, 0, 0, 0, 1, 1, 2, 4, 6)
    assert draft.tree.n_candidates == 9
    assert draft.probabilities is None, "tokens are chosen, not drawn"
    assert draft.exit_reason is ExitReason.MAX_STEPS


def test_a_node_without_a_token_falls_with_its_subtree() -> None:
    """8 has one successor, 9 and 3 none: what hangs there is not drafted, the rest moves up."""
    shape = TreeShape.of([*TREE.paths, (1, 1), (1, 1, 0), (2, 0), (2, 0, 0), (0, 1, 0)])
    draft = by_hand(shape, TABLE).propose(1, 9)
    assert draft.tree.tokens.tolist() == [1, 7, 8, 9, 2, 3, 7, 5, 2]
    assert draft.tree.parents == (-1, 0, 0, 0, 1, 1, 2, 4, 6)


def test_nothing_is_drafted_below_eos() -> None:
    draft = drafted(eos=frozenset({7}))
    assert draft.tree.tokens.tolist() == [1, 7, 8, 9, 7], "7 may end the text, but nothing follows"
    assert draft.tree.parents == (-1, 0, 0, 0, 2)


@pytest.mark.parametrize("budget", [0, 1, 2])
def test_the_budget_cuts_the_depth(budget: int) -> None:
    draft = drafted(budget=budget)
    assert draft.tree.depth == budget
    assert draft.tree.tokens.tolist() == [1, 7, 8, 9, 2, 3, 7][: [1, 4, 7][budget]]
    assert draft.exit_reason is ExitReason.BUDGET


def test_an_unknown_root_drafts_nothing() -> None:
    draft = begun().propose(4, 9)
    assert draft.tree.tokens.tolist() == [4]
    assert draft.exit_reason is ExitReason.NO_DRAFT


def test_every_row_is_recycled_and_of_equal_tokens_the_accepted_one() -> None:
    """Rows 1 and 3 hold the token 7; row 1 was accepted, row 2 was not and is kept all the same."""
    table = {1: [7, 8], 8: [7], 4: [4, 5]}
    drafter = by_hand(TreeShape.of([(0,), (1,), (1, 0)]), table, topk=2)
    assert drafter.propose(1, 9).tree.tokens.tolist() == [1, 7, 8, 7]
    logits = torch.zeros(4, VOCABULARY)
    for row, (first, second) in enumerate([(10, 11), (12, 13), (14, 15), (16, 17)]):
        logits[row, first], logits[row, second] = 2.0, 1.0
    drafter.observe(Verified((0, 1), 12, TargetOutput(logits, torch.zeros(4, 1))))
    assert table == {1: [10, 11], 7: [12, 13], 8: [14, 15], 4: [4, 5]}


def test_a_prompt_gives_its_successors_the_latest_first_and_logits_for_its_last_token() -> None:
    warm = begun(TokenRecyclingOptions(topk=2), prompt=[3, 4, 3, 5, 3, 4, 3, 6, 4])
    assert warm._table == {3: [6, 4], 4: [0, 1], 5: [3], 6: [4]}
    cold = begun(TokenRecyclingOptions(topk=2, prompt=False), prompt=[3, 4, 3, 5])
    assert cold._table == {5: [0, 1]}, "without the prompt only the prefill's logits are known"


def test_the_table_survives_a_text_only_if_it_is_to_be_kept() -> None:
    options = TokenRecyclingOptions(topk=3)
    for keep in (False, True):
        method = TokenRecycling(replace(options, keep=keep))
        start(method, [3, 4, 5])
        second = start(method, [3, 6, 7])
        remembered = {4: [5], 5: [0, 1, 2]} if keep else {}
        first = [6, 4] if keep else [6]
        assert second._table == {**remembered, 3: first, 6: [7], 7: [0, 1, 2]}


def test_the_tree_is_the_stated_one() -> None:
    """Levels of the default and of the paper's size, as the module's docstring gives them."""
    for nodes, levels in ((16, [5, 6, 4, 1]), (80, [7, 21, 30, 15, 6, 1])):
        method = TokenRecycling(TokenRecyclingOptions(nodes=nodes))
        sizes = Counter(map(len, method.shape.paths))
        assert [sizes[depth] for depth in sorted(sizes)] == levels
        assert method.max_rows == 1 + nodes
    small = TokenRecycling(TokenRecyclingOptions(topk=2, depth=2))
    assert small.max_rows == 7, "two successors to depth two are six nodes, not sixteen"


@pytest.mark.parametrize(
    ("name", "value"), [("topk", 0), ("nodes", 0), ("depth", 0), ("topk", VOCABULARY + 1)]
)
def test_an_impossible_size_is_refused(name: str, value: int) -> None:
    with pytest.raises(UsageError, match=rf"token_recycling\.{name}.*{value}"):
        TokenRecycling.load(target(FAMILIES[0]), TokenRecyclingOptions(**{name: value}))


class Reference:
    """Token Recycling without a tree: every path by itself, every pass a fresh prefill."""

    def __init__(self, model: Target, options: TokenRecyclingOptions) -> None:
        self.model, self.options = model, options
        self.paths = TokenRecycling(options).shape.paths
        self.table: dict[int, list[int]] = {}

    def likeliest(self, ids: Sequence[int]) -> list[int]:
        cache = self.model.new_cache(len(ids))
        logits = self.model.prefill(torch.tensor(ids), cache).logits[0]  # (V,)
        return logits.sort(descending=True).indices[: self.options.topk].tolist()

    def branch(self, root: int, path: Sequence[int], eos: frozenset[int]) -> tuple[int, ...] | None:
        """The tokens along a path, or None where the table ends."""
        tokens = [root]
        for rank in path:
            known = [] if tokens[-1] in eos else self.table.get(tokens[-1], [])
            if rank >= len(known):
                return None
            tokens.append(known[rank])
        return tuple(tokens[1:])

    @torch.inference_mode()
    def steps(
        self, prompt: Sequence[int], text: Sequence[int], eos: frozenset[int]
    ) -> list[tuple[int, int]]:
        """Accepted tokens and rows of every step in which ``text`` is generated."""
        for token, successor in pairwise(prompt):
            old = [other for other in self.table.get(token, []) if other != successor]
            self.table[token] = [successor, *old][: self.options.topk]
        self.table[prompt[-1]] = self.likeliest(prompt)
        found, done = [], 1
        while done < len(text):
            ids, root = [*prompt, *text[: done - 1]], text[done - 1]
            budget = MAX_NEW_TOKENS - done - 1  # the bonus token needs a place
            every = [self.branch(root, path, eos) for path in self.paths if len(path) <= budget]
            branches = [branch for branch in every if branch is not None]
            right = [b for b in branches if b == tuple(text[done : done + len(b)])]
            accepted = max(right, key=len, default=())
            prefixes = [accepted[:size] for size in range(len(accepted) + 1)]
            for branch in [(), *branches, *prefixes]:
                self.table[(root, *branch)[-1]] = self.likeliest([*ids, root, *branch])
            found.append((len(accepted), 1 + len(branches)))
            done += len(accepted) + 1
        return found


def generate(
    method: TokenRecycling, model: Target, prompt: Sequence[int], eos: frozenset[int]
) -> Decoded:
    limits = Limits(max_new_tokens=MAX_NEW_TOKENS, eos=eos)
    return decode(model, method, prompt, limits=limits, clock=WallClock())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options",
    [
        TokenRecyclingOptions(topk=4),
        TokenRecyclingOptions(topk=3, nodes=30, depth=3, keep=True),
    ],
)
def test_every_step_accepts_what_a_plain_search_accepts(
    family: str, options: TokenRecyclingOptions
) -> None:
    """Three generations of one object, so that a table that is kept, or forgotten, shows."""
    model = target(family)
    method, reference = TokenRecycling.load(model, options), Reference(model, options)
    ends = NO_EOS
    accepted = 0
    for prompt, eos_comes in ((PROMPT, False), (PROMPT[::-1], False), (PROMPT, True)):
        eos = ends if eos_comes else NO_EOS
        found = generate(method, model, prompt, eos)
        text = found.output_ids
        if prompt == PROMPT:
            ends = frozenset({max(text, key=text.index)})  # the token that comes last
        if not options.keep:
            reference.table = {}
        wanted = reference.steps(prompt, text, eos)
        assert [(step.accepted, step.nodes) for step in found.steps] == wanted
        accepted += sum(step.accepted for step in found.steps)
    assert accepted > 0, "a draft that is never right would hide a table that is never read"
