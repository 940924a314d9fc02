"""A linear layer of llama.cpp, through the ggml that llama-cpp-python brings.

Only ggml's backend interface is used, so that the layout of its structs does not matter.
"""

import ctypes
import importlib.util
from collections.abc import Callable
from ctypes import c_bool, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_F32, _Q8_0 = 0, 8  # enum ggml_type
_ARENA = 1 << 20  # bytes for the records of three tensors and one graph


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


# name -> (result, arguments); in libggml-base unless it is one of the CPU backend.
_FUNCTIONS = {
    "ggml_init": (c_void_p, [_InitParams]),
    "ggml_free": (None, [c_void_p]),
    "ggml_new_tensor_2d": (c_void_p, [c_void_p, c_int, c_int64, c_int64]),
    "ggml_mul_mat": (c_void_p, [c_void_p, c_void_p, c_void_p]),
    "ggml_new_graph": (c_void_p, [c_void_p]),
    "ggml_build_forward_expand": (None, [c_void_p, c_void_p]),
    "ggml_row_size": (c_size_t, [c_int, c_int64]),
    "ggml_quantize_chunk": (c_size_t, [c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p]),
    "ggml_backend_alloc_ctx_tensors": (c_void_p, [c_void_p, c_void_p]),
    "ggml_backend_buffer_free": (None, [c_void_p]),
    "ggml_backend_tensor_set": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_backend_graph_compute": (c_int, [c_void_p, c_void_p]),
    "ggml_backend_free": (None, [c_void_p]),
    "ggml_get_data": (c_void_p, [c_void_p]),
    "ggml_backend_cpu_init": (c_void_p, []),
    "ggml_backend_cpu_set_n_threads": (None, [c_void_p, c_int]),
}


def why_not() -> str | None:
    """Why ggml cannot be called, or None."""
    if importlib.util.find_spec("llama_cpp") is None:
        return "llama-cpp-python is not installed; pip install llama-cpp-python"
    try:
        _ggml()
    except (OSError, AttributeError, TypeError) as error:
        return f"the ggml of llama-cpp-python cannot be used: {error}"
    return None


@cache
def _ggml() -> dict[str, Callable]:
    """The functions by name, less their prefix. The package itself is not imported: it loads far more."""
    folder = Path(importlib.util.find_spec("llama_cpp").origin).parent / "lib"
    base = ctypes.CDLL(str(folder / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
    cpu = ctypes.CDLL(str(folder / "libggml-cpu.so"))
    functions = {}
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(cpu if "_cpu_" in name else base, name)
        function.restype, function.argtypes = result, arguments
        functions[name.removeprefix("ggml_")] = function
    return functions


class _LinearQ8:
    """d = a @ w.T as a graph of one node, with its tensors in a buffer of ggml."""

    def __init__(self, a: Tensor, w: Tensor, threads: int):
        g = _ggml()
        (M, K), N = a.shape, w.size(0)
        if K % 32:
            raise ValueError(f"expected K to be a multiple of 32, got K={K}")
        self._backend = g["backend_cpu_init"]()
        g["backend_cpu_set_n_threads"](self._backend, threads)
        self._context = g["init"](_InitParams(_ARENA, None, True))
        weight = g["new_tensor_2d"](self._context, _Q8_0, K, N)
        x = g["new_tensor_2d"](self._context, _F32, K, M)
        d = g["mul_mat"](self._context, weight, x)
        self._graph = g["new_graph"](self._context)
        g["build_forward_expand"](self._graph, d)
        self._buffer = g["backend_alloc_ctx_tensors"](self._context, self._backend)
        quantized = torch.empty(N * g["row_size"](_Q8_0, K), dtype=torch.uint8)
        g["quantize_chunk"](_Q8_0, w.data_ptr(), quantized.data_ptr(), 0, N, K, None)
        g["backend_tensor_set"](weight, quantized.data_ptr(), 0, quantized.nbytes)
        g["backend_tensor_set"](x, a.contiguous().data_ptr(), 0, a.nbytes)
        memory = (ctypes.c_float * (M * N)).from_address(g["get_data"](d))
        self._d = torch.frombuffer(memory, dtype=torch.float32).view(M, N)

    def __call__(self) -> Tensor:
        status = _ggml()["backend_graph_compute"](self._backend, self._graph)
        if status:
            raise RuntimeError(f"ggml_backend_graph_compute gives {status}")
        return self._d

    def __del__(self) -> None:
        if hasattr(self, "_buffer"):
            g = _ggml()
            g["backend_buffer_free"](self._buffer)
            g["free"](self._context)
            g["backend_free"](self._backend)


def linear_q8_0(a: Tensor, w: Tensor, threads: int) -> Callable[[], Tensor]:
    """a [M, K] float32, w [N, K] float32 -> a call that gives [M, N] float32, valid until the next call."""
    return _LinearQ8(a, w, threads)
