"""The lightning indexer's scores of the keys of its paged cache: decode."""

from typing import Any

import torch
from torch import Tensor

from moela.ops import _check
from moela.ops._indexer_bound import logits_bound
from moela.ops._indexer_check import expect_cache, expect_queries
from moela.ops._spec import OpSpec, register
from moela.reference import indexer_logits_paged as reference
from moela.reference._indexer_cache import SF_BYTES, encode, parts
from moela.reference.indexer_logits_paged import keys_of_request

OP = "indexer_logits_paged"


def indexer_logits_paged(
    q: Tensor, cache: Tensor, weights: Tensor, block_table: Tensor, seqlens: Tensor, *, max_seqlen: int
) -> Tensor:
    """Compute ``logits[b, j, s] = sf_k[s] * sum_h weights[b, j, h] * relu(q[b, j, h] @ k[s])``, k paged.

    Args:
        q: [B, s_q, H, D] float8_e4m3fn, last dimension contiguous. Any extent may be 0. Its scale factors and
            the model's constants are part of the weights.
        cache: [num_pages, page_size, D + 4] uint8, as `indexer_cache_write` leaves it: a page is one run of
            bytes, page_size times D codes and then page_size float32 scale factors. Pages may be strided.
        weights: [B, s_q, H] float32, last dimension contiguous: of a head, times the scale factor of q.
        block_table: [B, max_pages] int32, last dimension contiguous: the pages of each request, in order.
            Entries beyond its length are not read.
        seqlens: [B] int32: tokens of each request in the cache, the new ones among them; 0 to max_seqlen and
            to what the pages hold. What the cache holds beyond does not matter.
        max_seqlen: the columns of the result.

    Returns:
        [B, s_q, max_seqlen] float32, contiguous. Query j sees the keys before seqlens - (s_q - 1 - j): the
        last one all, the one before all but one; -Inf is written everywhere else. See `indexer_topk`.

    Numerics: as `indexer_logits`, with its bits. A request's logits depend on that request only.

    Source: DeepSeek-V3.2-Exp, DeepSeek_V3_2.pdf, section 2.1, equation 1. The pages: deepseek-ai/DeepGEMM,
        csrc/apis/attention.hpp.
    """
    return torch.ops.moela.indexer_logits_paged(
        q, cache, weights, block_table, seqlens, max_seqlen=max_seqlen
    )


def indexer_logits_paged_out(
    q: Tensor,
    cache: Tensor,
    weights: Tensor,
    block_table: Tensor,
    seqlens: Tensor,
    *,
    max_seqlen: int,
    logits: Tensor,
) -> None:
    """`indexer_logits_paged` into `logits`, contiguous."""
    torch.ops.moela.indexer_logits_paged_out(
        q, cache, weights, block_table, seqlens, max_seqlen=max_seqlen, logits=logits
    )


def _check_args(q, cache, weights, block_table, seqlens, *, max_seqlen) -> None:
    expect_queries(OP, q, weights, 4)
    expect_cache(OP, cache, q.size(3), "q", q)
    _check.expect(max_seqlen >= 0, OP, "max_seqlen", "a number of at least 0", max_seqlen)
    _check.expect_block_table(OP, block_table, "q", q)
    B, got = q.size(0), block_table.size(0)
    _check.expect(got == B, OP, "block_table", f"B={B} (that of q)", f"B={got}")
    _check.expect_seqlens(OP, seqlens, B, q, cache, block_table, max_seqlen)


