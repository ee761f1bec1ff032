"""Every method on a pretended accelerator: no mixed devices, the same tokens, few host reads."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from specbench_kangaroo.bench.registry import method_class
from specbench_kangaroo.engine.clock import WallClock
from specbench_kangaroo.engine.cuda_graphs import Capturer
from specbench_kangaroo.engine.decode import Decoded, Limits, decode
from specbench_kangaroo.engine.method import Method
from specbench_kangaroo.engine.sampling import Sampler, Sampling, SeededChance
from specbench_kangaroo.engine.target import Target
from specbench_kangaroo.models.load import LoadedModel, load_model
from specbench_kangaroo.training.fit import FitPlan, fit
from specbench_kangaroo.training.trainable import trainable_names
from specbench_methods.shared import draft_models

from .bench import drafting_methods
from .far_device import FAR, far_device, move
from .models import Uncaptured, random_model
from .test_fit import loaded
from .test_training import SETTINGS, counting

PROMPT = (5, 9, 3, 14, 7, 11, 3, 14)
LIMITS = Limits(max_new_tokens=16, eos=frozenset({2}))


def sampler(temperature: float) -> Sampler | None:
    if temperature == 0:
        return None
    return Sampler(Sampling(temperature=temperature, top_p=0.9), SeededChance(3))


def load_far_model(name: str, *, dtype: str, device: str) -> LoadedModel:
    loaded = load_model(name, dtype=dtype, device="cpu")
    if torch.device(device) == FAR:
        move(loaded.model)
    return replace(loaded, device=device)


@dataclass(frozen=True)
class Case:
    """A family, how it is launched, and how tokens are chosen."""

    family: str
    capturer: Capturer | None = None
    temperature: float = 0.0


CASES = {
    "greedy": Case("llama-gqa-tied"),
    "sampled": Case("qwen2-mixed-windows", temperature=1.0),
    "graph": Case("gemma3-two-ropes", capturer=Uncaptured()),
}


def answer(model: Target, method: Method, temperature: float) -> Decoded:
    chance = sampler(temperature)
    return decode(model, method, PROMPT, limits=LIMITS, clock=WallClock(), sampler=chance)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("name", drafting_methods())
def test_methods_keep_tensors_on_the_targets_device(
    name: str, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draft_models, "load_model", load_far_model)
    kind = method_class(name)
    here = Target(random_model(case.family), name="tiny")
    with far_device():
        there = Target(move(random_model(case.family)), name="tiny", capturer=case.capturer)
        assert there.device == FAR
        examples = kind.example_options(there, tmp_path)
        methods = [kind.load(there, options) for options in examples]
        found = [answer(there, method, case.temperature) for method in methods]
    for options, decoded in zip(examples, found, strict=True):
        wanted = answer(here, kind.load(here, options), case.temperature)
        assert decoded.output_ids == wanted.output_ids, f"{options} decodes otherwise there"


@pytest.mark.parametrize("name", drafting_methods())
def test_the_host_waits_only_where_it_decides(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once to accept, once for what a draft of all tokens needs or else once a drafted depth."""
    monkeypatch.setattr(draft_models, "load_model", load_far_model)
    kind = method_class(name)
    with far_device() as reads:
        target = Target(move(random_model("llama-gqa-tied")), name="tiny")
        for options in kind.example_options(target, tmp_path):
            method = kind.load(target, options)
            reads.count = 0
            steps = answer(target, method, 0.0).steps
            decisions = sum(1 + max(1, step.drafted) for step in steps)
            begin = 3  # the prompt, what a method looks up in it, the first token
            assert reads.count <= decisions + begin, (
                f"{options}: {reads.count} reads in {len(steps)} steps; each stops the device"
            )
            assert reads.count >= len(steps), "no reads were seen, so the count proves nothing"


@pytest.mark.parametrize("name", trainable_names())
def test_training_keeps_tensors_on_the_targets_device(name: str, tmp_path: Path) -> None:
    """The same losses as on the host: features, teacher, batches, validations and the head."""
    text = tmp_path / "text.jsonl"
    records = [
        {"prompt": " ".join(map(str, each.tokens[:4])), "response_ids": each.tokens[4:]}
        for each in counting(12)
    ]
    text.write_text("\n".join(json.dumps({"task": "qa", **record}) for record in records))
    plan = FitPlan(
        texts=(text,),
        features=tmp_path / "near",
        output=tmp_path / "near.safetensors",
        settings=replace(SETTINGS, max_tokens=120, validate_every=60),
    )
    near = fit(name, loaded(random_model("llama-gqa-tied", torch.float32)), plan)
    with far_device():
        model = move(random_model("llama-gqa-tied", torch.float32))
        plan = replace(plan, features=tmp_path / "far", output=tmp_path / "far.safetensors")
        far = fit(name, loaded(model), plan)
    assert [each.loss for each in far.validations] == pytest.approx(
        [each.loss for each in near.validations], rel=1e-4
    )
