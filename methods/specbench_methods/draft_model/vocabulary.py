"""Whether a draft model speaks the target's tokens."""

from __future__ import annotations

from collections.abc import Mapping

from specbench_kangaroo.engine.target import Target
from specbench_kangaroo.record.errors import UsageError

_SHOWN = 3


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
