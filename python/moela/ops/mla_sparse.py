"""Attention of tokens over the slots of a latent cache that they name: DeepSeek's sparse attention."""

import math
from typing import Any

import torch
from torch import Tensor

from moela.ops import _check
from moela.ops._mla_bound import sparse_bound
from moela.ops._mla_cuda import cuda_limits
from moela.ops._spec import OpSpec, register
from moela.ops.mla_cache_write import CACHE_DTYPES
from moela.ops.mla_decode import k_dtype, p_dtype
from moela.reference import mla_sparse as reference
from moela.reference._mla_cache import GROUP, encode, row_size

OP = "mla_sparse"


def mla_sparse(
    q: Tensor,
    cache: Tensor,
    indices: Tensor,
    *,
    sm_scale: float,
    v_dim: int = 512,
    attn_sink: Tensor | None = None,
    topk_length: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute ``out = softmax(sm_scale * q @ k.T) @ k[:, :v_dim]`` per head, k the latents that a row names.

    A row is one token: ``[B, s_q]`` of them when decoding, ``[T]`` in a prefill, any leading dimensions.

    Args:
        q: [..., H, D] bfloat16, float16 or float32: `q_nope` times the up-projection of the keys (v_dim
            columns), then `q_pe`; last dimension contiguous. Any extent may be 0 but D.
        cache: [num_pages, page_size, row], as `mla_cache_write` leaves it: rows of D elements bfloat16,
            float16 or float32, or uint8 rows with v_dim codes. Last dimension contiguous. A cache without
            pages is one page: [1, S, row].
        indices: [..., topk] int32, last dimension contiguous, topk 0 too: slots, page * page_size + offset,
            in any order. A negative one names nothing; one that stands twice counts twice. What slots hold
            that no row names does not matter. On the CPU (on a GPU under MOELA_DEBUG) a slot beyond the cache
            is refused; elsewhere it names nothing.
        sm_scale: what scores are multiplied by; for the model's heads, not for D: (nope + rope)^-0.5, times
            the square of YaRN's mscale.
        v_dim: the columns of a row that are the value: kv_lora_rank; the other D - v_dim are the rotated part
            of the key.
        attn_sink: [H] float32: ``out *= e^lse / (e^lse + e^sink)``, as if there were a key of that score and
            of value 0. Inf: out is 0; -Inf: no effect.
        topk_length: [...] int32, 0 to topk: only so many entries of a row count, and no other is read.

    Returns:
        out: [..., H, v_dim] of q's dtype, contiguous; 0 where a row names no slot. The up-projection of the
            values is applied to it.
        lse: [..., H] float32: the natural logarithm of the sum of e^score, without the sink; -Inf where a row
            names no slot. See `merge_states`. A score of +Inf makes out and lse of its head NaN, whatever the
            sink, as softmax does; scores of -Inf only are as no slot.

    Numerics: as `mla_decode`, whose bits it has on the CPU for the same keys in the same order: float32, out
        rounded once; on a GPU the weights are rounded to bfloat16 or float16 if q and cache are such, on a
        CPU with AMX to bfloat16. There and in the CUDA kernel weights are rounded beside a cache of uint8,
        too, and its rows: they lose nothing if their scale factors are powers of two. The error is bounded
        per element (python/moela/ops/_mla_bound.py). NaN and infinity of a slot reach the rows that name it,
        and no other. A row's result depends on that row only, not on the others or on the number of threads,
        and not on where entries that name nothing stand, on the CPU; the CUDA kernel cuts the entries of few
        rows into pieces, which shows in the last bits.

    Source: DeepSeek-V3.2, arXiv 2512.02556, section 2.1 (sparse attention); gpt-oss model card, arXiv
        2508.10925 (attn_sink: a learned term in the denominator of the softmax).
    """
    return torch.ops.moela.mla_sparse(
        q, cache, indices, sm_scale=sm_scale, v_dim=v_dim, attn_sink=attn_sink, topk_length=topk_length
    )


def mla_sparse_out(
    q: Tensor,
    cache: Tensor,
    indices: Tensor,
    *,
    sm_scale: float,
    v_dim: int = 512,
    attn_sink: Tensor | None = None,
    topk_length: Tensor | None = None,
    out: Tensor,
    lse: Tensor,
) -> None:
    """`mla_sparse` into `out` and `lse`, contiguous."""
    torch.ops.moela.mla_sparse_out(
        q, cache, indices, sm_scale=sm_scale, v_dim=v_dim, attn_sink=attn_sink, topk_length=topk_length,
        out=out, lse=lse,
    )  # fmt: skip


def _check_args(q, cache, indices, *, sm_scale, v_dim=512, attn_sink=None, topk_length=None) -> None:
    _check.expect_min_dim(OP, "q", q, 2)
    _check.expect_dtype(OP, "q", q.dtype, _check.FLOAT_DTYPES)
    _check.expect_last_dim_contiguous(OP, "q", q)
    H, D = q.shape[-2:]
    _check.expect(1 <= v_dim <= D, OP, "v_dim", f"a number within [1, {D}]", v_dim)
    _check.expect(-math.inf < sm_scale < math.inf, OP, "sm_scale", "a finite number", f"{sm_scale:g}")
    _check.expect_dim(OP, "cache", cache, 3)
    _check.expect_dtype(OP, "cache", cache.dtype, CACHE_DTYPES)
    is_bytes = cache.dtype == torch.uint8
    if is_bytes:
        wanted = f"a multiple of {GROUP} because cache is uint8"
        _check.expect(v_dim % GROUP == 0, OP, "v_dim", wanted, v_dim)
    size, got = row_size(v_dim, D - v_dim, cache.dtype), cache.size(2)
    _check.expect(got == size, OP, "cache", f"rows of {size} {'bytes' if is_bytes else 'elements'}", got)
    _check.expect_last_dim_contiguous(OP, "cache", cache)
    _check.expect_device(OP, "cache", cache, q.device, "q")
    _check.expect_min_dim(OP, "indices", indices, 1)
    _check.expect_dtype(OP, "indices", indices.dtype, (torch.int32,))
    _check.expect_shape(OP, "indices", indices, (*q.shape[:-2], indices.size(-1)))
    _check.expect_last_dim_contiguous(OP, "indices", indices)
    _check.expect_device(OP, "indices", indices, q.device, "q")
    if attn_sink is not None:
        _check.expect_dtype(OP, "attn_sink", attn_sink.dtype, (torch.float32,))
        _check.expect_shape(OP, "attn_sink", attn_sink, (H,))
        _check.expect_device(OP, "attn_sink", attn_sink, q.device, "q")
    if topk_length is not None:
        _check.expect_dtype(OP, "topk_length", topk_length.dtype, (torch.int32,))
        _check.expect_shape(OP, "topk_length", topk_length, q.shape[:-2])
        _check.expect_device(OP, "topk_length", topk_length, q.device, "q")
    _check.expect_indices(OP, indices, topk_length, cache.size(0) * cache.size(1))


def _empty(
    q, cache, indices, *, sm_scale, v_dim=512, attn_sink=None, topk_length=None
) -> tuple[Tensor, Tensor]:
    return q.new_empty((*q.shape[:-1], v_dim)), q.new_empty(q.shape[:-1], dtype=torch.float32)


def _hostile_indices(T: int, topk: int, S: int, g: torch.Generator) -> Tensor:
    """Slots with some twice, and with entries that name nothing between them; the last row has no other."""
    slots = torch.randint(0, S, (T, topk), generator=g)
    nothing = torch.tensor([-1, -2, -123456, -(2**31)])
    nothing = nothing[torch.randint(0, len(nothing), (T, topk), generator=g)]
    is_none = torch.rand(T, topk, generator=g) < 0.2
    is_none[2:3] = True
    return torch.where(is_none, nothing, slots)


def make_inputs(
    T: int,
    H: int,
    topk: int,
    S: int,
    L: int = 512,
    R: int = 64,
    page_size: int = 64,
    x_dtype: torch.dtype = torch.bfloat16,
    cache_dtype: torch.dtype = torch.bfloat16,
    has_sink: bool = False,
    has_length: bool = False,
    hostile: bool = True,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """T tokens that name `topk` of S slots, S a multiple of page_size or not.

    Hostile: every slot that no token names is 0xFF (NaN), a third token names nothing, lengths begin with the
    whole row and 0, and entries beyond them are garbage. Scores vary by some units, as those of a model do.
    """
    g = torch.Generator().manual_seed(seed)
    num_pages = -(-S // page_size)
    if hostile and S:
        indices = _hostile_indices(T, topk, S, g)
    else:
        order = torch.rand(T, max(S, topk), generator=g).argsort(-1)[:, :topk]
        indices = torch.where(order < S, order, -1)
    lengths = torch.randint(0, topk + 1, (T,), generator=g)
    lengths[:1], lengths[1:2] = topk, 0
    is_beyond = torch.arange(topk) >= lengths[:, None]
    rows = torch.randn(num_pages * page_size, L + R, generator=g)
    rows = encode(rows[:, :L], rows[:, L:], cache_dtype, False)
    if hostile:
        named = indices.masked_fill(is_beyond, -1) if has_length else indices
        is_named = torch.zeros(len(rows), dtype=torch.bool)
        is_named[named[named >= 0]] = True
        rows.view(torch.uint8)[~is_named] = 0xFF
    if has_length:
        indices = indices.masked_fill(is_beyond, 2147480000)
    sinks = torch.randn(H, generator=g) * 3
    if hostile:
        sinks[1:2], sinks[2:3] = math.inf, -math.inf
    return {
        "q": torch.randn(T, H, L + R, generator=g).to(x_dtype).to(device),
        "cache": rows.view(num_pages, page_size, rows.size(1)).to(device),
        "indices": indices.int().to(device),
        "sm_scale": 2.0 / (L + R) ** 0.5,
        "v_dim": L,
        "attn_sink": sinks.to(device) if has_sink else None,
        "topk_length": lengths.int().to(device) if has_length else None,
    }


def _bound(inputs: dict[str, Any], accum: float) -> list[tuple[Tensor, Tensor]]:
    q, cache = inputs["q"], inputs["cache"]
    return sparse_bound(inputs, accum, p_dtype(q, cache), k_dtype(q, cache))


def _bytes(T, H, topk, S, L=512, R=64, cache_dtype=torch.bfloat16, x_bytes=2, **_) -> int:
    rows = min(T * topk, S) * row_size(L, R, cache_dtype) * cache_dtype.itemsize
    return rows + T * topk * 4 + T * H * ((2 * L + R) * x_bytes + 4)


FLOAT32 = {"x_dtype": torch.float32, "cache_dtype": torch.float32}
FLOAT16 = {"x_dtype": torch.float16, "cache_dtype": torch.float16}

register(
    OpSpec(
        name=OP,
        schema=(
            "Tensor q, Tensor cache, Tensor indices, *, float sm_scale, int v_dim=512, "
            "Tensor? attn_sink=None, Tensor? topk_length=None"
        ),
        outputs=("out", "lse"),
        dtype_arg=None,
        check=_check_args,
        empty=_empty,
        reference=reference,
        public=mla_sparse,
        make_inputs=make_inputs,
        bound=_bound,
        cases=(
            {"T": 0, "H": 16, "topk": 10, "S": 100},
            {"T": 2, "H": 4, "topk": 0, "S": 10, "L": 64, "R": 16, "has_sink": True},
            {"T": 1, "H": 1, "topk": 1, "S": 1, "page_size": 1},
            {"T": 4, "H": 16, "topk": 130, "S": 200, "has_length": True},
            {
                "T": 4,
                "H": 5,
                "topk": 97,
                "S": 120,
                "page_size": 61,
                "cache_dtype": torch.uint8,
                "has_sink": True,
            },
            {"T": 3, "H": 33, "topk": 70, "S": 40, "page_size": 2, "has_sink": True, "has_length": True},
            {"T": 2, "H": 3, "topk": 20, "S": 30, "L": 128, "page_size": 3, "x_dtype": torch.float32},
            {"T": 2, "H": 8, "topk": 61, "S": 500, "L": 256, "R": 0, "page_size": 53, **FLOAT16},
            {
                "T": 3,
                "H": 7,
                "topk": 40,
                "S": 60,
                "L": 37,
                "R": 5,
                "page_size": 576,
                "has_sink": True,
                **FLOAT32,
            },
            {
                "T": 2,
                "H": 4,
                "topk": 33,
                "S": 69,
                "L": 128,
                "R": 0,
                "page_size": 69,
                "x_dtype": torch.float32,
                "cache_dtype": torch.uint8,
            },
            {"T": 3, "H": 2, "topk": 5, "S": 0, "L": 64, "R": 16},
            {"T": 1, "H": 2, "topk": 1, "S": 1, "L": 128, "R": 5, "page_size": 1, "cache_dtype": torch.uint8},
        ),
        flops=lambda T, H, topk, L=512, R=64, **_: 2 * T * H * topk * (2 * L + R),
        bytes=_bytes,
        cuda_limits=cuda_limits,
        batch_args=("q", "indices", "topk_length"),
    )
)
