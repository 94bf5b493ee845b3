"""Devices that llama.cpp would put layers on: CUDA, Vulkan, Metal, OpenCL alike. Any thread."""

from __future__ import annotations

from llm_local.errors import StartupError
from llm_local.llama import ggml
from llm_local.llama.place import Device

UNIFIED = ("MTL",)
"""Backends whose GPU computes in the host's memory, though ggml does not call it integrated."""


def gpu_devices(host_available_bytes: int | None) -> list[Device]:
    """Return the devices that llama.cpp uses by default, in its order: integrated ones only where there are no others.

    A card that two backends show is used once (llama.cpp, llama_prepare_model_devices).

    Args:
        host_available_bytes: what a device that does not tell its memory is taken to have, as llama.cpp does.
    """
    native = ggml.native_devices()
    chosen: list[ggml.NativeDevice] = []
    for device in native:
        seen = device.id is not None and device.id in {other.id for other in chosen}
        if device.type == ggml.TYPE_GPU and not seen:
            chosen.append(device)
    if not chosen:
        integrated = [device for device in native if device.type == ggml.TYPE_IGPU]
        chosen = [device for device in integrated if device.backend == integrated[0].backend]
    devices = []
    for device in chosen:
        silent = device.free_bytes == 0 and device.total_bytes == 0
        free, total = (host_available_bytes or 0,) * 2 if silent else (device.free_bytes, device.total_bytes)
        shared = silent or device.type == ggml.TYPE_IGPU or device.backend in UNIFIED
        devices.append(Device(device.name, device.description, device.backend, free, total, shares_host=shared))
    return devices


def check_can_offload(gpu_layers: int, devices: list[Device]) -> None:
    """Refuse layers for a GPU that cannot be used, rather than compute on the CPU in silence.

    Raises:
        StartupError: with what to install, or what to look at where the build is right.
    """
    if gpu_layers == 0 or devices:
        return
    gpu_backends = [name for name in ggml.backends() if name not in ("CPU", "BLAS", "RPC")]
    if gpu_backends:
        raise StartupError(
            f"gpu_layers is {gpu_layers}, and this build has {' and '.join(gpu_backends)}, but no device is found. See "
            "whether the driver works (nvidia-smi, vulkaninfo), in a container give it the GPU (--gpus all), "
            "or set LLM_GPU_LAYERS=0"
        )
    raise StartupError(
        f"gpu_layers is {gpu_layers}, but this build of llama-cpp-python computes on the CPU only. Install one for "
        "your GPU with `make install BACKEND=cuda` (or vulkan, metal, opencl), or set LLM_GPU_LAYERS=0 or auto"
    )
