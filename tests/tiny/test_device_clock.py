"""CUDA events and device gauges: by fakes what they are asked and when, on a GPU what they cost."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from specbench_kangaroo.bench import generation, runner
from specbench_kangaroo.bench.runner import execute
from specbench_kangaroo.bench.setup import manifest
from specbench_kangaroo.engine import clock
from specbench_kangaroo.engine.clock import CudaClock, clock_for
from specbench_kangaroo.engine.cuda_graphs import CudaCapturer
from specbench_kangaroo.engine.decode import Limits, decode
from specbench_kangaroo.engine.method import MethodOptions
from specbench_kangaroo.engine.target import Target
from specbench_kangaroo.machine import nvml as telemetry
from specbench_kangaroo.models.shapes import random_model, shape_named
from specbench_kangaroo.record.reader import read_device_log
from specbench_kangaroo.record.schema import AFTER, BEFORE
from specbench_kangaroo.record.writer import RunWriter, read_run
from specbench_methods.vanilla import Vanilla
from tests.unit.nvml import UUID, fake_nvml

from .bench import FAMILY, Stub, make_bench
from .models import target

CUDA = torch.device("cuda", 1)


class FakeEvents:
    """Stands in for ``torch.cuda``: events that keep the time at which they were recorded."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self.made = 0
        self.waited = 0
        self.streams: list[Any] = []

    def event(self, *, enable_timing: bool) -> Any:
        assert enable_timing
        self.made += 1
        found = SimpleNamespace(at_ms=-1.0)

        def record(stream: Any) -> None:
            self.streams.append(stream)
            found.at_ms = self.now_ms

        def synchronize() -> None:
            self.waited += 1

        found.record, found.synchronize = record, synchronize
        found.elapsed_time = lambda other: other.at_ms - found.at_ms
        return found


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> FakeEvents:
    fake = FakeEvents()
    monkeypatch.setattr(clock, "_EVENTS_AT_HAND", 8)
    monkeypatch.setattr(CudaClock, "_pools", {})
    monkeypatch.setattr(torch.cuda, "Event", fake.event)
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda device: SimpleNamespace(device=device, of=device)
    )
    return fake


def stamped(events: FakeEvents, times_ms: list[float]) -> list[float]:
    found = clock_for(CUDA)
    for at_ms in times_ms:
        events.now_ms = at_ms
        found.stamp()
    assert not events.waited, "a stamp must not wait for the device"
    return found.read()


def test_stamps_are_milliseconds_from_the_first(events: FakeEvents) -> None:
    assert stamped(events, [7.0, 7.5, 10.0]) == [0.0, 0.5, 3.0]
    assert events.waited == 1, "one synchronisation a generation"


def test_events_go_into_the_stream_of_the_targets_device(events: FakeEvents) -> None:
    stamped(events, [0.0, 1.0])
    assert {stream.of for stream in events.streams} == {CUDA}, (
        "on a machine with several GPUs the clock would time another one's stream"
    )


def test_events_are_made_before_the_first_stamp_and_used_again(events: FakeEvents) -> None:
    found = clock_for(CUDA)
    made = events.made
    assert made == 8
    for _ in range(5):
        found.stamp()
    found.read()
    stamped_events = stamped_again(events)
    assert events.made == made, "making an event costs more than recording one"
    assert stamped_events == [0.0] * 8


def stamped_again(events: FakeEvents) -> list[float]:
    found = clock_for(CUDA)
    for _ in range(8):
        found.stamp()
    events.waited = 0
    return found.read()


def test_an_answer_longer_than_the_pool_still_has_its_stamps(events: FakeEvents) -> None:
    assert stamped(events, [float(i) for i in range(20)]) == [float(i) for i in range(20)]


def test_a_failed_generations_stamps_are_not_the_next_ones(events: FakeEvents) -> None:
    clock_for(CUDA).stamp()
    assert stamped(events, [3.0, 4.0]) == [0.0, 1.0]


