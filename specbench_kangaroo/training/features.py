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
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence

from specbench_kangaroo.machine.devices import probe_dtype
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.files import replacing

FINAL = "final"
BATCH_TOKENS = 2048  # padded tokens per target pass: enough to fill two cores, small in memory
_BATCHES_AT_RISK = 16  # that a kill costs: a minute of a core or two
_Arrays = dict[int | str, np.memmap[Any, np.dtype[np.float16]]]


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
    """A finished collection: ``meta.json``, ``tokens.npy`` and one (N, H) array per layer.

    Rows of all documents lie one after another; ``spans[i]`` is document i's half-open range.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        meta = json.loads((folder / "meta.json").read_text())
        self.model: str = meta["model"]
        self.model_sha256: str = meta.get("model_sha256", "")
        self.exit_layers: tuple[int, ...] = tuple(meta["exit_layers"])
        self.prompt_lengths: list[int] = meta["prompt_lengths"]
        self.tasks: list[str] = meta["tasks"]
        ends = np.cumsum(meta["lengths"]).tolist()
        self.spans: list[tuple[int, int]] = list(zip([0, *ends[:-1]], ends, strict=True))
        self.tokens: NDArray[np.int32] = np.load(folder / "tokens.npy")

    def holds(self, documents: Sequence[Document]) -> bool:
        """Whether these documents, in this order, are what was collected."""
        tokens = np.fromiter((token for d in documents for token in d.tokens), dtype=np.int32)
        return (
            np.array_equal(self.tokens, tokens)
            and self.prompt_lengths == [document.prompt_length for document in documents]
            and [end - start for start, end in self.spans] == [len(d.tokens) for d in documents]
        )

    def hidden(self, layer: int | str) -> NDArray[np.float16]:
        """(N, H) memory-mapped states after ``layer`` decoder layers, or ``FINAL``.

        Raises:
            KeyError: the layer was not collected; the message lists those that were.
        """
        path = _layer_path(self.folder, layer)
        if not path.exists():
            raise KeyError(f"layer {layer} was not collected; there are {self.exit_layers}")
        states: NDArray[np.float16] = np.load(path, mmap_mode="r")
        return states


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
    """The target's hidden states over ``documents``: those in ``folder``, else made there.

    A collection that was stopped goes on, if it was of the same text, model and layers.

    Args:
        model: a ``transformers`` causal language model; its decoder stack is ``model.model``.
        documents: in the order in which the store numbers them.
        folder: made if need be.  ``meta.json`` is written last: a folder without it is unfinished,
            and ``progress.json`` says how far it is.
        model_name: kept with the features, as is ``model_sha256``, which identifies the weights.
        exit_layers: after how many decoder layers to keep the states, beside the final ones.
        on_progress: called with (rows done, rows in all) after every batch.

    Raises:
        UsageError: the folder holds other text, another model's, or other layers; it is left as is.
    """
    meta = {"model": model_name, "model_sha256": model_sha256, "exit_layers": list(exit_layers)}
    if not (folder / "meta.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        progress = _Progress(folder, documents, meta)
        lengths = _write_states(model, documents, folder, exit_layers, progress, on_progress)
        prompts = [document.prompt_length for document in documents]
        tasks = [document.task for document in documents]
        meta |= {"lengths": lengths, "prompt_lengths": prompts, "tasks": tasks}
        (folder / "meta.json").write_text(json.dumps(meta))
        progress.end()
        return FeatureStore(folder)
    store = FeatureStore(folder)
    _check(store, documents, meta)
    return store


def _check(store: FeatureStore, documents: Sequence[Document], wanted: Mapping[str, Any]) -> None:
    folder, name = store.folder, wanted["model"]
    # Features made before hashes were kept are known by the model's name alone.
    if store.model != name or store.model_sha256 not in ("", wanted["model_sha256"]):
        raise UsageError(f"{folder} holds features of {store.model}, not of this {name}")
    if not store.holds(documents):
        raise UsageError(f"{folder} holds features of other text; give another --features folder")
    if missing := set(wanted["exit_layers"]) - set(store.exit_layers):
        raise UsageError(
            f"{folder} lacks layer {missing.pop()}, it has {', '.join(map(str, store.exit_layers))}"
            "; give one of these, or another --features folder"
        )


@torch.inference_mode()
def _write_states(
    model: Any,
    documents: Sequence[Document],
    folder: Path,
    exit_layers: Sequence[int],
    progress: _Progress,
    on_progress: Callable[[int, int], None],
) -> list[int]:
    """Run the target once over ``documents``; returns how many tokens each of them has."""
    lengths = [len(document.tokens) for document in documents]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    flat = np.fromiter((token for d in documents for token in d.tokens), dtype=np.int32)
    np.save(folder / "tokens.npy", flat)
    shape = (len(flat), model.config.hidden_size)
    arrays = _create_arrays(folder, exit_layers, shape, anew=not progress.batches)
    done, found = 0, progress.batches
    for index, batch in enumerate(_batches(lengths)):
        done += sum(lengths[i] for i in batch)
        if index < found:
            continue
        _run_batch(model, [documents[i] for i in batch], starts[batch].tolist(), arrays)
        if (index + 1) % _BATCHES_AT_RISK == 0:
            _flush(arrays)
            progress.set(index + 1)
        on_progress(done, len(flat))
    _flush(arrays)
    return lengths


def _flush(arrays: _Arrays) -> None:
    for array in arrays.values():
        array.flush()


class _Progress:
    """How many batches of one collection are on disk, in ``progress.json``."""

    def __init__(
        self, folder: Path, documents: Sequence[Document], meta: Mapping[str, Any]
    ) -> None:
        self._path = folder / "progress.json"
        digest = sha256(json.dumps(meta).encode())
        for document in documents:
            digest.update(np.array([len(document.tokens), *document.tokens], np.int32).tobytes())
        self._of = digest.hexdigest()
        found = json.loads(self._path.read_text()) if self._path.exists() else {}
        self.batches: int = found["batches"] if found.get("of") == self._of else 0

    def set(self, batches: int) -> None:
        with replacing(self._path) as scratch:
            scratch.write_text(json.dumps({"of": self._of, "batches": batches}))

    def end(self) -> None:
        self._path.unlink(missing_ok=True)


def _layer_path(folder: Path, layer: int | str) -> Path:
    return folder / f"hidden_{layer}.npy"


def _create_arrays(
    folder: Path, exit_layers: Sequence[int], shape: tuple[int, int], *, anew: bool
) -> _Arrays:
    layers: list[int | str] = [*exit_layers, FINAL]
    if not anew:
        opened = (np.load(_layer_path(folder, layer), mmap_mode="r+") for layer in layers)
        return dict(zip(layers, opened, strict=True))
    return {
        layer: np.lib.format.open_memmap(
            _layer_path(folder, layer), mode="w+", dtype=np.float16, shape=shape
        )
        for layer in layers
    }


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
    arrays: _Arrays,
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
