"""The regression gate bites on what became worse, and on nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from specbench_kangaroo.gate.gates import Tolerances, speed_gates
from specbench_kangaroo.gate.pairs import match
from specbench_kangaroo.gate.regression import FIELDS, Comparison, check, compare
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.schema import EntryRecord, Lossless, Status
from tests.changes import replace
from tests.unit.gate_runs import WORSE, at, gated, noisy, slowed
from tests.unit.runs import asked, make_manifest

SETTINGS = make_manifest().settings
DRAFTING_GATES = {"errors", "tokens", "mean_accepted_tokens", "acceptance_by_position", "lossless"}


def failing(comparison: Comparison) -> set[tuple[str, str]]:
    return {(gate.entry, gate.name) for gate in comparison.failed}


def gate_of(comparison: Comparison, method: str, name: str):
    (gate,) = (g for g in comparison.gates if (g.entry, g.name) == (method, name))
    return gate


def notes(comparison: Comparison) -> str:
    return "\n".join(comparison.notes)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    return gated(tmp_path_factory.mktemp("gate") / "baseline")


@pytest.fixture(scope="module")
def two_turns(tmp_path_factory):
    return gated(tmp_path_factory.mktemp("gate") / "two_turns", turns=2)


def test_a_run_holds_against_itself_and_every_gate_is_asked(baseline):
    comparison = compare(baseline, baseline, timing=True)
    assert not comparison.failed, comparison.failed
    assert comparison.notes == ()
    asked = {(gate.entry, gate.name) for gate in comparison.gates}
    assert asked == {
        *(("vanilla", name) for name in ("errors", "tokens", "tokens_per_second")),
        *(("kangaroo", name) for name in DRAFTING_GATES | {"speedup"}),
    }
    assert len(compare(baseline, baseline).gates) == len(asked) - 2, "timing is asked for only"


# --- timing ---


def test_a_method_slowed_by_a_fifth_fails_the_timing_gate_alone(baseline, tmp_path):
    slow = gated(tmp_path / "slow", change=slowed("kangaroo", by=1.2))
    comparison = compare(baseline, slow, timing=True)
    assert failing(comparison) == {("kangaroo", "speedup")}
    gate = gate_of(comparison, "kangaroo", "speedup")
    assert (gate.baseline, gate.value) == pytest.approx((140 / 88, 140 / 88 / 1.2))
    assert gate.change.value == pytest.approx(1 / 1.2)
    assert not compare(baseline, slow).failed, "without --timing no time may decide anything"
    generous = Tolerances(speedup=0.2)
    assert not compare(baseline, slow, timing=True, tolerances=generous).failed


def test_a_slowed_engine_shows_in_the_baseline_methods_own_speed(baseline, tmp_path):
    slow = gated(tmp_path / "slow", change=slowed("vanilla", "kangaroo", by=1.2))
    comparison = compare(baseline, slow, timing=True)
    assert failing(comparison) == {("vanilla", "tokens_per_second")}, (
        "all methods slowed alike: their speedups are what they were"
    )


def test_a_faster_run_fails_nothing(baseline, tmp_path):
    fast = gated(tmp_path / "fast", change=slowed("vanilla", "kangaroo", by=0.5))
    assert not compare(baseline, fast, timing=True).failed


def timed(baseline, candidate, *, spread: float, seed: int):
    """The timing gates between two runs whose answers' times are noisy, each for itself."""
    before = noisy(baseline, spread=spread, seed=2 * seed)
    after = noisy(candidate, spread=spread, seed=2 * seed + 1)
    matched, allowed = match(before, after), Tolerances().speedup
    return [gate for entry in matched.entries for gate in speed_gates(matched, entry, allowed)]


def test_noise_does_not_fail_the_timing_gate(baseline):
    pairs = [timed(baseline, baseline, spread=0.03, seed=seed) for seed in range(100)]
    alarms = sum(any(not gate.passed for gate in gates) for gates in pairs)
    assert alarms <= 2, f"{alarms} of 100 pairs of equal runs failed for 3 % of noise"


def test_noise_does_not_hide_a_slower_method(baseline, tmp_path):
    slow = gated(tmp_path / "slow", change=slowed("kangaroo", by=1.2))
    pairs = [timed(baseline, slow, spread=0.03, seed=seed) for seed in range(15)]
    missed = sum(all(gate.passed for gate in gates) for gates in pairs)
    assert missed == 0, f"{missed} of 15 slower runs went unnoticed among 3 % of noise"


