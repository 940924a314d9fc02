"""New keys into the lightning indexer's cache, cast to FP8."""

from typing import Any

import torch
from torch import Tensor

from moela.ops import _check
from moela.ops._indexer_check import expect_cache
from moela.ops._spec import OpSpec, register
from moela.reference import indexer_cache_write as reference
from moela.reference._indexer_cache import SF_BYTES

OP = "indexer_cache_write"


def indexer_cache_write(k: Tensor, cache: Tensor, slot_mapping: Tensor, *, ue8m0: bool = False) -> None:
    """Set codes and scale factor of key ``slot_mapping[t]`` of `cache` to those of k[t], cast to e4m3.

    Changes `cache` and returns nothing.

    Args:
        k: [T, D] bfloat16, float16 or float32: the keys, normalized, rotated and multiplied with the Hadamard
            matrix; last dimension contiguous, rows may be strided. T may be 0.
        cache: [num_pages, page_size, D + 4] uint8. A page is one run of bytes: page_size times D codes, then
            page_size float32 scale factors. With D = 128 and pages of 64 keys these are the bytes of
            DeepGEMM's [num_pages, 64, 1, 132]. Pages may be strided.
        slot_mapping: [T] int32 or int64, contiguous. A slot of -1 writes nothing; one that is no slot of the
            cache is refused on the CPU (on a GPU under MOELA_DEBUG, else it writes nothing). Two tokens with
            one slot leave a mixture of both there.
        ue8m0: round the scale factors up to powers of two, as DeepSeek-V3.2 does.

    Returns:
        Nothing.

    Numerics: codes and scale factors are those of `per_token_group_quant_fp8(k, D, ue8m0)`: one scale factor
        for a key, whatever D. The same bits on every backend, NaN aside.

    Source: the pages: deepseek-ai/DeepGEMM, csrc/apis/attention.hpp.
    """
    torch.ops.moela.indexer_cache_write(k, cache, slot_mapping, ue8m0=ue8m0)


def _check_args(k, cache, slot_mapping, ue8m0=False) -> None:
    _check.expect_dim(OP, "k", k, 2)
    _check.expect_dtype(OP, "k", k.dtype, _check.FLOAT_DTYPES)
    _check.expect_last_dim_contiguous(OP, "k", k)
    expect_cache(OP, cache, k.size(1), "k", k)
    _check.expect_slots(OP, slot_mapping, k.size(0), cache.size(0) * cache.size(1), "k", k)


def make_inputs(
    T: int,
    D: int = 128,
    page_size: int = 64,
    num_pages: int | None = None,
    x_dtype: torch.dtype = torch.bfloat16,
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
    slots = torch.randperm(num_pages * page_size, generator=g)[:T]
    slots[torch.rand(T, generator=g) < (0.2 if hostile else 0.0)] = -1
    shape = (num_pages, page_size, D + SF_BYTES)
    return {
        "k": (torch.randn(T, D, generator=g) * size).to(x_dtype).to(device),
        "cache": torch.full(shape, 0xFF if hostile else 0, dtype=torch.uint8, device=device),
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
        schema="Tensor k, Tensor(a!) cache, Tensor slot_mapping, *, bool ue8m0=False",
        outputs=("cache",),
        in_place=True,
        dtype_arg=None,
        check=_check_args,
        empty=lambda k, cache, slot_mapping, ue8m0=False: (cache,),
        reference=reference,
        public=indexer_cache_write,
        make_inputs=make_inputs,
        bound=_bound,
        cases=(
            {"T": 0},
            {"T": 1, "page_size": 1},
            {"T": 9, "page_size": 16},
            {"T": 70, "ue8m0": True, "slot_dtype": torch.int32},
            {"T": 5, "D": 64, "page_size": 3, "x_dtype": torch.float32},
            {"T": 6, "D": 37, "page_size": 2, "x_dtype": torch.float16},
            {"T": 4, "D": 600, "page_size": 5},
            {"T": 3, "D": 0, "page_size": 2},
        ),
        flops=lambda **_: 0,
        bytes=lambda T, D=128, x_bytes=2, **_: T * (D * x_bytes + D + SF_BYTES + 8),
        to_train="call it under torch.no_grad()",
    )
)
