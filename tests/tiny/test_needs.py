"""Hidden states where a method asks for them: those of a plain pass over the text, however it runs.

The reference runs one layer after the other over each row's own text, without tree or draft.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from specbench_kangaroo.engine.clock import WallClock
from specbench_kangaroo.engine.cuda_graphs import Replay
from specbench_kangaroo.engine.decode import Limits, decode
from specbench_kangaroo.engine.layers import LayerSpec, LeanLayer
from specbench_kangaroo.engine.method import (
    Draft,
    Drafter,
    MethodOptions,
    PlainMethod,
    Resume,
    Session,
    Verified,
)
from specbench_kangaroo.engine.target import NOTHING, Needs, Target, TargetOutput
from specbench_kangaroo.engine.tree import TokenTree
from specbench_kangaroo.record.errors import UsageError
from specbench_methods.vanilla import Vanilla

from .far_device import FAR, far_device, move
from .models import FAMILIES, VOCABULARY, Uncaptured, random_model, target

LLAMA = "llama-gqa-tied"
PROMPT = (5, 9, 3, 14, 7, 11, 3, 14)
LIMITS = Limits(max_new_tokens=10, eos=frozenset())
LAYERS = 4  # of every tiny model
ALL = Needs(layers=(LAYERS, 0, LAYERS // 2, 1), final_normed=True)  # in no order


@dataclass(frozen=True)
class Given:
    """What a drafter was given of one row, or of a prompt: on the host, (T, H) each."""

    text: tuple[int, ...]  # up to the row
    normed: Tensor
    hidden: dict[int, Tensor]


class Asks(PlainMethod):
    """Drafts true tokens and false ones beside them, and keeps all states that it is given.

    Args:
        text: the target's own answer.
        resume: runs so many layers itself, and verification goes on from there.
    """

    max_rows = 6

    def __init__(
        self, model: Target, needs: Needs, text: tuple[int, ...], *, resume: int | None = None
    ) -> None:
        super().__init__(MethodOptions())
        self.model, self.needs, self.text, self.resume = model, needs, text, resume
        self.of_prompt: list[Given] = []
        self.of_rows: list[Given] = []

    def start(self, session: Session, prompt: Tensor, output: TargetOutput) -> Drafter:
        self.of_prompt.append(self.given(tuple(prompt.tolist()), output, slice(None)))
        return AsksText(self, session, prompt.tolist())

    def given(self, text: tuple[int, ...], output: TargetOutput, rows: slice) -> Given:
        for states in (output.normed, *output.hidden.values()):
            assert states.device == self.model.device, "a draft head looks for them there"
        hidden = {layer: states[rows].cpu() for layer, states in output.hidden.items()}
        return Given(text, output.normed[rows].cpu(), hidden)


class AsksText:
    def __init__(self, method: Asks, session: Session, ids: list[int]) -> None:
        self._method, self._session, self._ids = method, session, ids

    def propose(self, root: int, budget: int) -> Draft:
        at = len(self._ids) + 1 - len(PROMPT)
        first, second = (*self._method.text[at : at + 2], 0, 0)[:2]
        wrong = (first + 1) % VOCABULARY
        guesses = [[first, second], [first, (second + 1) % VOCABULARY], [wrong, first]]
        self._tree = TokenTree.merged(root, [guess[:budget] for guess in guesses if budget])
        return Draft(self._tree, resume=self._resume())

    def _resume(self) -> Resume | None:
        model, layer, cache = self._method.model, self._method.resume, self._session.cache
        if layer is None:
            return None
        rows = model.rows(cache.length, self._tree.parents)
        hidden = model.layers(model.embed(self._tree.tokens), 0, layer, rows, cache)
        return Resume(layer, hidden)

    def observe(self, verified: Verified) -> None:
        tokens, parents = self._tree.tokens.tolist(), self._tree.parents
        for row in range(len(tokens)):
            path, at = [], row
            while at >= 0:
                path, at = [tokens[at], *path], parents[at]
            text = (*self._ids, *path)
            given = self._method.given(text, verified.output, slice(row, row + 1))
            self._method.of_rows.append(given)
        self._ids += [tokens[node] for node in verified.nodes]


@torch.inference_mode()
def plain(family: str, text: tuple[int, ...]) -> list[Tensor]:
    """(P, H) after each number of layers, and last after the final norm."""
    model, ids = target(family), torch.tensor(text)
    cache, rows = model.new_cache(len(ids)), model.prompt_rows(len(ids))
    states = [model.embed(ids)]
    for layer in range(model.n_layers):
        states.append(model.layers(states[-1], layer, layer + 1, rows, cache))
    return [*states, model.model.model.norm(states[-1])]


def assert_plain(family: str, given: Given, *, rows: slice, normed: slice) -> None:
    wanted = plain(family, given.text)
    pairs = [(states, wanted[layer][rows]) for layer, states in given.hidden.items()]
    for found, states in [*pairs, (given.normed, wanted[-1][normed])]:
        assert found.shape == states.shape
        error = (found - states).abs().max()
        assert error < 1e-10, f"after {given.text} another state was given: {error:.1e}"


LAST = slice(-1, None)


def check(family: str, model: Target, needs: Needs, *, resume: int | None = None) -> Asks:
    """Decode with a drafter that asks, and compare every state that it was given."""
    vanilla = Vanilla(MethodOptions())
    text = decode(model, vanilla, PROMPT, limits=LIMITS, clock=WallClock()).output_ids
    method = Asks(model, needs, text, resume=resume)
    found = decode(model, method, PROMPT, limits=LIMITS, clock=WallClock())
    assert found.output_ids == text
    assert any(step.accepted for step in found.steps), "no draft was right, so no path was compared"
    return method


def compare(family: str, method: Asks) -> None:
    needs, resume = method.needs, method.resume or 0
    (prompt,) = method.of_prompt
    assert prompt.hidden.keys() == {*needs.layers}
    whole = slice(None)
    assert_plain(family, prompt, rows=whole, normed=whole if needs.final_normed else LAST)
    for given in method.of_rows:
        assert given.hidden.keys() == {layer for layer in needs.layers if layer >= resume}
        assert_plain(family, given, rows=LAST, normed=LAST)


@pytest.mark.parametrize("needs", [ALL, Needs(layers=(3,)), Needs(final_normed=True), NOTHING])
@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_a_plain_pass(family: str, needs: Needs) -> None:
    compare(family, check(family, target(family), needs))


@pytest.mark.parametrize("resume", [1, 2, LAYERS])
def test_a_draft_that_ran_the_first_layers_is_given_the_others(resume: int) -> None:
    compare(LLAMA, check(LLAMA, target(LLAMA), ALL, resume=resume))


@contextmanager
def captured(family: str) -> Iterator[Target]:
    yield Target(random_model(family), capturer=Uncaptured())


@contextmanager
def far(family: str) -> Iterator[Target]:
    with far_device():
        yield Target(move(random_model(family)))


@contextmanager
def spread(family: str) -> Iterator[Target]:
    """The first two layers here, the others on the pretended device."""
    with far_device():
        found = Target(random_model(family))
        for index in (2, 3):
            module = move(found.model.model.layers[index])
            window = found.layout.windows[index]
            found._layers[index] = LeanLayer(module, LayerSpec(index, window))
            found._homes[index] = FAR
        found._is_spread = True
        yield found


@pytest.mark.parametrize("needs", [ALL, NOTHING])
@pytest.mark.parametrize(
    ("launched", "family"),
    [
        (captured, LLAMA),
        (captured, "gemma3-two-ropes"),
        (captured, "qwen2-mixed-windows"),
        (far, LLAMA),
        (far, "gemma2-capped"),
        (spread, LLAMA),
        (spread, "mistral-window"),
    ],
)
def test_graphs_and_devices_give_the_same_states(
    launched: Callable[[str], contextmanager[Target]], family: str, needs: Needs
) -> None:
    with launched(family) as model:
        method = check(family, model, needs)
    compare(family, method)


class Counting(Uncaptured):
    """Notes how many outputs each captured pass has."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: set[int] = set()

    def capture(self, function: Callable[[], tuple[Tensor, ...]]) -> Replay:
        replay = super().capture(function)

        def counted() -> tuple[Tensor, ...]:
            outputs = replay()
            self.outputs.add(len(outputs))
            return outputs

        return counted


def test_what_is_not_asked_for_is_not_kept() -> None:
    model = Target(random_model(LLAMA), capturer=(capturer := Counting()))
    check(LLAMA, model, NOTHING)
    assert capturer.outputs == {2}, "logits and normed states; each more is copied in every step"
    check(LLAMA, model, Needs(layers=(1, 2)))
    assert capturer.outputs == {2, 4}


@pytest.mark.parametrize("layers", [(-1,), (1, LAYERS + 1)])
def test_a_layer_that_the_target_has_not_is_an_error(layers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="there are no states after layers"):
        check(LLAMA, target(LLAMA), Needs(layers=layers))


def test_what_methods_share_is_built_once_for_a_target() -> None:
    model, other = Target(random_model(LLAMA)), Target(random_model(LLAMA))
    made: list[str] = []

    def make() -> list[str]:
        made.append("weights")
        return made[-1:]

    assert model.once("key", make) is model.once("key", make)
    assert model.once("other key", make) is not model.once("key", make)
    assert other.once("key", make) is not model.once("key", make)
    assert len(made) == 3

    def fails() -> None:
        raise UsageError("no such file")

    for _ in range(2):
        with pytest.raises(UsageError, match="no such file"):
            model.once("third key", fails)
