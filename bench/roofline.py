"""The two roofs of this machine, measured in the same rounds as the contestants.

>>> probes = probes_for("cpu", threads=1)
>>> timings = race([*contestants, *probes.contestants], rounds=15, clock=clock, before=probes.evict)
>>> probes.roofline(timings).time_floor(flops, bytes)
"""

import ctypes
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from moela import backends
from moela.bench.timer import Contestant, Timing

READ, FMA = "DRAM read", "FMA peak"  # the names of the probes in a race

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
# Where the system does not say: as much as a core can use on most machines.
FALLBACK_LLC_BYTES = 32 << 20
_BUFFER_CACHES = 3  # the probe reads this many last-level caches' worth, the eviction as much again
_MAX_BUFFER_BYTES = 1 << 30
_FMA_ITERATIONS = 1 << 21  # some milliseconds
_MATMUL = 1024  # extents of the matmul that stands in for the FMA probe


@dataclass(frozen=True)
class Roofline:
    """What this machine can do: the rate of reading memory and of multiply-add, and where they come from."""

    read: Timing
    read_bytes: int
    fma: Timing
    fma_flops: int
    source: str

    @property
    def read_bytes_per_s(self) -> float:
        return self.read_bytes / self.read.median

    @property
    def flops_per_s(self) -> float:
        return self.fma_flops / self.fma.median

    def time_floor(self, flops: int, num_bytes: int) -> float:
        """Seconds below which nothing that does `flops` and moves `num_bytes` can be, at these rates."""
        return max(flops / self.flops_per_s, num_bytes / self.read_bytes_per_s)


@cache
def last_level_cache_bytes(caches: Path = _CACHES) -> int:
    """The largest cache that the first core has, or FALLBACK_LLC_BYTES where the system does not say."""
    sizes = [re.fullmatch(r"(\d+)([KMG])", f.read_text().strip()) for f in caches.glob("index*/size")]
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return max((int(m[1]) * units[m[2]] for m in sizes if m), default=FALLBACK_LLC_BYTES)


@dataclass(frozen=True)
class Probes:
    """The contestants that measure the roofs, and the eviction of caches that goes with them."""

    read: Callable[[], object]
    read_bytes: int
    fma: Callable[[], object]
    fma_flops: int
    evict: Callable[[], object]
    source: str

    @property
    def contestants(self) -> tuple[Contestant, Contestant]:
        return Contestant(READ, self.read), Contestant(FMA, self.fma)

    def roofline(self, timings: dict[str, Timing]) -> Roofline:
        """The roofs from a race in which the contestants took part."""
        return Roofline(timings[READ], self.read_bytes, timings[FMA], self.fma_flops, self.source)


def probes_for(device: torch.device | str, threads: int) -> Probes:
    """The probes of the device; on the CPU they run on as many threads as the contestants do."""
    device = torch.device(device)
    if device.type == "cuda":
        return _cuda_probes(device)
    # Two buffers, because what the eviction has just read may still be in the cache when the probe reads.
    # Written, because pages that nobody wrote are all the same one.
    size = min(_BUFFER_CACHES * last_level_cache_bytes(), _MAX_BUFFER_BYTES)
    probed, evicting = (torch.full((size // 8,), value, dtype=torch.int64) for value in (1, 2))
    library = backends.library("cpu")
    if library.handle is None:
        return _torch_probes(probed, evicting, f"torch, because {library.error}: a lower bound of the roofs")
    return _native_probes(library.handle, probed, evicting, threads)


def _native_probes(handle: ctypes.CDLL, probed: torch.Tensor, evicting: torch.Tensor, threads: int) -> Probes:
    handle.moela_probe_read.argtypes = [ctypes.c_void_p, ctypes.c_uint64]
    handle.moela_probe_read.restype = ctypes.c_uint64
    handle.moela_probe_fma.argtypes = [ctypes.c_uint64]
    handle.moela_probe_fma.restype = ctypes.c_double
    handle.moela_probe_fma_flops.restype = ctypes.c_uint64
    # Threads of Python: ctypes lets go of the interpreter during a call.
    pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def on_all(call: Callable[[int], object]) -> None:
        if pool is None:
            call(0)
        else:
            list(pool.map(call, range(threads)))

    def read(buffer: torch.Tensor) -> None:
        parts = buffer.chunk(threads)
        on_all(lambda i: handle.moela_probe_read(parts[i].data_ptr(), parts[i].nbytes))

    return Probes(
        read=lambda: read(probed),
        read_bytes=probed.nbytes,
        fma=lambda: on_all(lambda _: handle.moela_probe_fma(_FMA_ITERATIONS)),
        fma_flops=handle.moela_probe_fma_flops() * _FMA_ITERATIONS * threads,
        evict=lambda: read(evicting),
        source="moela's probes",
    )


def _torch_probes(probed: torch.Tensor, evicting: torch.Tensor, source: str) -> Probes:
    x = torch.ones(_MATMUL, _MATMUL)
    return Probes(
        read=lambda: torch.sum(probed),
        read_bytes=probed.nbytes,
        fma=lambda: x @ x,
        fma_flops=2 * _MATMUL**3,
        evict=lambda: torch.sum(evicting),
        source=source,
    )


def _cuda_probes(device: torch.device) -> Probes:
    """A copy, which reads and writes, and the fastest matmul: FP8 where the device has it, else bfloat16."""
    size = max(256 << 20, 4 * torch.cuda.get_device_properties(device).L2_cache_size)
    src = torch.ones(size, dtype=torch.uint8, device=device)
    dst = torch.empty_like(src)
    x = torch.ones(8192, 8192, device=device)
    if torch.cuda.get_device_capability(device) >= (8, 9):
        q, one, what = x.to(torch.float8_e4m3fn), torch.ones((), device=device), "torch._scaled_mm (e4m3)"

        def matmul() -> torch.Tensor:
            return torch._scaled_mm(q, q.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    else:
        h, what = x.bfloat16(), "matmul (bfloat16)"

        def matmul() -> torch.Tensor:
            return h @ h.T

    return Probes(
        read=lambda: dst.copy_(src),
        read_bytes=2 * size,
        fma=matmul,
        fma_flops=2 * 8192**3,
        evict=src.zero_,
        source=f"a device copy and {what}",
    )
