"""Dtype probes that may end their process, the environment record, memory, and the doctor."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from specbench_kangaroo.cli import doctor
from specbench_kangaroo.machine import devices, environment
from specbench_kangaroo.models import catalogue
from specbench_kangaroo.record.errors import UsageError

DIES = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"
WORKS = ""
RAISES = "raise RuntimeError('not implemented for this dtype')"
HANGS = "import time; time.sleep(60)"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPECBENCH_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("code", "works"), [(DIES, False), (RAISES, False), (WORKS, True)])
def test_a_probe_outlives_its_child(
    monkeypatch: pytest.MonkeyPatch, code: str, works: bool
) -> None:
    monkeypatch.setattr(devices, "PROBE", code)
    assert devices.probe_dtype("bfloat16", "cpu") is works


def test_a_probe_is_remembered(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(devices, "PROBE", DIES)
    assert not devices.probe_dtype("bfloat16", "cpu")
    monkeypatch.setattr(subprocess, "run", None)  # calling it now would be a TypeError
    assert not devices.probe_dtype("bfloat16", "cpu"), "every run would pay for the probe"
    record = json.loads(next(cache.glob("probes/*.json")).read_text())
    assert record["exit_status"] == -4, "the record should say that it was SIGILL"


def test_a_busy_machine_is_not_remembered_as_broken(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(devices, "PROBE", HANGS)
    monkeypatch.setattr(devices, "PROBE_TIMEOUT_S", 0.2)
    assert not devices.probe_dtype("bfloat16", "cpu")
    assert not list(cache.glob("probes/*"))


def test_float32_on_the_cpu_is_not_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    assert devices.check_dtype("float32", "cpu") == "float32"


def test_a_broken_dtype_names_those_that_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "PROBE", f"import sys\nif sys.argv[1] == 'bfloat16': {DIES}")
    with pytest.raises(UsageError, match=r"bfloat16.*these do: float32, float16, float64"):
        devices.check_dtype("bfloat16", "cpu")


def test_the_real_probe_runs() -> None:
    child = subprocess.run(
        [sys.executable, "-c", devices.PROBE, "float32", "cpu"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, f"every dtype would be called broken:\n{child.stderr}"


def test_defaults_by_device() -> None:
    assert devices.default_dtype("cpu") == "float32"
    assert devices.default_dtype("cuda:1") == "bfloat16"
    assert devices.default_device() in devices.available_devices()


def test_auto_is_a_device_that_begins_where_the_default_is() -> None:
    assert devices.check_device("auto") == "auto"
    assert devices.main_device("auto") == devices.default_device()
    assert devices.main_device("cuda:1") == "cuda:1"
    with pytest.raises(UsageError, match=r"unknown device 'all'; .*auto, cpu"):
        devices.check_device("all")


def test_memory_is_plausible() -> None:
    assert 10 < devices.rss_mb() <= devices.peak_rss_mb() * 1.05
    assert devices.peak_rss_mb() < 100_000, "wrong unit"


def test_the_environment_can_be_published() -> None:
    record = devices.environment()
    text = json.dumps(record)  # it goes into run.json
    assert platform.node() not in text or len(platform.node()) < 4
    assert str(Path.home()) not in text
    assert record["torch_threads"] >= 1
    assert {"python", "torch", "transformers", "numpy", "platform", "cpu"} <= record.keys()


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True)


def test_only_this_projects_own_commit_is_recorded(tmp_path: Path) -> None:
    assert environment.git_commit(tmp_path) is None
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "file").write_text("one")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    commit = environment.git_commit(tmp_path)
    assert commit is not None
    assert len(commit) == 40
    (tmp_path / "file").write_text("two")
    assert environment.git_commit(tmp_path) == f"{commit}-dirty"
    assert environment.git_commit(tmp_path / "site-packages") is None, (
        "installed inside somebody's repository, we would record their commit as ours"
    )


def test_a_gpu_reading_that_is_not_supported_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    def unsupported(handle: object) -> None:
        raise NVMLError

    fake = SimpleNamespace(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlSystemGetDriverVersion=lambda: "570.1",
        nvmlDeviceGetClockInfo=lambda handle, kind: 1000 + kind,
        nvmlDeviceGetPowerUsage=lambda handle: 350_000,
        nvmlDeviceGetTemperature=lambda handle, sensor: 41,
        nvmlDeviceGetCurrentClocksThrottleReasons=unsupported,
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    assert environment.nvml_state("GPU-x") == {
        "driver": "570.1",
        "sm_clock_mhz": 1001,
        "memory_clock_mhz": 1002,
        "power_w": 350.0,
        "temperature_c": 41,
        "throttle_reasons": None,
    }


def test_the_doctor_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "PROBE", f"import sys\nif sys.argv[1] == 'bfloat16': {DIES}")
    findings = {finding.name: finding for finding in doctor.diagnose()}
    assert "these do not: bfloat16" in findings["dtypes on cpu"].detail
    assert findings["dtypes on cpu"].ok, "the default, float32, works"
    assert "not here yet" in findings["model smollm2-135m"].detail
    assert not catalogue.MODELS["smollm2-135m"].is_present, "a look must not fetch"
    assert findings["cache"].ok


def test_the_doctor_survives_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPECBENCH_CACHE", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(devices, "PROBE", WORKS)
    findings = {finding.name: finding for finding in doctor.diagnose()}
    assert not findings["cache"].ok
    assert "SPECBENCH_CACHE" in findings["cache"].detail
