"""What a run writes down: the schema of its files, and nothing that interprets it.

Schema history
    1 (2026-11): first version.
    2 (2026-11): a generation says which worker made it, its energy and its peak of device memory;
        where the device can be asked, device.jsonl has its state at the edges of blocks.
    3 (2026-11): records name the entry that they are of, by its label, instead of the method; the
        manifest has ``entries`` with the method of each; a step's ``rows`` is named ``nodes``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

SCHEMA_VERSION = 3
RENAMED = {"method": "entry", "methods": "entries", "rows": "nodes"}  # fields, up to version 2
BASELINE = "vanilla"  # the method that others are compared with, and the label of its entry
DEFAULT_TEMPLATE = "tokenizer"  # how prompts are written: by the tokenizer's own template
THRESHOLD = "threshold"  # the option of methods that stop drafting below a confidence
BEFORE, AFTER = "before", "after"  # the edges of a block
COMPLETE = "complete"  # the status of a run that has all its generations


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


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One decode step: one draft, one pass of the target over it, one acceptance.

    ``drafted`` is the depth of the draft tree and ``accepted`` leaves the bonus token out, so
    ``emitted == accepted + 1`` unless EOS cut the step short.  The prefill is not a step.
    """

    step: int
    context_length: int  # committed tokens before the step, the root included
    drafted: int
    accepted: int
    emitted: int
    nodes: int  # of the tree that the target scored, the root included
    exit_reason: ExitReason
    confidence: tuple[float, ...]  # the draft's top-1 probability of each drafted token, if known
    verify_share: float  # share of a full target pass that verification had left to do, 0..1
    draft_ms: float
    verify_ms: float
    accept_ms: float


@dataclass(frozen=True, slots=True)
class GenerationKey:
    """What identifies a generation within a run."""

    entry: str
    question_id: int
    turn: int
    repeat: int


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer of one entry to one turn: a line of ``generations.jsonl``."""

    entry: str
    question_id: int
    category: str
    task: str
    turn: int
    repeat: int
    status: Status
    error: str | None
    prompt_tokens: int
    output_ids: tuple[int, ...]  # EOS included when it was reached
    text: str
    new_tokens: int
    target_passes: int  # the prefill included; 0 for an entry that decodes by itself, without steps
    ttft_ms: float  # prefill and first token
    total_ms: float  # prefill, every step and what lies between them
    peak_rss_mb: float | None = None  # of the process, after this generation
    peak_device_mb: float | None = None  # allocated on the accelerator, None without one
    energy_j: float | None = None  # drawn by the device while it was made, None if not measured
    worker: int = 0  # which worker made it; all entries answer a prompt on the same one

    @property
    def key(self) -> GenerationKey:
        """Which generation this is about."""
        return GenerationKey(self.entry, self.question_id, self.turn, self.repeat)


@dataclass(frozen=True, slots=True)
class Judgement:
    """The lossless verdict on one generation: a line of ``lossless.jsonl``.

    ``logit_gap`` is how far the less likely of the two tokens at ``first_difference``, a position
    within the output, lies below the target's best logit.  Both are None when the outputs are
    equal, and the gap where one of them has ended there.
    """

    entry: str
    question_id: int
    turn: int
    repeat: int
    verdict: Lossless
    first_difference: int | None
    logit_gap: float | None

    @property
    def key(self) -> GenerationKey:
        """Which generation this is about."""
        return GenerationKey(self.entry, self.question_id, self.turn, self.repeat)


@dataclass(frozen=True, slots=True)
class BlockEdge:
    """The device before or after a prompt that all entries answer: a line of ``device.jsonl``.

    None is what the device does not tell.
    """

    time: str  # ISO 8601, UTC
    question_id: int
    turn: int
    repeat: int
    edge: str  # before | after
    power_w: float | None
    sm_mhz: int | None
    mem_mhz: int | None
    temperature_c: int | None
    throttle: Sequence[str] | None  # why its clocks are held down, by name
    worker: int = 0


@dataclass(frozen=True, slots=True)
class EntryRecord:
    """An entry as it ran: its method, every option with its value, where its weights came from."""

    method: str
    options: Mapping[str, Any]
    weights_sha256: str | None = None
    weights_record: Mapping[str, Any] = field(default_factory=dict)  # training record of the file
    lossy: bool = False


@dataclass(frozen=True, slots=True)
class Manifest:
    """``run.json``: all that a reader needs to reproduce a run, or to refuse a comparison."""

    name: str
    command: str
    created: str  # ISO 8601, UTC
    status: str  # running | interrupted | complete
    model: str
    questions: str
    entries: Mapping[str, EntryRecord]  # by label
    settings: Mapping[str, Any]  # seed, max_new_tokens, temperature, dtype, device, repeats, …
    environment: Mapping[str, Any]  # versions, CPU or GPU, threads, git commit
    hashes: Mapping[str, str]  # questions, model
    baseline: str = BASELINE
    schema_version: int = SCHEMA_VERSION

    @property
    def labels(self) -> tuple[str, ...]:
        """Those of all entries of the run, the baseline's first."""
        return tuple(dict.fromkeys([self.baseline, *self.entries]))

    @property
    def sampled(self) -> bool:
        """Whether tokens were drawn, not chosen greedily."""
        return float(self.settings.get("temperature", 0.0)) > 0
