"""A profile: our methods against ``generate``, the cost of drafts and of their verification.

Everything runs in one process and takes turns within every repeat, so that a machine whose speed
drifts hits all alike.

Knows: the order of measurements.  Does not know: any method, how things were loaded, what is
computed from the samples, or how it is shown.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from specbench_kangaroo.pauses import collected_by_hand
from specbench_kangaroo.profiling.bandwidth import measured_bandwidth_gb_s
from specbench_kangaroo.profiling.contest import Answer, answer
from specbench_kangaroo.profiling.subjects import Subjects
from specbench_kangaroo.profiling.verify_cost import Scene, open_scene, sweep
from specbench_kangaroo.schedule import rotated

_WARMUP_TOKENS = 16
_SWEEPS_A_REPEAT = 5

OnProgress = Callable[[int, int], None]
"""Called with what is done and the total, between measurements and never within one."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A contestant's answer to the prompt of this index."""

    contestant: str
    prompt: int
    answer: Answer


@dataclass(frozen=True, slots=True)
class Samples:
    """All that was measured."""

    answers: Sequence[Sample]
    sweeps: Sequence[Mapping[int, float]]  # milliseconds by rows
    bandwidths_gb_s: Sequence[float]  # one a repeat


def measure(
    subjects: Subjects, *, new_tokens: int, repeats: int, on_progress: OnProgress
) -> Samples:
    """Warm up, then measure everything in turns, ``repeats`` times."""
    scene = open_scene(subjects.target, list(chain(*subjects.prompts)))
    answers: list[Sample] = []
    sweeps: list[Mapping[int, float]] = []
    bandwidths_gb_s = []
    total = repeats * len(subjects.prompts) * len(subjects.contestants)
    with collected_by_hand():
        _warm_up(subjects, scene, new_tokens)
        for repeat in range(repeats):
            for sample in _contest(subjects, repeat, new_tokens):
                answers.append(sample)
                on_progress(len(answers), total)
            sweeps += [sweep(scene, len(sweeps) + i) for i in range(_SWEEPS_A_REPEAT)]
            bandwidths_gb_s.append(measured_bandwidth_gb_s(subjects.target.device))
    return Samples(answers, sweeps, bandwidths_gb_s)


def _contest(subjects: Subjects, repeat: int, new_tokens: int) -> Iterator[Sample]:
    """Every prompt once, answered by all in an order that rotates with prompt and repeat."""
    for index, prompt in enumerate(subjects.prompts):
        gc.collect()
        for name in rotated(subjects.contestants, index + repeat):
            yield Sample(name, index, answer(subjects, name, prompt, new_tokens))


def _warm_up(subjects: Subjects, scene: Scene, new_tokens: int) -> None:
    """All prompts, as kernels are chosen by the length of a prefill; and all sizes of a draft."""
    for prompt in subjects.prompts:
        for name in subjects.contestants:
            answer(subjects, name, prompt, min(new_tokens, _WARMUP_TOKENS))
    sweep(scene, 0)
