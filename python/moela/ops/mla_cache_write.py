"""New tokens into the latent cache of MLA: as they are, or cast to FP8."""

from typing import Any

import torch
from torch import Tensor

from moela.ops import _check
from moela.ops._spec import OpSpec, register
from moela.reference import mla_cache_write as reference
from moela.reference._mla_cache import GROUP, row_size

OP = "mla_cache_write"
CACHE_DTYPES = (*_check.FLOAT_DTYPES, torch.uint8)


def mla_cache_write(
    kv_c: Tensor, k_pe: Tensor, cache: Tensor, slot_mapping: Tensor, *, ue8m0: bool = False
) -> None:
    """Set ``cache[slot // page_size, slot % page_size] = row(kv_c[t], k_pe[t])``, slot = slot_mapping[t].

    Changes `cache` and returns nothing.

    Args:
        kv_c: [T, L] bfloat16, float16 or float32, the normalized latents; last dimension contiguous, rows may
            be strided. T may be 0.
        k_pe: [T, R] of kv_c's dtype, the rotated part of the keys; last dimension contiguous. R may be 0.
        cache: [num_pages, page_size, row], last dimension contiguous. bfloat16, float16 or float32: a row is
            kv_c, then k_pe, L + R elements. uint8: L e4m3 codes, L / 128 float32 scale factors, k_pe as
            bfloat16; L a multiple of 128. That is 656 bytes for L = 512 and R = 64.
        slot_mapping: [T] int32 or int64, contiguous. A slot of -1 writes nothing; one that is no slot of the
            cache is refused on the CPU (on a GPU under MOELA_DEBUG, else it writes nothing). Two tokens with
            one slot leave a mixture of both there.
        ue8m0: round the scale factors up to powers of two, which the caches of DeepSeek-V3.2 have. For a
            cache of bytes only.

    Returns:
        Nothing.

    Numerics: values are rounded once to the dtype of the cache. Codes and scale factors are those of
        `per_token_group_quant_fp8(kv_c, 128, ue8m0)`. The same bits on every backend, NaN aside. With ue8m0
        they are those of FlashMLA's quantizer, which takes no scale factor below 2^-13 though: groups of 128
        that are all below 0.027 have finer codes here. Without, they are those of vLLM's writer, which keeps
        k_pe in float16 where kv_c is.

    Source: the cache of MLA: DeepSeek-V2, arXiv 2405.04434, section 2.1. The row of 656 bytes:
        deepseek-ai/FlashMLA, README.md, "FP8 KV cache".
    """
    torch.ops.moela.mla_cache_write(kv_c, k_pe, cache, slot_mapping, ue8m0=ue8m0)


def _check_args(kv_c, k_pe, cache, slot_mapping, ue8m0=False) -> None:
    _check.expect_dim(OP, "kv_c", kv_c, 2)
    _check.expect_dtype(OP, "kv_c", kv_c.dtype, _check.FLOAT_DTYPES)
    _check.expect_last_dim_contiguous(OP, "kv_c", kv_c)
    T, L = kv_c.shape
    _check.expect_dim(OP, "k_pe", k_pe, 2)
    wanted = f"{_check.dtype_name(kv_c.dtype)} (that of kv_c)"
    _check.expect(k_pe.dtype == kv_c.dtype, OP, "k_pe", wanted, _check.dtype_name(k_pe.dtype))
    _check.expect(k_pe.size(0) == T, OP, "k_pe", f"T={T} (that of kv_c)", f"T={k_pe.size(0)}")
    _check.expect_last_dim_contiguous(OP, "k_pe", k_pe)
    _check.expect_device(OP, "k_pe", k_pe, kv_c.device, "kv_c")
    check_destination(OP, "kv_c", L, k_pe.size(1), cache, slot_mapping, ue8m0, "kv_c", kv_c)


