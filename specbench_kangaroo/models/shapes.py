"""Models by their size alone: config facts by name, and a model of random weights in no time.

What a pass costs depends on how many weights are read, not on what they are, so a profile needs no
download.  What a draft is worth does depend on them: random weights are good for latency only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from specbench_kangaroo.models.convert import quiet_transformers
from specbench_kangaroo.record.errors import UsageError, look_up

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

LATENCY_ONLY = "random weights: latency only"
_SPREAD = 0.02  # the standard deviation that most families start from
_SEED = 0


def _facts(kind: str, sizes: str, **more: Any) -> dict[str, Any]:
    """A config: hidden, intermediate, layers, heads, key-value heads, vocabulary, context."""
    names = (
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "vocab_size", "max_position_embeddings"),
    )
    numbers = dict(zip(names, map(int, sizes.split()), strict=True))
    return {"model_type": kind, **numbers, "tie_word_embeddings": False, **more}


# From the config.json of the models on the Hugging Face hub; Vicuna's are those of version 1.3.
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "smollm2-135m": _facts("llama", "576 1536 30 9 3 49152 8192", tie_word_embeddings=True),
    "qwen2.5-0.5b": _facts("qwen2", "896 4864 24 14 2 151936 32768", tie_word_embeddings=True),
    "tinyllama-1.1b": _facts("llama", "2048 5632 22 32 4 32000 2048"),
    "llama-3.2-1b": _facts(
        "llama", "2048 8192 16 32 8 128256 131072", tie_word_embeddings=True, head_dim=64
    ),
    "vicuna-7b": _facts("llama", "4096 11008 32 32 32 32000 2048"),
    "vicuna-13b": _facts("llama", "5120 13824 40 40 40 32000 2048"),
    "llama-3-8b": _facts("llama", "4096 14336 32 32 8 128256 8192"),
    "mistral-7b": _facts("mistral", "4096 14336 32 32 8 32768 32768", sliding_window=None),
    "qwen2.5-7b": _facts("qwen2", "3584 18944 28 28 4 152064 32768"),
    "qwen3-8b": _facts("qwen3", "4096 12288 36 32 8 151936 40960", head_dim=128),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """A model but for its weights."""

    name: str
    config: Mapping[str, Any]  # as in a transformers config.json; it has a model_type


def shape_named(name: str) -> Shape:
    """One of ``SHAPES``, or what a ``config.json`` of transformers says.

    Raises:
        UsageError: no such shape, or a file that is no config.
    """
    if name not in SHAPES and (name.endswith(".json") or Path(name).is_file()):
        return Shape(Path(name).stem, _read(Path(name)))
    try:
        return Shape(name, look_up("shape", name, SHAPES))
    except UsageError as error:
        raise UsageError(f"{error}; or a config.json") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read a shape from {path}: {error}") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise UsageError(f"{path} is no config of transformers: it has no model_type")
    return config


def random_model(shape: Shape, *, dtype: str, device: str, copies: int = 1) -> PreTrainedModel:
    """A model of this shape in eval mode, its weights drawn where they are to stay.

    Args:
        shape: what is built.
        dtype: a name that works on the device.
        device: cpu, cuda or cuda:N.
        copies: how many times the weights must fit into what memory is free, this one included.

    Raises:
        UsageError: a config that makes no model, or a device without so much memory.
    """
    import torch  # noqa: PLC0415

    model = _without_weights(shape, dtype)
    model.tie_weights()  # before: no memory for the same weight twice
    itemsize = getattr(torch, dtype).itemsize
    needed = sum(weight.numel() for weight in model.parameters()) * itemsize
    _check_memory(shape.name, needed * copies, device)
    generator = torch.Generator(device).manual_seed(_SEED)
    drawn = {
        name: _drawn(name, weight, generator) for name, weight in model.named_parameters()
    }  # a tied weight comes once
    model.load_state_dict(drawn, strict=False, assign=True)
    model.tie_weights()
    return model.requires_grad_(requires_grad=False).to(device).eval()


def _without_weights(shape: Shape, dtype: str) -> Any:
    """The model with its buffers, which hold no numbers of training, and weights without memory."""
    import torch  # noqa: PLC0415
    from accelerate import init_empty_weights  # noqa: PLC0415
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415

    facts = {key: value for key, value in shape.config.items() if key != "model_type"}
    try:
        with quiet_transformers(), init_empty_weights(include_buffers=False):
            config = AutoConfig.for_model(shape.config["model_type"], **facts)
            return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"the shape {shape.name} makes no model: {reason}") from error


def _drawn(name: str, weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Norms begin as ones and biases as zeros, so that states neither vanish nor explode."""
    import torch  # noqa: PLC0415

    made = torch.empty(weight.shape, dtype=weight.dtype, device=generator.device)
    if weight.dim() > 1:
        return made.normal_(0.0, _SPREAD, generator=generator)
    return made.fill_(0.0 if name.endswith("bias") else 1.0)


def _check_memory(name: str, needed: int, device: str) -> None:
    import torch  # noqa: PLC0415

    if device == "cpu":
        free = int(psutil.virtual_memory().available)
    else:
        free = int(torch.cuda.mem_get_info(torch.device(device))[0])
    if needed > free:
        raise UsageError(
            f"the shape {name} needs {needed / 2**30:.1f} GiB on {device}, which has "
            f"{free / 2**30:.1f} GiB free; take a smaller shape, or --dtype bfloat16"
        )
