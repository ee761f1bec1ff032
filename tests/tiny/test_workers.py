"""Workers without Ray: who gets which question, and what becomes of it when a worker dies."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from specbench_kangaroo.bench.questions import Question
from specbench_kangaroo.bench.runner import execute
from specbench_kangaroo.bench.schedule import MemoryLedger, Round, missing, unjudged
from specbench_kangaroo.bench.setup import Bench, manifest, plan_of
from specbench_kangaroo.bench.signals import Interruption
from specbench_kangaroo.bench.workers import cluster, dealing
from specbench_kangaroo.bench.workers.cluster import cores_each, share_of
from specbench_kangaroo.bench.workers.dealing import (
    Answered,
    Dealer,
    Died,
    Event,
    Ready,
    Refused,
    Unit,
    open_units,
)
from specbench_kangaroo.bench.workers.session import devices_differ, load_all, merged, runner_of
from specbench_kangaroo.bench.workers.worker import Worker
from specbench_kangaroo.record import files
from specbench_kangaroo.record import writer as store
from specbench_kangaroo.record.errors import UsageError
from specbench_kangaroo.record.manifest import MANIFEST
from specbench_kangaroo.record.request import QuestionChoice, Request, TargetChoice
from specbench_kangaroo.record.schema import Generation, GenerationKey, Manifest
from specbench_kangaroo.record.writer import GENERATIONS, Run, RunWriter, read_run
from tests.changes import replace
from tests.unit.runs import make_answer, make_judgement, make_manifest

from .bench import Stub, make_bench, save_model, save_questions
from .test_runner import answers, deterministic, stub

Dies = Callable[[int, Unit], bool]


def never(worker: int, unit: Unit) -> bool:
    del worker, unit
    return False


class HereCrew:
    """Workers in this process, one answer at a time, of which some die with what they were asked.

    Args:
        benches: of each worker.
        dies: whether this worker dies of this unit.
        starts: what starting a worker again brings, the first of them first; then it is ready.
    """

    def __init__(
        self, benches: Sequence[Bench], *, dies: Dies = never, starts: Iterable[Event] = ()
    ) -> None:
        self._benches = benches
        self._dies = dies
        self._starts = list(starts)
        self._asked: list[tuple[int, Unit | None]] = []
        self._workers = {n: self._worker(n) for n in range(len(benches))}
        self.dealt: list[tuple[int, int]] = []  # worker, question
        self.on_wait: Callable[[], None] = lambda: None

    def _worker(self, number: int) -> Worker:
        worker = Worker(number, self._benches[number], threads=1)
        worker._bench = self._benches[number]
        return worker

    def start(self, worker: int) -> None:
        self._workers[worker] = self._worker(worker)
        self._asked.append((worker, None))

    def ask(self, worker: int, unit: Unit) -> None:
        assert worker not in [busy for busy, _ in self._asked], "it has something to do"
        self.dealt.append((worker, unit.question_id))
        self._asked.append((worker, unit))

    def wait(self) -> Event | None:
        self.on_wait()
        worker, unit = self._asked.pop(0)
        if unit is None:
            return self._starts.pop(0) if self._starts else self._ready(worker)
        return Died(worker) if self._dies(worker, unit) else self._workers[worker].answer(unit)

    def _ready(self, worker: int) -> Ready:
        return Ready(worker, manifest(self._benches[worker]))


def make_benches(workers: int = 2, **settings: Any) -> list[Bench]:
    return [make_bench({"stub": stub()}, workers=workers, **settings) for _ in range(workers)]


def run(
    crew: HereCrew,
    benches: Sequence[Bench],
    folder: Path,
    *,
    resume: bool = False,
    interruption: Interruption | None = None,
    heard: list[Any] | None = None,
) -> Run:
    told: list[Any] = [] if heard is None else heard
    manifests = [manifest(bench) for bench in benches]
    runner = runner_of(crew, benches[0], manifests, say=told.append)
    record = replace(runner.manifest, name="run", command="specbench run")
    with (RunWriter.resume if resume else RunWriter.create)(folder, record) as writer:
        runner.execute(writer, told.append, interruption or Interruption())
    return read_run(folder)


def alone(folder: Path, **settings: Any) -> Run:
    bench = make_bench({"stub": stub()}, **settings)
    with RunWriter.create(folder, manifest(bench, name="run", command="")) as writer:
        execute(bench, writer, on_finished=lambda _: None)
    return read_run(folder)


def one_worker_a_prompt(found: Run) -> bool:
    prompts = found.generations.groupby(["question_id", "repeat"])
    return bool((prompts["worker"].nunique() == 1).all())


def test_two_workers_make_what_one_process_makes(tmp_path: Path) -> None:
    benches, heard = make_benches(repeats=2), list[Any]()
    crew = HereCrew(benches)
    found = run(crew, benches, tmp_path / "two", heard=heard)
    whole = alone(tmp_path / "one", repeats=2)
    assert answers(found) == answers(whole)
    assert deterministic(found) == deterministic(whole)
    assert set(found.generations["worker"]) == {0, 1}
    assert one_worker_a_prompt(found), "a speedup would compare two devices"
    assert [item.key for item in heard] == [
        Generation(**row).key for row in found.generations.to_dict("records")
    ], "progress must hear of every generation"
    orders = [
        {
            key: part["entry"].tolist()
            for key, part in run_.generations.groupby(["question_id", "repeat"])
        }
        for run_ in (found, whole)
    ]
    assert orders[0] == orders[1], "methods must take turns as they do in one process"


@pytest.mark.parametrize("victim", [0, 1])
def test_a_dead_workers_question_is_made_again(tmp_path: Path, victim: int) -> None:
    died: list[int] = []

    def once(worker: int, unit: Unit) -> bool:
        if worker == victim and not died:
            died.append(unit.question_id)
            return True
        return False

    benches, heard = make_benches(), list[Any]()
    crew = HereCrew(benches, dies=once)
    found = run(crew, benches, tmp_path / "run", heard=heard)
    assert answers(found) == answers(alone(tmp_path / "whole")), "none lost, none doubled"
    assert Counter(question for _, question in crew.dealt)[died[0]] == 2
    assert f"worker {victim} died while it answered question {died[0]}" in heard
    assert one_worker_a_prompt(found)


def test_a_question_that_kills_three_workers_is_given_up(tmp_path: Path) -> None:
    benches = make_benches()
    crew = HereCrew(benches, dies=lambda _, unit: unit.question_id == 2)
    found = run(crew, benches, tmp_path / "run").generations
    assert Counter(question for _, question in crew.dealt)[2] == 3
    lost = found[found["question_id"] == 2]
    assert lost["status"].tolist() == ["error"] * 2
    assert set(lost["error"]) == {"3 workers died while they answered this question"}
    assert set(found[found["question_id"] != 2]["status"]) == {"ok"}, "the others must not suffer"
    assert len(found) == 8


def test_a_worker_that_cannot_be_replaced_ends_the_run_and_keeps_what_it_has(
    tmp_path: Path,
) -> None:
    benches = make_benches(workers=1)
    crew = HereCrew(
        benches, dies=lambda _, unit: unit.question_id == 2, starts=[Died(0), Died(0), Died(0)]
    )
    with pytest.raises(UsageError, match="worker 0 died 3 times while it loaded"):
        run(crew, benches, tmp_path / "run")
    before = read_run(tmp_path / "run")
    assert (before.manifest.status, len(before.generations)) == ("interrupted", 4)
    again = HereCrew(benches)
    found = run(again, benches, tmp_path / "run", resume=True)
    assert [question for _, question in again.dealt] == [2, 3], "what is there is not made again"
    assert answers(found) == answers(alone(tmp_path / "whole"))


def test_a_replacement_that_refuses_says_why(tmp_path: Path) -> None:
    benches, gone = make_benches(), Refused(1, "no such file")
    crew = HereCrew(benches, dies=lambda worker, _: worker == 1, starts=[gone])
    with pytest.raises(UsageError, match="the replacement of worker 1 stopped: no such file"):
        run(crew, benches, tmp_path / "run")


def test_a_replacement_must_run_the_same_thing(tmp_path: Path) -> None:
    benches = make_benches()
    other = manifest(benches[1])
    other = replace(other, resolved=replace(other.resolved, dtype="float32"))
    crew = HereCrew(benches, dies=lambda worker, _: worker == 1, starts=[Ready(1, other)])
    with pytest.raises(UsageError, match=r"worker 1 differs .* settings.dtype is 'float32' there"):
        run(crew, benches, tmp_path / "run")


def test_a_half_finished_question_is_completed_where_it_was_begun(tmp_path: Path) -> None:
    benches = make_benches()
    whole = run(HereCrew(benches), benches, tmp_path / "run")
    # A driver that was killed between the second and the third line of question 1.
    lines = (tmp_path / "run" / "generations.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"question_id":1,' not in line]
    begun = [line for line in lines if '"question_id":1,' in line][:2]
    begun = [line.replace('"worker":0', '"worker":1') for line in begun]
    assert len(kept) == 4
    assert '"worker":1' in begun[0]
    (tmp_path / "run" / "generations.jsonl").write_text("".join(kept + begun))
    crew = HereCrew(benches)
    found = run(crew, benches, tmp_path / "run", resume=True)
    assert crew.dealt == [(1, 1)], "worker 1 has begun it: a ratio must not span two devices"
    assert answers(found) == answers(whole)
    assert one_worker_a_prompt(found)


def test_an_interrupted_run_deals_no_more_and_writes_what_comes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    benches, stop = make_benches(), Interruption()
    crew = HereCrew(benches)

    def signal_once() -> None:
        crew.on_wait = lambda: None
        stop.heard(2, None)

    crew.on_wait = signal_once
    with pytest.raises(KeyboardInterrupt):
        run(crew, benches, tmp_path / "run", interruption=stop)
    assert "interrupted: finishing questions 1, 2; press Ctrl-C again" in capfd.readouterr().err
    before = read_run(tmp_path / "run")
    assert set(before.generations["question_id"]) == {1, 2}, "what ran is written, no more is dealt"
    assert before.manifest.status == "interrupted"
    found = run(HereCrew(benches), benches, tmp_path / "run", resume=True)
    assert answers(found) == answers(alone(tmp_path / "whole"))


WRITING = {module.__file__ for module in (dealing, files, store)}
PROMPTS = [Round(Question(n, "qa", ("w5",)), 0, 0, ("vanilla", "kangaroo")) for n in (1, 2)]


class Knows:
    """Workers that know every answer and give those that a unit lacks, one unit after the other."""

    def __init__(self) -> None:
        self._asked: list[tuple[int, Unit]] = []
        self.gave: list[GenerationKey] = []

    def start(self, worker: int) -> None: ...

    def ask(self, worker: int, unit: Unit) -> None:
        self._asked.append((worker, unit))

    def wait(self) -> Event:
        worker, unit = self._asked.pop(0)
        ledger = MemoryLedger(unit.finished, unit.judged)
        for item in unit.rounds:
            for method in missing(item, ledger):
                answer, steps = make_answer(item.question.question_id, method)
                ledger.append(replace(answer, worker=worker), steps)
                self.gave.append(answer.key)
            for answer in unjudged(item, ledger):
                ledger.judge(make_judgement(answer.key))
        return Answered(worker, ledger.answers, ledger.verdicts)


@contextmanager
def ctrl_c_before(line: int) -> Iterator[None]:
    """Ctrl-C comes before the line number ``line`` of all that deal and write, as they are run."""
    left = line

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        del argument
        if frame.f_code.co_filename not in WRITING:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def deal(crew: Knows, folder: Path, *, resume: bool, ctrl_c: int = 0) -> bool:
    """Whether the run was done before Ctrl-C came at that line, if at any."""
    with suppress(KeyboardInterrupt):
        with (RunWriter.resume if resume else RunWriter.create)(folder, make_manifest()) as writer:
            dealer = Dealer(
                crew=crew,
                manifests=[make_manifest()] * 2,
                writer=writer,
                say=print,
                on_finished=lambda _: None,
                interruption=Interruption(),
            )
            units = open_units(PROMPTS, writer, greedy=True)
            with ctrl_c_before(ctrl_c):
                dealer.run(units)
        return True
    return False


def test_wherever_a_second_ctrl_c_comes_what_is_written_stays_and_the_rest_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # half of the time, for hundreds of folders
    crew = Knows()
    assert deal(crew, tmp_path / "whole", resume=False)
    whole, seen = crew.gave, dict[Any, int]()
    for line in count(1):
        folder = tmp_path / str(line)
        if deal(Knows(), folder, resume=False, ctrl_c=line):
            break
        before = (folder / GENERATIONS).read_bytes()
        paths = [path for path in folder.iterdir() if path.name != MANIFEST]
        left = frozenset((path.name, path.read_bytes()) for path in paths)
        if left in seen:  # the line before left the very same folder
            continue
        seen[left] = kept = before.count(b"\n")
        again = Knows()
        assert deal(again, folder, resume=True)
        assert again.gave == whole[kept:], f"line {line}: not exactly the missing answers were made"
        assert (folder / GENERATIONS).read_bytes().startswith(before), f"line {line}"
        found = read_run(folder)
        assert len(found.generations) == len(whole)
        assert found.steps["emitted"].sum() == sum(found.generations["new_tokens"] - 1)
        assert sorted(found.judgements["question_id"]) == [1, 2], f"line {line}"
        assert one_worker_a_prompt(found), f"line {line}: a speedup would compare two devices"
    assert set(seen.values()) == {0, 1, 2, 3, 4}, "Ctrl-C has not come between any two answers"


def test_each_worker_warms_up_once(tmp_path: Path) -> None:
    asked = [stub(), stub()]
    benches = [make_bench({"stub": method}, workers=2, warmup=1) for method in asked]
    found = run(HereCrew(benches), benches, tmp_path / "run").generations
    done = found[found["entry"] == "stub"]["worker"].value_counts()
    for worker, method in enumerate(asked):
        assert isinstance(method, Stub)
        assert len(method.prompts) == done[worker] + 1


def changed(record: Manifest, **environment: Any) -> Manifest:
    return replace(record, environment={**record.environment, **environment})


def test_the_manifest_has_the_environment_of_each_worker() -> None:
    records = [manifest(bench) for bench in make_benches()]
    found = merged([records[0], changed(records[1], cpu="abacus")])
    assert found.settings["workers"] == 2
    cpus = [worker["cpu"] for worker in found.environment["workers"]]
    assert cpus == [records[0].environment["cpu"], "abacus"]
    assert found.environment["cpu"] == records[0].environment["cpu"]


def test_different_devices_are_said_aloud() -> None:
    first, second = (manifest(bench) for bench in make_benches())
    assert devices_differ([first, second]) is None
    assert "abacus" in str(devices_differ([first, changed(second, cpu="abacus")]))


def test_workers_that_disagree_are_refused_by_number_and_field() -> None:
    first, second = (manifest(bench) for bench in make_benches())
    second = replace(second, hashes={**second.hashes, "model": "ff"})
    with pytest.raises(UsageError, match=r"worker 1 differs from worker 0: hashes\.model is 'ff'"):
        merged([first, second])


def test_what_a_worker_cannot_load_is_the_users_one_line(tmp_path: Path) -> None:
    questions = save_questions(tmp_path / "questions.jsonl")
    request = Request(
        target=TargetChoice(model=str(save_model(tmp_path)), device="cpu", dtype="int4"),
        questions=QuestionChoice(source=str(questions)),
    )
    (refused,) = [Worker(0, plan_of(request), threads=1).load()]
    assert isinstance(refused, Refused)
    assert "unknown dtype 'int4'" in refused.reason


class Scripted:
    """A crew whose events are given."""

    def __init__(self, *events: Event | None) -> None:
        self._events = list(events)

    def start(self, worker: int) -> None: ...
    def ask(self, worker: int, unit: Unit) -> None: ...
    def wait(self) -> Event | None:
        return self._events.pop(0)


def test_all_workers_are_ready_before_the_first_question() -> None:
    first, second = (manifest(bench) for bench in make_benches())
    crew = Scripted(Ready(1, second), None, Ready(0, first))
    assert load_all(crew, 2) == [first, second]
    with pytest.raises(UsageError, match="no such model"):
        load_all(Scripted(Ready(0, first), Refused(1, "no such model")), 2)
    with pytest.raises(UsageError, match="worker 1 died while it loaded the model"):
        load_all(Scripted(Ready(0, first), Died(1)), 2)


@pytest.mark.parametrize(
    ("nodes", "workers", "each"),
    [
        ([8], 2, 4),
        ([2], 2, 1),
        ([7], 2, 3),
        ([5, 5, 2], 2, 5),
        ([3, 3], 3, 1),
        ([2], 3, 0),
        ([], 1, 0),
    ],
)
def test_cores_are_shared_and_never_split_over_nodes(
    nodes: list[int], workers: int, each: int
) -> None:
    assert cores_each(nodes, workers) == each


class Nodes:
    """What Ray says of a cluster."""

    def __init__(self, *resources: dict[str, float]) -> None:
        self._resources = resources

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": dict(found)} for found in self._resources]


def test_gpus_are_taken_where_there_are_some() -> None:
    both = Nodes({"CPU": 16.0, "GPU": 2.0}, {"CPU": 16.0, "GPU": 2.0})
    found = share_of(both, 4, None)
    assert (found.device, found.threads, found.cpus) == ("cuda", 8, 1)
    assert share_of(both, 4, "cpu").device == "cpu"
    assert share_of(Nodes({"CPU": 4.0}), 2, None).device == "cpu"


@pytest.mark.parametrize(
    ("workers", "device", "reason"),
    [
        (4, None, "--workers 4 needs as many GPUs and the cluster has 2; give --workers 2"),
        (2, "cuda:1", "--device cuda:1: workers get a GPU each"),
    ],
)
def test_a_share_that_cannot_be_is_refused(workers: int, device: str | None, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        share_of(Nodes({"CPU": 8.0, "GPU": 2.0}), workers, device)


def test_without_ray_a_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(UsageError, match=r'pip install "specbench-kangaroo\[ray\]"'),
        cluster.cluster(None, cpus=1),
    ):
        pass


def test_an_address_without_a_cluster_is_refused_at_once() -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        with (
            pytest.raises(UsageError, match=f"no Ray cluster at {address}: .* `ray start --head`"),
            cluster.cluster(address, cpus=1),
        ):
            pass


def test_one_worker_imports_nothing_of_ray(tmp_path: Path) -> None:
    model = save_model(tmp_path)
    questions = save_questions(tmp_path / "questions.jsonl")
    code = f"""
import sys
from specbench_kangaroo.cli.main import main
try:
    main(["run", "--model", {str(model)!r}, "--questions", {str(questions)!r}, "--device", "cpu",
          "--max-new-tokens", "4", "--output", {str(tmp_path / "run")!r}])
except SystemExit as ended:
    assert not ended.code, ended.code
print(sorted(name for name in sys.modules if name == "ray" or ".workers" in name))
"""
    path = {"PYTHONPATH": ":".join(sys.path), "SPECBENCH_CACHE": str(tmp_path / "cache")}
    child = subprocess.run(
        [sys.executable, "-c", code], env=path, capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.splitlines()[-1] == "[]"
