"""How a draft head learned: agreement with the target on held-back text, by training tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter
from safetensors import SafetensorError, safe_open

from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.report.figures import style

WEIGHTS_SUFFIX = ".safetensors"
_HEIGHT = 3.6  # inches


@dataclass(frozen=True, slots=True)
class Learning:
    """The validations of one training run, in order.

    Attributes:
        name: of the method and what it was trained for.
        tokens: seen before each validation.
        agreement: a curve per position that the head drafts, each as long as ``tokens``: the share
            of held-back positions at which its best token is the target's.
    """

    name: str
    tokens: Sequence[int]
    agreement: Sequence[Sequence[float]]


def read_learning(path: Path) -> Learning:
    """The training record in a safetensors file that ``specbench train`` wrote.

    Raises:
        UsageError: no such file, or it has no record of a training.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    for method, text in metadata.items():
        found = _learning(method, text)
        if found is not None:
            return found
    raise UsageError(f"{path} has no training record: give a file that specbench train wrote")


def _learning(method: str, text: str) -> Learning | None:
    """What a method's note says of its training; None where the text is no such note."""
    try:
        note = json.loads(text)
        validations: list[dict[str, Any]] = note["record"]["validations"]
        tokens = [int(one["tokens_seen"]) for one in validations]
        by_position = [one.get("by_position") or [one["agreement"]] for one in validations]
    except (ValueError, TypeError, KeyError):
        return None
    agreement = list(zip(*by_position, strict=True))
    return Learning(f"{method}, {note.get('target', 'unknown target')}", tokens, agreement)


def learning_curve(heads: Sequence[Learning]) -> Figure:
    """Agreement against training tokens: a colour per file, a marker per drafted position."""
    figure = style.page(_HEIGHT)
    axes = figure.add_subplot()
    for head, colour in zip(heads, cycle(style.COLOURS), strict=False):
        several = len(head.agreement) > 1
        for place, curve in enumerate(head.agreement):
            axes.plot(
                head.tokens,
                curve,
                color=colour,
                marker=style.MARKERS[place % len(style.MARKERS)],
                markersize=4,
                label=f"{head.name}, {place + 1} ahead" if several else head.name,
            )
    axes.set_title("draft heads on held-back text", fontsize="medium")
    axes.set_xlabel("training tokens")
    axes.set_ylabel("agreement with the target")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    style.grid(axes)
    return style.finish(figure)
