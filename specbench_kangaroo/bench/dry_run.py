"""A run before it runs: what it would ask, and about how long it would take on this machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass

from specbench_kangaroo.bench.generation import generate, prompt_of
from specbench_kangaroo.bench.runner import WARMUP_TOKENS
from specbench_kangaroo.bench.setup import Bench, Plan, entry_options

PROBE_TOKENS = 16  # that each entry makes to be timed
_WARM_UP = 4


@dataclass(frozen=True, slots=True)
class Probe:
    """An entry's first tokens of one prompt, timed; ``error`` is why there are none."""

    ttft_ms: float
    token_ms: float  # each after the first
    error: str | None = None

    def answer_s(self, tokens: int) -> float:
        """What an answer of so many tokens would take."""
        return (self.ttft_ms + (tokens - 1) * self.token_ms) / 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What only a loaded model can tell of a run.

    Attributes:
        prompt_tokens: of each question's first turn; what a later turn has depends on answers.
        context_length: the most tokens of a prompt and its answer.
        probes: by entry.
        seconds: of all answers and the warm-up, if every answer is as long as it may be.
        place: what it computes with, such as "float32 on cpu".
    """

    prompt_tokens: tuple[int, ...]
    context_length: int
    probes: Mapping[str, Probe]
    seconds: float
    place: str


def rehearse(bench: Bench, on_probed: Callable[[str], None] = lambda _: None) -> Rehearsal:
    """Let every entry begin to answer one prompt of middle length, and time it when it is warm.

    Args:
        bench: of the run.
        on_probed: called with each entry's label when its probe is done.
    """
    first = [item for item in bench.rounds if item.turn == 0 and item.repeat == 0]
    lengths = [len(prompt_of(bench, item, {})) for item in first]
    middle = first[sorted(range(len(first)), key=lengths.__getitem__)[len(first) // 2]]
    probes = {}
    for entry in bench.methods:
        generate(bench, middle, entry, {}, at_most=_WARM_UP)
        made, _ = generate(bench, middle, entry, {}, at_most=PROBE_TOKENS)
        token_ms = (made.total_ms - made.ttft_ms) / max(1, made.new_tokens - 1)
        # A text that ends at once says nothing of later tokens: a prefill costs more than one.
        probes[entry] = Probe(made.ttft_ms, token_ms or made.ttft_ms, made.error)
        on_probed(entry)
    wanted = bench.decoding
    warm_up = [min(WARMUP_TOKENS, wanted.max_new_tokens)] * wanted.warmup
    answers = [wanted.max_new_tokens] * len(bench.rounds)
    return Rehearsal(
        prompt_tokens=tuple(lengths),
        context_length=bench.loaded.context_length,
        probes=probes,
        seconds=sum(probe.answer_s(n) for probe in probes.values() for n in (*warm_up, *answers)),
        place=f"{bench.loaded.dtype} on {bench.loaded.device}",
    )


def described(plan: Plan, rehearsal: Rehearsal | None) -> str:
    """Lines for a terminal; without a rehearsal nothing of tokens and times."""
    return "".join(f"{line}\n" for line in (*_what(plan), *_how_long(plan, rehearsal)))


def _what(plan: Plan) -> Iterator[str]:
    yield "entries:"
    options = entry_options(plan.entries)
    width = max(len(entry.label) for entry in plan.entries)
    for entry in plan.entries:
        given, default = asdict(options[entry.label]), asdict(type(options[entry.label])())
        changed = [f"{name}={given[name]}" for name in given if given[name] != default[name]]
        yield f"  {entry.label:{width}}  {' '.join([entry.method, *changed])}"
    chosen = plan.questions.questions
    tasks = Counter(question.task for question in chosen)
    by_task = ", ".join(f"{task} {count}" for task, count in tasks.items())
    yield f"questions: {len(chosen)} of {plan.questions.name} ({by_task})"
    asked, repeats = len(plan.rounds), plan.decoding.repeats
    entries = len(plan.entries)
    yield (
        f"answers: {asked * entries:,} (turns {asked // repeats}, repeats {repeats}, entries "
        f"{entries}), each of at most {plan.decoding.max_new_tokens} tokens"
    )


def _how_long(plan: Plan, found: Rehearsal | None) -> Iterator[str]:
    if found is None:
        yield "time: no estimate, as the model is loaded by the workers of the cluster alone"
        return
    lengths = found.prompt_tokens
    yield (
        f"prompts: {sum(lengths):,} tokens in the first turns of all questions, the shortest "
        f"{min(lengths):,}, the longest {max(lengths):,}; the model's context "
        f"{found.context_length:,}"
    )
    for entry, probe in found.probes.items():
        if probe.error is not None:
            yield f"failed: {entry} on a prompt of middle length: {probe.error}"
    most, workers = plan.decoding.max_new_tokens, plan.decoding.workers
    yield f"time: about {_duration(found.seconds)} at most, {found.place}"
    yield (
        f"  if every answer has its {most} tokens, as fast as in a trial just made: "
        f"{min(PROBE_TOKENS, most)} tokens of one prompt by each entry; without loading"
    )
    if workers > 1:
        yield f"  with one worker; whether there are devices for {workers} was not checked"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
