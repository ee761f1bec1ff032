"""From a quantised GGUF file to a folder that loads in seconds: safetensors, config, tokenizer.

The weights are unpacked to float32 once, which takes about 25 s; a run on the result says nothing
about the speed of a quantised model.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def unpack_gguf(gguf: Path, folder: Path) -> None:
    """Write the model and tokenizer of ``gguf`` to ``folder`` in transformers' own layout."""
    import torch  # noqa: PLC0415 (keeps `specbench list models` fast)
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig  # noqa: PLC0415

    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            trust_remote_code=False,
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        tokenizer.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
    # save_pretrained refuses a model that came from GGUF, although its weights are dense now.
    _write_weights(model, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(_clean_config(model), indent=1))


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence progress bars and the advice to install torchvision; real warnings pass."""
    from transformers.utils import logging as their_logging  # noqa: PLC0415

    bars = their_logging.is_progress_bar_enabled()
    # On the handlers: a logger's own filter is not asked about its children's records.
    handlers = logging.getLogger("transformers").handlers
    for handler in handlers:
        handler.addFilter(_is_no_advice)
    their_logging.disable_progress_bar()
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(_is_no_advice)
        if bars:
            their_logging.enable_progress_bar()


def _is_no_advice(record: logging.LogRecord) -> bool:
    return "torchvision" not in record.getMessage()


def _write_weights(model: Any, path: Path) -> None:
    from safetensors.torch import save_file  # noqa: PLC0415

    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)  # the same storage as the embedding
    save_file(tensors, path, metadata={"format": "pt"})


def _clean_config(model: Any) -> dict[str, Any]:
    config: dict[str, Any] = model.config.to_diff_dict()
    # These name the GGUF file, which is gone, and would send a later load back to its reader.
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        config.pop(key, None)
    return config | {"architectures": [type(model).__name__], "dtype": "float32"}