def test_noise_beyond_the_tolerance_is_left_to_the_interval(baseline):
    gates = [g for seed in range(30) for g in timed(baseline, baseline, spread=0.1, seed=seed)]
    beyond = sum(gate.value < gate.limit for gate in gates)
    alarms = sum(not gate.passed for gate in gates)
    assert beyond >= 8, "too little noise for this test to say anything"
    assert alarms <= 3, f"{alarms} of 60 gates failed for 10 % of noise, {beyond} by their values"


def test_one_question_gives_no_interval_so_timing_is_refused(tmp_path):
    run = gated(tmp_path / "run", questions=1)
    with pytest.raises(UsageError, match="ask more questions, or leave --timing out"):
        compare(run, run, timing=True)


# --- acceptance ---


def test_a_worsened_acceptance_fails_the_acceptance_gates_alone(baseline, tmp_path):
    worse = gated(tmp_path / "worse", accepted=WORSE)
    comparison = compare(baseline, worse)
    names = ("mean_accepted_tokens", "acceptance_by_position")
    assert failing(comparison) == {("kangaroo", name) for name in names}
    mean, position = (gate_of(comparison, "kangaroo", name) for name in names)
    assert (mean.baseline, mean.value) == pytest.approx((3.0, 2.4))
    assert (position.baseline, position.value) == pytest.approx((0.5, 0.0))
    assert "accept 3 or more, the worst of 4 positions" in position.detail


def test_a_better_acceptance_fails_nothing(baseline, tmp_path):
    worse = gated(tmp_path / "worse", accepted=WORSE)
    assert not compare(worse, baseline).failed


def test_a_position_that_lost_shows_though_the_mean_is_the_same(baseline, tmp_path):
    shifted = gated(tmp_path / "shifted", accepted=(2, 2, 2, 2))
    assert failing(compare(baseline, shifted)) == {("kangaroo", "acceptance_by_position")}


def test_a_method_that_stopped_drafting_fails(baseline):
    idle = replace(baseline, steps=baseline.steps.assign(drafted=0, accepted=0))
    names = ("mean_accepted_tokens", "acceptance_by_position")
    assert failing(compare(baseline, idle)) == {("kangaroo", name) for name in names}


@pytest.mark.parametrize(("tolerance", "holds"), [(0.2, True), (0.199, False)])
def test_a_loss_that_is_the_tolerance_itself_holds(baseline, tmp_path, tolerance, holds):
    worse = gated(tmp_path / "worse", accepted=WORSE)
    comparison = compare(baseline, worse, tolerances=Tolerances(acceptance=tolerance))
    assert gate_of(comparison, "kangaroo", "mean_accepted_tokens").passed is holds


# --- tokens ---


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        ((*range(5), 99, *range(6, 13)), "from token 5 on (13 tokens, now 13)"),
        (tuple(range(12)), "from token 12 on (13 tokens, now 12)"),
    ],
)
@pytest.mark.parametrize("method", ["vanilla", "kangaroo"])
def test_one_changed_token_fails(baseline, tmp_path, method, ids, told):
    changed = at(method, 3, output_ids=ids, new_tokens=len(ids))
    comparison = compare(baseline, gated(tmp_path / "changed", change=changed))
    assert failing(comparison) == {(method, "tokens")}
    detail = gate_of(comparison, method, "tokens").detail
    assert detail == f"1 of 8 answers differ; the first: question 3, turn 0, {told}"


@pytest.mark.parametrize(("tolerance", "holds"), [(0.125, True), (0.12, False)])
def test_a_share_of_changed_answers_can_be_tolerated(baseline, tmp_path, tolerance, holds):
    changed = gated(tmp_path / "run", change=at("kangaroo", 3, output_ids=(1,) * 13))
    comparison = compare(baseline, changed, tolerances=Tolerances(tokens=tolerance))
    assert (not comparison.failed) is holds


def test_a_turn_after_a_changed_answer_is_not_gated(two_turns, tmp_path):
    first = at("vanilla", 3, turn=0, output_ids=(1,) * 13, text="other")
    then = at("kangaroo", 3, turn=1, output_ids=(2,) * 13)
    changed = gated(tmp_path / "run", turns=2, change=lambda answer: then(first(answer)))
    comparison = compare(two_turns, changed)
    assert failing(comparison) == {("vanilla", "tokens")}, (
        "the second turn had another prompt, so its other answer is no fault of the method's"
    )
    assert "not gated: 2 answers whose prompt continues an answer of vanilla" in notes(comparison)


