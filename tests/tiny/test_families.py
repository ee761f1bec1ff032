"""Model families: what each computes in its own way, and the refusal of those that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import DynamicCache

from specbench_kangaroo.engine import layers
from specbench_kangaroo.engine.families import SUPPORTED
from specbench_kangaroo.engine.layers import LeanLayer, ModuleLayer
from specbench_kangaroo.engine.placement import Rope
from specbench_kangaroo.engine.target import Target
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.training.features import FINAL, Document, collect
from specbench_kangaroo.training.teacher import Teacher
from specbench_kangaroo.training.trainable import trainable

from .models import CONTEXT, FAMILIES, VOCABULARY, random_model, target

IDS = torch.tensor([5, 9, 3, 14, 7, 11, 3, 14, 20, 1, 8])
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_decoding_is_what_generate_of_transformers_gives(family: str) -> None:
    """Against the library's own loop, cache and masks: nothing of ours is on the other side."""
    model, ours = random_model(family), target(family)
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        wanted = model.generate(
            IDS[None],
            attention_mask=torch.ones_like(IDS)[None],
            max_new_tokens=20,
            eos_token_id=VOCABULARY,
            do_sample=False,
            past_key_values=DynamicCache(),
        )[0, len(IDS) :].tolist()
        ids = IDS.tolist()
        for _ in range(20):
            logits = ours.prefill(torch.tensor(ids), ours.new_cache(len(ids))).logits
            ids.append(int(logits[-1].argmax()))
    assert ids[len(IDS) :] == wanted


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_has_the_shape_that_the_layers_write(family: str) -> None:
    written: list[tuple[int, ...]] = []

    class Slots:
        def write(self, layer: int, slot: int, keys: Any, values: Any) -> Any:
            assert (layer, slot) == (0, 0)
            assert keys.shape == values.shape
            written.append(tuple(keys.shape))
            return cache.write(layer, slot, keys, values)

    model = target(family)
    cache = model.new_cache(len(IDS))
    with torch.inference_mode():
        model._layers[0](model.embed(IDS), model.prompt_rows(len(IDS)), Slots())  # type: ignore[arg-type]
    _, n_kv_heads, _, head_dim = cache.committed(0).keys.shape
    assert written == [(1, n_kv_heads, len(IDS), head_dim)]


@pytest.mark.parametrize(
    ("family", "lean"), [("phi3-longrope", True), ("smollm3-nope", True), ("gemma2-capped", False)]
)
def test_families_near_llama_run_in_few_operations(family: str, lean: bool) -> None:
    kinds = {type(layer) for layer in target(family)._layers}
    assert kinds == {LeanLayer if lean else ModuleLayer}, "the baseline would be slow for no reason"


def test_logits_are_capped_wherever_the_targets_head_speaks() -> None:
    model = target("gemma2-capped")
    with torch.inference_mode():
        raw = model.prefill(IDS, model.new_cache(len(IDS))).normed @ model.lm_head.T
        found = model.prefill(IDS, model.new_cache(len(IDS))).logits
    assert raw.abs().max() > 3, "the test model's logits are too small to be capped"
    torch.testing.assert_close(found, 3 * torch.tanh(raw / 3))


def test_a_draft_head_learns_from_capped_predictions(tmp_path: Path) -> None:
    """The uncapped ones are surer than the target is, and a head would imitate that."""
    model = random_model("gemma2-capped", torch.float32)
    documents = [Document((5, 9, 3, 14, 7, 11), 2, "qa"), Document((8, 1, 4, 20, 6, 13), 3, "qa")]
    store = collect(model, documents, tmp_path, model_name="tiny", exit_layers=[])
    matrix = model.lm_head.weight.detach()
    teacher = Teacher(
        store, matrix, torch.arange(VOCABULARY), top_k=VOCABULARY, config=model.config
    )
    (batch,) = teacher.batches([0], FINAL, loss_tokens=99, seed=None)
    with torch.inference_mode():
        logits = model(torch.tensor([documents[0].tokens])).logits[0, 1:5]  # the answer's
    wanted = logits.softmax(-1).gather(-1, batch.teacher_ids)
    torch.testing.assert_close(batch.teacher_probabilities, wanted, rtol=0, atol=2e-3)


@pytest.mark.parametrize("family", ["phi3-longrope", "gemma3-two-ropes", "olmo2-late-norms"])
def test_an_adapter_is_not_started_from_a_layer_that_it_is_unlike(family: str) -> None:
    with pytest.raises(UsageError, match=r"cannot be trained for .*medusa can be trained"):
        trainable("kangaroo").trainee(random_model(family), exit_layer=1)


def test_local_and_global_layers_rotate_by_their_own_angles() -> None:
    model = target("gemma3-two-ropes")
    rows = model.prompt_rows(3)
    assert model.layout.rotations == ("sliding_attention", None) * 2
    assert not torch.equal(rows.angles_of(None).cos, rows.angles_of("sliding_attention").cos)
    own = model.prompt_rows(3, rope=model.rope)
    torch.testing.assert_close(own.angles.cos, rows.angles.cos)
    assert not own.other_angles, "a draft head's rows have no use for the local angles"