# --- gauges ---


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A GPU that torch and NVML agree on by UUID, seen through CUDA_VISIBLE_DEVICES."""
    fake = fake_nvml()
    fake.peak_bytes, fake.resets = 0, 0

    def reset(device: torch.device) -> None:
        fake.resets += 1

    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda device: SimpleNamespace(uuid=UUID.removeprefix("GPU-")),
    )
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: fake.peak_bytes)
    telemetry.nvml_of.cache_clear()
    yield fake
    telemetry.nvml_of.cache_clear()


def test_a_gauge_reads_energy_and_the_peak_of_memory(gpu: SimpleNamespace) -> None:
    gauge = telemetry.Gauge(CUDA)
    gpu.energy_mj += 26_500
    gpu.peak_bytes = 300 * 2**20
    assert gauge.read() == telemetry.Usage(energy_j=26.5, peak_device_mb=300.0)
    assert gpu.resets == 1, "the peak would be another generation's"


def test_a_counter_that_began_anew_is_not_measured(gpu: SimpleNamespace) -> None:
    gauge = telemetry.Gauge(CUDA)
    gpu.energy_mj = 5
    assert gauge.read().energy_j is None


def test_a_gpu_without_nvml_still_tells_its_memory(
    gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    gpu.peak_bytes = 2**20
    assert telemetry.Gauge(CUDA).read() == telemetry.Usage(None, 1.0)


def test_a_cpu_tells_nothing() -> None:
    assert telemetry.Gauge(torch.device("cpu")).read() == telemetry.Usage()
    assert telemetry.nvml_of(torch.device("cpu")) is None


def test_one_line_says_whether_nvml_is_there(
    gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert telemetry.status() == "driver 570.1, energy counter"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert telemetry.status().startswith("not available: nvidia-ml-py is not installed")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert telemetry.status() == "not available: no CUDA device"


# --- in a run ---


def test_energy_is_read_outside_the_stamps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Watched(clock.WallClock):
        def stamp(self) -> None:
            order.append("stamp")
            super().stamp()

        def read(self) -> list[float]:
            order.append("read-out")
            return super().read()

    class Gauge:
        def __init__(self, device: torch.device) -> None:
            order.append("before")

        def read(self) -> telemetry.Usage:
            order.append("after")
            return telemetry.Usage(2.5, 30.0)

    monkeypatch.setattr(generation, "clock_for", lambda device: Watched())
    monkeypatch.setattr(generation, "Gauge", Gauge)
    bench = make_bench()
    with RunWriter.create(tmp_path / "run", manifest(bench, name="run", command="")) as writer:
        execute(bench, writer, on_finished=lambda _: None)
    found = read_run(tmp_path / "run").generations
    assert set(found["energy_j"]) == {2.5}
    assert set(found["peak_device_mb"]) == {30.0}
    text = " ".join(order)
    for answer in text.split("after")[:-1]:
        words = answer.split()
        assert words[0] == "before"
        assert words[-1] == "read-out"
        assert set(words[1:-1]) == {"stamp"}, f"something was read within the span: {words}"


def test_the_device_is_noted_at_the_edges_of_every_block(
    tmp_path: Path, gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "nvml_of", lambda device: telemetry.open_nvml(UUID))
    bench = make_bench({"stub": Stub(target(FAMILY))})
    with RunWriter.create(tmp_path / "run", manifest(bench, name="run", command="")) as writer:
        execute(bench, writer, on_finished=lambda _: None)
    edges = read_device_log(tmp_path / "run")
    assert [item.edge for item in edges] == [BEFORE, AFTER] * 4
    asked = [(item.question_id, item.turn) for item in edges[::2]]
    assert asked == [(1, 0), (1, 1), (2, 0), (3, 0)]
    with RunWriter.resume(tmp_path / "run", manifest(bench, name="run", command="")) as writer:
        execute(bench, writer, on_finished=lambda _: None)
    assert read_device_log(tmp_path / "run") == edges, "nothing was left to measure"


# --- on a GPU ---


class Silent:
    """Counts stamps and asks the device nothing."""

    def __init__(self) -> None:
        self._count = 0

    def stamp(self) -> None:
        self._count += 1

    def read(self) -> list[float]:
        count, self._count = self._count, 0
        return [0.0] * count


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["eager", "graph"])
def test_stamps_cost_at_most_one_percent(backend: str) -> None:
    """The default model's size, whose steps are short; those of graphs are the shortest."""
    device = torch.device("cuda", 0)
    model = random_model(shape_named("smollm2-135m"), dtype="bfloat16", device="cuda:0")
    engine = Target(model, capturer=CudaCapturer(device) if backend == "graph" else None)
    vanilla = Vanilla(MethodOptions())
    limits = Limits(max_new_tokens=128, eos=frozenset())

    def seconds(of: Any) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        decode(engine, vanilla, list(range(40, 80)), limits=limits, clock=of)
        torch.cuda.synchronize()
        return time.perf_counter() - start

    clocks: dict[str, Any] = {"events": clock_for(device), "none": Silent()}
    times: dict[str, list[float]] = {name: [] for name in clocks}
    for _ in range(21):  # in turns; the first round warms up
        for name, of in clocks.items():
            times[name].append(seconds(of))
    overhead = min(times["events"][1:]) / min(times["none"][1:]) - 1
    assert overhead <= 0.01, f"stamps and their read-out cost {overhead:.1%} of a generation"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_found_by_its_uuid() -> None:
    pytest.importorskip("pynvml")
    found = telemetry.nvml_of(torch.device("cuda", 0))
    assert found is not None, telemetry.status()
    state = found.state()
    assert state.temperature_c is None or 0 < state.temperature_c < 120
    gauge = telemetry.Gauge(torch.device("cuda", 0))
    torch.ones(2**22, device="cuda").sum().item()
    assert (gauge.read().peak_device_mb or 0) >= 16
