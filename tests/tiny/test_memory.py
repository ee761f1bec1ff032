"""Memory that runs out in the middle of an answer: one error record, and the run goes on."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from specbench_kangaroo.bench.generation import is_device_lost, is_out_of_memory
from specbench_kangaroo.bench.registry import method_class
from specbench_kangaroo.bench.runner import execute
from specbench_kangaroo.bench.setup import Bench, manifest
from specbench_kangaroo.engine.cache import KVCache
from specbench_kangaroo.engine.clock import WallClock
from specbench_kangaroo.engine.decode import Decoded, Limits, decode
from specbench_kangaroo.engine.method import Draft, Drafter, Method, Session, Verified
from specbench_kangaroo.engine.target import TargetOutput
from specbench_kangaroo.record.errors import DeviceLostError
from specbench_kangaroo.record.writer import Run, RunWriter, read_run

from .bench import FAMILY, Stub, StubDrafter, drafting_methods, make_bench
from .models import target

PROMPT = (5, 9, 3, 14, 7, 11, 3, 14)
CUDA_TEXT = "CUDA out of memory. Tried to allocate 2.00 GiB."


def generate(method: Method) -> Decoded:
    limits = Limits(max_new_tokens=24, eos=frozenset())
    return decode(target(FAMILY), method, PROMPT, limits=limits, clock=WallClock())


def story(found: Decoded) -> list[Any]:
    """All of a generation that no clock goes into."""
    steps = [(s.drafted, s.accepted, s.nodes, s.exit_reason, s.confidence) for s in found.steps]
    return [found.output_ids, steps]


# --- every method, broken off and asked again ---


@pytest.fixture(params=drafting_methods())
def load(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], list[Method]]:
    """Fresh objects of a method, one in each of its example settings."""
    kind = method_class(request.param)
    examples = kind.example_options(target(FAMILY), tmp_path)
    return lambda: [kind.load(target(FAMILY), options) for options in examples]


@contextmanager
def memory_for(writes: int) -> Iterator[None]:
    """The rows of that many layers can be stored, in whoever's cache, and no more."""
    left, real = writes, KVCache.write

    def write(self: KVCache, *arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise torch.OutOfMemoryError(CUDA_TEXT)
        return real(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KVCache, "write", write)
        yield


class Breaks:
    """A method that runs out of memory in its call number ``at`` of ``where``, early or late."""

    def __init__(self, inner: Method, where: str, at: int, *, late: bool) -> None:
        self.inner, self.where, self.at, self.late = inner, where, at, late
        self.needs, self.max_rows = inner.needs, inner.max_rows

    def _call(self, name: str, *arguments: Any) -> Any:
        if name != self.where:
            return getattr(self.drafter, name)(*arguments)
        self.at -= 1
        if self.at == 0 and not self.late:
            raise torch.OutOfMemoryError(CUDA_TEXT)
        found = getattr(self.drafter, name)(*arguments)
        if self.at == 0:
            raise torch.OutOfMemoryError(CUDA_TEXT)
        return found

    def start(self, session: Session, prompt: torch.Tensor, output: TargetOutput) -> Drafter:
        self.drafter: Any = self.inner
        self.drafter = self._call("start", session, prompt, output)
        return self

    def propose(self, root: int, budget: int) -> Draft:
        found: Draft = self._call("propose", root, budget)
        return found

    def observe(self, verified: Verified) -> None:
        self._call("observe", verified)


def test_a_method_is_none_the_worse_for_a_pass_that_broke_off(
    load: Callable[[], list[Method]],
) -> None:
    for method, fresh in zip(load(), load(), strict=True):
        expected = story(generate(fresh))
        for writes in (2, 13, 30):
            with memory_for(writes), pytest.raises(torch.OutOfMemoryError):
                generate(method)
            assert story(generate(method)) == expected, f"{method.options} after {writes} writes"


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("where", ["start", "propose", "observe"])
def test_a_method_is_none_the_worse_for_a_call_that_broke_off(
    load: Callable[[], list[Method]], where: str, late: bool
) -> None:
    for method, fresh in zip(load(), load(), strict=True):
        expected = story(generate(fresh))
        broken = Breaks(method, where, 1 if where == "start" else 2, late=late)
        with pytest.raises(torch.OutOfMemoryError):
            generate(broken)  # type: ignore[arg-type]
        assert story(generate(method)) == expected, f"{method.options}: {where} broke off"


# --- what is recorded, and what is kept ---


class OutOfMemory(Stub):
    """Fails in the second step of every conversation that begins with the word w11."""

    error: Exception = torch.OutOfMemoryError(CUDA_TEXT)

    def start(self, session: Session, prompt: torch.Tensor, output: TargetOutput) -> StubDrafter:
        return Failing(self, super().start(session, prompt, output).ids)


class Failing(StubDrafter):
    def observe(self, verified: Verified) -> None:
        super().observe(verified)
        prompt = self.stub.prompts[-1]
        if prompt[1] == 11 and len(self.ids) > len(prompt) + 4:
            assert isinstance(self.stub, OutOfMemory)
            raise self.stub.error


def run(bench: Bench, folder: Path) -> Run:
    with RunWriter.create(folder, manifest(bench, name="run", command="")) as writer:
        execute(bench, writer, on_finished=lambda _: None)
    return read_run(folder)


ERRORS = [
    torch.OutOfMemoryError(CUDA_TEXT),
    MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(error)[:20])
def test_one_answer_is_lost_and_the_record_says_how_far_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(OutOfMemory, "error", error)
    failing, other = OutOfMemory(target(FAMILY)), Stub(target(FAMILY))
    found = run(make_bench({"failing": failing, "other": other}), tmp_path / "run")
    failed = found.generations[found.generations["status"] != "ok"]
    assert failed[["entry", "question_id"]].to_numpy().tolist() == [["failing", 2]]
    told = failed["error"].item()
    assert told.startswith(
        f"{type(error).__name__} after 5 new tokens on a prompt of 4 (fewer --max"
    )
    assert told.endswith(str(error).rstrip(": ") or "take less)")
    assert set(found.judgements["verdict"]) == {"exact"}, "later answers must be right"
    assert len(found.judgements) == 7


def test_other_errors_say_what_they_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OutOfMemory, "error", RuntimeError("a path \udcff that is no text"))
    found = run(make_bench({"failing": OutOfMemory(target(FAMILY))}), tmp_path / "run")
    errors = found.generations["error"].dropna().tolist()
    assert errors == ["RuntimeError: a path \\udcff that is no text"]


