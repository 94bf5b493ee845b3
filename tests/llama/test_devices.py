"""Which devices count, and what is said when none does; ggml's answers are invented."""

from __future__ import annotations

import pytest

from llm_local.errors import StartupError
from llm_local.llama import ggml
from llm_local.llama.devices import check_can_offload, gpu_devices
from llm_local.llama.ggml import NativeDevice
from tests.llama.shapes import gpu

CPU = NativeDevice("CPU", "Invented CPU", "CPU", 0, 64, 64)
BLAS = NativeDevice("BLAS", "Accelerate", "BLAS", 3, 0, 0)
CARD = NativeDevice("CUDA0", "Card", "CUDA", ggml.TYPE_GPU, 7, 8)
CHIP = NativeDevice("Vulkan0", "Chip", "Vulkan", ggml.TYPE_IGPU, 5, 6)
OTHER_CHIP = NativeDevice("SYCL0", "Chip", "SYCL", ggml.TYPE_IGPU, 5, 6)
MUTE = NativeDevice("GPUOpenCL", "Phone", "OpenCL", ggml.TYPE_GPU, 0, 0)
SAME_CARD = [NativeDevice(name, "Card", name, ggml.TYPE_GPU, 7, 8, id="0000:c1:00.0") for name in ("CUDA0", "Vulkan0")]
METAL = NativeDevice("MTL0", "Apple M3", "MTL", ggml.TYPE_GPU, 9, 9)


@pytest.mark.parametrize(
    ("native", "names"),
    [
        ([CPU, BLAS], []),
        ([CARD, CPU], ["CUDA0"]),
        ([CHIP, CARD, CPU], ["CUDA0"]),
        ([CARD, CARD, CPU], ["CUDA0", "CUDA0"]),
        ([*SAME_CARD, CPU], ["CUDA0"]),
        ([CHIP, OTHER_CHIP, CPU], ["Vulkan0"]),
    ],
)
def test_devices_are_those_that_llama_cpp_uses(
    monkeypatch: pytest.MonkeyPatch, native: list[NativeDevice], names: list[str]
) -> None:
    monkeypatch.setattr(ggml, "native_devices", lambda: native)
    assert [device.name for device in gpu_devices(100)] == names


@pytest.mark.parametrize(
    ("native", "free", "shared"), [(CARD, 7, False), (CHIP, 5, True), (METAL, 9, True), (MUTE, 100, True)]
)
def test_a_device_that_uses_the_hosts_memory_is_known(
    monkeypatch: pytest.MonkeyPatch, native: NativeDevice, free: int, shared: bool
) -> None:
    monkeypatch.setattr(ggml, "native_devices", lambda: [native])
    device = gpu_devices(100)[0]
    assert (device.free_bytes, device.shares_host) == (free, shared)


def test_layers_for_a_cpu_build_are_refused_with_the_command_to_install_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ggml, "backends", lambda: ["CPU"])
    for layers in (-1, 5):
        with pytest.raises(StartupError, match="make install BACKEND=cuda"):
            check_can_offload(layers, [])


def test_layers_for_a_gpu_build_that_sees_no_gpu_are_refused_with_where_to_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ggml, "backends", lambda: ["CUDA", "CPU"])
    with pytest.raises(StartupError, match=r"this build has CUDA, but no device is found.*--gpus all"):
        check_can_offload(-1, [])


def test_no_layers_or_a_device_are_fine() -> None:
    check_can_offload(0, [])
    check_can_offload(-1, [gpu(100)])
