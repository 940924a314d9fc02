"""Attention of new tokens over a latent cache, with the up-projections absorbed into query and output."""

import math
from typing import Any

import torch
from torch import Tensor

from moela.ops import _check
from moela.ops._mla_bound import decode_bound
from moela.ops._mla_cuda import cuda_limits
from moela.ops._spec import OpSpec, register
from moela.ops.mla_cache_write import CACHE_DTYPES
from moela.reference import mla_decode as reference
from moela.reference import mla_schedule as make_schedule
from moela.reference._mla_cache import GROUP, encode, row_size

OP = "mla_decode"


def mla_decode(
    q: Tensor,
    cache: Tensor,
    block_table: Tensor | None,
    seqlens: Tensor,
    *,
    sm_scale: float,
    v_dim: int = 512,
    causal: bool = True,
    cu_seqlens_q: Tensor | None = None,
    schedule: Tensor | None = None,
    batch_invariant: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute ``out = softmax(sm_scale * q @ k.T) @ k[:, :v_dim]`` per head, k the latent rows of a request.

    Args:
        q: [B, s_q, H, D] bfloat16, float16 or float32: `q_nope` times the up-projection of the keys (v_dim
            columns), then `q_pe`; last dimension contiguous. Any extent may be 0 but D. With cu_seqlens_q
            [total, H, D]: the new tokens of all requests, one request after the other.
        cache: [num_pages, page_size, row], as `mla_cache_write` leaves it: rows of D elements bfloat16,
            float16 or float32, or uint8 rows with v_dim codes. Last dimension contiguous. With block_table
            None: [B, capacity, row], one page per request.
        block_table: [B, max_pages] int32, last dimension contiguous: the pages of each request, in order.
            Entries beyond its length are not read. None: see cache.
        seqlens: [B] int32: tokens of each request in the cache, the new ones among them; 0 to the capacity.
            What the cache holds beyond does not matter.
        sm_scale: what scores are multiplied by; for the model's heads, not for D: (nope + rope)^-0.5, times
            the square of YaRN's mscale.
        v_dim: the columns of a row that are the value: kv_lora_rank; the other D - v_dim are the rotated part
            of the key.
        causal: query j sees the tokens before seqlens - (s_q - 1 - j): the last one all, the one before all
            but one. s_q is a request's own with cu_seqlens_q.
        cu_seqlens_q: [B + 1] int32, contiguous, from 0 up to total: where the new tokens of each request
            begin. A request may have none. On a GPU wrong values are refused under MOELA_DEBUG only.
        schedule: what `mla_schedule` makes of these seqlens with rows = s_q * H, to be shared by the layers
            of a step; its rows may be strided. None: a GPU makes its own. None with cu_seqlens_q, where
            requests have different numbers of rows. One for other lengths is refused on the CPU and under
            MOELA_DEBUG; otherwise a GPU gives NaN for the requests whose lengths differ, or for all.
        batch_invariant: on a GPU, split a request at every 2048th key and nowhere else, so that its result
            does not depend on its batch, bit for bit. On the CPU that is always so. Triton keeps a float32
            result of every piece that block_table has room for, at most 1 GB of them (or those of one request
            at any length): a larger batch is attended some requests at a time, by schedules of its own.

    Returns:
        out: [B, s_q, H, v_dim] or [total, H, v_dim] of q's dtype, contiguous; 0 where a query sees no token.
            The up-projection of the values is applied to it.
        lse: [B, s_q, H] or [total, H] float32: the natural logarithm of the sum of e^score; -Inf where there
            is no token. See `merge_states`. A score of +Inf makes out and lse of its head NaN, as softmax
            does; scores of -Inf only are as no token.

    Numerics: float32, out rounded once; on a GPU the weights are rounded to the type of q if that is bfloat16
        and the cache bfloat16 or uint8, or if both are float16, and on a CPU with AMX in the first case;
        there and in the CUDA kernel rows of bytes are rounded to bfloat16, which loses nothing if their scale
        factors are powers of two. The error is bounded per element (python/moela/ops/_mla_bound.py) by what
        scores, sums and rounded weights lose; elsewhere on the CPU it is at most twice that of the same
        formula in torch in float32. NaN and infinity of a token reach the queries that see it, and no other.
        Pieces of a request's keys are merged in order, so a result is the same in every run and for any
        number of threads. The same bits for every instruction set of the CPU but amx_bf16, which has its own
        where weights are rounded; keys are split at fixed places: a request's result depends on that request
        only.

    Source: DeepSeek-V2, arXiv 2405.04434, section 2.1 and appendix C.
    """
    return torch.ops.moela.mla_decode(
        q,
        cache,
        block_table,
        seqlens,
        sm_scale=sm_scale,
        v_dim=v_dim,
        causal=causal,
        cu_seqlens_q=cu_seqlens_q,
        schedule=schedule,
        batch_invariant=batch_invariant,
    )


def mla_decode_out(
    q: Tensor,
    cache: Tensor,
    block_table: Tensor | None,
    seqlens: Tensor,
    *,
    sm_scale: float,
    v_dim: int = 512,
    causal: bool = True,
    cu_seqlens_q: Tensor | None = None,
    schedule: Tensor | None = None,
    batch_invariant: bool = False,
    out: Tensor,
    lse: Tensor,
) -> None:
    """`mla_decode` into `out` and `lse`, contiguous."""
    torch.ops.moela.mla_decode_out(
        q,
        cache,
        block_table,
        seqlens,
        sm_scale=sm_scale,
        v_dim=v_dim,
        causal=causal,
        cu_seqlens_q=cu_seqlens_q,
        schedule=schedule,
        batch_invariant=batch_invariant,
        out=out,
        lse=lse,
    )


def _check_args(
    q,
    cache,
    block_table,
    seqlens,
    *,
    sm_scale,
    v_dim=512,
    causal=True,
    cu_seqlens_q=None,
    schedule=None,
    batch_invariant=False,
) -> None:
    _check.expect_dim(OP, "q", q, 4 if cu_seqlens_q is None else 3)
    _check.expect_dtype(OP, "q", q.dtype, _check.FLOAT_DTYPES)
    _check.expect_last_dim_contiguous(OP, "q", q)
    if cu_seqlens_q is None:
        B, owner = q.size(0), "q"
    else:
        _check.expect_cu_seqlens(OP, "cu_seqlens_q", cu_seqlens_q, None, q.size(0), "q", q)
        B, owner = cu_seqlens_q.size(0) - 1, "cu_seqlens_q"
    D = q.size(-1)
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
    if block_table is None:
        _check.expect(cache.size(0) == B, OP, "cache", f"B={B} (that of {owner})", f"B={cache.size(0)}")
    else:
        _check.expect_block_table(OP, block_table, "q", q)
        got = block_table.size(0)
        _check.expect(got == B, OP, "block_table", f"B={B} (that of {owner})", f"B={got}")
    _check.expect_seqlens(OP, seqlens, B, q, cache, block_table)
    if schedule is not None:
        wanted = "None because cu_seqlens_q is a tensor"
        _check.expect(cu_seqlens_q is None, OP, "schedule", wanted, "a tensor")
        _check.expect_schedule(OP, schedule, seqlens, q.size(1) * q.size(2), batch_invariant)


def _empty(q, cache, block_table, seqlens, *, sm_scale, v_dim=512, **_) -> tuple[Tensor, Tensor]:
    return q.new_empty((*q.shape[:-1], v_dim)), q.new_empty(q.shape[:-1], dtype=torch.float32)


def make_inputs(
    B: int,
    H: int,
    S: int,
    s_q: int = 1,
    L: int = 512,
    R: int = 64,
    page_size: int | None = 64,
    x_dtype: torch.dtype = torch.bfloat16,
    cache_dtype: torch.dtype = torch.bfloat16,
    causal: bool = True,
    ragged: bool = False,
    num_parts: int | None = None,
    batch_invariant: bool = False,
    hostile: bool = True,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """B requests of at most S tokens; page_size None: a dense cache; ragged: from 0 to s_q new tokens.

    num_parts: of the schedule; None: no schedule.

    Hostile: lengths from 0 on, every byte that no request owns is 0xFF (NaN), and the block table ends in
    garbage. Scores vary by some units, as those of a model do.
    """
    g, of_pages = (torch.Generator().manual_seed(seed + i) for i in range(2))  # values whatever the pages
    seqlens = torch.randint(0, S + 1, (B,), generator=g) if hostile else torch.full((B,), S)
    seqlens[:1] = S
    page = page_size or max(S, 1)
    pages = [-(-int(n) // page) for n in seqlens]
    num_pages = B if page_size is None else sum(pages) + 1
    order = torch.arange(B) if page_size is None else torch.randperm(num_pages, generator=of_pages)
    cache = torch.empty(
        num_pages, page if S or page_size else 0, row_size(L, R, cache_dtype), dtype=cache_dtype
    )
    cache.view(torch.uint8).fill_(0xFF)
    block_table = torch.full((B, -(-S // page) + hostile), 2147480000, dtype=torch.int32)
    next_page = 0
    for b, n in enumerate(seqlens.tolist()):
        mine = order[b : b + 1] if page_size is None else order[next_page : next_page + pages[b]]
        next_page += pages[b]
        block_table[b, : len(mine)] = mine[: block_table.size(1)]
        rows = torch.randn(n, L + R, generator=g)
        encoded = encode(rows[:, :L], rows[:, L:], cache_dtype, False)
        for i, start in enumerate(range(0, n, page)):
            piece = encoded[start : start + page]
            cache[mine[i], : len(piece)] = piece
    counts = torch.randint(0, s_q + 1, (B,), generator=of_pages)
    tokens = (int(counts.sum()),) if ragged else (B, s_q)
    seqlens = seqlens.int()
    schedule = None
    if num_parts is not None:
        schedule = make_schedule(
            seqlens, rows=s_q * H, num_parts=num_parts, batch_invariant=batch_invariant
        ).to(device)
    return {
        "q": torch.randn(*tokens, H, L + R, generator=g).to(x_dtype).to(device),
        "cache": cache.to(device),
        "block_table": None if page_size is None else block_table.to(device),
        "seqlens": seqlens.to(device),
        "sm_scale": 2.0 / (L + R) ** 0.5,
        "v_dim": L,
        "causal": causal,
        "cu_seqlens_q": torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int().to(device)
        if ragged
        else None,
        "schedule": schedule,
        "batch_invariant": batch_invariant,
    }


def p_dtype(q: Tensor, cache: Tensor) -> torch.dtype | None:
    """What a GPU rounds weights to, or None: what its products take. Or a CPU with AMX, to bfloat16."""
    if q.dtype == torch.bfloat16 and cache.dtype == torch.uint8:
        return torch.bfloat16  # which holds all codes
    return q.dtype if q.dtype == cache.dtype != torch.float32 else None


def k_dtype(q: Tensor, cache: Tensor) -> torch.dtype | None:
    """What rows of bytes are rounded to, where weights are rounded but in Triton."""
    return torch.bfloat16 if q.dtype == torch.bfloat16 and cache.dtype == torch.uint8 else None


def _bound(inputs: dict[str, Any], accum: float) -> list[tuple[Tensor, Tensor]]:
    q, cache = inputs["q"], inputs["cache"]
    return decode_bound(inputs, accum, p_dtype(q, cache), k_dtype(q, cache))


def _bytes(B, H, S, s_q=1, L=512, R=64, cache_dtype=torch.bfloat16, x_bytes=2, **_) -> int:
    rows = B * S * row_size(L, R, cache_dtype) * cache_dtype.itemsize
    return rows + B * s_q * H * ((2 * L + R) * x_bytes + 4)


register(
    OpSpec(
        name=OP,
        schema=(
            "Tensor q, Tensor cache, Tensor? block_table, Tensor seqlens, *, float sm_scale, int v_dim=512, "
            "bool causal=True, Tensor? cu_seqlens_q=None, Tensor? schedule=None, bool batch_invariant=False"
        ),
        outputs=("out", "lse"),
        dtype_arg=None,
        check=_check_args,
        empty=_empty,
        reference=reference,
        public=mla_decode,
        make_inputs=make_inputs,
        bound=_bound,
        cases=(
            {"B": 0, "H": 16, "S": 100},
            {"B": 1, "H": 1, "S": 1, "page_size": 1},
            {"B": 3, "H": 16, "S": 130},
            {"B": 2, "H": 5, "S": 97, "s_q": 3, "page_size": 16, "cache_dtype": torch.uint8},
            {"B": 2, "H": 33, "S": 70, "page_size": None, "s_q": 2, "causal": False},
            {"B": 3, "H": 3, "S": 4, "s_q": 7, "L": 128, "R": 64, "page_size": 3, "x_dtype": torch.float32},
            {
                "B": 2,
                "H": 8,
                "S": 61,
                "L": 256,
                "R": 0,
                "x_dtype": torch.float16,
                "cache_dtype": torch.float16,
            },
            {
                "B": 2,
                "H": 7,
                "S": 40,
                "L": 37,
                "R": 5,
                "page_size": 576,
                "x_dtype": torch.float32,
                "cache_dtype": torch.float32,
            },
            {"B": 2, "H": 4, "S": 33, "L": 128, "R": 0, "x_dtype": torch.float32, "cache_dtype": torch.uint8},
            {"B": 2, "H": 2, "S": 0, "L": 64, "R": 16},
            {"B": 1, "H": 2, "S": 1, "L": 128, "R": 5, "page_size": 1, "cache_dtype": torch.uint8},
            {"B": 4, "H": 9, "S": 150, "s_q": 3, "L": 128, "R": 16, "ragged": True},
            {"B": 3, "H": 4, "S": 300, "s_q": 2, "L": 64, "num_parts": 4, "x_dtype": torch.float32},
            {"B": 2, "H": 2, "S": 2200, "L": 64, "R": 16, "num_parts": 3, "batch_invariant": True},
        ),
        flops=lambda B, H, S, s_q=1, L=512, R=64, **_: 2 * B * s_q * H * S * (2 * L + R),
        bytes=_bytes,
        cuda_limits=cuda_limits,
    )
)
