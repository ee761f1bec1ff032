"""A second model that drafts: loaded as the target was, of the same tokens, and one for tests."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

from specbench_kangaroo.engine.target import Target
from specbench_kangaroo.models.load import LoadedModel, load_model
from specbench_kangaroo.record.errors import UsageError

_SHOWN = 3  # tokens that have another id


def load_beside(target: Target, name: str) -> LoadedModel:
    """The model of this name, in the target's dtype and on its device."""
    dtype = str(target.dtype).removeprefix("torch.")
    return load_model(name, dtype=dtype, device=str(target.device))


def check_vocabulary(draft: Target, target: Target) -> None:
    """Refuse a draft model whose token ids mean something else than the target's.

    LM heads of different sizes are fine where the tokenizers are known to be equal: what the larger
    one has beyond the other is padding.

    Raises:
        UsageError: the tokenizers differ, or the sizes do and a tokenizer is not known.
    """
    if draft.tokenizer is not None and target.tokenizer is not None:
        found, wanted = draft.tokenizer.get_vocab(), target.tokenizer.get_vocab()
        if found != wanted:
            raise UsageError(
                f"{draft.name} has another tokenizer than {target.name or 'the target'}: "
                f"{_difference(found, wanted)}; draft_model.model takes a model with the same one"
            )
    elif draft.vocab_size != target.vocab_size:
        raise UsageError(
            f"{draft.name} has {draft.vocab_size} token ids and the target {target.vocab_size}: "
            "give Target the target's tokenizer, so that what they mean can be compared"
        )


def _difference(found: Mapping[str, int], wanted: Mapping[str, int]) -> str:
    """The sizes, and the first tokens that have not the same id in both."""
    ids = {token: (found.get(token), wanted.get(token)) for token in {*found, *wanted}}
    differing = [
        (min(i for i in pair if i is not None), token, pair)
        for token, pair in ids.items()
        if pair[0] != pair[1]
    ]
    shown = "; ".join(
        f"{token!r} is {_name(pair[0])}, not {_name(pair[1])}"
        for _, token, pair in sorted(differing)[:_SHOWN]
    )
    more = ", …" if len(differing) > _SHOWN else ""
    return f"{len(found)} tokens against {len(wanted)}, {len(differing)} differ ({shown}{more})"


def _name(token_id: int | None) -> str:
    return "missing" if token_id is None else str(token_id)


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
