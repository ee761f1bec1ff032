"""Tiny random models of several families: every engine test runs on them, none is downloaded."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from specbench_kangaroo.engine.cuda_graphs import Replay
from specbench_kangaroo.engine.target import Target

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
_MIXED_WINDOWS: dict[str, Any] = {
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
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
    "gemma2-capped": (  # caps so low that a logit without one is another logit
        Gemma2Config,
        Gemma2ForCausalLM,
        {
            **_MIXED_WINDOWS,
            "head_dim": 16,
            "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3-two-ropes": (
        Gemma3TextConfig,
        Gemma3ForCausalLM,
        {
            **_MIXED_WINDOWS,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0},
            },
        },
    ),
    "phi3-longrope": (  # fused projections; half of every head is rotated
        Phi3Config,
        Phi3ForCausalLM,
        {
            "max_position_embeddings": 4 * CONTEXT,
            "original_max_position_embeddings": CONTEXT,
            "rope_parameters": {
                "rope_type": "longrope",
                "factor": 4.0,
                "rope_theta": 10_000.0,
                "partial_rotary_factor": 0.5,
                "short_factor": [1.0, 1.5],
                "long_factor": [2.0, 4.0],
                "original_max_position_embeddings": CONTEXT,
            },
        },
    ),
    "smollm3-nope": (SmolLM3Config, SmolLM3ForCausalLM, {"no_rope_layers": [1, 0, 1, 0]}),
    "olmo2-late-norms": (Olmo2Config, Olmo2ForCausalLM, {"num_key_value_heads": 4}),
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
            if "layers" in name and "layers.0" not in name:
                _scale_branch(family, name, parameter)
    return model.to(dtype).eval()


def _scale_branch(family: str, name: str, parameter: torch.Tensor) -> None:
    """Give a later layer's attention and feed-forward a smaller share in the states."""
    if family.startswith("gemma"):  # a norm after each of them undoes any other scale
        if "post_attention" in name or "post_feedforward" in name:
            parameter.add_(1).mul_(_LATER_LAYERS).sub_(1)  # these weights are added to one
    elif family.startswith("olmo"):
        if "post_attention" in name or "post_feedforward" in name:
            parameter.mul_(_LATER_LAYERS)
    elif "o_proj" in name or "down" in name:
        parameter.mul_(_LATER_LAYERS)


@cache
def target(family: str, dtype: torch.dtype = torch.float64) -> Target:
    """The target of a family; shared between tests, which must not change it."""
    return Target(random_model(family, dtype), name=f"tiny-{family}")


def count_parameters(build: Callable[[], torch.nn.Module]) -> int:
    """From the shapes alone: nothing is allocated."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build().parameters())


class Uncaptured:
    """Calls the function again: everything but the capture, on any device."""

    def __init__(self) -> None:
        self.captures = 0

    def capture(self, function: Callable[[], tuple[torch.Tensor, ...]]) -> Replay:
        """See ``Capturer``."""
        self.captures += 1
        return function
