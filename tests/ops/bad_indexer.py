"""What the ops of the lightning indexer refuse."""

from collections.abc import Callable

import torch
from bad_call import (
    DENSE,
    E4M3,
    FLOATS,
    LAST_DIM,
    Args,
    Bad,
    as_dtype,
    col_major,
    one_wider,
    put,
    row_strided,
)
from torch import Tensor

GOOD: dict[str, Args] = {
    "indexer_cache_write": {"T": 3, "D": 40, "page_size": 5, "hostile": False},
    "indexer_logits": {"T": 3, "S": 10, "H": 4, "D": 40, "hostile": False},
    "indexer_logits_paged": {"B": 2, "S": 10, "H": 3, "s_q": 2, "D": 40, "page_size": 5, "hostile": False},
    "indexer_topk": {
        "T": 3, "S": 10, "topk": 4, "s_q": 2, "page_size": 5, "ranges": True, "requests": 2, "hostile": False,
    },
}  # fmt: skip

F64, I64 = torch.float64, torch.int64


def values(*shape: int, first: int, rest: int = 0) -> Callable[[Tensor], Tensor]:
    """An int32 tensor of the shape."""

    def fill(t: Tensor) -> Tensor:
        filled = t.new_full(shape, rest)
        filled.view(-1)[0] = first
        return filled

    return fill


def with_gaps(t: Tensor) -> Tensor:
    """Pages whose rows do not touch."""
    return torch.cat([t, t], 2)[..., : t.size(2)]


# What both kinds of logits refuse of queries and weights, whose first three extents are given.
def bad_queries(dim: int, shape: list[int]) -> list[Bad]:
    return [
        Bad("q is flat", put(q=lambda t: t[0]), f"q: expected a {dim}-D tensor, got {dim - 1}-D"),
        Bad(
            "q is bfloat16",
            put(q=as_dtype(torch.bfloat16)),
            "q: expected float8_e4m3fn, got bfloat16",
        ),
        Bad("columns of q are strided", put(q=col_major), "q: " + LAST_DIM.format(shape[-1])),
        Bad("weights are float64", put(weights=as_dtype(F64)), "weights: expected float32, got float64"),
        Bad(
            "weights are wide",
            put(weights=one_wider),
            f"weights: expected shape {shape}, got {[*shape[:-1], shape[-1] + 1]}",
        ),
        Bad("weights are strided", put(weights=col_major), "weights: " + LAST_DIM.format(shape[-2])),
    ]


BAD_CACHE = [
    Bad("cache has heads", put(cache=lambda t: t[:, :, None]), "cache: expected a 3-D tensor, got 4-D"),
    Bad("cache is e4m3", put(cache=as_dtype(E4M3)), "cache: expected uint8, got float8_e4m3fn"),
    Bad("cache is wide", put(cache=one_wider), "cache: expected rows of 44 bytes, got 45"),
    Bad("columns of cache are strided", put(cache=col_major), "cache: " + LAST_DIM.format(5)),
    Bad(
        "pages have gaps",
        put(cache=with_gaps),
        "cache: expected pages without gaps (rows 44 bytes apart), got rows 88 apart",
    ),
]
BAD_LOGITS_OUT = Bad(
    "logits are float64", put(logits=as_dtype(F64)), "logits: expected float32, got float64", True
)
BAD_TABLE = [
    Bad("block_table is 1-D", put(block_table=lambda t: t[0]), "block_table: expected a 2-D tensor, got 1-D"),
    Bad("block_table is int64", put(block_table=as_dtype(I64)), "block_table: expected int32, got int64"),
    Bad("blocks are strided", put(block_table=col_major), "block_table: " + LAST_DIM.format(2)),
]

