"""Hidden states of a target over text, stored once so that draft heads train without the target.

A training step that runs the target spends nine tenths of its time there.  One pass over the text
keeps the float16 hidden states that heads read (after some exit layers) and aim at (the final,
normed ones): ``2 * H`` bytes per token and layer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence

from specbench_kangaroo.machine.devices import probe_dtype
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.files import write_whole

FINAL = "final"
BATCH_TOKENS = 2048  # padded tokens per target pass: enough to fill two cores, small in memory
_SHARD_TOKENS = 32768  # that are kept or lost together when it is killed: a minute of a core
_INDEX = "store.json"


_TIMED_ROWS, _TIMED_SIZE, _TIMES = 256, 1024, 7
# Of float32's time: products are what many rows spend most on, but all else is slower in bfloat16.
_CLEARLY_QUICKER = 0.6


def quick_dtype(device: str) -> str | None:
    """bfloat16 on a CPU whose products of many rows are far quicker in it; None: the default.

    That takes matrix units (AMX).  A processor that merely has bfloat16 instructions multiplies no
    faster with them.  Timed once a command, in processor time: others may be busy.
    """
    if device != "cpu" or not probe_dtype("bfloat16", device):
        return None
    shapes = (_TIMED_ROWS, _TIMED_SIZE), (_TIMED_SIZE, _TIMED_SIZE)
    best_s = dict.fromkeys((torch.float32, torch.bfloat16), float("inf"))
    operands = {dtype: [torch.ones(shape, dtype=dtype) for shape in shapes] for dtype in best_s}
    for _ in range(_TIMES):
        for dtype, (rows, weight) in operands.items():
            start_s = time.process_time()
            torch.nn.functional.linear(rows, weight)
            best_s[dtype] = min(best_s[dtype], time.process_time() - start_s)
    is_quicker = best_s[torch.bfloat16] < _CLEARLY_QUICKER * best_s[torch.float32]
    return "bfloat16" if is_quicker else None


@dataclass(frozen=True, slots=True)
class Document:
    """One prompt with the target's own answer, or text that the target only reads.

    ``prompt_length`` counts the tokens before the answer, so the target's predictions of answer
    tokens sit at positions ``prompt_length - 1 .. len(tokens) - 2``; without an answer it counts
    all tokens.
    """

    tokens: tuple[int, ...]
    prompt_length: int
    task: str

    def __post_init__(self) -> None:
        if not 0 < self.prompt_length <= len(self.tokens):
            raise ValueError(
                f"a document needs a prompt, but {self.prompt_length} of its "
                f"{len(self.tokens)} tokens are prompt"
            )


class FeatureStore:
    """What was collected so far: ``store.json``, ``tokens.bin`` and one file of states per layer.

    Rows of all documents lie one after another; ``spans[i]`` is document i's half-open range.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.about: dict[str, Any] = json.loads((folder / _INDEX).read_text())
        self.model: str = self.about["model"]
        self.model_sha256: str = self.about["model_sha256"]
        self.exit_layers: tuple[int, ...] = tuple(self.about["exit_layers"])
        self.prompt_lengths: list[int] = self.about["prompt_lengths"]
        self.tasks: list[str] = self.about["tasks"]
        ends = np.cumsum(self.about["lengths"], dtype=np.int64).tolist()
        self.spans: list[tuple[int, int]] = list(zip([0, *ends[:-1]], ends, strict=False))
        self._rows = ends[-1] if ends else 0
        # A kill may have left rows that the index does not know.
        self.tokens: NDArray[np.int32] = np.fromfile(
            folder / "tokens.bin", np.int32, count=self._rows
        )

    def begins(self, documents: Sequence[Document]) -> bool:
        """Whether what was collected are the first of these documents, in this order."""
        first = documents[: len(self.spans)]
        tokens = np.fromiter((token for d in first for token in d.tokens), dtype=np.int32)
        return (
            np.array_equal(self.tokens, tokens)
            and self.prompt_lengths == [document.prompt_length for document in first]
            and [end - start for start, end in self.spans] == [len(d.tokens) for d in first]
        )

    def hidden(self, layer: int | str) -> NDArray[np.float16]:
        """(N, H) memory-mapped states after ``layer`` decoder layers, or ``FINAL``.

        Raises:
            KeyError: the layer was not collected; the message lists those that were.
        """
        path = self.folder / _states_file(layer)
        if not path.exists():
            raise KeyError(f"layer {layer} was not collected; there are {self.exit_layers}")
        return np.memmap(path, np.float16, "r", shape=(self._rows, self.about["hidden_size"]))


