"""What a run writes down: the types of its records, by which they are checked, and no more.

Schema history
    1 (2026-11): first version.
    2 (2026-11): a generation says which worker made it, its energy and its peak of device memory;
        where the device can be asked, device.jsonl has its state at the edges of blocks.
    3 (2026-11): records name the entry that they are of, by its label, instead of the method; the
        manifest has ``entries`` with the method of each; a step's ``rows`` is named ``nodes``.
    4 (2026-11): a line of generations.jsonl holds the steps of its generation, and the Parquet
        files are copies of that file; the manifest has the whole ``request`` and what became of it
        in place of ``settings``, and ``directory`` where the request has relative paths.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

from msgspec import Meta, Struct, field, to_builtins

from specbench_kangaroo.record.request import Request

SCHEMA_VERSION = 4
LINES_HOLD_STEPS = 4  # since this version
BASELINE = "vanilla"  # the method that others are compared with, and the label of its entry
THRESHOLD = "threshold"  # the option of methods that stop drafting below a confidence
BEFORE, AFTER = "before", "after"  # the edges of a block
_NOT_SETTINGS = {"model", "revision", "source"}  # the manifest says what they became
COMPLETE = "complete"  # the status of a run that has all its generations

Name = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Few = Annotated[int, Meta(ge=0, le=2**16)]  # tokens of a step: tables are as wide as the largest
# Of an entry, with what a sweep adds: part of file names, and of Markdown, LaTeX and CSV as it is.
LABEL_STEM = "[A-Za-z0-9][A-Za-z0-9_-]*"  # what a user gives; a sweep adds the rest
Label = Annotated[str, Meta(pattern=rf"^{LABEL_STEM}(\[[A-Za-z0-9_.+=,-]*\])?\Z")]
Amount = Annotated[float, Meta(ge=0, le=1e15)]  # sums and squares of them are finite too


class ExitReason(StrEnum):
    """Why drafting stopped in a step."""

    THRESHOLD = "threshold"  # the draft's confidence fell below its threshold
    MAX_STEPS = "max_steps"  # the method's own draft length
    BUDGET = "budget"  # no more tokens were allowed by max_new_tokens
    EOS = "eos"  # the draft ended the text
    NO_DRAFT = "no_draft"  # the method had nothing to propose


class Status(StrEnum):
    """How a generation ended."""

    OK = "ok"
    ERROR = "error"
    PROMPT_TOO_LONG = "prompt_too_long"


class Lossless(StrEnum):
    """How a greedy output compares with the baseline's."""

    EXACT = "exact"
    NEAR_TIE = "near_tie"
    VIOLATION = "violation"


class Record(Struct, frozen=True, forbid_unknown_fields=True):
    """Immutable; its values are checked by their types when it is written and when it is read."""


class StepRecord(Record, frozen=True):
    """One decode step: one draft, one pass of the target over it, one acceptance.

    ``drafted`` is the depth of the draft tree and ``accepted`` leaves the bonus token out, so
    ``emitted == accepted + 1`` unless EOS cut the step short.  The prefill is not a step.
    """

    step: Count
    context_length: Count  # committed tokens before the step, the root included
    drafted: Few
    accepted: Few
    emitted: Few
    nodes: Few  # of the tree that the target scored, the root included
    exit_reason: ExitReason
    confidence: tuple[float, ...]  # the draft's top-1 probability of each drafted token, if known
    verify_share: Amount  # share of a full target pass that verification had left to do, 0..1
    draft_ms: Amount
    verify_ms: Amount
    accept_ms: Amount


class _Keyed(Record, frozen=True):
    entry: str
    question_id: Name
    turn: Count
    repeat: Count

    @property
    def key(self) -> GenerationKey:
        """Which generation this is about."""
        return GenerationKey(self.entry, self.question_id, self.turn, self.repeat)


class GenerationKey(_Keyed, frozen=True):
    """What identifies a generation within a run."""

    def __str__(self) -> str:
        place = f"question {self.question_id}, turn {self.turn}, repeat {self.repeat}"
        return f"{self.entry}'s answer to {place}"


