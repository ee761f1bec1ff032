"""NVML behind a fake of its module: readings, block edges, and what a report makes of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from specbench_kangaroo.bench.questions import Question
from specbench_kangaroo.bench.runner import append_edges, edge_now
from specbench_kangaroo.bench.schedule import Round
from specbench_kangaroo.machine import nvml as telemetry
from specbench_kangaroo.record.reader import DEVICE, read_device_log
from specbench_kangaroo.record.schema import AFTER, BEFORE, BlockEdge
from specbench_kangaroo.record.writer import RunWriter, read_run
from specbench_kangaroo.report.details import device_notes
from specbench_kangaroo.report.sections import report_of
from specbench_kangaroo.stats.device_health import health
from specbench_kangaroo.stats.summary import summarise, to_json
from tests.changes import replace
from tests.unit.nvml import UUID, NVMLError, fake_nvml
from tests.unit.runs import make_generation, make_manifest, make_run, make_steps

BLOCK = Round(Question(7, "qa", ("?",)), 1, 2, ("vanilla",))


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    fake = fake_nvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def note(folder: Path, place: str, *, worker: int = 0) -> None:
    """Write the device's state down as a run does."""
    now = edge_now(telemetry.open_nvml(UUID), BLOCK, place)
    append_edges(folder, [replace(now, worker=worker)])


def edge(place: str = AFTER, **changes: Any) -> BlockEdge:
    plain = BlockEdge("2026-11-01T00:00:00Z", 1, 0, 0, place, 300.0, 1980, 3201, 41, ())
    return replace(plain, **changes)


# --- readings ---


def test_a_state_is_in_watts_megahertz_and_degrees(nvml: SimpleNamespace) -> None:
    assert telemetry.open_nvml(UUID).state() == telemetry.DeviceState(350.5, 1980, 3201, 41, ())


def test_reasons_have_names_and_an_unknown_one_its_number(nvml: SimpleNamespace) -> None:
    nvml.mask = 0x4 | 0x40 | 0x1000
    found = telemetry.open_nvml(UUID).state().throttle
    assert found == ("sw_power_cap", "hw_thermal_slowdown", "unknown_0x1000")


def test_energy_is_in_joules(nvml: SimpleNamespace) -> None:
    assert telemetry.open_nvml(UUID).energy_j() == 5000.0


@pytest.mark.parametrize(
    ("call", "field"),
    [
        ("nvmlDeviceGetPowerUsage", "power_w"),
        ("nvmlDeviceGetTemperature", "temperature_c"),
        ("nvmlDeviceGetCurrentClocksEventReasons", "throttle"),
    ],
)
def test_what_a_gpu_does_not_tell_is_none(
    call: str, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(call))
    state = telemetry.open_nvml(UUID).state()
    assert getattr(state, field) is None
    assert state.sm_mhz == 1980, "one missing reading must not cost the others"


def test_an_energy_counter_that_is_missing_is_not_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_nvml("nvmlDeviceGetTotalEnergyConsumption")
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    assert telemetry.open_nvml(UUID).energy_j() is None


def test_an_older_release_has_the_reasons_under_their_older_name() -> None:
    older = SimpleNamespace(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: 0x8,
        nvmlDeviceGetClockInfo=lambda handle, kind: 1,
    )
    assert telemetry.Nvml(older, "handle").state().throttle == ("hw_slowdown",)


def test_nvml_without_its_package_or_device_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as if it were not installed
    with pytest.raises(telemetry.NvmlMissingError, match=r"pip install .*\[nvidia\]"):
        telemetry.open_nvml(UUID)
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(uuid="GPU-other"))
    with pytest.raises(telemetry.NvmlMissingError, match="Not Found"):
        telemetry.open_nvml(UUID)


# --- block edges ---


def test_a_block_edge_has_its_place_and_the_device(nvml: SimpleNamespace, tmp_path: Path) -> None:
    nvml.mask = 0x4
    note(tmp_path, BEFORE, worker=3)
    note(tmp_path, AFTER, worker=3)
    before, after = read_device_log(tmp_path)
    assert (before.question_id, before.turn, before.repeat, before.worker) == (7, 1, 2, 3)
    assert (before.edge, after.edge) == (BEFORE, AFTER)
    assert (before.power_w, before.sm_mhz, before.mem_mhz, before.temperature_c) == (
        *(350.5, 1980),
        *(3201, 41),
    )
    assert list(before.throttle or ()) == ["sw_power_cap"]
    assert before.time <= after.time


def test_without_edges_a_run_folder_has_no_device_file(tmp_path: Path) -> None:
    append_edges(tmp_path, [])
    assert not list(tmp_path.iterdir())
    assert read_device_log(tmp_path) == ()


