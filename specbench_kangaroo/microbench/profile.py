"""A profile: our methods against ``generate``, the cost of drafts and of their verification.

Everything runs in one process and takes turns within every repeat, so that a machine whose speed
drifts hits all alike.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from specbench_kangaroo.microbench.bandwidth import measured_bandwidth_gb_s, measured_matmul_tflop_s
from specbench_kangaroo.microbench.contest import Answer, answer
from specbench_kangaroo.microbench.subjects import Engine, Subjects
from specbench_kangaroo.microbench.verify_cost import open_scene, sweep
from specbench_kangaroo.run.pauses import collected_by_hand

_WARMUP_TOKENS = 16
_SWEEPS_A_REPEAT = 5

OnProgress = Callable[[int, int], None]
"""Called with what is done and the total, between measurements and never within one."""

Sweeps = Sequence[Mapping[int, float]]
"""Milliseconds by rows."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A contestant's answer to the prompt of this index; ``backend`` None is transformers'."""

    contestant: str
    prompt: int
    answer: Answer
    backend: str | None = None
    repeat: int = 0


@dataclass(frozen=True, slots=True)
class Samples:
    """All that was measured."""

    answers: Sequence[Sample]
    sweeps: Mapping[str, Sweeps]  # by backend
    bandwidths_gb_s: Sequence[float]  # one a repeat
    matmuls_tflop_s: Sequence[float] = ()  # one a repeat


def measure(
    subjects: Subjects, *, new_tokens: int, repeats: int, on_progress: OnProgress
) -> Samples:
    """Warm up, then measure everything in turns, ``repeats`` times."""
    answers: list[Sample] = []
    sweeps: dict[str, list[Mapping[int, float]]] = {e.backend: [] for e in subjects.engines}
    bandwidths_gb_s, matmuls_tflop_s = [], []
    total = repeats * len(subjects.prompts) * len(subjects.turns)
    target = subjects.engines[0].target
    with collected_by_hand():
        _warm_up(subjects, new_tokens)
        for repeat in range(repeats):
            for sample in _contest(subjects, repeat, new_tokens):
                answers.append(sample)
                on_progress(len(answers), total)
            for engine in subjects.engines:
                sweeps[engine.backend] += _sweeps(subjects, engine, repeat)
            bandwidths_gb_s.append(measured_bandwidth_gb_s(target.device))
            matmuls_tflop_s.append(measured_matmul_tflop_s(target.device, target.dtype))
    return Samples(answers, sweeps, bandwidths_gb_s, matmuls_tflop_s)


def _contest(subjects: Subjects, repeat: int, new_tokens: int) -> Iterator[Sample]:
    """Every prompt once, answered by all in an order that rotates with prompt and repeat."""
    for index, prompt in enumerate(subjects.prompts):
        gc.collect()
        start = (index + repeat) % len(subjects.turns)
        for turn in (*subjects.turns[start:], *subjects.turns[:start]):
            given = answer(subjects, turn.name, prompt, new_tokens, backend=turn.backend)
            yield Sample(turn.name, index, given, turn.backend, repeat)


def _sweeps(subjects: Subjects, engine: Engine, repeat: int) -> Sweeps:
    scene = open_scene(engine.target, list(chain(*subjects.prompts)))
    first = repeat * _SWEEPS_A_REPEAT
    return [sweep(scene, first + i) for i in range(_SWEEPS_A_REPEAT)]


def _warm_up(subjects: Subjects, new_tokens: int) -> None:
    """All prompts, as kernels are chosen by the length of a prefill; and all sizes of a draft.

    A backend that captures passes does so here: it meets new ones as long as an answer grows.
    """
    for prompt in subjects.prompts:
        for turn in subjects.turns:
            captures = turn.backend is not None and subjects.engine(turn.backend).captures
            tokens = new_tokens if captures else min(new_tokens, _WARMUP_TOKENS)
            answer(subjects, turn.name, prompt, tokens, backend=turn.backend)
    for engine in subjects.engines:
        sweep(open_scene(engine.target, list(chain(*subjects.prompts))), 0)