# --- losslessness ---


@pytest.mark.parametrize(
    ("before", "after", "holds"),
    [
        ([], [Lossless.VIOLATION], False),
        ([Lossless.VIOLATION], [Lossless.VIOLATION], True),
        ([Lossless.VIOLATION], [], True),
        ([], [Lossless.NEAR_TIE] * 8, True),
    ],
)
def test_no_more_violations_than_before(tmp_path, before, after, holds):
    runs = [gated(tmp_path / str(i), verdicts=given) for i, given in enumerate((before, after))]
    assert failing(compare(*runs)) == (set() if holds else {("kangaroo", "lossless")})


def test_answers_that_were_never_judged_are_not_lossless_for_that(baseline, tmp_path):
    comparison = compare(baseline, gated(tmp_path / "run", judged=False))
    assert failing(comparison) == {("kangaroo", "lossless")}
    assert "8 were not judged" in gate_of(comparison, "kangaroo", "lossless").detail


def test_a_violation_fails_though_the_baseline_was_not_judged(tmp_path):
    runs = [
        gated(tmp_path / "before", judged=False),
        gated(tmp_path / "after", verdicts=[Lossless.VIOLATION]),
    ]
    assert failing(compare(*runs)) == {("kangaroo", "lossless")}


@pytest.mark.parametrize(
    ("lossy_before", "lossy_after", "asked"), [(True, True, False), (False, True, True)]
)
def test_only_a_method_that_was_lossy_before_may_violate(
    tmp_path, lossy_before, lossy_after, asked
):
    def run(name, lossy, verdicts):
        entries = {name: EntryRecord(name, {}) for name in ("vanilla", "kangaroo")}
        entries["kangaroo"] = replace(entries["kangaroo"], lossy=lossy)
        run = gated(tmp_path / name, verdicts=verdicts)
        return replace(run, manifest=replace(run.manifest, entries=entries))

    comparison = compare(
        run("before", lossy_before, []), run("after", lossy_after, [Lossless.VIOLATION])
    )
    assert failing(comparison) == ({("kangaroo", "lossless")} if asked else set())


def sampled(folder, **given: Any):
    return gated(
        folder, questions=16, judged=False, settings={**SETTINGS, "temperature": 1.0}, **given
    )


def test_sampled_answers_are_gated_by_their_token_frequencies(tmp_path):
    def other(answer):
        return replace(answer, output_ids=(7,) * 13) if answer.entry == "kangaroo" else answer

    before, same = sampled(tmp_path / "before"), sampled(tmp_path / "same")
    tolerances = Tolerances(tokens=1.0)
    comparison = compare(before, same, tolerances=tolerances)
    assert not comparison.failed
    assert gate_of(comparison, "kangaroo", "lossless").value == 0
    changed = sampled(tmp_path / "changed", change=other)
    assert failing(compare(before, changed, tolerances=tolerances)) == {("kangaroo", "lossless")}


# --- errors ---


def broken(question: int):
    return at(
        "kangaroo",
        question,
        status=Status.ERROR,
        error="RuntimeError: out\nof memory",
        output_ids=(),
        new_tokens=0,
        total_ms=0.0,
        ttft_ms=0.0,
    )


def test_an_answer_that_became_an_error_fails(baseline, tmp_path):
    comparison = compare(baseline, gated(tmp_path / "run", change=broken(2)))
    assert failing(comparison) == {("kangaroo", "errors")}
    assert gate_of(comparison, "kangaroo", "errors").detail == (
        "1 of 8 answers lost; the first: question 2, turn 0: RuntimeError: out of memory"
    )


def test_an_answer_that_is_not_there_fails(baseline):
    kept = baseline.generations
    kept = kept[(kept["entry"] != "kangaroo") | (kept["question_id"] != 2)]
    comparison = compare(baseline, replace(baseline, generations=kept))
    assert failing(comparison) == {("kangaroo", "errors")}
    assert "question 2, turn 0: missing" in gate_of(comparison, "kangaroo", "errors").detail


def test_an_error_in_the_baseline_too_is_not_gated(baseline, tmp_path):
    before = gated(tmp_path / "before", change=broken(2))
    assert not compare(before, gated(tmp_path / "after", change=broken(2))).failed
    fixed = compare(before, baseline)
    assert not fixed.failed
    assert "of 7 answers" in gate_of(fixed, "kangaroo", "tokens").detail


