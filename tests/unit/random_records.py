"""Hypothesis strategies for records: every value that a run may hold, and no other."""

from __future__ import annotations

from hypothesis import strategies as st

from specbench_kangaroo.record.schema import (
    ExitReason,
    Generation,
    GenerationKey,
    Judgement,
    Lossless,
    Status,
    StepRecord,
)

METHODS = ("vanilla", "kangaroo")
FINITE = st.floats(allow_nan=False, allow_infinity=False)
AMOUNTS = st.floats(0, 1e15)
COUNTS = st.integers(0, 10**6)
TOKENS = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 61)).map(
    lambda of: (of[0], min(of[:2]), min(of[0] + 1, of[1] + 1, of[2]))
)  # drafted, accepted and emitted, in a step
STEP = st.builds(
    lambda tokens, **of: StepRecord(drafted=tokens[0], accepted=tokens[1], emitted=tokens[2], **of),
    tokens=TOKENS,
    step=st.integers(0, 99),
    context_length=COUNTS,
    nodes=st.integers(1, 100),
    exit_reason=st.sampled_from(ExitReason),
    confidence=st.lists(FINITE, max_size=4).map(tuple),
    verify_share=AMOUNTS,
    draft_ms=AMOUNTS,
    verify_ms=AMOUNTS,
    accept_ms=AMOUNTS,
)
STEPS = st.lists(STEP, max_size=4)
KEYS = st.builds(
    GenerationKey,
    entry=st.sampled_from(METHODS),
    question_id=st.integers(-1, 3),
    turn=st.integers(0, 1),
    repeat=st.integers(0, 1),
)


@st.composite
def answers(draw: st.DrawFn) -> tuple[Generation, list[StepRecord]]:
    """A generation and its steps, which agree with one another."""
    key, steps = draw(KEYS), draw(STEPS)
    count = 1 + sum(step.emitted for step in steps)
    ids = (draw(COUNTS), *range(count - 1)) if steps else draw(st.lists(COUNTS).map(tuple))
    generation = draw(
        st.builds(
            Generation,
            entry=st.just(key.entry),
            question_id=st.just(key.question_id),
            category=st.text(max_size=4),
            task=st.text(max_size=4),
            turn=st.just(key.turn),
            repeat=st.just(key.repeat),
            status=st.sampled_from(Status),
            error=st.none() | st.text(),
            prompt_tokens=COUNTS,
            output_ids=st.just(ids),
            text=st.text(),  # line separators of every kind among it
            new_tokens=st.just(len(ids)),
            target_passes=st.just(1 + len(steps)),
            ttft_ms=AMOUNTS,
            total_ms=AMOUNTS,
            peak_rss_mb=st.none() | AMOUNTS,
            peak_device_mb=st.none() | AMOUNTS,
            energy_j=st.none() | AMOUNTS,
            worker=st.integers(0, 3),
        )
    )
    return generation, steps


GENERATIONS = st.lists(answers(), max_size=4, unique_by=lambda pair: pair[0].key)
VERDICTS = st.tuples(
    st.sampled_from(Lossless), st.none() | COUNTS, st.none() | AMOUNTS
)  # the parts of a Judgement beside its key


def judgement(key: GenerationKey, parts: tuple[Lossless, int | None, float | None]) -> Judgement:
    """The verdict with these parts on a generation."""
    return Judgement(key.entry, key.question_id, key.turn, key.repeat, *parts)
