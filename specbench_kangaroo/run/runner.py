"""Questions × turns × repeats × entries → answers and verdicts, with this process's own model."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from specbench_kangaroo.engine.target import Target
from specbench_kangaroo.machine.nvml import nvml_of
from specbench_kangaroo.record.schema import AFTER, BASELINE, BEFORE, Generation, Manifest
from specbench_kangaroo.record.writer import RunWriter
from specbench_kangaroo.run.device_log import DeviceLog
from specbench_kangaroo.run.generation import Answers, generate, prompt_of
from specbench_kangaroo.run.ledger import Ledger, missing, open_rounds, unjudged
from specbench_kangaroo.run.lossless import TOLERANCE, judge
from specbench_kangaroo.run.pauses import collected_by_hand
from specbench_kangaroo.run.schedule import Round, conversations, rounds
from specbench_kangaroo.run.setup import Bench, manifest
from specbench_kangaroo.run.signals import Interruption

# Enough steps for every entry to have verified drafts of the lengths that it is likely to use.
WARMUP_TOKENS = 32

OnFinished = Callable[[Generation], None]
"""Called after each generation and never within one, so that showing progress costs no entry."""

NoteDevice = Callable[[Round, str], None]
"""Called at the edges of a round, to note the state of the device."""


class Runner(Protocol):
    """What makes a run's generations: this process, or workers that it directs."""

    @property
    def rounds(self) -> Sequence[Round]:
        """Every prompt of the run, in order."""
        ...

    def manifest(self, *, name: str, command: str) -> Manifest:
        """``run.json`` of a run that starts now."""
        ...

    def execute(
        self, writer: RunWriter, *, on_finished: OnFinished, interruption: Interruption
    ) -> None:
        """Make every generation and verdict that the run folder does not have yet."""
        ...


@dataclass(frozen=True, slots=True)
class OneProcess:
    """The :class:`Runner` that answers with the model of its own process."""

    bench: Bench

    @property
    def rounds(self) -> Sequence[Round]:
        """See :class:`Runner`."""
        return bench_rounds(self.bench)

    def manifest(self, *, name: str, command: str) -> Manifest:
        """See :class:`Runner`."""
        return manifest(self.bench, name=name, command=command)

    def execute(
        self, writer: RunWriter, *, on_finished: OnFinished, interruption: Interruption
    ) -> None:
        """See :class:`Runner`."""
        execute(self.bench, writer, on_finished=on_finished, interruption=interruption)


def execute(
    bench: Bench,
    writer: RunWriter,
    *,
    on_finished: OnFinished,
    interruption: Interruption | None = None,
) -> None:
    """Make every generation and verdict that the run folder does not have yet.

    What fails in one generation is recorded there and the run goes on.

    Raises:
        KeyboardInterrupt: ``interruption`` asked for it between two questions, or it came from
            within one; resuming the run makes the answers that are not written.
    """
    stop = interruption or Interruption()
    todo = open_rounds(bench_rounds(bench), writer, greedy=bench.sampling is None)
    device = DeviceLog(writer.folder, nvml_of(bench.target.device))
    with collected_by_hand():
        if any(missing(item, writer) for item in todo):
            warm_up(bench)
        for turns in conversations(todo):
            stop.stop_if_asked()
            stop.under_way = f"question {turns[0].question.question_id}"
            for item in turns:
                answer_round(bench, item, writer, note=device.note, on_finished=on_finished)
        stop.under_way = ""


def answer_round(
    bench: Bench, item: Round, ledger: Ledger, *, note: NoteDevice, on_finished: OnFinished
) -> None:
    """Let all entries answer a prompt, one after the other, and judge their answers."""
    gc.collect()
    entries = missing(item, ledger)
    if entries:  # else the round has only its verdicts left
        note(item, BEFORE)
    for entry in entries:
        generation, steps = generate(bench, item, entry, ledger.finished)
        ledger.append(generation, steps)
        on_finished(generation)
    if entries:
        note(item, AFTER)
    _judge(bench, item, ledger)


def warm_up(bench: Bench) -> None:
    """Let every entry answer the longest prompts, unrecorded: kernels, caches and pages are warm.

    The longest, so that memory has seen its peak before anything is measured.  A failure is dropped
    with the rest of the answer; the same prompt's own turn records it.
    """
    first = [item for item in bench_rounds(bench) if item.turn == 0]
    first.sort(key=lambda item: len(item.question.turns[0]), reverse=True)
    for number in range(bench.settings.warmup):
        for entry in bench.methods:
            generate(bench, first[number % len(first)], entry, {}, at_most=WARMUP_TOKENS)


def bench_rounds(bench: Bench) -> list[Round]:
    """Every prompt of the run, in order."""
    questions = bench.questions.questions
    return list(rounds(questions, tuple(bench.methods), repeats=bench.settings.repeats))


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