def check_destination(
    op: str,
    latent: str,
    L: int,
    R: int,
    cache: Tensor,
    slot_mapping: Tensor,
    ue8m0: bool,
    owner: str,
    x: Tensor,
) -> None:
    """Where the rows of x, the argument `owner`, go to; `latent`: the argument that L is of."""
    _check.expect_dim(op, "cache", cache, 3)
    _check.expect_dtype(op, "cache", cache.dtype, CACHE_DTYPES)
    is_bytes = cache.dtype == torch.uint8
    if is_bytes:
        wanted = f"L a multiple of {GROUP} because cache is uint8"
        _check.expect(L % GROUP == 0, op, latent, wanted, f"L={L}")
    size, got = row_size(L, R, cache.dtype), cache.size(2)
    _check.expect(got == size, op, "cache", f"rows of {size} {'bytes' if is_bytes else 'elements'}", got)
    _check.expect_last_dim_contiguous(op, "cache", cache)
    _check.expect_device(op, "cache", cache, x.device, owner)
    if not is_bytes:
        wanted = f"False because cache is {_check.dtype_name(cache.dtype)}"
        _check.expect(not ue8m0, op, "ue8m0", wanted, "True")
    _check.expect_slots(op, slot_mapping, x.size(0), cache.size(0) * cache.size(1), owner, x)


def make_inputs(
    T: int,
    L: int,
    R: int,
    page_size: int,
    num_pages: int | None = None,
    x_dtype: torch.dtype = torch.bfloat16,
    cache_dtype: torch.dtype = torch.bfloat16,
    slot_dtype: torch.dtype = torch.int64,
    ue8m0: bool = False,
    hostile: bool = True,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Slots all over a cache; num_pages None: of twice as many. Hostile: it holds 0xFF in every byte."""
    g = torch.Generator().manual_seed(seed)
    num_pages = num_pages or -(-2 * max(T, 1) // page_size)
    size = torch.exp2(torch.randint(-8, 5, (T, 1), generator=g).float())
    cache = torch.empty(num_pages, page_size, row_size(L, R, cache_dtype), dtype=cache_dtype)
    cache.view(torch.uint8).fill_(0xFF if hostile else 0)
    slots = torch.randperm(num_pages * page_size, generator=g)[:T]
    slots[torch.rand(T, generator=g) < (0.2 if hostile else 0.0)] = -1
    return {
        "kv_c": (torch.randn(T, L, generator=g) * size).to(x_dtype).to(device),
        "k_pe": (torch.randn(T, R, generator=g) * size).to(x_dtype).to(device),
        "cache": cache.to(device),
        "slot_mapping": slots.to(slot_dtype).to(device),
        "ue8m0": ue8m0,
    }


def _bound(inputs: dict[str, Any], accum: float) -> list[tuple[Tensor, Tensor]]:
    """The definition's values, and no error."""
    cache = inputs["cache"].clone()
    reference(**inputs | {"cache": cache})
    return [(cache.double(), torch.zeros(cache.shape, dtype=torch.float64, device=cache.device))]


register(
    OpSpec(
        name=OP,
        schema="Tensor kv_c, Tensor k_pe, Tensor(a!) cache, Tensor slot_mapping, *, bool ue8m0=False",
        outputs=("cache",),
        in_place=True,
        dtype_arg=None,
        check=_check_args,
        empty=lambda kv_c, k_pe, cache, slot_mapping, ue8m0=False: (cache,),
        reference=reference,
        public=mla_cache_write,
        make_inputs=make_inputs,
        bound=_bound,
        cases=(
            {"T": 0, "L": 512, "R": 64, "page_size": 64},
            {"T": 1, "L": 512, "R": 64, "page_size": 1},
            {"T": 9, "L": 512, "R": 64, "page_size": 16, "cache_dtype": torch.uint8},
            {"T": 7, "L": 512, "R": 64, "page_size": 576, "cache_dtype": torch.uint8, "ue8m0": True},
            {"T": 5, "L": 256, "R": 64, "page_size": 3, "x_dtype": torch.float32, "cache_dtype": torch.uint8},
            {"T": 6, "L": 128, "R": 0, "page_size": 2, "x_dtype": torch.float16, "cache_dtype": torch.uint8},
            {"T": 5, "L": 512, "R": 0, "page_size": 64, "x_dtype": torch.float32},
            {"T": 4, "L": 37, "R": 5, "page_size": 7, "cache_dtype": torch.float16},
            {
                "T": 3,
                "L": 256,
                "R": 64,
                "page_size": 53,
                "cache_dtype": torch.float32,
                "slot_dtype": torch.int32,
            },
        ),
        flops=lambda **_: 0,
        bytes=lambda T, L, R, cache_dtype=torch.bfloat16, x_bytes=2, **_: (
            T * ((L + R) * x_bytes + row_size(L, R, cache_dtype) * cache_dtype.itemsize + 8)
        ),
        to_train="call it under torch.no_grad()",
    )
)
