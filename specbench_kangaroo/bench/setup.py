"""What a run needs before it can start: questions, target and methods, checked and loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

import torch

from specbench_kangaroo.bench.config import Entry, checked, entries_of
from specbench_kangaroo.bench.questions import QuestionSet, load_questions, select
from specbench_kangaroo.bench.registry import method_class, parse_options
from specbench_kangaroo.bench.schedule import Round, rounds
from specbench_kangaroo.engine.cuda_graphs import Capturer, CudaCapturer
from specbench_kangaroo.engine.method import Method, MethodOptions
from specbench_kangaroo.engine.sampling import Sampling
from specbench_kangaroo.engine.target import Target
from specbench_kangaroo.machine.devices import default_device, environment, main_device
from specbench_kangaroo.models.load import LoadedModel, load_model
from specbench_kangaroo.models.templates import template_named
from specbench_kangaroo.record.errors import UsageError, look_up
from specbench_kangaroo.record.request import Decoding, Request, TargetChoice
from specbench_kangaroo.record.schema import EntryRecord, Manifest, Resolved

_CAPTURERS: Mapping[str, type[CudaCapturer] | None] = {"eager": None, "graph": CudaCapturer}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run as far as it can be checked without its model; it can be sent to another machine."""

    request: Request
    entries: tuple[Entry, ...]  # the baseline first
    questions: QuestionSet  # those selected; the hash is the whole set's
    sampling: Sampling | None  # None: greedy

    @property
    def decoding(self) -> Decoding:
        """What holds for every entry alike."""
        return self.request.decoding

    @property
    def rounds(self) -> list[Round]:
        """Every prompt of the run, in order."""
        labels = [entry.label for entry in self.entries]
        return list(rounds(self.questions.questions, labels, repeats=self.decoding.repeats))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench(Plan):
    """A run that is ready to start; ``methods`` are by label, the baseline first."""

    loaded: LoadedModel
    target: Target
    methods: Mapping[str, Method]


def plan_of(request: Request) -> Plan:
    """Check what needs no model, before any is loaded.

    Raises:
        UsageError: an unknown question set, task, method, option or setting.
    """
    checked(request)
    check_backend(request.target)
    template_named(request.target.template)
    sampling = sampling_of(request.decoding)
    questions = load_questions(request.questions.source)
    chosen = select(questions.questions, request.questions.tasks, request.questions.limit)
    entries = entries_of(request.entries)
    entry_options(entries)  # parsed again where the methods are loaded
    return Plan(
        request=request,
        entries=entries,
        questions=replace(questions, questions=chosen),
        sampling=sampling,
    )


def load_bench(plan: Plan) -> Bench:
    """Load the target and the methods.

    Raises:
        UsageError: a model, weights, dtype or device that do not exist, fit or work here.
    """
    choice = plan.request.target
    loaded = load_model(
        choice.model, revision=choice.revision, dtype=choice.dtype, device=choice.device
    )
    capturer = capturer_of(choice, loaded.model.device)
    target = Target(loaded.model, name=loaded.name, tokenizer=loaded.tokenizer, capturer=capturer)
    options = entry_options(plan.entries)
    return Bench(
        request=plan.request,
        entries=plan.entries,
        questions=plan.questions,
        sampling=plan.sampling,
        loaded=loaded,
        target=target,
        methods={
            entry.label: method_class(entry.method).load(target, options[entry.label])
            for entry in plan.entries
        },
    )


def check_backend(choice: TargetChoice) -> None:
    """Refuse, before anything is loaded, a backend that the chosen device does not have.

    Raises:
        UsageError: that, or an unknown backend.
    """
    capturer = look_up("backend", choice.backend, _CAPTURERS)
    device = main_device(choice.device or default_device())
    if capturer is not None and device == "cpu":
        raise UsageError(
            f"the {choice.backend} backend needs a CUDA device, not {device}; use --backend eager"
        )


def capturer_of(choice: TargetChoice, device: torch.device) -> Capturer | None:
    """What the chosen backend captures the passes of a model on ``device`` with, None: nothing."""
    capturer = look_up("backend", choice.backend, _CAPTURERS)
    return None if capturer is None else capturer(device)


def sampling_of(decoding: Decoding) -> Sampling | None:
    """How tokens are drawn, None for greedy.

    Raises:
        UsageError: a temperature or top-p that makes no distribution.
    """
    if decoding.temperature == 0:
        return None
    try:
        return Sampling(temperature=decoding.temperature, top_p=decoding.top_p)
    except ValueError as error:
        raise UsageError(str(error)) from error


def entry_options(entries: Iterable[Entry]) -> dict[str, MethodOptions]:
    """The options of each entry, by its label.

    Raises:
        UsageError: an unknown method or option, a value of another type, or one that a sweep has
            twice.
    """
    found: dict[str, MethodOptions] = {}
    sweeps: dict[str, list[MethodOptions]] = {}
    for entry in entries:
        label, swept, _ = entry.label.partition("[")
        options = parse_options(entry.method, entry.options, label=label)
        if swept and options in sweeps.setdefault(label, []):
            raise UsageError(f"--sweep: {entry.label} repeats a value; give each one once")
        sweeps.setdefault(label, []).append(options)
        found[entry.label] = options
    return found


def manifest(bench: Bench, *, name: str = "", command: str = "") -> Manifest:
    """``run.json`` of a run that starts now."""
    return Manifest(
        name=name,
        command=command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        status="running",
        model=bench.loaded.name,
        questions=bench.questions.name,
        entries={
            entry.label: _record(entry, bench.methods[entry.label]) for entry in bench.entries
        },
        request=bench.request,
        resolved=Resolved(
            dtype=bench.loaded.dtype,
            device=bench.loaded.device,
            threads=torch.get_num_threads(),
            model_revision=bench.loaded.revision,
        ),
        environment=environment(),
        hashes={"questions": bench.questions.sha256, "model": bench.loaded.sha256},
    )


def _record(entry: Entry, method: Method) -> EntryRecord:
    return EntryRecord(
        method=entry.method,
        options=asdict(method.options),
        weights_sha256=method.weights.get("sha256"),
        weights_record={key: value for key, value in method.weights.items() if key != "sha256"},
        lossy=method.lossy,
    )