class Generation(_Keyed, frozen=True):
    """One answer of one entry to one turn: a line of ``generations.jsonl``, but for its steps."""

    category: str
    task: str
    status: Status
    error: str | None
    prompt_tokens: Count
    output_ids: tuple[Count, ...]  # EOS included when it was reached
    text: str
    new_tokens: Count
    target_passes: Count  # the prefill included; 0 if the entry decodes by itself, without steps
    ttft_ms: Amount  # prefill and first token
    total_ms: Amount  # prefill, every step and what lies between them
    peak_rss_mb: Amount | None = None  # of the process, after this generation
    peak_device_mb: Amount | None = None  # allocated on the accelerator, None without one
    energy_j: Amount | None = None  # drawn by the device while it was made, None if not measured
    worker: Count = 0  # which worker made it; all entries answer a prompt on the same one


class Judgement(_Keyed, frozen=True):
    """The lossless verdict on one generation: a line of ``lossless.jsonl``.

    ``logit_gap`` is how far the less likely of the two tokens at ``first_difference``, a position
    within the output, lies below the target's best logit.  Both are None when the outputs are
    equal, and the gap where one of them has ended there.
    """

    verdict: Lossless
    first_difference: Count | None
    logit_gap: Amount | None


class BlockEdge(Record, frozen=True):
    """The device before or after a prompt that all entries answer: a line of ``device.jsonl``.

    None is what the device does not tell.
    """

    time: str  # ISO 8601, UTC
    question_id: Name
    turn: Count
    repeat: Count
    edge: str  # before | after
    power_w: Amount | None
    sm_mhz: Count | None
    mem_mhz: Count | None
    temperature_c: Count | None
    throttle: tuple[str, ...] | None  # why its clocks are held down, by name
    worker: Count = 0


class EntryRecord(Record, frozen=True):
    """An entry as it ran: its method, every option with its value, where its weights came from."""

    method: str
    options: Mapping[str, Any]
    weights_sha256: str | None = None
    weights_record: Mapping[str, Any] = field(default_factory=dict)  # training record of the file
    lossy: bool = False


class Resolved(Record, frozen=True):
    """What the machine made of a request that left it the choice; None: not recorded."""

    dtype: str | None = None
    device: Annotated[str, Meta(pattern=r"^\w+(:\d{1,4})?\Z")] | None = None
    threads: Count | None = None
    model_revision: str | None = None


class Manifest(Record, frozen=True):
    """``run.json``: all that a reader needs to reproduce a run, or to refuse a comparison."""

    name: str
    command: str
    created: str  # ISO 8601
    status: str  # running | interrupted | complete
    model: str
    questions: str
    entries: Mapping[Label, EntryRecord]
    request: Request  # as it was asked for: `specbench run --from` repeats it
    resolved: Resolved
    environment: Mapping[str, Any]  # versions, CPU or GPU, threads, git commit
    hashes: Mapping[str, str]  # questions, model
    directory: str | None = None  # where the request's relative paths start, if it has any
    baseline: Label = BASELINE
    schema_version: Count = SCHEMA_VERSION

    @property
    def started(self) -> datetime:
        """When it was created, which is in UTC where it does not say; ValueError: it is no time."""
        created = datetime.fromisoformat(self.created)
        return created if created.tzinfo else created.replace(tzinfo=UTC)

    @property
    def labels(self) -> tuple[str, ...]:
        """Those of all entries of the run, the baseline's first."""
        return tuple(dict.fromkeys([self.baseline, *self.entries]))

    @property
    def gpu_names(self) -> list[str]:
        """Those of the machine, by index; none where it has none or an older run did not say."""
        return [gpu["name"] for gpu in self.environment.get("gpus") or ()]

    @property
    def sampled(self) -> bool:
        """Whether tokens were drawn, not chosen greedily."""
        return self.request.decoding.temperature > 0

    @property
    def settings(self) -> dict[str, Any]:
        """What held for every entry, by name: seed, dtype, template, tasks and others; no None."""
        request = self.request
        found: dict[str, Any] = {}
        for part in (request.decoding, request.target, request.questions, self.resolved):
            found |= to_builtins(part)
        found["tasks"] = [*request.questions.tasks]  # as JSON has it
        return {
            name: value
            for name, value in found.items()
            if value is not None and name not in _NOT_SETTINGS
        }
