"""The use of a GPU, with a module in place of nvidia-ml-py that records its calls."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pipeline.executor.gpu_meter import GpuMeter, GpuUse, meter_of

UUID = "b2f5f1b7-0000-1111-2222-333344445555"


class FakeNvml(ModuleType):
    """The part of pynvml that is used. `broken` names the functions that raise."""

    class NVMLError(Exception):
        """The base class of all errors of NVML."""

    def __init__(self, *broken: str) -> None:
        super().__init__("pynvml")
        self.broken = broken
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def _called(self, name: str, *arguments: Any) -> None:
        self.calls.append((name, arguments))
        if name in self.broken:
            raise self.NVMLError(name)

    def nvmlInit(self) -> None:
        self._called("nvmlInit")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self._called("nvmlDeviceGetHandleByUUID", uuid)
        return "the GPU"

    def nvmlDeviceGetUtilizationRates(self, gpu: str) -> SimpleNamespace:
        self._called("nvmlDeviceGetUtilizationRates", gpu)
        return SimpleNamespace(gpu=87, memory=12)

    def nvmlDeviceGetMemoryInfo(self, gpu: str) -> SimpleNamespace:
        self._called("nvmlDeviceGetMemoryInfo", gpu)
        return SimpleNamespace(total=80 * 2**30, free=60 * 2**30, used=20 * 2**30)


@pytest.mark.parametrize("uuid", [UUID, f"GPU-{UUID}"])
def test_the_gpu_of_the_worker_is_found_by_its_uuid_and_read(uuid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    meter = GpuMeter(uuid)
    assert nvml.calls == [("nvmlInit", ()), ("nvmlDeviceGetHandleByUUID", (f"GPU-{UUID}",))]
    assert meter.read() == GpuUse(utilisation=0.87, memory=0.25)
    assert meter.read() == GpuUse(utilisation=0.87, memory=0.25)
    assert (
        nvml.calls[2:4]
        == nvml.calls[4:]
        == [
            ("nvmlDeviceGetUtilizationRates", ("the GPU",)),
            ("nvmlDeviceGetMemoryInfo", ("the GPU",)),
        ]
    )


@pytest.mark.parametrize(
    "broken",
    ["nvmlInit", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetUtilizationRates", "nvmlDeviceGetMemoryInfo"],
)
def test_a_driver_that_does_not_know_is_no_error(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(broken))
    assert GpuMeter(UUID).read() is None


def test_without_the_package_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert GpuMeter(UUID).read() is None


def test_a_cpu_asks_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert meter_of("cpu").read() is None
    assert nvml.calls == []
