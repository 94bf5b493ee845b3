"""Functions of ggml that llama_cpp does not bind: the header of a GGUF, and what devices there are. Any thread."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

# Importing llama_cpp loads the libraries of the backends that this build has.
import llama_cpp
from llama_cpp import _ggml
from llama_cpp._ctypes_extensions import load_shared_library

TYPE_GPU, TYPE_IGPU = 1, 2
"""ggml's own numbers (ggml-backend.h, enum ggml_backend_dev_type)."""

_STRING, _ARRAY = 8, 9
_NUMBERS: dict[int, Any] = {
    0: ctypes.c_uint8, 1: ctypes.c_int8, 2: ctypes.c_uint16, 3: ctypes.c_int16, 4: ctypes.c_uint32, 5: ctypes.c_int32,
    6: ctypes.c_float, 7: ctypes.c_bool, 10: ctypes.c_uint64, 11: ctypes.c_int64, 12: ctypes.c_double,
}  # fmt: skip
"""Of gguf.h, enum gguf_type."""


class _InitParams(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


class _Properties(ctypes.Structure):
    """ggml-backend.h, struct ggml_backend_dev_props; what the device is capable of follows in `caps`, five bools."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("description", ctypes.c_char_p),
        ("memory_free", ctypes.c_size_t),
        ("memory_total", ctypes.c_size_t),
        ("type", ctypes.c_int),
        ("device_id", ctypes.c_char_p),
        ("caps", ctypes.c_bool * 64),
    )


def _libraries() -> list[ctypes.CDLL]:
    """Return ggml's libraries; where a library does not show the symbols of those it needs, the second has them."""
    try:
        return [_ggml.libggml, load_shared_library("ggml-base", _ggml.libggml_base_path)]
    except (OSError, FileNotFoundError):
        return [_ggml.libggml]


def _bind(name: str, result: Any, *arguments: Any) -> Any:
    for library in _LIBRARIES:
        if hasattr(library, name):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            return function
    raise ImportError(f"ggml has no {name}: llama-cpp-python {llama_cpp.__version__} is another version than is needed")


_LIBRARIES = _libraries()
_handle, _text, _size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t

_gguf_open = _bind("gguf_init_from_file", _handle, _text, _InitParams)
_gguf_free = _bind("gguf_free", None, _handle)
_gguf_find = _bind("gguf_find_key", ctypes.c_int64, _handle, _text)
_gguf_type = _bind("gguf_get_kv_type", ctypes.c_int, _handle, ctypes.c_int64)
_gguf_string = _bind("gguf_get_val_str", _text, _handle, ctypes.c_int64)
_gguf_data = _bind("gguf_get_val_data", _handle, _handle, ctypes.c_int64)
_gguf_array_type = _bind("gguf_get_arr_type", ctypes.c_int, _handle, ctypes.c_int64)
_gguf_array_length = _bind("gguf_get_arr_n", _size, _handle, ctypes.c_int64)
_gguf_array_data = _bind("gguf_get_arr_data", _handle, _handle, ctypes.c_int64)
_gguf_n_tensors = _bind("gguf_get_n_tensors", ctypes.c_int64, _handle)
_gguf_tensor_name = _bind("gguf_get_tensor_name", _text, _handle, ctypes.c_int64)
_gguf_tensor_type = _bind("gguf_get_tensor_type", ctypes.c_int, _handle, ctypes.c_int64)
_gguf_tensor_size = _bind("gguf_get_tensor_size", _size, _handle, ctypes.c_int64)
_gguf_tensor_offset = _bind("gguf_get_tensor_offset", _size, _handle, ctypes.c_int64)
_gguf_data_offset = _bind("gguf_get_data_offset", _size, _handle)
_gguf_tensor_shape = _bind("gguf_get_tensor_ne", ctypes.POINTER(ctypes.c_int64 * 4), _handle, ctypes.c_int64)

_device_count = _bind("ggml_backend_dev_count", _size)
_device_get = _bind("ggml_backend_dev_get", _handle, _size)
_device_properties = _bind("ggml_backend_dev_get_props", None, _handle, ctypes.POINTER(_Properties))
_device_backend = _bind("ggml_backend_dev_backend_reg", _handle, _handle)
_backend_count = _bind("ggml_backend_reg_count", _size)
_backend_get = _bind("ggml_backend_reg_get", _handle, _size)
_backend_name = _bind("ggml_backend_reg_name", _text, _handle)


@dataclass(frozen=True, slots=True)
class Tensor:
    """An entry of a GGUF's list of tensors; `type` is ggml's number, `shape` begins with the length of a row."""

    name: str
    type: int
    n_bytes: int
    shape: tuple[int, int, int, int]


class Gguf:
    """The header of one GGUF file, read by ggml itself: 30 ms for 152k tokens (the `gguf` package takes 7 s).

    Raises:
        ValueError: the header is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._file = _gguf_open(os.fsencode(path), _InitParams(True, None))
        if not self._file:
            raise ValueError(f"no GGUF header in {path}")

    def text(self, key: str) -> str | None:
        """Return a text; None where there is none."""
        index = _gguf_find(self._file, key.encode())
        if index < 0 or _gguf_type(self._file, index) != _STRING:
            return None
        return str(_gguf_string(self._file, index).decode("utf-8", "replace"))

    def numbers(self, key: str) -> list[Any]:
        """Return a number or a list of them as a list; empty where there is none."""
        index = _gguf_find(self._file, key.encode())
        kind = _gguf_type(self._file, index) if index >= 0 else _STRING
        if kind in _NUMBERS:
            return [_NUMBERS[kind].from_address(_gguf_data(self._file, index)).value]
        if kind != _ARRAY or _gguf_array_type(self._file, index) not in _NUMBERS:
            return []
        element, length = _NUMBERS[_gguf_array_type(self._file, index)], self.length(key)
        return list((element * length).from_address(_gguf_array_data(self._file, index))) if length else []

    def length(self, key: str) -> int:
        """Return how many elements a list has; 0 where there is none."""
        index = _gguf_find(self._file, key.encode())
        return (
            int(_gguf_array_length(self._file, index)) if index >= 0 and _gguf_type(self._file, index) == _ARRAY else 0
        )

    def tensors(self) -> list[Tensor]:
        """Return what weights are in this file."""
        file = self._file
        return [
            Tensor(
                _gguf_tensor_name(file, index).decode("utf-8", "replace"),
                _gguf_tensor_type(file, index),
                _gguf_tensor_size(file, index),
                tuple(_gguf_tensor_shape(file, index).contents),
            )
            for index in range(_gguf_n_tensors(file))
        ]

    @property
    def n_bytes(self) -> int:
        """How long the file is at the least, if all of its weights are in it."""
        file = self._file
        ends = (
            _gguf_tensor_offset(file, index) + _gguf_tensor_size(file, index) for index in range(_gguf_n_tensors(file))
        )
        return int(_gguf_data_offset(file)) + max(ends, default=0)

    def close(self) -> None:
        """Free the header."""
        _gguf_free(self._file)
        self._file = None

    def __enter__(self) -> Gguf:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class NativeDevice:
    """A device as ggml describes it.

    Attributes:
        type: ggml's number.
        free_bytes: 0, as `total_bytes`, where it does not tell.
        id: of the card, the same for all backends that show it; None where it does not tell.
    """

    name: str
    description: str
    backend: str
    type: int
    free_bytes: int
    total_bytes: int
    id: str | None = None


def native_devices() -> list[NativeDevice]:
    """Return all devices in ggml's order, the CPU among them. Asking a GPU for its memory starts its driver."""
    found = []
    for index in range(_device_count()):
        device = _device_get(index)
        of = _Properties()
        _device_properties(device, ctypes.byref(of))
        found.append(
            NativeDevice(
                name=_decoded(of.name),
                description=_decoded(of.description).strip(),
                backend=_decoded(_backend_name(_device_backend(device))),
                type=of.type,
                free_bytes=of.memory_free,
                total_bytes=of.memory_total,
                id=_decoded(of.device_id) or None,
            )
        )
    return found


def backends() -> list[str]:
    """Return the names of the backends that this build has, such as `CUDA` and `CPU`."""
    return [_backend_name(_backend_get(index)).decode() for index in range(_backend_count())]


def _decoded(text: bytes | None) -> str:
    return (text or b"").decode("utf-8", "replace")
