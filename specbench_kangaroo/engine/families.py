"""Where a family of models keeps what running its layers by range needs, and which families fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from specbench_kangaroo.record.errors import UsageError

SUPPORTED = "Llama, Mistral, Qwen2, Qwen3, Gemma 2, Gemma 3 (text), Phi-3, SmolLM3 or OLMo 2"
_FULL, _SLIDING = "full_attention", "sliding_attention"
_LONGROPE = "longrope"


@dataclass(frozen=True, slots=True)
class Layout:
    """What a model's config says of its layers.

    Attributes:
        windows: every layer's sliding window, None where attention is full.
        rotations: every layer's type where types have rotary angles of their own (Gemma 3), else
            None; the type whose angles serve as the model's own is None as well.
        main_rotation: that type, to be asked of the rotary module; None if there is one rotation.
        context_length: positions up to which angles depend on the position alone.
    """

    windows: tuple[int | None, ...]
    rotations: tuple[str | None, ...]
    main_rotation: str | None
    n_kv_heads: int
    head_dim: int
    context_length: int


def layout_of(model: Any) -> Layout:
    """Read a causal language model's layout.

    Raises:
        UsageError: its layers cannot be run by range; names the model, the reason, and what can.
    """
    _check_parts(model)
    config = model.config
    n_layers = len(model.model.layers)
    kinds = getattr(config, "layer_types", None)
    by_type = any(isinstance(value, Mapping) for value in rope_parameters(config).values())
    rotating = kinds[:n_layers] if kinds and by_type else []
    main = _FULL if _FULL in rotating else next(iter(rotating), None)
    n_heads: int = config.num_attention_heads
    return Layout(
        windows=tuple(_windows(model, kinds, n_layers)),
        rotations=tuple(kind if kind != main else None for kind in rotating) or (None,) * n_layers,
        main_rotation=main,
        n_kv_heads=getattr(config, "num_key_value_heads", None) or n_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // n_heads,
        context_length=context_length(config),
    )


def context_length(config: Any) -> int:
    """How many positions a text may have.

    LongRoPE (Phi-3) rotates *all* positions again once a text outgrows the length of its first
    training: what is cached by then would be of another model, so its texts end there.
    """
    longest: int = config.max_position_embeddings
    parameters = rope_parameters(config)
    if parameters.get("rope_type") == _LONGROPE:
        first = parameters.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        return min(longest, first or longest)
    return longest


def rope_parameters(config: Any, kind: str | None = None) -> Mapping[str, Any]:
    """The rotary settings of the layers of type ``kind``; None where there is but one rotation."""
    found: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    return found if kind is None else found[kind]


def not_by_range(model: Any, reason: str) -> UsageError:
    """The error for a model that the engine cannot run: by name, and with the families it can."""
    return UsageError(
        f"{type(model).__name__} cannot be run layer by layer: {reason}; use a {SUPPORTED} model"
    )


def home(module: nn.Module) -> torch.device:
    """Where a module computes: where its weights are, or where accelerate's hooks load them to."""
    tensors = [*module.parameters(), *module.buffers()]
    if tensors and not any(tensor.is_meta for tensor in tensors):
        return tensors[0].device
    for inner in module.modules():
        device = getattr(getattr(inner, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.empty(0, device=device).device  # "cuda" or 0 becomes cuda:0
    raise UsageError("a module's weights are on the meta device: it was built without being loaded")


def is_plain(module: Any) -> bool:
    """Whether a projection is a plain product with loaded floating-point weights.

    Packed weights (bitsandbytes, GPTQ, AWQ) are not, nor are offloaded ones.
    """
    if type(module) is not nn.Linear or any(tensor.is_meta for tensor in module.parameters()):
        return False
    return module.weight.is_floating_point()


def weight_bytes(module: nn.Module) -> int:
    """Bytes of a module's weights as they are stored, packed ones as they are packed."""
    tensors = (*module.parameters(), *module.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _check_parts(model: Any) -> None:
    if getattr(model.config, "is_encoder_decoder", False):
        raise not_by_range(model, "it is an encoder and a decoder")
    stack: Any = getattr(model, "model", None)
    if hasattr(stack, "language_model"):  # of images or sounds and text
        raise not_by_range(model, "its language model is part of a larger one")
    if getattr(stack, "layers", None) is None:
        raise not_by_range(model, "it has no stack of decoder layers at model.layers")
    for name in ("norm", "rotary_emb"):
        if getattr(stack, name, None) is None:
            raise not_by_range(model, f"it has no model.{name}")
    others = [str(i) for i, layer in enumerate(stack.layers) if not hasattr(layer, "self_attn")]
    if others:
        raise not_by_range(model, f"no attention in layer {', '.join(others[:3])}")
    if getattr(model.config, "max_position_embeddings", None) is None:
        raise not_by_range(model, "its config has no max_position_embeddings")
    if model.get_output_embeddings() is None:
        raise not_by_range(model, "it has no LM head")


def _windows(model: Any, kinds: Sequence[str] | None, n_layers: int) -> list[int | None]:
    config = model.config
    window: int | None = getattr(config, "sliding_window", None)
    if kinds is None:
        return [window if getattr(config, "use_sliding_window", True) else None] * n_layers
    if unknown := set(kinds) - {_FULL, _SLIDING}:
        raise not_by_range(model, f"it has layers of type {', '.join(sorted(unknown))}")
    return [window if kind == _SLIDING else None for kind in kinds[:n_layers]]
