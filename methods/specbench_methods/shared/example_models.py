"""A small draft model for any target, written to a folder: what the contract tests draft with."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

from specbench_kangaroo.engine.target import Target


def write_draft_model(target: Target, folder: Path, *, layers: int) -> str:
    """Write the target's own first layers as a model of its family, with its embedding and head.

    With trained weights such a draft is right now and then, with random ones often enough for a
    test.  The tokenizer has one word an id.

    Returns:
        The folder, as ``--model`` takes it.
    """
    config = copy.deepcopy(target.config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = config.layer_types[:layers]
    draft = type(target.model)(config).to(target.dtype)
    weights = target.model.state_dict()
    draft.load_state_dict({key: weights[key] for key in draft.state_dict()})
    draft.save_pretrained(folder)
    write_tokenizer(folder, words=target.vocab_size)
    return str(folder)


def write_tokenizer(folder: Path, *, words: int) -> None:
    """Write a tokenizer of the words w0, w1, and so on, which are separated by spaces."""
    vocabulary = {f"w{index}": index for index in range(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    (folder / "tokenizer_config.json").write_text(settings, encoding="utf-8")
