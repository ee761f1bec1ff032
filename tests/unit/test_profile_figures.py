"""Medians with intervals, and what a profile computes from samples of known times."""

from __future__ import annotations

import pytest

from specbench_kangaroo.engine.decode import Decoded
from specbench_kangaroo.microbench.contest import Answer
from specbench_kangaroo.microbench.document import to_json
from specbench_kangaroo.microbench.figures import Profile, median_figure, summarise_profile
from specbench_kangaroo.microbench.profile import Sample, Samples
from specbench_kangaroo.microbench.verify_cost import ROWS
from specbench_kangaroo.record.schema import ExitReason, StepRecord


def step(number: int, *, drafted: int, accepted: int, draft_ms: float) -> StepRecord:
    return StepRecord(
        step=number,
        context_length=10 + number,
        drafted=drafted,
        accepted=accepted,
        emitted=accepted + 1,
        nodes=1 + drafted,
        exit_reason=ExitReason.MAX_STEPS,
        confidence=(),
        verify_share=1.0,
        draft_ms=draft_ms,
        verify_ms=6.0,
        accept_ms=1.0,
    )


def profile(*, latency_only: bool = False) -> Profile:
    """Vanilla takes 10 + 4 · 8 ms and generate 20 + 4 · 16, on two prompts.

    The draft takes 10 + 18 ms; its peer 30 + 12, with three of five tokens after the prefill.  As
    graphs vanilla takes 13 + 4 · 2 ms.
    """
    plain = tuple(step(i, drafted=0, accepted=0, draft_ms=0.0) for i in range(4))
    drafts = (
        step(0, drafted=2, accepted=2, draft_ms=3.0),
        step(1, drafted=0, accepted=0, draft_ms=9.0),  # nothing to propose: no drafted depth
    )
    ids = (7, 8, 9, 10, 11)
    given = {
        "generate": Answer(Decoded(ids, (), 20.0, 84.0), 5),
        "vanilla": Answer(Decoded(ids, plain, 10.0, 42.0), 5),
        "draft": Answer(Decoded(ids, drafts, 10.0, 28.0), 3),
        "generate:draft": Answer(Decoded((*ids[:4], 0), (), 30.0, 42.0), 2, first_tokens=3),
        "alone": Answer(Decoded(ids, drafts, 10.0, 28.0), 3),
    }
    faster = Answer(Decoded(ids, plain, 13.0, 21.0), 5)
    return summarise_profile(
        Samples(
            [
                Sample(name, prompt, one, None if "generate" in name else "eager")
                for prompt in (0, 1)
                for name, one in given.items()
            ]
            + [Sample("vanilla", prompt, faster, "graph") for prompt in (0, 1)],
            {
                "eager": [{rows: float(rows) * speed for rows in ROWS} for speed in (1, 2, 3)],
                "graph": [{1: 0.5, 2: 0.5}] * 6,
            },
            [12.0, 10.0, 20.0],
            [0.5, 0.7, 0.6],
        ),
        weight_bytes=6 * 10**6,
        about={},
        latency_only=latency_only,
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vanilla_over_generate", 2.0),
        ("vanilla_over_generate_decode", 2.0),
        ("vanilla_ms_per_token", 8.0),
        ("generate_ms_per_token", 16.0),
        ("harness_share", 1 - 28 / 32),
        ("vanilla_over_floor", 16.0),
        ("bandwidth_gb_s", 12.0),
        ("floor_ms_per_token", 0.5),
        ("matmul_tflop_s", 0.6),
    ],
)
def test_figures_follow_from_the_times(name: str, value: float) -> None:
    found = profile()
    assert {**found.first.estimates, **found.limits}[name].value == pytest.approx(value)


