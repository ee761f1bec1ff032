"""What this machine is and can compute: versions, processor, GPUs, number formats, memory.

No host or user name is recorded: run folders are meant to be published.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from specbench_kangaroo.machine import nvml as telemetry
from specbench_kangaroo.machine.cache_folder import remembered
from specbench_kangaroo.record.errors import UsageError, look_up

_PACKAGES = ("torch", "transformers", "numpy")
_CHECKOUT = Path(__file__).resolve().parents[2]
AUTO = "auto"  # a model larger than one device: as many as it needs
DTYPES = ("float32", "bfloat16", "float16", "float64")
PROBE_TIMEOUT_S = 180  # the first use of a GPU can take a minute
# The shapes of decoding: one row, a few rows, a prompt, a vector, packed weights, and attention.
PROBE = """
import resource, sys, torch
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
dtype, device = getattr(torch, sys.argv[1]), sys.argv[2]
weight = torch.ones(512, 576, dtype=dtype, device=device)
for rows in (1, 8, 512):
    product = torch.nn.functional.linear(torch.ones(rows, 576, dtype=dtype, device=device), weight)
    assert product.float().eq(576).all()
assert torch.mv(weight, torch.ones(576, dtype=dtype, device=device)).float().eq(576).all()
try:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 8)
    row = torch.ones(1, 576, dtype=dtype, device=device)
    torch.ops.mkldnn._linear_pointwise(row, packed, None, "none", [], "")
except (AttributeError, RuntimeError):
    pass  # the engine then uses plain products
query = torch.ones(1, 9, 8, 64, dtype=dtype, device=device)
attended = torch.nn.functional.scaled_dot_product_attention(query, query, query)
assert torch.isfinite(attended).all()
"""


def probe_dtype(dtype: str, device: str) -> bool:
    """Whether matrix products of ``dtype`` work on ``device``; the answer is kept in the cache.

    A child process tries, because a virtual machine may offer bfloat16 instructions that it does
    not have: the product then ends the process with SIGILL, and no exception can be caught.
    """
    if device == "cpu" and dtype in ("float32", "float64"):
        return True
    key = "\n".join((dtype, device, _hardware(device), version("torch"), PROBE))
    try:
        answer = remembered("probes", key, lambda: _probe(dtype, device))
    except subprocess.TimeoutExpired:
        return False  # not remembered: the machine may only have been busy
    return bool(json.loads(answer)["works"])


def _probe(dtype: str, device: str) -> str:
    command = [sys.executable, "-c", PROBE, dtype, device]
    child = subprocess.run(command, capture_output=True, timeout=PROBE_TIMEOUT_S, check=False)
    works, status = child.returncode == 0, child.returncode
    return json.dumps({"works": works, "dtype": dtype, "device": device, "exit_status": status})


def _hardware(device: str) -> str:
    if not device.startswith("cuda"):
        # A virtual machine's model name may be as short as "AMD EPYC": its flags say more.
        return f"{cpu_model()} {_cpuinfo().get('flags', '')}"
    import torch  # noqa: PLC0415

    return torch.cuda.get_device_name(device)


def working_dtypes(device: str) -> tuple[str, ...]:
    """Those of ``DTYPES`` that work on ``device``; may start a child process for each."""
    return tuple(dtype for dtype in DTYPES if probe_dtype(dtype, device))


def check_dtype(dtype: str, device: str) -> str:
    """``dtype`` if it works on ``device``.

    Raises:
        UsageError: the name is unknown or its products do not work there; lists those that do.
    """
    look_up("dtype", dtype, dict.fromkeys(DTYPES))
    if not probe_dtype(dtype, device):
        raise UsageError(
            f"{dtype} products do not work on {device} here; "
            f"these do: {', '.join(working_dtypes(device)) or 'none'}"
        )
    return dtype


def default_dtype(device: str) -> str:
    """bfloat16 on a CUDA device, float32 elsewhere."""
    return "bfloat16" if device.startswith("cuda") else "float32"


def default_device() -> str:
    """The first CUDA device if there is one, else the CPU."""
    return "cuda" if "cuda" in available_devices() else "cpu"


def available_devices() -> tuple[str, ...]:
    """``cpu``, and ``cuda``, ``cuda:0``, … where torch can use them."""
    import torch  # noqa: PLC0415 (keeps `specbench --help` fast)

    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return ("cpu", *(["cuda"] if gpus else []), *(f"cuda:{index}" for index in gpus))


def check_device(device: str) -> str:
    """``device`` if this machine has it, or ``auto``.

    Raises:
        UsageError: it has not; lists those that it has.
    """
    look_up("device", device, dict.fromkeys((*available_devices(), AUTO)))
    return device


def main_device(device: str) -> str:
    """Where a model on ``device`` begins: with ``auto`` it is the default device."""
    return default_device() if device == AUTO else device


def peak_rss_mb() -> float:
    """Peak resident memory of this process in MiB since it started."""
    try:  # Linux: getrusage would report a large parent's peak as ours, which exec passes on
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)


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
