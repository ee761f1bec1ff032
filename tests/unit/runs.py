"""Small runs whose every figure can be worked out by hand.

A vanilla step takes 10 ms (9 verify, 1 accept), a prefill 20 ms.  A drafted token takes 1 ms, and
verifying a draft 12 ms; the loop adds nothing.  Answers are 13 tokens long: the prefill's and
twelve of the steps.  Kangaroo drafts four tokens a step and accepts 3, 1, 3, 1 of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from specbench_kangaroo.record.request import Decoding, QuestionChoice, Request, TargetChoice
from specbench_kangaroo.record.schema import (
    EntryRecord,
    ExitReason,
    Generation,
    GenerationKey,
    Judgement,
    Lossless,
    Manifest,
    Resolved,
    Status,
    StepRecord,
)
from specbench_kangaroo.record.writer import RunWriter
from tests.changes import replace

TTFT_MS = 20.0
TASKS = ("mt_bench", "qa")
ACCEPTED = (3, 1, 3, 1)


SETTINGS = {"seed": 0, "max_new_tokens": 13, "temperature": 0.0, "dtype": "float32"}


def asked(**settings: Any) -> dict[str, Any]:
    """The parts of a manifest that hold these settings."""
    return {
        "request": Request(
            target=_filled(TargetChoice, settings),
            questions=_filled(QuestionChoice, settings),
            decoding=_filled(Decoding, settings),
        ),
        "resolved": _filled(Resolved, settings),
    }


def _filled(kind: type[Any], settings: Mapping[str, Any]) -> Any:
    return kind(**{name: settings[name] for name in kind.__struct_fields__ if name in settings})


def make_manifest(methods: Iterable[str] = ("vanilla", "kangaroo"), **changes: Any) -> Manifest:
    options = {"kangaroo": {"threshold": 0.6, "exit_layer": 4}}
    changes = asked(**{**SETTINGS, **changes.pop("settings", {})}) | changes
    manifest = Manifest(
        name="synthetic",
        command="specbench run",
        created="2026-11-01T00:00:00Z",
        status="running",
        model="smollm2-135m",
        questions="builtin",
        entries={name: EntryRecord(name, options.get(name, {})) for name in methods},
        request=Request(),
        resolved=Resolved(),
        environment={"python": "3.11"},
        hashes={"questions": "aa", "model": "bb"},
    )
    return replace(manifest, **changes)


def make_step(step: int = 0, *, drafted: int = 0, accepted: int = 0, **changes: Any) -> StepRecord:
    record = StepRecord(
        step=step,
        context_length=10 + step,
        drafted=drafted,
        accepted=accepted,
        emitted=accepted + 1,
        nodes=drafted + 1,
        exit_reason=ExitReason.MAX_STEPS if drafted else ExitReason.NO_DRAFT,
        confidence=tuple(0.9 for _ in range(drafted)),
        verify_share=1.0,
        draft_ms=float(drafted),
        verify_ms=12.0 if drafted else 9.0,
        accept_ms=1.0,
    )
    return replace(record, **changes)


def make_steps(method: str, *, accepted: Sequence[int] = ACCEPTED) -> list[StepRecord]:
    if method == "vanilla":
        return [make_step(i) for i in range(12)]
    return [make_step(i, drafted=4, accepted=a) for i, a in enumerate(accepted)]


def make_generation(
    method: str = "vanilla",
    question_id: int = 1,
    *,
    steps: Sequence[StepRecord] = (),
    slower: float = 1.0,
    **changes: Any,
) -> Generation:
    """The answer that ``steps`` make; ``slower`` stretches its total time."""
    tokens = 1 + sum(step.emitted for step in steps)
    spent_ms = sum(step.draft_ms + step.verify_ms + step.accept_ms for step in steps)
    generation = Generation(
        entry=method,
        question_id=question_id,
        category="writing",
        task="mt_bench",
        turn=0,
        repeat=0,
        status=Status.OK,
        error=None,
        prompt_tokens=9,
        output_ids=tuple(range(tokens)),
        text="ü\n",
        new_tokens=tokens,
        target_passes=1 + len(steps),
        ttft_ms=TTFT_MS,
        total_ms=slower * (TTFT_MS + spent_ms),
        peak_rss_mb=None,
    )
    return replace(generation, **changes)


def make_answer(number: int, method: str = "vanilla") -> tuple[Generation, list[StepRecord]]:
    """The answer to question ``number``, and its steps."""
    steps = make_steps(method)
    return make_generation(method, number, steps=steps), steps


def make_judgement(key: GenerationKey, verdict: Lossless = Lossless.EXACT) -> Judgement:
    differs = verdict is not Lossless.EXACT
    return Judgement(
        entry=key.entry,
        question_id=key.question_id,
        turn=key.turn,
        repeat=key.repeat,
        verdict=verdict,
        first_difference=3 if differs else None,
        logit_gap=0.5 if differs else None,
    )


def make_run(
    folder: Path,
    *,
    methods: Sequence[str] = ("vanilla", "kangaroo"),
    tasks: Sequence[str] = TASKS,
    questions_per_task: int = 2,
    turns: int = 1,
    repeats: int = 1,
    spread: float = 0.0,
    judged: bool = True,
    status: str = "complete",
) -> Path:
    """Writes a run and returns its folder.

    ``spread`` makes question q of the run slower by q * spread for all methods but vanilla, so that
    the speedup differs between questions; without it every question is the same.
    """
    with RunWriter.create(folder, make_manifest(methods)) as writer:
        for number in range(len(tasks) * questions_per_task):
            for turn in range(turns):
                for repeat in range(repeats):
                    for method in methods:
                        steps = make_steps(method)
                        generation = make_generation(
                            method,
                            number + 1,
                            steps=steps,
                            slower=1.0 if method == "vanilla" else 1.0 + spread * number,
                            task=tasks[number // questions_per_task],
                            turn=turn,
                            repeat=repeat,
                        )
                        writer.append(generation, steps)
                        if judged and method != "vanilla":
                            writer.judge(make_judgement(generation.key))
        writer.close(status)
    return folder


def resume_run(folder: Path, *, answers: int) -> None:
    """Resumes a run of :func:`make_answer`'s answers and makes those that it does not have."""
    with RunWriter.resume(folder, make_manifest()) as writer:
        for generation, steps in map(make_answer, range(answers)):
            if generation.key not in writer.finished:
                writer.append(generation, steps)


