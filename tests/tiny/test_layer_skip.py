"""Drafting with the target's own layers: which ones, what is accepted, where it resumes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from specbench_kangaroo.engine.clock import WallClock
from specbench_kangaroo.engine.decode import Decoded, Limits, decode
from specbench_kangaroo.engine.method import Session
from specbench_kangaroo.engine.sampling import Sampler, Sampling, SeededChance
from specbench_kangaroo.engine.target import Needs, Target
from specbench_kangaroo.engine.tree import chain_parents
from specbench_kangaroo.record.errors import UsageError
from specbench_methods.layer_skip import LayerSkip, LayerSkipOptions

from .chains import assert_drawn_as_told, assert_same_steps, expected_steps
from .models import FAMILIES, target

FAMILY = "qwen3-qknorm"
PROMPT = (5, 9, 3, 14, 7, 11, 3, 14)
NO_EOS: frozenset[int] = frozenset()


def generate(model: Target, options: LayerSkipOptions) -> Decoded:
    limits = Limits(max_new_tokens=30, eos=NO_EOS)
    method = LayerSkip.load(model, options)
    return decode(model, method, PROMPT, limits=limits, clock=WallClock())


@torch.inference_mode()
def early_exit(model: Target, ids: list[int], layers: int) -> Tensor:
    """(V,) logits after the first layers, over the whole text at once."""
    needs = Needs(layers=(layers,))
    found = model.prefill(torch.tensor(ids), model.new_cache(len(ids)), needs)
    return model.output(found.hidden[layers][-1:]).logits[0]


@torch.inference_mode()
def by_kept_layers(
    model: Target, committed: list[int], chain: list[int], kept: tuple[int, ...]
) -> Tensor:
    """(V,) logits of the kept layers over a draft, whose text went through all layers."""
    cache = model.new_cache(len(committed) + len(chain))
    model.prefill(torch.tensor(committed), cache)
    rows = model.rows(len(committed), chain_parents(len(chain)))
    hidden = model.embed(torch.tensor(chain))
    for layer in kept:
        hidden = model.layers(hidden, layer, layer + 1, rows, cache)
    return model.output(hidden[-1:]).logits[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("exit_layer", "steps", "threshold"), [(1, 6, 0.0), (2, 4, 0.3)])
def test_early_exit_gets_accepted_what_the_first_layers_say_of_the_text(
    family: str, exit_layer: int, steps: int, threshold: float
) -> None:
    model = target(family)
    found = generate(
        model, LayerSkipOptions(exit_layer=exit_layer, steps=steps, threshold=threshold)
    )
    expected = expected_steps(
        model,
        lambda committed, chain: early_exit(model, [*committed, *chain], exit_layer),
        PROMPT,
        new=30,
        steps=steps,
        threshold=threshold,
    )
    assert_same_steps(found, expected)
    assert sum(step.accepted for step in expected), "nothing was accepted, so nothing was tested"
    shares = {step.verify_share for step in found.steps}
    assert shares == {model.weight_share(exit_layer)}, "verification must go on at the exit layer"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("skip", "kept"), [("3", (0, 1, 2)), ("1-2", (0, 3)), ("2,0", (1, 3))])
def test_skipping_layers_gets_accepted_what_the_others_say_over_the_targets_cache(
    family: str, skip: str, kept: tuple[int, ...]
) -> None:
    model = target(family)
    found = generate(model, LayerSkipOptions(skip=skip, steps=4, threshold=0.2))
    expected = expected_steps(
        model,
        lambda committed, chain: by_kept_layers(model, committed, chain, kept),
        PROMPT,
        new=30,
        steps=4,
        threshold=0.2,
    )
    assert_same_steps(found, expected)
    assert {step.verify_share for step in found.steps} == {1.0}, "verification runs every layer"


def test_skipped_layers_are_right_now_and_then() -> None:
    """Else the test above compares nothing but rejections."""
    accepted = [
        sum(step.accepted for step in generate(target(family), options).steps)
        for family in FAMILIES
        for options in (LayerSkipOptions(skip="3", threshold=0.2),)
    ]
    assert sum(accepted) > 0


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (LayerSkipOptions(exit_layer=2, threshold=0.0), (0, 1)),
        (LayerSkipOptions(skip="1-2", threshold=0.0), (0, 3)),
    ],
)
def test_sampled_tokens_come_with_the_distribution_they_were_drawn_from(
    options: LayerSkipOptions, kept: tuple[int, ...]
) -> None:
    model, sampling = target(FAMILY), Sampling(temperature=0.9, top_p=0.8)
    method = LayerSkip.load(model, options)
    with torch.inference_mode():
        cache, prompt = model.new_cache(20), torch.tensor(PROMPT)
        sampler = Sampler(sampling, SeededChance(5))
        session = Session(cache, 7, sampler, NO_EOS)
        draft = method.start(session, prompt, model.prefill(prompt, cache)).propose(3, 4)
    assert_drawn_as_told(
        draft,
        sampling,
        lambda chain: by_kept_layers(model, [*PROMPT], chain, kept),
        drafted=4,
    )


def test_the_default_leaves_after_a_quarter_of_the_layers_and_is_recorded() -> None:
    assert LayerSkip.load(target(FAMILY), LayerSkipOptions()).options.exit_layer == 1
    skipping = LayerSkip.load(target(FAMILY), LayerSkipOptions(skip=" 1 - 2 , 3"))
    assert skipping.options.exit_layer is None, "a record must not name both"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exit_layer": 1, "skip": "2"}, "not both"),
        ({"exit_layer": 0}, r"exit_layer is 0, but .* 4 layers: give one of 1\.\.3"),
        ({"exit_layer": 4}, r"exit_layer is 4, but .* 4 layers: give one of 1\.\.3"),
        ({"skip": "3-4"}, r"skip is '3-4', but the target has layers 0\.\.3"),
        ({"skip": "9"}, r"skip is '9', but the target has layers 0\.\.3"),
        ({"skip": "0-1,2-3"}, r"layers 0\.\.3: name some of these, not all"),
        ({"skip": "3-1"}, "takes layers such as 10-19,25, not '3-1'"),
        ({"skip": "-1"}, "takes layers such as 10-19,25, not '-1'"),
        ({"skip": "1,,2"}, "takes layers such as 10-19,25, not '1,,2'"),
        ({"skip": "two"}, "takes layers such as 10-19,25, not 'two'"),
        ({"steps": 0}, r"layer_skip\.steps must be at least 1, not 0"),
    ],
)
def test_layers_that_the_target_has_not_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LayerSkip.load(target(FAMILY), LayerSkipOptions(**options))
