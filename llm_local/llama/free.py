"""The free memory of GPUs, through ggml's device API: CUDA, Vulkan, Metal and OpenCL alike."""

from __future__ import annotations

import ctypes

import llama_cpp
from llama_cpp import llama_cpp as low_level

GPU, INTEGRATED_GPU = 1, 2
"""`enum ggml_backend_dev_type`."""


def gpu_free_bytes() -> list[int]:
    """Return the free bytes of each GPU that this build can use."""
    if not llama_cpp.llama_supports_gpu_offload():
        return []
    library = low_level._lib
    count, get = library.ggml_backend_dev_count, library.ggml_backend_dev_get
    count.restype, get.restype, get.argtypes = ctypes.c_size_t, ctypes.c_void_p, [ctypes.c_size_t]
    kind, memory = library.ggml_backend_dev_type, library.ggml_backend_dev_memory
    kind.restype, kind.argtypes = ctypes.c_int, [ctypes.c_void_p]
    memory.restype, memory.argtypes = None, [ctypes.c_void_p, *[ctypes.POINTER(ctypes.c_size_t)] * 2]
    found = []
    for index in range(count()):
        device = get(index)
        if kind(device) in (GPU, INTEGRATED_GPU):
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            memory(device, ctypes.byref(free), ctypes.byref(total))
            found.append(free.value)
    return found
