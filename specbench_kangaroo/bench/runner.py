"""Questions × turns × repeats × entries → answers and verdicts, with this process's own model.

A block is one prompt answered by all entries.  A clock that falls between two entries' answers
would make one of them slow for nothing; the device's state at the edges of blocks, the lines of
``device.jsonl``, is what a reader needs to see that it did not.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch

from specbench_kangaroo.bench.generation import Answers, generate, prompt_of
from specbench_kangaroo.bench.lossless import TOLERANCE, judge
from specbench_kangaroo.bench.pauses import collected_by_hand
from specbench_kangaroo.bench.schedule import (
    Ledger,
    Round,
    conversations,
    missing,
    open_rounds,
    unjudged,
)
from specbench_kangaroo.bench.setup import Bench, Plan
from specbench_kangaroo.bench.signals import Interruption
from specbench_kangaroo.engine.target import Target
from specbench_kangaroo.machine.nvml import Nvml, nvml_of
from specbench_kangaroo.record.files import LineFile, storing
from specbench_kangaroo.record.jsonl import as_line, drop_torn_line
from specbench_kangaroo.record.reader import DEVICE
from specbench_kangaroo.record.schema import (
    AFTER,
    BASELINE,
    BEFORE,
    BlockEdge,
    Generation,
    Manifest,
)
from specbench_kangaroo.record.writer import RunWriter

# Enough steps for every entry to have verified drafts of the lengths that it is likely to use.
WARMUP_TOKENS = 32

OnFinished = Callable[[Generation], None]
"""Called after each generation and never within one, so that showing progress costs no entry."""

OnEdge = Callable[[BlockEdge], None]
"""Called at the edges of a block, where the device can be asked for its state."""


@dataclass(frozen=True, slots=True)
class Runner:
    """A run that is ready to start, whether this process makes it or workers that it directs.

    Attributes:
        plan: what was asked for.
        manifest: ``run.json`` but for the run's name and command.
        execute: makes every generation and verdict that the run folder does not have yet.
    """

    plan: Plan
    manifest: Manifest
    execute: Callable[[RunWriter, OnFinished, Interruption], None]


def execute(
    bench: Bench,
    writer: RunWriter,
    on_finished: OnFinished,
    interruption: Interruption | None = None,
) -> None:
    """Make every generation and verdict that the run folder does not have yet.

    What fails in one generation is recorded there and the run goes on.

    Raises:
        KeyboardInterrupt: ``interruption`` asked for it between two questions, or it came from
            within one; resuming the run makes the answers that are not written.
    """
    answer_rounds(
        bench,
        open_rounds(bench.rounds, writer, greedy=bench.sampling is None),
        writer,
        on_finished=on_finished,
        on_edge=lambda edge: append_edges(writer.folder, [edge]),
        interruption=interruption or Interruption(),
    )


def answer_rounds(
    bench: Bench,
    todo: Sequence[Round],
    ledger: Ledger,
    *,
    on_finished: OnFinished,
    on_edge: OnEdge,
    interruption: Interruption,
    warm: bool = False,
) -> None:
    """Answer and judge prompts one after the other; all entries are warm before the first."""
    with collected_by_hand():
        if not warm and any(missing(item, ledger) for item in todo):
            warm_up(bench)
        for turns in conversations(todo):
            interruption.stop_if_asked()
            interruption.under_way = f"question {turns[0].question.question_id}"
            for item in turns:
                answer_round(bench, item, ledger, on_finished=on_finished, on_edge=on_edge)
        interruption.under_way = ""


def answer_round(
    bench: Bench, item: Round, ledger: Ledger, *, on_finished: OnFinished, on_edge: OnEdge
) -> None:
    """Let all entries answer a prompt, one after the other, and judge their answers."""
    gc.collect()
    entries, nvml = missing(item, ledger), nvml_of(bench.target.device)
    if entries and nvml is not None:  # else the round has only its verdicts left
        on_edge(edge_now(nvml, item, BEFORE))
    for entry in entries:
        generation, steps = generate(bench, item, entry, ledger.finished)
        ledger.append(generation, steps)
        on_finished(generation)
    if entries and nvml is not None:
        on_edge(edge_now(nvml, item, AFTER))
    _judge(bench, item, ledger)


def warm_up(bench: Bench) -> None:
    """Let every entry answer the longest prompts, unrecorded: kernels, caches and pages are warm.

    The longest, so that memory has seen its peak before anything is measured.  A failure is dropped
    with the rest of the answer; the same prompt's own turn records it.
    """
    first = [item for item in bench.rounds if item.turn == 0]
    first.sort(key=lambda item: len(item.question.turns[0]), reverse=True)
    for number in range(bench.decoding.warmup):
        for entry in bench.methods:
            generate(bench, first[number % len(first)], entry, {}, at_most=WARMUP_TOKENS)


def edge_now(nvml: Nvml, block: Round, edge: str) -> BlockEdge:
    """The device's state at this moment, which is an edge of the block: not in a timed span."""
    return BlockEdge(
        time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        question_id=block.question.question_id,
        turn=block.turn,
        repeat=block.repeat,
        edge=edge,
        **asdict(nvml.state()),
    )


def append_edges(folder: Path, edges: Iterable[BlockEdge]) -> None:
    """Add lines to the run's ``device.jsonl``, after a torn last one is cut off.

    Without edges no file is made.
    """
    lines, path = b"".join(map(as_line, edges)), folder / DEVICE
    if lines:
        if path.exists():
            drop_torn_line(path)
        with storing(folder), LineFile(path) as file:
            file.append(lines)


@torch.inference_mode()
def gap_to_best(target: Target, tokens: Sequence[int], chosen: Sequence[int]) -> float:
    """How far the least likely of ``chosen`` lies below the best logit, after ``tokens``.

    With two tokens that differ, it is small only if they are the target's two best and tie.
    """
    ids = torch.tensor(tokens, device=target.device)  # (P,)
    logits = target.prefill(ids, target.new_cache(len(tokens))).logits[-1].double()  # (V,)
    return float(logits.max() - logits[list(chosen)].min())


def _judge(bench: Bench, item: Round, ledger: Ledger) -> None:
    """Verdicts of a prompt that all entries have answered; costs a pass only where texts differ."""
    if bench.sampling is not None:
        return
    reference = ledger.finished[item.key(BASELINE)]
    for answer in unjudged(item, ledger):
        verdict = judge(
            answer.key,
            reference.output_ids,
            answer.output_ids,
            gap_at=partial(_gap_at, bench, item, ledger.finished, (reference, answer)),
            tolerance=TOLERANCE[bench.loaded.dtype],
        )
        ledger.judge(verdict)


def _gap_at(
    bench: Bench, item: Round, answers: Answers, pair: tuple[Generation, Generation], position: int
) -> float | None:
    """The gap of the two tokens at ``position``; None where one text has ended already."""
    if any(position >= len(answer.output_ids) for answer in pair):
        return None
    prompt = prompt_of(bench, item, answers)
    shared = [*prompt, *pair[0].output_ids[:position]]
    return gap_to_best(bench.target, shared, [answer.output_ids[position] for answer in pair])