def test_a_resumed_run_appends_after_a_torn_line(nvml: SimpleNamespace, tmp_path: Path) -> None:
    note(tmp_path, BEFORE)
    with (tmp_path / DEVICE).open("ab") as file:
        file.write(b'{"time": "2026-11')
    assert len(read_device_log(tmp_path)) == 1, "a kill within a line must not cost the report"
    note(tmp_path, AFTER)
    assert [item.edge for item in read_device_log(tmp_path)] == [BEFORE, AFTER]


# --- what a report says ---


def test_a_steady_device_is_not_worth_a_line() -> None:
    found = health([edge(), edge(sm_mhz=1900), edge(throttle=("gpu_idle",))])
    assert found is not None
    assert found.steady
    assert device_notes(found) == ()
    assert device_notes(health([])) == (), "not measured is no warning"


def test_throttling_for_heat_or_power_is_counted_and_named() -> None:
    found = health([edge(throttle=("sw_power_cap", "gpu_idle")), edge(BEFORE), edge()])
    assert found is not None
    assert (found.throttled, found.edges, dict(found.reasons)) == (1, 3, {"sw_power_cap": 1})
    (note,) = device_notes(found)
    assert "throttled for heat or power (sw_power_cap) at 1 of 3 block edges" in note.text


def test_a_clock_that_moved_more_than_5_percent_is_told() -> None:
    (note,) = device_notes(health([edge(), edge(sm_mhz=1600)]))
    assert "between 1600 and 1980 MHz (19%)" in note.text


def test_an_idle_device_before_its_first_block_has_not_moved_its_clock() -> None:
    found = health([edge(BEFORE, sm_mhz=345), edge(), edge(sm_mhz=None)])
    assert found is not None
    assert found.sm_change == 0


def test_devices_of_different_speed_are_no_movement() -> None:
    found = health([edge(sm_mhz=1980, worker=0), edge(sm_mhz=1410, worker=1)])
    assert found is not None
    assert found.steady, "each worker has a device of its own"


# --- energy in a run's figures ---


@pytest.fixture
def measured(tmp_path: Path) -> Iterator[Path]:
    """Vanilla's answers take 26 J for 13 tokens, kangaroo's 13; one of each was not measured."""
    with RunWriter.create(tmp_path / "run", make_manifest()) as writer:
        for question in range(4):
            for method, joules in (("vanilla", 26.0), ("kangaroo", 13.0)):
                steps = make_steps(method)
                told = {"energy_j": joules if question else None, "peak_device_mb": 300.5}
                writer.append(make_generation(method, question, steps=steps, **told), steps)
    return tmp_path / "run"


def test_energy_per_token_is_over_measured_answers_alone(measured: Path) -> None:
    summary = summarise(read_run(measured))
    tokens = {name: len(make_steps(name)) for name in ("vanilla", "kangaroo")}
    assert tokens["vanilla"] == 12
    for method, joules in (("vanilla", 2.0), ("kangaroo", 1.0)):
        figure = summary.entries[method].tasks["overall"].estimates["joules_per_token"]
        assert figure.value == pytest.approx(joules), f"{method}: {figure}"
        assert figure.low is not None, "a figure without an interval"
    assert to_json(summary)["entries"]["kangaroo"]["peak_device_mb"] == 300.5


def test_energy_stands_in_the_details_of_a_method(measured: Path) -> None:
    report = report_of(summarise(read_run(measured)), with_details=True)
    headings = [[c.heading.text for c in s.sheet.columns] for s in report.sections]
    assert any("J per token" in of and "base J per token" in of for of in headings)
    assert any("J per token" in text for text in report.captions)
    assert any(
        "peak memory on the device, MiB: vanilla 300, kangaroo 300" in text
        for text in report.captions
    )
    for section in report.sections:
        assert {len(row) for row in section.sheet.rows} == {len(section.sheet.columns)}


def test_a_run_without_measured_energy_says_nothing_of_it(tmp_path: Path) -> None:
    found = read_run(make_run(tmp_path / "run"))
    document = to_json(summarise(found))
    overall = document["entries"]["vanilla"]["tasks"]["overall"]
    assert not [key for key in overall if "joules" in key], "absent, not 0 and not null"
    assert "peak_device_mb" not in document["entries"]["vanilla"]
    assert "device_health" not in document
    texts = " ".join(report_of(summarise(found), with_details=True).captions)
    assert "J per token" not in texts


def test_a_throttled_run_is_warned_of_in_every_report(
    measured: Path, nvml: SimpleNamespace
) -> None:
    nvml.mask = 0x20
    note(measured, AFTER)
    summary = summarise(read_run(measured))
    assert to_json(summary)["device_health"]["reasons"] == {"sw_thermal_slowdown": 1}
    closing = report_of(summary, with_details=False).closing
    assert any("sw_thermal_slowdown" in note.text for note in closing)