def test_a_method_that_never_answered_is_said_to_be_ungated(tmp_path):
    def all_broken(answer):
        return broken(answer.question_id)(answer)

    run = gated(tmp_path / "run", change=all_broken)
    assert "kangaroo: the runs have no good answer in common" in notes(compare(run, run))


@pytest.mark.parametrize("side", ["baseline", "candidate"])
def test_times_of_zero_are_no_times_to_gate(baseline, side):
    timeless = replace(baseline, generations=baseline.generations.assign(total_ms=0.0))
    runs = (timeless, baseline) if side == "baseline" else (baseline, timeless)
    with pytest.raises(UsageError, match="--timing needs times above 0 of vanilla"):
        compare(*runs, timing=True)


# --- what may be compared ---


def with_settings(run, **changes):
    return with_manifest(run, **asked(**{**run.manifest.settings, **changes}))


def with_manifest(run, **changes):
    return replace(run, manifest=replace(run.manifest, **changes))


GPUS = {"gpus": [{"name": "H200"}, {"name": "T4"}]}
REFUSED = {
    "status": (lambda run: with_manifest(run, status="interrupted"), "complete", "interrupted"),
    "model": (lambda run: with_manifest(run, model="qwen"), "smollm2-135m (bb)", "qwen (bb)"),
    "model weights": (
        lambda run: with_manifest(run, hashes={**run.manifest.hashes, "model": "cc"}),
        "smollm2-135m (bb)",
        "smollm2-135m (cc)",
    ),
    "questions": (
        lambda run: with_manifest(run, hashes={**run.manifest.hashes, "questions": "ff"}),
        "builtin (aa)",
        "builtin (ff)",
    ),
    "dtype": (lambda run: with_settings(run, dtype="bfloat16"), "float32", "bfloat16"),
    "template": (lambda run: with_settings(run, template="vicuna"), "tokenizer", "vicuna"),
    "seed": (lambda run: with_settings(run, seed=7), "0", "7"),
    "max_new_tokens": (lambda run: with_settings(run, max_new_tokens=64), "13", "64"),
    "temperature": (lambda run: with_settings(run, temperature=0.7), "0.0", "0.7"),
    "top_p": (lambda run: with_settings(run, top_p=0.9), "1.0", "0.9"),
    "device": (lambda run: with_settings(run, device="cpu"), "not recorded", "cpu"),
    "device GPU": (
        lambda run: with_manifest(with_settings(run, device="cuda:1"), environment=GPUS),
        "not recorded",
        "T4",
    ),
    "baseline_method": (lambda run: with_manifest(run, baseline="kangaroo"), "vanilla", "kangaroo"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_each_field_is_refused_with_both_values_and_can_be_allowed(baseline, case):
    changed, before, after = REFUSED[case]
    field = case.split()[0]
    candidate = changed(baseline)
    with pytest.raises(UsageError) as refused:
        check(baseline, candidate)
    line = str(refused.value)
    assert f"{field}: {before} in the baseline, {after} in the candidate; " in line
    assert line.endswith(f"or give --allow {field}")
    assert "\n" not in line
    (note, *_) = check(baseline, candidate, allow=[field.replace("_", "-")])
    assert note == f"allowed: {field}: {before} in the baseline, {after} in the candidate"


def test_every_field_that_can_be_allowed_is_tested_here():
    elsewhere = {"entries", "prompts", "session"}
    assert {case.split()[0] for case in REFUSED} | elsewhere == set(FIELDS)


def test_the_same_kind_of_gpu_is_the_same_device(baseline):
    first = with_manifest(with_settings(baseline, device="cuda"), environment=GPUS)
    other = {"gpus": [{"name": "T4"}, {"name": "H200"}]}
    second = with_manifest(with_settings(baseline, device="cuda:1"), environment=other)
    check(first, second)


def test_a_renamed_file_of_the_same_questions_is_the_same(baseline):
    check(baseline, with_manifest(baseline, questions="copy.jsonl"))


def test_all_differences_are_told_at_once(baseline):
    candidate = with_settings(baseline, seed=7, dtype="bfloat16")
    with pytest.raises(UsageError, match=r"--allow dtype --allow seed$"):
        check(baseline, candidate)
    with pytest.raises(UsageError, match=r"--allow seed$"):
        check(baseline, candidate, allow=["dtype"])


def test_an_unknown_field_names_the_fields(baseline):
    with pytest.raises(UsageError, match="unknown field 'modle'; did you mean 'model'"):
        check(baseline, baseline, allow=["modle"])


def test_a_missing_method_is_refused_and_a_new_one_is_told(baseline, tmp_path):
    alone = gated(tmp_path / "alone", methods=("vanilla",))
    with pytest.raises(UsageError, match=r"the candidate lacks kangaroo; .*--allow entries$"):
        compare(baseline, alone)
    allowed = compare(baseline, alone, allow=["entries"])
    assert {gate.entry for gate in allowed.gates} == {"vanilla"}
    comparison = compare(alone, baseline)
    assert "new in the candidate, not gated: kangaroo" in notes(comparison)
    assert {gate.entry for gate in comparison.gates} == {"vanilla"}


def test_a_subset_of_the_prompts_is_gated_and_told(baseline, two_turns, tmp_path):
    changed = at("kangaroo", 3, output_ids=(1,) * 13)
    part = gated(tmp_path / "part", questions=3, change=changed)
    comparison = compare(baseline, part)
    assert "gated on 3 of the baseline's 8 prompts" in notes(comparison)
    assert gate_of(comparison, "kangaroo", "tokens").value == pytest.approx(1 / 3)
    with pytest.raises(UsageError, match=r"prompts: 8 of the candidate's 16 .* question 1, turn 1"):
        compare(baseline, two_turns)
    assert not compare(baseline, two_turns, allow=["prompts"]).failed


def test_runs_without_a_common_prompt_are_refused_whatever_is_allowed(baseline):
    frame = baseline.generations
    other = replace(baseline, generations=frame.assign(question_id=frame["question_id"] + 100))
    with pytest.raises(UsageError, match="no prompt in common"):
        check(baseline, other, allow=FIELDS)


def test_an_unfinished_run_is_gated_on_the_rounds_that_it_finished(baseline):
    frame = baseline.generations
    torn = frame[
        (frame["question_id"] < 5) | ((frame["question_id"] == 5) & (frame["entry"] == "vanilla"))
    ]
    killed = with_manifest(replace(baseline, generations=torn), status="interrupted")
    comparison = compare(baseline, killed, allow=["status"])
    assert not comparison.failed, "a round that the run had not come to the end of is not lost"
    assert "gated on 4 of the baseline's 8 prompts" in notes(comparison)


def test_what_may_differ_is_told(baseline):
    options = {"threshold": 0.7, "exit_layer": 4}
    kangaroo = EntryRecord("kangaroo", options, weights_sha256="0123456789abcdef", lossy=True)
    changed = with_manifest(
        with_settings(baseline, threads=2),
        entries={**baseline.manifest.entries, "kangaroo": kangaroo},
        environment={"torch": "2.14"},
    )
    assert check(baseline, changed) == (
        "kangaroo.threshold: 0.6 in the baseline, 0.7 in the candidate",
        "weights of kangaroo: None in the baseline, 0123456789ab in the candidate",
        "kangaroo is lossy: False in the baseline, True in the candidate",
        "threads: not recorded in the baseline, 2 in the candidate",
        "torch: not recorded in the baseline, 2.14 in the candidate",
    )


# --- one session on one machine ---


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"environment": {"cpu": "AMD EPYC"}}, "cpu: not recorded in the baseline, AMD EPYC in"),
        ({"environment": GPUS}, r"gpus: \[\] in the baseline, \['H200', 'T4'\] in the candidate"),
        ({"environment": {"torch": "2.14"}}, "torch: not recorded in the baseline, 2.14 in"),
        (asked(**{**SETTINGS, "threads": 2}), "threads: not recorded in the baseline, 2 in"),
        ({"created": "2026-11-01T12:30:00Z"}, "started 12.5 hours apart, more than 12"),
        ({"created": "2026-10-31T11:00:00"}, "started 13.0 hours apart, more than 12"),
    ],
)
def test_times_of_another_session_are_not_compared(baseline, changes, told):
    other = with_manifest(baseline, **changes)
    check(baseline, other)
    with pytest.raises(UsageError, match=f"^--timing compares .*{told}.*--allow session$"):
        check(baseline, other, timing=True)
    assert any("allowed" in note for note in check(baseline, other, timing=True, allow=["session"]))


def test_runs_of_one_working_day_are_one_session(baseline):
    later = with_manifest(baseline, created="2026-11-01T11:59:00+00:00")
    assert not compare(baseline, later, timing=True).failed