def make_inputs(
    B: int,
    S: int,
    H: int,
    s_q: int = 1,
    D: int = 128,
    page_size: int = 64,
    extra: int = 0,
    hostile: bool = True,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """B requests of at most S tokens; extra: how much larger max_seqlen is.

    Hostile: lengths from 0 on, every byte that no request owns is 0xFF (NaN), and the block table ends in
    garbage.
    """
    g, of_pages = (torch.Generator().manual_seed(seed + i) for i in range(2))  # values whatever the pages
    seqlens = torch.randint(0, S + 1, (B,), generator=g) if hostile else torch.full((B,), S)
    seqlens[:1] = S
    pages = [-(-int(n) // page_size) for n in seqlens]
    order = torch.randperm(sum(pages) + 1, generator=of_pages)
    cache = torch.full((len(order), page_size, D + SF_BYTES), 0xFF, dtype=torch.uint8)
    block_table = torch.full((B, -(-S // page_size) + hostile), 2147480000, dtype=torch.int32)
    next_page = 0
    for b, n in enumerate(seqlens.tolist()):
        mine = order[next_page : next_page + pages[b]]
        next_page += pages[b]
        block_table[b, : len(mine)] = mine
        place = torch.arange(n)
        encoded = encode(torch.randn(n, D, generator=g), False)
        for part, values in zip(parts(cache), encoded, strict=True):
            part[mine[place // page_size], place % page_size] = values
    q = torch.randn(B, s_q, H, D, generator=g).mul(100).clamp(-448, 448)
    return {
        "q": q.to(torch.float8_e4m3fn).to(device),
        "cache": cache.to(device),
        "weights": (torch.randn(B, s_q, H, generator=g) * max(H, 1) ** -0.5).to(device),
        "block_table": block_table.to(device),
        "seqlens": seqlens.int().to(device),
        "max_seqlen": S + extra,
    }


def _bound(inputs: dict[str, Any], accum: float) -> list[tuple[Tensor, Tensor]]:
    q, weights, max_seqlen = (inputs[name] for name in ("q", "weights", "max_seqlen"))
    B, s_q = q.shape[:2]
    exact = torch.full((B, s_q, max_seqlen), -torch.inf, dtype=torch.float64, device=q.device)
    error = torch.zeros_like(exact)
    for b in range(B):
        arguments = (inputs[name] for name in ("cache", "block_table", "seqlens"))
        k, sf_k, num_keys = keys_of_request(*arguments, b, max_seqlen)
        for j in range(s_q):
            n = max(int(num_keys) - (s_q - 1 - j), 0)
            found = logits_bound(q[b, j], k[:n], sf_k[:n], weights[b, j], accum)
            exact[b, j, :n], error[b, j, :n] = found
    return [(exact, error)]


register(
    OpSpec(
        name=OP,
        schema=(
            "Tensor q, Tensor cache, Tensor weights, Tensor block_table, Tensor seqlens, *, SymInt max_seqlen"
        ),
        outputs=("logits",),
        dtype_arg=None,
        check=_check_args,
        empty=lambda q, cache, weights, block_table, seqlens, *, max_seqlen: (
            q.new_empty((*q.shape[:2], max_seqlen), dtype=torch.float32),
        ),
        reference=reference,
        public=indexer_logits_paged,
        make_inputs=make_inputs,
        bound=_bound,
        cases=(
            {"B": 0, "S": 40, "H": 4},
            {"B": 2, "S": 0, "H": 4, "extra": 7},
            {"B": 1, "S": 1, "H": 1, "page_size": 1},
            {"B": 3, "S": 130, "H": 64, "extra": 5},
            {"B": 2, "S": 97, "H": 32, "s_q": 3, "page_size": 16},
            {"B": 3, "S": 4, "H": 5, "s_q": 7, "D": 37, "page_size": 3, "extra": 9},
            {"B": 2, "S": 70, "H": 17, "D": 64, "page_size": 576, "hostile": False},
            {"B": 2, "S": 20, "H": 0, "s_q": 2},
        ),
        flops=lambda B, S, H, s_q=1, D=128, **_: 2 * B * s_q * S * H * D,
        bytes=lambda B, S, H, s_q=1, D=128, extra=0, **_: (
            B * (S * (D + 4) + s_q * (H * (D + 4) + 4 * (S + extra)))
        ),
        batch_args=("weights", "q", "block_table", "seqlens"),
    )
)
