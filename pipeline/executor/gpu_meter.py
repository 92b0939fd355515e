"""How busy a worker's GPU is and how full its memory is, as NVIDIA's driver (NVML) reports them.

This needs the package nvidia-ml-py (the extra `gpu`). Without it, without a driver, or where the driver does not know,
as for slices of a GPU (MIG), nothing is reported and nothing is said.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class GpuUse(NamedTuple):
    """The use of a GPU by all processes, as shares from 0 to 1.

    Attributes:
        utilisation: Share of the last moments, up to a second, in which the GPU computed.
        memory: Share of its memory that is in use.
    """

    utilisation: float
    memory: float


class GpuMeter:
    """Reads the use of one GPU."""

    def __init__(self, uuid: str | None) -> None:
        """Find a GPU.

        Args:
            uuid: The UUID that torch reports for it, with or without "GPU-"; None for no GPU.
        """
        self._nvml: Any = None
        if uuid is None:
            return
        try:
            import pynvml
        except ImportError:
            return
        try:
            pynvml.nvmlInit()
            self._gpu = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}")
        except pynvml.NVMLError:
            return
        self._nvml = pynvml

    def read(self) -> GpuUse | None:
        """Return the use of the GPU at this moment; None if it is not known."""
        if self._nvml is None:
            return None
        try:
            busy = self._nvml.nvmlDeviceGetUtilizationRates(self._gpu).gpu
            memory = self._nvml.nvmlDeviceGetMemoryInfo(self._gpu)
        except self._nvml.NVMLError:
            return None
        return GpuUse(utilisation=busy / 100, memory=memory.used / memory.total)


def meter_of(device: str) -> GpuMeter:
    """Return the meter of a torch device."""
    if not device.startswith("cuda"):
        return GpuMeter(None)
    import torch

    return GpuMeter(str(torch.cuda.get_device_properties(device).uuid))