def test_every_answer_is_set_to_the_floor_of_its_own_repeat() -> None:
    """A machine that is twice as slow in its second half is as far from its floor as before."""
    ids, plain = (7, 8, 9), tuple(step(i, drafted=0, accepted=0, draft_ms=0.0) for i in range(2))
    given = [Answer(Decoded(ids, plain, 1.0, 1.0 + 2 * ms), 3) for ms in (3.0, 6.0)]
    samples = [
        Sample(name, prompt, given[repeat], backend, repeat)
        for repeat in (0, 1)
        for prompt in (0, 1)
        for name, backend in (("generate", None), ("vanilla", "eager"))
    ]
    measured = Samples(samples, {"eager": [{1: 1.0}]}, [8.0, 4.0])
    found = summarise_profile(measured, weight_bytes=8 * 10**6, about={}).first.estimates
    ratio = found["vanilla_over_floor"]
    assert (ratio.low, ratio.value, ratio.high) == (3, 3, 3)


def test_a_further_backend_is_set_to_the_first() -> None:
    found = to_json(profile())
    assert found["vanilla_ms_per_token"]["value"] == 8, "the first backend's keys stay on top"
    graph = found["backends"]["graph"]
    assert graph["vanilla_ms_per_token"]["value"] == 2
    assert graph["vanilla_over_eager"]["value"] == 2
    assert graph["vanilla_over_generate"]["value"] == 4
    assert graph["vanilla_over_floor"]["value"] == pytest.approx(4)
    assert list(graph["verify_ms"]) == ["1", "2"]
    assert "backends" not in graph
    assert "vanilla_over_eager" not in found


def test_random_weights_have_no_figure_of_what_a_draft_is_worth() -> None:
    found = to_json(profile(latency_only=True))
    assert found["methods"]["draft"].keys() == {"draft_step_ms"}
    assert "generate_differs" not in found, "with random weights every token is a near tie"
    assert found["vanilla_over_generate"]["value"] == 2


def test_a_method_is_measured_by_depth_and_against_vanilla() -> None:
    figures = profile().first.methods["draft"].estimates
    assert figures["speedup"].value == pytest.approx(42 / 28)
    assert figures["mean_accepted_tokens"].value == 2
    assert figures["draft_step_ms"].value == 1.5, "3 ms for a draft two deep"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("over_generate", 42 / 28),
        ("over_generate_decode", (12 / 2) / (18 / 4)),
        ("total_ms_per_token", 28 / 5),
        ("generate_total_ms_per_token", 42 / 5),
        ("decode_ms_per_token", 18 / 4),
        ("generate_decode_ms_per_token", 12 / 2),
        ("compression_rate", 5 / 3),
        ("generate_compression_rate", 5 / 2),
    ],
)
def test_a_method_is_measured_against_generate_of_the_same_method(name: str, value: float) -> None:
    assert profile().first.methods["draft"].estimates[name].value == pytest.approx(value)


def test_a_peer_is_no_method_and_its_other_tokens_are_counted() -> None:
    found = to_json(profile())["methods"]
    assert list(found) == ["draft", "alone"]
    assert found["draft"]["generate_differs"] == 2
    assert found["draft"]["differs"] == 0, "its peer's tokens were counted as its own"
    assert not [key for key in found["alone"] if "generate" in key], "it has no peer"


def test_ratios_of_passes_are_paired_within_a_sweep() -> None:
    found = profile().first
    assert found.verify_ms[4].value == 8
    assert {item.value for item in found.verify_ratio.values()} == set(map(float, ROWS)), (
        "sweeps at different speeds must not blur the ratio"
    )


def test_a_median_lies_between_order_statistics() -> None:
    found = median_figure([5.0, 1.0, 4.0, 2.0, 3.0, 7.0, 6.0])
    assert found.value == 4
    # Of seven, only the extremes hold the median with 95 %: the next pair does with 87.5 %.
    assert (found.low, found.high) == (1, 7)


@pytest.mark.parametrize("samples", [[2.0], [2.0, 3.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
def test_too_few_samples_give_a_median_and_no_interval(samples: list[float]) -> None:
    found = median_figure(samples)
    assert found.low is None
    assert found.high is None


def test_equal_samples_give_an_interval_of_no_width() -> None:
    found = median_figure([3.0] * 9)
    assert (found.low, found.value, found.high) == (3, 3, 3)
