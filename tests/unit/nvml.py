"""A stand-in for the module ``pynvml`` and one GPU that it knows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

UUID = "GPU-11111111-2222"


class NVMLError(Exception):
    pass


def fake_nvml(*broken: str, uuid: str = UUID) -> SimpleNamespace:
    """The calls that we use; those named in ``broken`` are not supported by this GPU.

    ``energy_mj`` and ``mask``, of throttle reasons, are what it says and may be changed.
    """
    fake = SimpleNamespace(NVMLError=NVMLError, energy_mj=5_000_000, mask=0)
    fake.NVML_CLOCK_SM, fake.NVML_CLOCK_MEM, fake.NVML_TEMPERATURE_GPU = 1, 2, 0

    def handle_of(asked: str) -> str:
        if asked != uuid:
            raise NVMLError("Not Found")
        return "handle"

    def refuse(*_: Any) -> None:
        raise NVMLError("Not Supported")

    fake.nvmlInit = lambda: None
    fake.nvmlSystemGetDriverVersion = lambda: "570.1"
    fake.nvmlDeviceGetHandleByUUID = handle_of
    fake.nvmlDeviceGetPowerUsage = lambda handle: 350_500
    fake.nvmlDeviceGetClockInfo = lambda handle, kind: {1: 1980, 2: 3201}[kind]
    fake.nvmlDeviceGetTemperature = lambda handle, sensor: 41
    fake.nvmlDeviceGetCurrentClocksEventReasons = lambda handle: fake.mask
    fake.nvmlDeviceGetTotalEnergyConsumption = lambda handle: fake.energy_mj
    for name in broken:
        setattr(fake, name, refuse)
    return fake
