"""Tiny random models of several families: every engine test runs on them, none is downloaded."""

from functools import cache
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from specbench_kangaroo.target import Target

VOCABULARY = 24  # small, so that a random draft is right now and then
CONTEXT = 64
_SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LATER_LAYERS = 0.35
_FAMILIES: dict[str, tuple[type, type, dict[str, Any]]] = {
    "llama-gqa-tied": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True}),
    "llama-mha-untied": (
        LlamaConfig,
        LlamaForCausalLM,
        {"num_key_value_heads": 4, "tie_word_embeddings": False},
    ),
    "qwen2-bias": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": False}),
    "qwen3-qknorm": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16}),
    "mistral-window": (MistralConfig, MistralForCausalLM, {"sliding_window": 6}),
    "qwen2-mixed-windows": (
        Qwen2Config,
        Qwen2ForCausalLM,
        {
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
        },
    ),
}
FAMILIES = tuple(_FAMILIES)


def random_model(family: str, dtype: torch.dtype = torch.float64) -> Any:
    """A fresh model of a family with seeded random weights.

    The first layer decides most and the later ones something, so that an early exit is right often
    enough, and wrong often enough, for every branch of a draft to be taken.
    """
    config_class, model_class, extra = _FAMILIES[family]
    torch.manual_seed(7)
    model = model_class(config_class(**{**_SIZE, **extra}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if "norm" in name else 0.25))
            if "layers" in name and "layers.0" not in name and ("o_proj" in name or "down" in name):
                parameter.mul_(_LATER_LAYERS)
    return model.to(dtype).eval()


@cache
def target(family: str, dtype: torch.dtype = torch.float64) -> Target:
    """The target of a family; shared between tests, which must not change it."""
    return Target(random_model(family, dtype), name=f"tiny-{family}")