def collect(
    model: Any,
    documents: Sequence[Document],
    folder: Path,
    *,
    model_name: str,
    model_sha256: str = "",
    exit_layers: Sequence[int],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> FeatureStore:
    """The target's hidden states over ``documents``: those in ``folder``, the others made there.

    A store of the first documents grows, whether it was stopped or the text has become more.

    Args:
        model: a ``transformers`` causal language model; its decoder stack is ``model.model``.
        documents: in the order in which the store numbers them.
        folder: made if need be.
        model_name: kept with the features, as is ``model_sha256``, which identifies the weights.
        exit_layers: after how many decoder layers to keep the states, beside the final ones.
        on_progress: called with (rows done, rows in all) after every batch.

    Raises:
        UsageError: the folder holds other text, another model's, or other layers; it is left as is.
    """
    if not (folder / _INDEX).exists():
        about = {"model": model_name, "model_sha256": model_sha256, "exit_layers": [*exit_layers]}
        _begin(folder, {**about, "hidden_size": model.config.hidden_size})
    store = FeatureStore(folder)
    _check(store, documents, model_name, model_sha256, exit_layers)
    total = sum(len(document.tokens) for document in documents)
    for shard in _shards(documents[len(store.spans) :]):
        on_rows = partial(_report, on_progress, len(store.tokens), total)
        store = _grown(store, shard, _states(model, shard, store.exit_layers, on_rows))
    return store


def _report(on_progress: Callable[[int, int], None], before: int, total: int, rows: int) -> None:
    on_progress(before + rows, total)


def _check(
    store: FeatureStore,
    documents: Sequence[Document],
    name: str,
    sha256: str,
    exit_layers: Sequence[int],
) -> None:
    folder = store.folder
    if (store.model, store.model_sha256) != (name, sha256):
        raise UsageError(f"{folder} holds features of {store.model}, not of this {name}")
    if not store.begins(documents):
        raise UsageError(
            f"{folder} holds features of other text, which may only grow at its end; give another "
            "--features folder"
        )
    if missing := set(exit_layers) - set(store.exit_layers):
        raise UsageError(
            f"{folder} lacks layer {missing.pop()}, it has {', '.join(map(str, store.exit_layers))}"
            "; give one of these, or another --features folder"
        )


def _begin(folder: Path, about: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokens.bin", *map(_states_file, (*about["exit_layers"], FINAL))):
        (folder / name).write_bytes(b"")
    _write_index(folder, {**about, "lengths": [], "prompt_lengths": [], "tasks": []})


def _grown(
    store: FeatureStore, shard: Sequence[Document], states: Mapping[int | str, NDArray[np.float16]]
) -> FeatureStore:
    """The store with a shard more: first its rows, then the index that knows them."""
    rows, about = len(store.tokens), store.about
    tokens = np.array([token for document in shard for token in document.tokens], np.int32)
    _append(store.folder / "tokens.bin", tokens, rows)
    for layer, array in states.items():
        _append(store.folder / _states_file(layer), array, rows)
    more: dict[str, list[Any]] = {
        "lengths": [len(document.tokens) for document in shard],
        "prompt_lengths": [document.prompt_length for document in shard],
        "tasks": [document.task for document in shard],
    }
    _write_index(store.folder, about | {key: about[key] + new for key, new in more.items()})
    return FeatureStore(store.folder)


def _append(path: Path, array: NDArray[Any], rows: int) -> None:
    """Write ``array`` behind the first ``rows`` rows, over whatever a kill has left there."""
    with path.open("rb+") as file:
        file.seek(rows * array[:1].nbytes)
        file.truncate()
        array.tofile(file)


def _write_index(folder: Path, about: Mapping[str, Any]) -> None:
    write_whole(folder / _INDEX, json.dumps(about))


def _states_file(layer: int | str) -> str:
    return f"hidden_{layer}.bin"


def _shards(documents: Sequence[Document]) -> Iterator[Sequence[Document]]:
    start = tokens = 0
    for index, document in enumerate(documents, start=1):
        tokens += len(document.tokens)
        if tokens >= _SHARD_TOKENS or index == len(documents):
            yield documents[start:index]
            start, tokens = index, 0


@torch.inference_mode()
def _states(
    model: Any,
    documents: Sequence[Document],
    exit_layers: Sequence[int],
    on_rows: Callable[[int], None],
) -> dict[int | str, NDArray[np.float16]]:
    """The target's states (rows, H) over some documents, by layer."""
    lengths = [len(document.tokens) for document in documents]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    shape = (sum(lengths), model.config.hidden_size)
    layers: list[int | str] = [*exit_layers, FINAL]
    arrays = {layer: np.empty(shape, np.float16) for layer in layers}
    done = 0
    for batch in _batches(lengths):
        _run_batch(model, [documents[i] for i in batch], starts[batch].tolist(), arrays)
        done += sum(lengths[i] for i in batch)
        on_rows(done)
    return arrays


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Document indices in batches of similar length, at most BATCH_TOKENS padded tokens each."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and lengths[index] * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _run_batch(
    model: Any,
    documents: Sequence[Document],
    starts: Sequence[int],
    arrays: Mapping[int | str, NDArray[np.float16]],
) -> None:
    # Padding is on the right, so no real position can see it under the causal mask.  [B, S]
    ids = pad_sequence([torch.tensor(d.tokens) for d in documents], batch_first=True)
    output = model.model(input_ids=ids.to(model.device), use_cache=False, output_hidden_states=True)
    for layer, array in arrays.items():
        # hidden_states[-1] is after the final norm; hidden_states[l] is after l layers. [B, S, H]
        states = output.hidden_states[-1 if layer == FINAL else int(layer)]
        states = states.to(device="cpu", dtype=torch.float16).numpy()
        for row, (start, document) in enumerate(zip(starts, documents, strict=True)):
            array[start : start + len(document.tokens)] = states[row, : len(document.tokens)]