def test_nope_layers_do_not_rotate() -> None:
    model = target("smollm3-nope")
    with torch.inference_mode():
        states = model.embed(torch.tensor([5, 5, 5]))
        caches = [model.new_cache(3) for _ in range(2)]
        for index, cache in enumerate(caches):
            model._layers[index](states, model.prompt_rows(3), cache)
        keys = [c.storage.layers[index].keys[0, 0] for index, c in enumerate(caches)]  # [3, d]
    assert not torch.allclose(keys[0][0], keys[0][1])
    torch.testing.assert_close(keys[1][0], keys[1][1])


def test_longrope_texts_end_where_all_angles_would_change() -> None:
    """Past it the cached keys would be of another rotation: no method could be lossless."""
    model = target("phi3-longrope")
    assert model.config.max_position_embeddings == 4 * CONTEXT
    assert model.context_length == CONTEXT
    with torch.inference_mode():
        at_the_end = model.rope.at([CONTEXT - 1])
        beyond = model.rope.at([CONTEXT - 1, CONTEXT, CONTEXT + 5])  # rows that only ride along
        again = model.rope.at([CONTEXT - 1])
    torch.testing.assert_close(again.cos, at_the_end.cos, msg="a later position changed the angles")
    assert beyond.cos.shape[1] == 3
    torch.testing.assert_close(beyond.cos[:, 0], at_the_end.cos[:, 0])


def test_a_table_of_unlimited_angles_still_grows() -> None:
    model = target("llama-gqa-tied")
    rope = Rope(model.model.model.rotary_emb, {"rope_type": "default"}, torch.empty(1).double())
    assert rope.at([5000]).cos.shape == (1, 1, 8)


def test_wide_angles_leave_the_states_their_dtype() -> None:
    """OLMo 2's are float32 whatever the model is; a cache of bfloat16 takes no float32 keys."""
    model = random_model("olmo2-late-norms", torch.bfloat16)
    found = Target(model)
    assert found.rope.at([1]).cos.dtype == torch.float32
    heads = torch.ones(1, 2, 8, dtype=torch.bfloat16)
    assert layers.rotate(heads, found.rope.at([1])).dtype == torch.bfloat16


def build(kind: str, config: Any) -> Any:
    torch.manual_seed(0)
    return getattr(transformers, kind)(config).eval()


def gpt2() -> Any:
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    config = transformers.GPT2Config(vocab_size=24, n_embd=16, n_layer=2, n_head=2, **ends)
    return build("GPT2LMHeadModel", config)


def mamba() -> Any:
    config = transformers.MambaConfig(vocab_size=24, hidden_size=16, num_hidden_layers=2)
    return build("MambaForCausalLM", config)


def linear_attention() -> Any:
    config = transformers.Qwen3NextConfig(
        **SMALL,
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=4,
        linear_value_head_dim=4,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
    )
    return build("Qwen3NextForCausalLM", config)


def images() -> Any:
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    text = {**SMALL, "layer_types": ["sliding_attention", "full_attention"]}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=5
    )
    return build("Gemma3ForConditionalGeneration", config)


def encoder_decoder() -> Any:
    config = transformers.T5Config(vocab_size=24, d_model=16, d_kv=8, d_ff=16, num_layers=1)
    return build("T5ForConditionalGeneration", config)


def scaled_residuals() -> Any:
    config = transformers.GraniteConfig(
        **SMALL, logits_scaling=3.0, embedding_multiplier=2.0, residual_multiplier=0.5
    )
    return build("GraniteForCausalLM", config)


def other_key_sizes() -> Any:
    sizes = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4}
    small = {**SMALL, "num_key_value_heads": 2}
    del small["head_dim"]
    config = transformers.DeepseekV3Config(
        **small, **sizes, v_head_dim=12, first_k_dense_replace=2, n_routed_experts=4, n_group=1
    )
    return build("DeepseekV3ForCausalLM", config)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (gpt2, "no stack of decoder layers at model.layers"),
        (mamba, "no stack of decoder layers at model.layers"),
        (linear_attention, "no attention in layer 0"),
        (images, "its language model is part of a larger one"),
        (encoder_decoder, "it is an encoder and a decoder"),
        (scaled_residuals, "do not give its own logits"),
        (other_key_sizes, "Error"),
    ],
)
def test_a_family_that_does_not_fit_is_refused_by_name(make: Any, reason: str) -> None:
    model = make()
    with pytest.raises(UsageError, match=f"^{type(model).__name__} cannot be run") as caught:
        Target(model)
    line = str(caught.value)
    assert reason in line
    assert SUPPORTED in line, "the user should read what works instead"
    assert "\n" not in line


def test_running_out_of_memory_is_not_called_an_unknown_family() -> None:
    model = random_model("llama-gqa-tied")

    def forward(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no more of it")

    model.forward = forward
    with pytest.raises(torch.OutOfMemoryError):
        Target(model)