def test_a_lost_device_stops_the_run_which_goes_on_in_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with …")
    monkeypatch.setattr(OutOfMemory, "error", lost)
    bench = make_bench({"failing": OutOfMemory(target(FAMILY))})
    with pytest.raises(DeviceLostError) as caught:
        run(bench, tmp_path / "run")
    assert caught.value.problem == (
        "the device was lost while failing answered question 2 (CUDA error: an illegal memory "
        "access was encountered); see that it works (specbench doctor)"
    )
    found = read_run(tmp_path / "run")
    assert found.manifest.status == "interrupted"
    assert (found.generations["status"] == "ok").all(), "every answer after it would be an error"
    fixed = make_bench({"failing": Stub(target(FAMILY))})
    with RunWriter.resume(tmp_path / "run", manifest(fixed, name="run", command="")) as writer:
        execute(fixed, writer, on_finished=lambda _: None)
    found = read_run(tmp_path / "run")
    assert len(found.generations) == 8
    assert set(found.judgements["verdict"]) == {"exact"}


def test_what_an_answer_took_is_given_back_though_its_method_remembers_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Remembers(OutOfMemory):
        def start(self, session: Session, *given: Any) -> StubDrafter:
            self.session = session
            taken.append(weakref.ref(session.cache.storage))
            return super().start(session, *given)

    taken: list[weakref.ref[Any]] = []
    method = Remembers(target(FAMILY))
    run(make_bench({"remembers": method}), tmp_path / "run")
    assert len(taken) == 4
    assert [reference() for reference in taken] == [None] * 4, "the next method needs that memory"
    with pytest.raises(IndexError):
        method.session.cache.end_of(0, 1)


def test_only_a_lack_of_memory_is_taken_for_one() -> None:
    assert all(map(is_out_of_memory, ERRORS))
    assert not any(map(is_device_lost, ERRORS)), "they cost one answer, not the run"
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value), "torch says it in other words now: fix generation.py"
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert not is_out_of_memory(KeyError("out of memory"))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_device_that_is_full_serves_the_next_answer(tmp_path: Path) -> None:
    class Greedy(Stub):
        def start(self, session: Session, *given: Any) -> StubDrafter:
            return Hoards(self, super().start(session, *given).ids)

    class Hoards(StubDrafter):
        def propose(self, root: int, budget: int) -> Draft:
            if self.stub.prompts[-1][1] == 11:
                self.hoard = torch.empty(2**44, device="cuda")
            return super().propose(root, budget)

    found = run(make_bench({"greedy": Greedy(target(FAMILY))}), tmp_path / "run")
    failed = found.generations[found.generations["status"] != "ok"]
    assert failed["question_id"].tolist() == [2]
    assert failed["error"].item().startswith("OutOfMemoryError after 1 new tokens")
