"""The default model itself: fetched on first use, then loaded from the cache."""

from __future__ import annotations

import time

import pytest
import torch

from specbench_kangaroo.models.catalogue import DEFAULT_MODEL, MODELS
from specbench_kangaroo.models.load import LoadedModel, load_model
from specbench_kangaroo.models.templates import chat_prompt
from tests.pace import slowness

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(DEFAULT_MODEL, device="cpu")


def test_it_is_the_pinned_model(loaded: LoadedModel) -> None:
    assert loaded.sha256 == MODELS[DEFAULT_MODEL].source.sha256
    assert (loaded.dtype, loaded.context_length) == ("float32", 8192)
    assert loaded.eos_token_ids == {2}
    assert sum(weight.numel() for weight in loaded.model.parameters()) == 134_515_008
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight, "tied"


def test_a_later_load_is_quick(loaded: LoadedModel) -> None:
    start_s = time.process_time()
    load_model(DEFAULT_MODEL, device="cpu")
    spent_s = time.process_time() - start_s
    assert spent_s < 3 * slowness(), "every command would start this much later"


def test_it_answers(loaded: LoadedModel) -> None:
    prompt = chat_prompt(loaded.tokenizer, ["What is the capital of France?"])
    with torch.inference_mode():
        ids = loaded.model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)
    answer = ids[0, len(prompt) :].tolist()
    assert "Paris" in loaded.tokenizer.decode(answer)
    assert answer[-1] in loaded.eos_token_ids, "a text must end where the model ends it"
