"""What the ops of latent attention refuse."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

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

GOOD: dict[str, Args] = {
    "mla_decode": {
        "B": 2,
        "H": 3,
        "S": 10,
        "L": 128,
        "R": 8,
        "page_size": 5,
        "hostile": False,
        "num_parts": 4,
    },
    "mla_schedule": {"B": 3, "S": 100, "num_parts": 4},
    "mla_sparse": {
        "T": 2,
        "H": 3,
        "topk": 4,
        "S": 10,
        "L": 128,
        "R": 8,
        "page_size": 5,
        "has_sink": True,
        "has_length": True,
        "hostile": False,
    },
    "mla_cache_write": {"T": 3, "L": 128, "R": 8, "page_size": 5, "hostile": False},
    "merge_states": {"T": 3, "H": 4, "D": 40},
}

BYTES = torch.uint8


def slots(*values: int) -> Callable[[Args], Args]:
    return put(slot_mapping=lambda t: torch.tensor(values, device=t.device))


def of_bytes(row_bytes: int, **others: Any) -> Callable[[Args], Args]:
    """The cache as one of bytes."""
    return put(cache=lambda t: torch.empty(*t.shape[:2], row_bytes, dtype=BYTES, device=t.device), **others)


SCHEDULED = "(B, num_parts, rows, batch_invariant)"


def without_queries(args: Args) -> Args:
    """A ragged batch of one token a request."""
    bounds = torch.tensor([0, 1, 2], dtype=torch.int32, device=args["q"].device)
    return args | {"q": args["q"].flatten(0, 1), "cu_seqlens_q": bounds}


def ragged(*bad: Bad) -> list[Bad]:
    """The same of a ragged batch, without a schedule."""
    return [replace(b, spoil=lambda args, b=b: b.spoil(as_ragged(args))) for b in bad]


def as_ragged(args: Args) -> Args:
    return (
        without_queries(args)
        | {"schedule": None}
        | {name: args[name].flatten(0, 1) for name in ("out", "lse") if name in args}
    )


BAD: dict[str, list[Bad]] = {
    "mla_schedule": [
        Bad("seqlens are 2-D", put(seqlens=lambda t: t[None]), "seqlens: expected a 1-D tensor, got 2-D"),
        Bad("seqlens are int64", put(seqlens=as_dtype(torch.int64)), "seqlens: expected int32, got int64"),
        Bad(
            "seqlens are strided",
            put(seqlens=lambda t: t.repeat_interleave(2)[::2]),
            "seqlens: " + LAST_DIM.format(2),
        ),
        Bad("rows is -1", put(rows=-1), "rows: expected a number within [0, 1048576], got -1"),
        Bad("rows is large", put(rows=2**20 + 1), "rows: expected a number within [0, 1048576], got 1048577"),
        Bad("no parts", put(num_parts=0), "num_parts: expected a number within [1, 1024], got 0"),
        Bad("many parts", put(num_parts=1025), "num_parts: expected a number within [1, 1024], got 1025"),
        Bad(
            "a length is negative",
            put(seqlens=lambda t: t * 0 - t.new_tensor([0, 1, 0])),
            "seqlens: expected lengths of at least 0, got -1 at request 1",
        ),
        Bad(
            "schedule is int64",
            put(schedule=as_dtype(torch.int64)),
            "schedule: expected int32, got int64",
            True,
        ),
        Bad(
            "schedule is short",
            put(schedule=lambda t: t[1:]),
            "schedule: expected shape [10, 4], got [9, 4]",
            True,
        ),
        Bad("schedule is strided", put(schedule=row_strided), "schedule: " + DENSE, True),
    ],
    "mla_decode": [
        Bad("q is 3-D", put(q=lambda t: t[0]), "q: expected a 4-D tensor, got 3-D"),
        Bad("q is e4m3", put(q=as_dtype(E4M3)), f"q: expected {FLOATS}, got float8_e4m3fn"),
        Bad("columns of q are strided", put(q=col_major), "q: " + LAST_DIM.format(3)),
        Bad("v_dim is 0", put(v_dim=0), "v_dim: expected a number within [1, 136], got 0"),
        Bad(
            "v_dim is larger than a row", put(v_dim=137), "v_dim: expected a number within [1, 136], got 137"
        ),
        Bad("sm_scale is NaN", put(sm_scale=float("nan")), "sm_scale: expected a finite number, got nan"),
        Bad("sm_scale is Inf", put(sm_scale=float("inf")), "sm_scale: expected a finite number, got inf"),
        Bad("cache has heads", put(cache=lambda t: t[:, :, None]), "cache: expected a 3-D tensor, got 4-D"),
        Bad(
            "cache is int8",
            put(cache=as_dtype(torch.int8)),
            "cache: expected bfloat16, float16, float32 or uint8, got int8",
        ),
        Bad("cache is wide", put(cache=one_wider), "cache: expected rows of 136 elements, got 137"),
        Bad("cache has rows of 656 bytes", of_bytes(656), "cache: expected rows of 148 bytes, got 656"),
        Bad(
            "v_dim is half a group",
            of_bytes(148, v_dim=64),
            "v_dim: expected a multiple of 128 because cache is uint8, got 64",
        ),
        Bad("columns of cache are strided", put(cache=col_major), "cache: " + LAST_DIM.format(5)),
        Bad("dense for other requests", put(block_table=None), "cache: expected B=2 (that of q), got B=5"),
        Bad(
            "block_table is 1-D",
            put(block_table=lambda t: t[0]),
            "block_table: expected a 2-D tensor, got 1-D",
        ),
        Bad(
            "block_table is int64",
            put(block_table=as_dtype(torch.int64)),
            "block_table: expected int32, got int64",
        ),
        Bad(
            "block_table is short",
            put(block_table=lambda t: t[:1]),
            "block_table: expected B=2 (that of q), got B=1",
        ),
        Bad("blocks are strided", put(block_table=col_major), "block_table: " + LAST_DIM.format(2)),
        Bad("seqlens are int64", put(seqlens=as_dtype(torch.int64)), "seqlens: expected int32, got int64"),
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
            "a length is beyond the table",
            put(seqlens=lambda t: t + 1),
            "seqlens: expected lengths within [0, 10], got 11 at request 0",
        ),
        Bad(
            "a page is none",
            put(block_table=lambda t: t.new_tensor([[0, 5], [1, 2]])),
            "block_table: expected pages within [0, 4], got 5 at request 0, block 1",
        ),
        Bad("schedule is 1-D", put(schedule=lambda t: t[0]), "schedule: expected a 2-D tensor, got 1-D"),
        Bad("schedule is int64", put(schedule=as_dtype(torch.int64)), "schedule: expected int32, got int64"),
        Bad(
            "schedule is narrow",
            put(schedule=lambda t: t[:, :3]),
            "schedule: expected shape [2 + num_parts + 3, 4], got [9, 3]",
        ),
        Bad(
            "schedule has no parts",
            put(schedule=lambda t: t[:5]),
            "schedule: expected shape [2 + num_parts + 3, 4], got [5, 4]",
        ),
        Bad("schedule is transposed", put(schedule=col_major), "schedule: " + LAST_DIM.format(9)),
        Bad(
            "schedule is for one request more",
            put(schedule=lambda t: torch.cat([t, t[-1:]])),
            f"schedule: expected one made for {SCHEDULED} = [2, 5, 3, 0], got [2, 4, 3, 0]",
        ),
        Bad(
            "schedule is for other rows",
            put(q=lambda t: t[:, :, :2]),
            f"schedule: expected one made for {SCHEDULED} = [2, 4, 2, 0], got [2, 4, 3, 0]",
        ),
        Bad(
            "schedule is not batch invariant",
            put(batch_invariant=True),
            f"schedule: expected one made for {SCHEDULED} = [2, 4, 3, 1], got [2, 4, 3, 0]",
        ),
        Bad(
            "schedule is stale",
            put(seqlens=lambda t: t - t.new_tensor([0, 1])),
            "schedule: expected one made for these seqlens, got one of 10 tokens, not 9, at request 1",
        ),
        Bad(
            "schedule of a ragged batch",
            without_queries,
            "schedule: expected None because cu_seqlens_q is a tensor, got a tensor",
        ),
        *ragged(
            Bad("q is 4-D", put(q=lambda t: t[None]), "q: expected a 3-D tensor, got 4-D"),
            Bad(
                "cu_seqlens_q is 2-D",
                put(cu_seqlens_q=lambda t: t[None]),
                "cu_seqlens_q: expected a 1-D tensor, got 2-D",
            ),
            Bad(
                "cu_seqlens_q is empty",
                put(cu_seqlens_q=lambda t: t[:0]),
                "cu_seqlens_q: expected at least 1 element, got 0",
            ),
            Bad(
                "cu_seqlens_q is int64",
                put(cu_seqlens_q=as_dtype(torch.int64)),
                "cu_seqlens_q: expected int32, got int64",
            ),
            Bad(
                "cu_seqlens_q is strided",
                put(cu_seqlens_q=lambda t: t.repeat_interleave(2)[::2]),
                "cu_seqlens_q: " + LAST_DIM.format(2),
            ),
            Bad(
                "cu_seqlens_q begins late",
                put(cu_seqlens_q=lambda t: t.new_tensor([1, 1, 2])),
                "cu_seqlens_q: expected a non-decreasing sequence from 0 to 2, got 1 at the start",
            ),
            Bad(
                "cu_seqlens_q decreases",
                put(cu_seqlens_q=lambda t: t.new_tensor([0, 3, 2])),
                "cu_seqlens_q: expected a non-decreasing sequence from 0 to 2, got 3 before 2 at request 1",
            ),
            Bad(
                "cu_seqlens_q ends early",
                put(cu_seqlens_q=lambda t: t.new_tensor([0, 1, 1])),
                "cu_seqlens_q: expected a non-decreasing sequence from 0 to 2, got 1 at the end",
            ),
            Bad(
                "cu_seqlens_q is of more requests",
                put(cu_seqlens_q=lambda t: t.new_tensor([0, 1, 2, 2])),
                "block_table: expected B=3 (that of cu_seqlens_q), got B=2",
            ),
            Bad(
                "dense for other ragged requests",
                put(block_table=None),
                "cache: expected B=2 (that of cu_seqlens_q), got B=5",
            ),
            Bad(
                "out of a ragged batch has queries",
                put(out=lambda t: t[:, None]),
                "out: expected shape [2, 3, 128], got [2, 1, 3, 128]",
                True,
            ),
        ),
        Bad("out is float32", put(out=as_dtype(torch.float32)), "out: expected bfloat16, got float32", True),
        Bad(
            "out is narrow",
            put(out=lambda t: t[..., :64]),
            "out: expected shape [2, 1, 3, 128], got [2, 1, 3, 64]",
            True,
        ),
        Bad("out is strided", put(out=row_strided), "out: " + DENSE, True),
        Bad(
            "lse is transposed", put(lse=lambda t: t.mT), "lse: expected shape [2, 1, 3], got [2, 3, 1]", True
        ),
    ],
    "mla_sparse": [
        Bad("q is 1-D", put(q=lambda t: t[0, 0]), "q: expected a tensor of at least 2 dimensions, got 1-D"),
        Bad("q is e4m3", put(q=as_dtype(E4M3)), f"q: expected {FLOATS}, got float8_e4m3fn"),
        Bad("columns of q are strided", put(q=col_major), "q: " + LAST_DIM.format(3)),
        Bad("v_dim is 0", put(v_dim=0), "v_dim: expected a number within [1, 136], got 0"),
        Bad("sm_scale is NaN", put(sm_scale=float("nan")), "sm_scale: expected a finite number, got nan"),
        Bad("cache is flat", put(cache=lambda t: t.flatten(0, 1)), "cache: expected a 3-D tensor, got 2-D"),
        Bad(
            "cache is int8",
            put(cache=as_dtype(torch.int8)),
            "cache: expected bfloat16, float16, float32 or uint8, got int8",
        ),
        Bad("cache is wide", put(cache=one_wider), "cache: expected rows of 136 elements, got 137"),
        Bad("cache has rows of 656 bytes", of_bytes(656), "cache: expected rows of 148 bytes, got 656"),
        Bad(
            "v_dim is half a group",
            of_bytes(148, v_dim=64),
            "v_dim: expected a multiple of 128 because cache is uint8, got 64",
        ),
        Bad("columns of cache are strided", put(cache=col_major), "cache: " + LAST_DIM.format(5)),
        Bad(
            "indices are 0-D",
            put(indices=lambda t: t[0, 0]),
            "indices: expected a tensor of at least 1 dimension, got 0-D",
        ),
        Bad("indices are int64", put(indices=as_dtype(torch.int64)), "indices: expected int32, got int64"),
        Bad(
            "indices are of one row",
            put(indices=lambda t: t[0]),
            "indices: expected shape [2, 4], got [4]",
        ),
        Bad("indices of a row are strided", put(indices=col_major), "indices: " + LAST_DIM.format(2)),
        Bad(
            "a slot is beyond the cache",
            put(indices=lambda t: t.new_tensor([[9, 0, 1, 2], [-1, -7, 10, 11]]), topk_length=None),
            "indices: expected slots below 10, got 10 at row 1, entry 2",
        ),
        Bad(
            "attn_sink is bfloat16",
            put(attn_sink=as_dtype(torch.bfloat16)),
            "attn_sink: expected float32, got bfloat16",
        ),
        Bad(
            "attn_sink is of a row each",
            put(attn_sink=lambda t: t[None]),
            "attn_sink: expected shape [3], got [1, 3]",
        ),
        Bad(
            "topk_length is int64",
            put(topk_length=as_dtype(torch.int64)),
            "topk_length: expected int32, got int64",
        ),
        Bad(
            "topk_length is short",
            put(topk_length=lambda t: t[:1]),
            "topk_length: expected shape [2], got [1]",
        ),
        Bad(
            "a length is negative",
            put(topk_length=lambda t: t.new_tensor([4, -1])),
            "topk_length: expected lengths within [0, 4], got -1 at row 1",
        ),
        Bad(
            "a length is beyond topk",
            put(topk_length=lambda t: t.new_tensor([5, 0])),
            "topk_length: expected lengths within [0, 4], got 5 at row 0",
        ),
        Bad("out is float32", put(out=as_dtype(torch.float32)), "out: expected bfloat16, got float32", True),
        Bad(
            "out is narrow",
            put(out=lambda t: t[..., :64]),
            "out: expected shape [2, 3, 128], got [2, 3, 64]",
            True,
        ),
        Bad("out is strided", put(out=row_strided), "out: " + DENSE, True),
        Bad("lse is transposed", put(lse=lambda t: t.T), "lse: expected shape [2, 3], got [3, 2]", True),
    ],
    "mla_cache_write": [
        Bad("kv_c is 3-D", put(kv_c=lambda t: t[None]), "kv_c: expected a 2-D tensor, got 3-D"),
        Bad("kv_c is e4m3", put(kv_c=as_dtype(E4M3)), f"kv_c: expected {FLOATS}, got float8_e4m3fn"),
        Bad("columns of kv_c are strided", put(kv_c=col_major), "kv_c: " + LAST_DIM.format(3)),
        Bad("k_pe is 1-D", put(k_pe=lambda t: t[0]), "k_pe: expected a 2-D tensor, got 1-D"),
        Bad(
            "k_pe is float32",
            put(k_pe=as_dtype(torch.float32)),
            "k_pe: expected bfloat16 (that of kv_c), got float32",
        ),
        Bad("k_pe is short", put(k_pe=lambda t: t[:2]), "k_pe: expected T=3 (that of kv_c), got T=2"),
        Bad("columns of k_pe are strided", put(k_pe=col_major), "k_pe: " + LAST_DIM.format(3)),
        Bad("cache is flat", put(cache=lambda t: t.flatten(0, 1)), "cache: expected a 3-D tensor, got 2-D"),
        Bad(
            "cache is e4m3",
            put(cache=as_dtype(E4M3)),
            "cache: expected bfloat16, float16, float32 or uint8, got float8_e4m3fn",
        ),
        Bad("cache is wide", put(cache=one_wider), "cache: expected rows of 136 elements, got 137"),
        Bad("cache has rows of 656 bytes", of_bytes(656), "cache: expected rows of 148 bytes, got 656"),
        Bad(
            "kv_c has half a group",
            of_bytes(148, kv_c=lambda t: t[:, :64]),
            "kv_c: expected a multiple of 128 columns because cache is uint8, got 64",
        ),
        Bad("columns of cache are strided", put(cache=col_major), "cache: " + LAST_DIM.format(5)),
        Bad(
            "ue8m0 of a cache of floats",
            put(ue8m0=True),
            "ue8m0: expected False because cache is bfloat16, got True",
        ),
        Bad(
            "slots are float32",
            put(slot_mapping=as_dtype(torch.float32)),
            "slot_mapping: expected int32 or int64, got float32",
        ),
        Bad("a slot is missing", slots(0, 1), "slot_mapping: expected shape [3], got [2]"),
        Bad(
            "slots are strided",
            put(slot_mapping=lambda t: t.repeat_interleave(2)[::2]),
            "slot_mapping: " + LAST_DIM.format(2),
        ),
        Bad(
            "a slot is -2", slots(0, -2, 1), "slot_mapping: expected slots within [-1, 9], got -2 at token 1"
        ),
        Bad(
            "a slot is too large",
            slots(0, 1, 10),
            "slot_mapping: expected slots within [-1, 9], got 10 at token 2",
        ),
    ],
    "merge_states": [
        Bad(
            "out_a is 0-D",
            put(out_a=lambda t: t[0, 0, 0]),
            "out_a: expected a tensor of at least 1 dimension, got 0-D",
        ),
        Bad("out_a is e4m3", put(out_a=as_dtype(E4M3)), f"out_a: expected {FLOATS}, got float8_e4m3fn"),
        Bad("columns of out_a are strided", put(out_a=col_major), "out_a: " + LAST_DIM.format(4)),
        Bad("lse_a is float64", put(lse_a=as_dtype(torch.float64)), "lse_a: expected float32, got float64"),
        Bad("lse_a is transposed", put(lse_a=lambda t: t.T), "lse_a: expected shape [3, 4], got [4, 3]"),
        Bad(
            "lse_b is bfloat16", put(lse_b=as_dtype(torch.bfloat16)), "lse_b: expected float32, got bfloat16"
        ),
        Bad(
            "lse_b has a column",
            put(lse_b=lambda t: t[..., None]),
            "lse_b: expected shape [3, 4], got [3, 4, 1]",
        ),
        Bad(
            "out_b is float32",
            put(out_b=as_dtype(torch.float32)),
            "out_b: expected bfloat16 (that of out_a), got float32",
        ),
        Bad("out_b is wide", put(out_b=one_wider), "out_b: expected shape [3, 4, 40], got [3, 4, 41]"),
        Bad("columns of out_b are strided", put(out_b=col_major), "out_b: " + LAST_DIM.format(4)),
        Bad("out is float32", put(out=as_dtype(torch.float32)), "out: expected bfloat16, got float32", True),
        Bad("out is short", put(out=lambda t: t[:2]), "out: expected shape [3, 4, 40], got [2, 4, 40]", True),
        Bad("out is strided", put(out=row_strided), "out: " + DENSE, True),
        Bad(
            "lse is bfloat16", put(lse=as_dtype(torch.bfloat16)), "lse: expected float32, got bfloat16", True
        ),
        Bad("lse is transposed", put(lse=lambda t: t.T), "lse: expected shape [3, 4], got [4, 3]", True),
        Bad("lse is strided", put(lse=row_strided), "lse: " + DENSE, True),
    ],
}
