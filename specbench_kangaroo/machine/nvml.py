"""What a GPU says of itself through NVML: power, clocks, heat, why it is held back, energy used.

Devices are found by UUID, as CUDA_VISIBLE_DEVICES renumbers torch's devices and not NVML's.  No
call here waits for the device, and none belongs into a timed span: each takes up to a millisecond.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Bits of nvmlDeviceGetCurrentClocksEventReasons (nvml.h); fixed, as drivers are older than headers.
REASONS: Mapping[int, str] = {
    0x001: "gpu_idle",
    0x002: "applications_clocks_setting",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}


class NvmlMissingError(Exception):
    """NVML cannot be asked about a device; the message says why, in a few words."""


@dataclass(frozen=True, slots=True)
class DeviceState:
    """A GPU at one moment; None is what it does not tell.

    ``throttle`` names, by :data:`REASONS`, what keeps the clocks down; empty when nothing does.
    """

    power_w: float | None
    sm_mhz: int | None
    mem_mhz: int | None
    temperature_c: int | None
    throttle: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a device spent on something; None is what it does not tell."""

    energy_j: float | None = None
    peak_device_mb: float | None = None


class Nvml:
    """Readings of one GPU.

    Args:
        module: ``pynvml``, initialised.
        handle: its handle of the device.
    """

    def __init__(self, module: Any, handle: Any) -> None:
        self._module = module
        self._handle = handle
        # The newer name of the same call; only one of them is in very old and very new releases.
        newer = getattr(module, "nvmlDeviceGetCurrentClocksEventReasons", None)
        self._reasons = newer or getattr(module, "nvmlDeviceGetCurrentClocksThrottleReasons", None)

    @property
    def driver(self) -> str | None:
        """The driver's version."""
        version = self._reading(self._module.nvmlSystemGetDriverVersion)
        return version.decode() if isinstance(version, bytes) else version  # bytes: before 12

    def energy_j(self) -> float | None:
        """Joules since the driver was loaded; None before Volta and for a part of a GPU (MIG)."""
        used_mj = self._of_device("nvmlDeviceGetTotalEnergyConsumption")
        return None if used_mj is None else used_mj / 1000

    def state(self) -> DeviceState:
        """The device now."""
        module = self._module
        power_mw = self._of_device("nvmlDeviceGetPowerUsage")
        return DeviceState(
            power_w=None if power_mw is None else power_mw / 1000,
            sm_mhz=self._of_device("nvmlDeviceGetClockInfo", module.NVML_CLOCK_SM),
            mem_mhz=self._of_device("nvmlDeviceGetClockInfo", module.NVML_CLOCK_MEM),
            temperature_c=self._of_device("nvmlDeviceGetTemperature", module.NVML_TEMPERATURE_GPU),
            throttle=self._throttle(),
        )

    def _throttle(self) -> tuple[str, ...] | None:
        reasons = self._reasons
        mask = None if reasons is None else self._reading(lambda: reasons(self._handle))
        if mask is None:
            return None
        known = tuple(name for bit, name in REASONS.items() if mask & bit)
        unknown = mask & ~sum(REASONS)
        return (*known, f"unknown_0x{unknown:x}") if unknown else known

    def _of_device(self, name: str, *arguments: Any) -> Any:
        read = getattr(self._module, name, None)
        return None if read is None else self._reading(lambda: read(self._handle, *arguments))

    def _reading(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except self._module.NVMLError:  # not supported, or the device was lost
            return None


def open_nvml(uuid: str) -> Nvml:
    """Ask for the GPU of this UUID.

    Raises:
        NvmlMissingError: nvidia-ml-py is not installed, or it finds no driver or no such device.
    """
    try:
        module = importlib.import_module("pynvml")
    except ImportError:
        raise NvmlMissingError(
            "nvidia-ml-py is not installed; pip install specbench-kangaroo[nvidia]"
        ) from None
    try:
        module.nvmlInit()  # counted, so that it may be called again
        return Nvml(module, module.nvmlDeviceGetHandleByUUID(uuid))
    except module.NVMLError as error:
        raise NvmlMissingError(str(error) or type(error).__name__) from error


def uuid_of(device: torch.device) -> str:
    """The UUID of a CUDA device in NVML's spelling."""
    import torch  # noqa: PLC0415

    known = str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))
    return known if known.startswith(("GPU-", "MIG-")) else f"GPU-{known}"


def status() -> str:
    """One line for people: what NVML gives of the GPU here, or "not available: " and why."""
    import torch  # noqa: PLC0415

    if not torch.cuda.is_available():
        return "not available: no CUDA device"
    try:
        nvml = open_nvml(uuid_of(torch.device("cuda", 0)))
    except NvmlMissingError as reason:
        return f"not available: {reason}"
    counter = "energy counter" if nvml.energy_j() is not None else "no energy counter"
    return f"driver {nvml.driver}, {counter}"


@cache
def nvml_of(device: torch.device) -> Nvml | None:
    """NVML of a device, None where there is none; asked for once in a process."""
    if device.type != "cuda":
        return None
    try:
        return open_nvml(uuid_of(device))
    except NvmlMissingError:
        return None


class Gauge:
    """What a device spends from the making of this object to :meth:`read`.

    Both are for outside of timed spans: the first before the first stamp, the other after the
    clock's read-out, which has waited for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._nvml = nvml_of(device)
        if device.type == "cuda":
            import torch  # noqa: PLC0415

            torch.cuda.reset_peak_memory_stats(device)
        self._start_j = self._energy_j()

    def read(self) -> Usage:
        """Energy of the whole device, whoever used it, and this process's peak of its memory."""
        end_j = self._energy_j()
        used_j = None if self._start_j is None or end_j is None else end_j - self._start_j
        if used_j is not None and used_j < 0:  # the driver was loaded again
            used_j = None
        if self._device.type != "cuda":
            return Usage(energy_j=used_j)
        import torch  # noqa: PLC0415

        peak_mb = round(torch.cuda.max_memory_allocated(self._device) / 2**20, 1)
        return Usage(energy_j=used_j, peak_device_mb=peak_mb)

    def _energy_j(self) -> float | None:
        return None if self._nvml is None else self._nvml.energy_j()