BAD: dict[str, list[Bad]] = {
    "indexer_cache_write": [
        Bad("k is 3-D", put(k=lambda t: t[None]), "k: expected a 2-D tensor, got 3-D"),
        Bad("k is e4m3", put(k=as_dtype(E4M3)), f"k: expected {FLOATS}, got float8_e4m3fn"),
        Bad("columns of k are strided", put(k=col_major), "k: " + LAST_DIM.format(3)),
        *BAD_CACHE,
        Bad(
            "slots are float32",
            put(slot_mapping=as_dtype(torch.float32)),
            "slot_mapping: expected int32 or int64, got float32",
        ),
        Bad(
            "a slot is missing",
            put(slot_mapping=lambda t: t[:2]),
            "slot_mapping: expected shape [3], got [2]",
        ),
        Bad(
            "slots are strided",
            put(slot_mapping=lambda t: t.repeat_interleave(2)[::2]),
            "slot_mapping: " + LAST_DIM.format(2),
        ),
        Bad(
            "a slot is -2",
            put(slot_mapping=values(3, first=-2)),
            "slot_mapping: expected slots within [-1, 9], got -2 at token 0",
        ),
        Bad(
            "a slot is too large",
            put(slot_mapping=values(3, first=0, rest=10)),
            "slot_mapping: expected slots within [-1, 9], got 10 at token 1",
        ),
    ],
    "indexer_logits": [
        *bad_queries(3, [3, 4]),
        Bad("k is 3-D", put(k=lambda t: t[None]), "k: expected a 2-D tensor, got 3-D"),
        Bad("k is bytes", put(k=lambda t: t.view(torch.uint8)), "k: expected float8_e4m3fn, got uint8"),
        Bad("k is narrow", put(k=lambda t: t[:, :32]), "k: expected D=40 (that of q), got D=32"),
        Bad("columns of k are strided", put(k=col_major), "k: " + LAST_DIM.format(10)),
        Bad("sf_k is float64", put(sf_k=as_dtype(F64)), "sf_k: expected float32, got float64"),
        Bad("sf_k has a column", put(sf_k=lambda t: t[:, None]), "sf_k: expected shape [10], got [10, 1]"),
        Bad("ks are int64", put(ks=as_dtype(I64)), "ks: expected int32, got int64"),
        Bad("ks have a column", put(ks=lambda t: t[:, None]), "ks: expected shape [3], got [3, 1]"),
        Bad(
            "a start is negative",
            put(ks=lambda t: t - 1),
            "ks: expected starts of at least 0, got -1 at row 0",
        ),
        Bad("ke are int64", put(ke=as_dtype(I64)), "ke: expected int32, got int64"),
        Bad("ke are few", put(ke=lambda t: t[:2]), "ke: expected shape [3], got [2]"),
        Bad("an end is beyond", put(ke=lambda t: t + 1), "ke: expected ends of at most 10, got 11 at row 0"),
        BAD_LOGITS_OUT,
        Bad("logits are wide", put(logits=one_wider), "logits: expected shape [3, 10], got [3, 11]", True),
        Bad("logits are transposed", put(logits=col_major), "logits: " + LAST_DIM.format(3), True),
    ],
    "indexer_logits_paged": [
        *bad_queries(4, [2, 2, 3]),
        *BAD_CACHE,
        Bad(
            "max_seqlen is negative",
            put(max_seqlen=-1),
            "max_seqlen: expected a number of at least 0, got -1",
        ),
        *BAD_TABLE,
        Bad(
            "block_table is short",
            put(block_table=lambda t: t[:1]),
            "block_table: expected B=2 (that of q), got B=1",
        ),
        Bad("seqlens are int64", put(seqlens=as_dtype(I64)), "seqlens: expected int32, got int64"),
        Bad(
            "seqlens have a column",
            put(seqlens=lambda t: t[:, None]),
            "seqlens: expected shape [2], got [2, 1]",
        ),
        Bad(
            "a length is negative",
            put(seqlens=lambda t: t - 11),
            "seqlens: expected lengths within [0, 10], got -1 at request 0",
        ),
        Bad(
            "a length is beyond the result",
            put(max_seqlen=9),
            "seqlens: expected lengths within [0, 9], got 10 at request 0",
        ),
        Bad(
            "a length is beyond the table",
            put(max_seqlen=20, seqlens=lambda t: t + 1),
            "seqlens: expected lengths within [0, 10], got 11 at request 0",
        ),
        Bad(
            "a page is none",
            put(block_table=lambda t: t.new_tensor([[0, 5], [1, 2]])),
            "block_table: expected pages within [0, 4], got 5 at request 0, block 1",
        ),
        BAD_LOGITS_OUT,
        Bad(
            "logits are short",
            put(logits=lambda t: t[:1]),
            "logits: expected shape [2, 2, 10], got [1, 2, 10]",
            True,
        ),
        Bad("logits are strided", put(logits=row_strided), "logits: " + DENSE, True),
    ],
    "indexer_topk": [
        Bad(
            "logits are 1-D",
            put(logits=lambda t: t[0, 0]),
            "logits: expected a tensor of at least 2 dimensions, got 1-D",
        ),
        Bad("logits are float64", put(logits=as_dtype(F64)), "logits: expected float32, got float64"),
        Bad("columns of logits are strided", put(logits=col_major), "logits: " + LAST_DIM.format(2)),
        Bad("topk is 0", put(topk=0), "topk: expected a positive number, got 0"),
        Bad("ks are int64", put(ks=as_dtype(I64)), "ks: expected int32, got int64"),
        Bad("ks are few", put(ks=lambda t: t[:2]), "ks: expected shape [3, 2], got [2, 2]"),
        Bad(
            "a start is negative",
            put(ks=values(3, 2, first=-1)),
            "ks: expected starts of at least 0, got -1 at row 0",
        ),
        Bad("ke are int64", put(ke=as_dtype(I64)), "ke: expected int32, got int64"),
        Bad("ke have a column", put(ke=lambda t: t[..., None]), "ke: expected shape [3, 2], got [3, 2, 1]"),
        Bad(
            "an end is beyond",
            put(ke=values(3, 2, first=3, rest=11)),
            "ke: expected ends of at most 10, got 11 at row 1",
        ),
        *BAD_TABLE,
        Bad(
            "no page_size",
            put(page_size=None),
            "page_size: expected a positive number because there is a block_table, got None",
        ),
        Bad(
            "page_size is 0",
            put(page_size=0),
            "page_size: expected a positive number because there is a block_table, got 0",
        ),
        Bad(
            "page_size without pages",
            put(block_table=None),
            "page_size: expected None because block_table is None, got 5",
        ),
        Bad(
            "requests without pages",
            put(block_table=None, page_size=None),
            "request_ids: expected None because block_table is None, got a tensor",
        ),
        Bad(
            "block_table is that of two",
            put(request_ids=None),
            "block_table: expected B=3 (that of logits), got B=2",
        ),
        Bad("requests are int64", put(request_ids=as_dtype(I64)), "request_ids: expected int32, got int64"),
        Bad(
            "requests of tokens",
            put(request_ids=lambda t: t[:, 0]),
            "request_ids: expected shape [3, 2], got [3]",
        ),
        Bad(
            "a request is none",
            put(request_ids=values(3, 2, first=0, rest=2)),
            "request_ids: expected requests within [-1, 1], got 2 at row 1",
        ),
        Bad(
            "a row is longer than its pages",
            put(block_table=lambda t: t[:, :1], ks=values(3, 2, first=0), ke=values(3, 2, first=6)),
            "block_table: expected pages for 6 tokens a request, got pages for 5",
        ),
        Bad(
            "rows are longer than their pages",
            put(block_table=lambda t: t[:, :1], ks=None, ke=None),
            "block_table: expected pages for 10 tokens a request, got pages for 5",
        ),
        Bad("indices are int64", put(indices=as_dtype(I64)), "indices: expected int32, got int64", True),
        Bad(
            "indices are wide",
            put(indices=one_wider),
            "indices: expected shape [3, 2, 4], got [3, 2, 5]",
            True,
        ),
        Bad("indices are strided", put(indices=row_strided), "indices: " + DENSE, True),
    ],
}
