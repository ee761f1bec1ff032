"""Questions × turns × repeats × methods → a run folder: warm-up, generations, verdicts.

Knows: the order of a run, how a generation is made, the store.  Does not know: any method but the
baseline, where a request came from, or how progress is shown.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import partial

import torch

from specbench_kangaroo.bench import Bench
from specbench_kangaroo.generation import Answers, generate, prompt_of
from specbench_kangaroo.lossless import TOLERANCE, judge
from specbench_kangaroo.pauses import collected_by_hand
from specbench_kangaroo.records import BASELINE, Generation, Status
from specbench_kangaroo.schedule import Round, rounds
from specbench_kangaroo.store import RunWriter
from specbench_kangaroo.target import Target

# Enough steps for every method to have verified drafts of the lengths that it is likely to use.
WARMUP_TOKENS = 32

OnFinished = Callable[[Generation], None]
"""Called after each generation and never within one, so that showing progress costs no method."""


def execute(bench: Bench, writer: RunWriter, *, on_finished: OnFinished) -> None:
    """Make every generation and verdict that the run folder does not have yet.

    What fails in one generation is recorded there and the run goes on.  A KeyboardInterrupt passes
    through; the generation that it broke off is made anew when the run is resumed.
    """
    todo = [item for item in bench_rounds(bench) if _is_open(bench, item, writer)]
    with collected_by_hand():
        if any(_missing(item, writer) for item in todo):
            _warm_up(bench)
        for item in todo:
            gc.collect()
            for method in _missing(item, writer):
                generation, steps = generate(bench, item, method, writer.finished)
                writer.append(generation, steps)
                on_finished(generation)
            _judge(bench, item, writer)


def bench_rounds(bench: Bench) -> list[Round]:
    """Every prompt of the run, in order."""
    questions = bench.questions.questions
    return list(rounds(questions, tuple(bench.methods), repeats=bench.settings.repeats))


def generation_count(bench: Bench) -> int:
    """How many generations the finished run folder has."""
    return len(bench_rounds(bench)) * len(bench.methods)


@torch.inference_mode()
def gap_to_best(target: Target, tokens: Sequence[int], chosen: Sequence[int]) -> float:
    """How far the least likely of ``chosen`` lies below the best logit, after ``tokens``.

    With two tokens that differ, it is small only if they are the target's two best and tie.
    """
    ids = torch.tensor(tokens, device=target.device)  # (P,)
    logits = target.prefill(ids, target.new_cache(len(tokens))).logits[-1].double()  # (V,)
    return float(logits.max() - logits[list(chosen)].min())


def _warm_up(bench: Bench) -> None:
    """Let every method answer the longest prompts, unrecorded: kernels, caches and pages are warm.

    The longest, so that memory has seen its peak before anything is measured.  A failure is dropped
    with the rest of the answer; the same prompt's own turn records it.
    """
    first = [item for item in bench_rounds(bench) if item.turn == 0]
    first.sort(key=lambda item: len(item.question.turns[0]), reverse=True)
    for number in range(bench.settings.warmup):
        for method in bench.methods:
            generate(bench, first[number % len(first)], method, {}, at_most=WARMUP_TOKENS)


def _is_open(bench: Bench, item: Round, writer: RunWriter) -> bool:
    return bool(_missing(item, writer) or _unjudged(bench, item, writer))


def _missing(item: Round, writer: RunWriter) -> list[str]:
    return [method for method in item.order if item.key(method) not in writer.finished]


def _unjudged(bench: Bench, item: Round, writer: RunWriter) -> list[Generation]:
    """Finished answers that can be set against the baseline's and have not been yet."""
    reference = writer.finished.get(item.key(BASELINE))
    if bench.sampling is not None or reference is None or reference.status is not Status.OK:
        return []
    keys = [item.key(method) for method in item.order if method != BASELINE]
    answers = [writer.finished[key] for key in keys if key in writer.finished]
    return [a for a in answers if a.status is Status.OK and a.key not in writer.judged]


def _judge(bench: Bench, item: Round, writer: RunWriter) -> None:
    """Verdicts of a prompt that all methods have answered; costs a pass only where texts differ."""
    reference = writer.finished[item.key(BASELINE)]
    for answer in _unjudged(bench, item, writer):
        verdict = judge(
            answer.key,
            reference.output_ids,
            answer.output_ids,
            gap_at=partial(_gap_at, bench, item, writer.finished, (reference, answer)),
            tolerance=TOLERANCE[bench.loaded.dtype],
        )
        writer.judge(verdict)


def _gap_at(
    bench: Bench, item: Round, answers: Answers, pair: tuple[Generation, Generation], position: int
) -> float | None:
    """The gap of the two tokens at ``position``; None where one text has ended already."""
    if any(position >= len(answer.output_ids) for answer in pair):
        return None
    prompt = prompt_of(bench, item, answers)
    shared = [*prompt, *pair[0].output_ids[:position]]
    return gap_to_best(bench.target, shared, [answer.output_ids[position] for answer in pair])