# A method that stands four times, and one that decodes by itself.
ENTRIES = {
    "kangaroo": EntryRecord("kangaroo", {"steps": 6, "threshold": 0.6, "tree_width": 4}),
    "chain[threshold=0.3]": EntryRecord(
        "kangaroo", {"steps": 6, "threshold": 0.3, "tree_width": 1}
    ),
    "chain[threshold=0.5]": EntryRecord(
        "kangaroo", {"steps": 6, "threshold": 0.5, "tree_width": 1}
    ),
    "hf": EntryRecord("hf_generate", {"assistant": None}),
}


def make_entries(folder: Path, *, questions: int = 4, **changes: Any) -> Path:
    """Writes a run of :data:`ENTRIES` and returns its folder; ``changes`` are of its manifest."""
    record = make_manifest(("vanilla",))
    record = replace(record, entries={**record.entries, **ENTRIES})
    with RunWriter.create(folder, replace(record, **changes)) as writer:
        for number in range(questions):
            for place, label in enumerate(record.entries):
                steps = [] if label == "hf" else make_steps(label)
                answer = make_generation(
                    label, number, steps=steps, slower=1.0 + 0.1 * place + 0.02 * number
                )
                if label == "hf":
                    answer = replace(
                        answer,
                        output_ids=tuple(range(13)),
                        new_tokens=13,
                        target_passes=0,
                        total_ms=150.0 + number,
                    )
                writer.append(answer, steps)
                if label != "vanilla":
                    writer.judge(make_judgement(answer.key))
    return folder


class Side(NamedTuple):
    """A method of :func:`make_comparison`: what each of its steps costs and yields, on average."""

    drafted: int
    accepted: float
    nodes: int
    draft_ms: float
    verify_ms: float
    slower: float = 1.0
    lossy: bool = False


# By name, from fast to slow; a vanilla step takes 10 ms.
SIDES = {
    "token_recycling": Side(drafted=5, accepted=2.2, nodes=61, draft_ms=0.4, verify_ms=14.0),
    "medusa": Side(drafted=4, accepted=1.6, nodes=27, draft_ms=0.8, verify_ms=13.0, lossy=True),
    "kangaroo": Side(drafted=4, accepted=1.2, nodes=5, draft_ms=2.5, verify_ms=10.5),
    "prompt_lookup": Side(drafted=10, accepted=0.3, nodes=11, draft_ms=0.1, verify_ms=12.0),
    "layer_skip": Side(drafted=6, accepted=0.6, nodes=7, draft_ms=9.3, verify_ms=9.7),
    "lookahead": Side(drafted=4, accepted=0.5, nodes=49, draft_ms=0.3, verify_ms=28.0),
}


def make_comparison(
    folder: Path,
    *,
    sides: Mapping[str, Side] = SIDES,
    tasks: Sequence[str] = TASKS,
    questions_per_task: int = 8,
    verdicts: Mapping[str, Sequence[Lossless]] | None = None,
) -> Path:
    """Writes a run of several methods, which differ by question too, and returns its folder.

    ``verdicts`` are the first ones of a method; all further ones, and other methods', are exact.
    """
    rng = random.Random(0)
    records = {name: EntryRecord(name, {}, lossy=side.lossy) for name, side in sides.items()}
    manifest = make_manifest(methods=("vanilla",))
    manifest = replace(manifest, entries={**manifest.entries, **records})
    given = {name: list((verdicts or {}).get(name, ())) for name in sides}
    with RunWriter.create(folder, manifest) as writer:
        for number in range(len(tasks) * questions_per_task):
            task = tasks[number // questions_per_task]
            plain = make_steps("vanilla")
            writer.append(make_generation("vanilla", number, steps=plain, task=task), plain)
            for name, side in sides.items():
                steps = _side_steps(side, rng, number // questions_per_task)
                slower = side.slower
                answer = make_generation(name, number, steps=steps, task=task, slower=slower)
                writer.append(answer, steps)
                verdict = given[name].pop(0) if given[name] else Lossless.EXACT
                writer.judge(make_judgement(answer.key, verdict))
    return folder


def _side_steps(side: Side, rng: random.Random, task: int) -> list[StepRecord]:
    """Twenty steps; a task's place among the tasks says how much is accepted on it."""
    share = side.accepted / side.drafted * (1.2 - 0.08 * task)
    return [
        make_step(
            i,
            drafted=side.drafted,
            accepted=sum(rng.random() < share for _ in range(side.drafted)),
            nodes=side.nodes,
            draft_ms=side.draft_ms,
            verify_ms=side.verify_ms,
        )
        for i in range(20)
    ]
