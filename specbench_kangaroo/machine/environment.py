"""Where a run takes place: versions, processor, GPU state, the commit of this checkout.

No host or user name is recorded: run folders are meant to be published.
"""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from specbench_kangaroo.machine import nvml as telemetry

_PACKAGES = ("torch", "transformers", "numpy")
_CHECKOUT = Path(__file__).resolve().parent.parent


def environment() -> dict[str, Any]:
    """What the manifest keeps of the machine; clocks, power and heat are those of this moment."""
    import torch  # noqa: PLC0415 (keeps `specbench --help` fast)

    return {
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu_model(),
        "cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(logical=True),
        "memory_mb": round(psutil.virtual_memory().total / 2**20),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
        "nvml": telemetry.status(),
        "git_commit": git_commit(),
    }


def cpu_model() -> str:
    """The processor's model name, as specific as the system tells it."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def cpu_flags() -> str:
    """The instruction sets that the processor says it has; empty where the system does not tell."""
    return _cpuinfo().get("flags", "")


def _cpuinfo() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return {}
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, value in fields.items()}


def git_commit(folder: Path = _CHECKOUT) -> str | None:
    """The commit checked out at ``folder``, with ``-dirty`` if tracked files differ from it.

    None for an installed package, even one inside somebody else's repository.
    """
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != folder.resolve():
        return None
    return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    # The variables that a git hook sets would make git look at another repository.
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        return None
    return answer.stdout.strip() or None


def _gpu(index: int) -> dict[str, Any]:
    import torch  # noqa: PLC0415

    properties = torch.cuda.get_device_properties(index)
    known = {"name": properties.name, "memory_mb": round(properties.total_memory / 2**20)}
    return known | nvml_state(telemetry.uuid_of(torch.device("cuda", index)))


def nvml_state(uuid: str) -> dict[str, Any]:
    """Driver, clocks (MHz), power (W), temperature (°C) and throttle reasons of a GPU.

    Empty where NVML cannot be asked; a reading that the device does not support is None.
    """
    try:
        nvml = telemetry.open_nvml(uuid)
    except telemetry.NvmlMissingError:  # the environment's "nvml" says why
        return {}
    state = nvml.state()
    return {
        "driver": nvml.driver,
        "sm_clock_mhz": state.sm_mhz,
        "memory_clock_mhz": state.mem_mhz,
        "power_w": state.power_w,
        "temperature_c": state.temperature_c,
        "throttle_reasons": state.throttle if state.throttle is None else list(state.throttle),
    }
