"""Devices and number formats that work on this machine, and the memory this process uses."""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import psutil

from specbench_kangaroo.machine.cache_folder import cache_folder, remember
from specbench_kangaroo.machine.environment import cpu_flags, cpu_model, environment
from specbench_kangaroo.record.errors import UsageError, look_up

__all__ = [
    "AUTO",
    "DTYPES",
    "available_devices",
    "check_device",
    "check_dtype",
    "default_device",
    "default_dtype",
    "environment",
    "main_device",
    "peak_rss_mb",
    "probe_dtype",
    "rss_mb",
    "working_dtypes",
]

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
    memory = _memory(dtype, device)
    if memory.exists():
        return bool(json.loads(memory.read_text())["works"])
    command = [sys.executable, "-c", PROBE, dtype, device]
    try:
        child = subprocess.run(command, capture_output=True, timeout=PROBE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return False  # not remembered: the machine may only have been busy
    works = child.returncode == 0
    answer = {"works": works, "dtype": dtype, "device": device, "exit_status": child.returncode}
    remember(memory, json.dumps(answer))
    return works


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


def rss_mb() -> float:
    """Resident memory of this process in MiB now."""
    return float(psutil.Process().memory_info().rss) / 2**20


def _memory(dtype: str, device: str) -> Path:
    """The file that keeps a probe's answer for this processor or GPU and this torch."""
    # A virtual machine's model name may be as short as "AMD EPYC": its flags tell it from others.
    hardware = _gpu_name(device) if device.startswith("cuda") else f"{cpu_model()} {cpu_flags()}"
    key = "\n".join((dtype, device, hardware, version("torch"), PROBE))
    return cache_folder() / "probes" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _gpu_name(device: str) -> str:
    import torch  # noqa: PLC0415

    return torch.cuda.get_device_name(device)
