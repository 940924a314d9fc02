"""What each op refuses, and in which words. The words are the same on every backend, compiled or not.

A `spoil` changes a good dict of arguments by name; those of an _out variant have its outputs among them.
"""

import bad_fused_experts
import bad_grouped
import bad_indexer
import bad_mla
import bad_mla_cache
import bad_mla_prefill
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

ROW_DTYPES = "bfloat16, float16, float32, float8_e4m3fn, float8_e8m0fnu, int32 or uint8"

# Good arguments that the spoiled ones start from.
GOOD: dict[str, Args] = {
    **bad_grouped.GOOD,
    **bad_indexer.GOOD,
    **bad_mla.GOOD,
    **bad_mla_cache.GOOD,
    **bad_mla_prefill.GOOD,
    "fp8_gemm": {"M": 3, "N": 130, "K": 200, "bias": True},
    "per_token_group_quant_fp8": {"M": 3, "K": 200},
    "per_block_quant_fp8": {"N": 130, "K": 200},
    "silu_and_mul": {"M": 3, "K": 200, "limit": 7.0, "alpha": 1.702},
    "silu_and_mul_quant_fp8": {"M": 3, "K": 200, "limit": 7.0, "alpha": 1.702},
    "per_block_dequant_fp8": {"N": 130, "K": 200},
    "fused_experts": bad_fused_experts.GOOD,
    "moe_topk": {"T": 3, "E": 32, "topk": 4, "has_bias": True, "num_groups": 8, "topk_groups": 3},
    "ep_plan": {"T": 3, "topk": 4, "num_experts": 8, "num_ranks": 3},
    "moe_permute": {"T": 3, "H": 40, "topk": 4, "num_experts": 8},
    "moe_unpermute": {"T": 3, "H": 40, "topk": 4},
}

# What both kinds of the gated activation refuse.
BAD_SWIGLU = [
    Bad("x is 0-D", put(x=lambda x: x[0, 0]), "x: expected a tensor of at least 1 dimension, got 0-D"),
    Bad("x is float64", put(x=as_dtype(torch.float64)), f"x: expected {FLOATS}, got float64"),
    Bad("x is e4m3", put(x=as_dtype(E4M3)), f"x: expected {FLOATS}, got float8_e4m3fn"),
    Bad("columns of x are strided", put(x=col_major), "x: " + LAST_DIM.format(3)),
    Bad("x is odd", put(x=lambda x: x[:, :399]), "x: expected an even last dimension, got 399"),
    Bad("limit is 0", put(limit=0.0), "limit: expected a positive number, got 0"),
    Bad("limit is negative", put(limit=-2.5), "limit: expected a positive number, got -2.5"),
    Bad("limit is NaN", put(limit=float("nan")), "limit: expected a positive number, got nan"),
    Bad("no limit", put(limit=None), "alpha: expected None because limit is None, got 1.702"),
    Bad("alpha is 0", put(alpha=0.0), "alpha: expected a positive number, got 0"),
    Bad("alpha is negative", put(alpha=-1e30), "alpha: expected a positive number, got -1e+30"),
    Bad(
        "alpha without limit", put(limit=None), "alpha: expected None because limit is None, got 1.702", True
    ),
]

BAD: dict[str, list[Bad]] = {
    **bad_grouped.BAD,
    **bad_indexer.BAD,
    **bad_mla.BAD,
    **bad_mla_cache.BAD,
    **bad_mla_prefill.BAD,
    "fused_experts": bad_fused_experts.BAD,
    "silu_and_mul": [
        *BAD_SWIGLU,
        Bad("y is float32", put(y=as_dtype(torch.float32)), "y: expected bfloat16, got float32", is_out=True),
        Bad("y is too wide", put(y=one_wider), "y: expected shape [3, 200], got [3, 201]", is_out=True),
        Bad("y is strided", put(y=row_strided), "y: " + DENSE, is_out=True),
    ],
    "silu_and_mul_quant_fp8": [
        *BAD_SWIGLU,
        Bad("group_size is 0", put(group_size=0), "group_size: expected a positive number, got 0"),
        Bad("group_size is -1", put(group_size=-1), "group_size: expected a positive number, got -1", True),
        Bad("q is uint8", put(q=lambda q: q.view(torch.uint8)), "q: expected float8_e4m3fn, got uint8", True),
        Bad("q is too wide", put(q=one_wider), "q: expected shape [3, 200], got [3, 201]", is_out=True),
        Bad("q is strided", put(q=row_strided), "q: " + DENSE, is_out=True),
        Bad("sf is bfloat16", put(sf=as_dtype(torch.bfloat16)), "sf: expected float32, got bfloat16", True),
        Bad("sf is short", put(sf=lambda s: s[:, :1]), "sf: expected shape [3, 2], got [3, 1]", is_out=True),
        Bad("sf is transposed", put(sf=col_major), "sf: " + DENSE, is_out=True),
    ],
    "fp8_gemm": [
        Bad("a is 1-D", put(a=lambda a: a[0]), "a: expected a 2-D tensor, got 1-D"),
        Bad("a is 3-D", put(a=lambda a: a[None]), "a: expected a 2-D tensor, got 3-D"),
        Bad(
            "a is float64",
            put(a=as_dtype(torch.float64)),
            f"a: expected float8_e4m3fn, {FLOATS}, got float64",
        ),
        Bad(
            "a is e5m2",
            put(a=as_dtype(torch.float8_e5m2)),
            f"a: expected float8_e4m3fn, {FLOATS}, got float8_e5m2",
        ),
        Bad("K of a is strided", put(a=col_major), "a: " + LAST_DIM.format(3)),
        Bad("b is 3-D", put(b=lambda b: b[None]), "b: expected a 2-D tensor, got 3-D"),
        Bad("b is bfloat16", put(b=as_dtype(torch.bfloat16)), "b: expected float8_e4m3fn, got bfloat16"),
        Bad("K differs", put(b=lambda b: b[:, :199]), "b: expected K=200 (that of a), got K=199"),
        Bad("K of b is strided", put(b=col_major), "b: " + LAST_DIM.format(130)),
        Bad("no sf_a", put(sf_a=None), "sf_a: expected a tensor because a is float8_e4m3fn, got None"),
        Bad("sf_a is bfloat16", put(sf_a=as_dtype(torch.bfloat16)), "sf_a: expected float32, got bfloat16"),
        Bad("sf_a is too wide", put(sf_a=one_wider), "sf_a: expected shape [3, 2], got [3, 3]"),
        Bad("sf_a is too short", put(sf_a=lambda s: s[:2]), "sf_a: expected shape [3, 2], got [2, 2]"),
        Bad("sf_a is 1-D", put(sf_a=lambda s: s[0]), "sf_a: expected shape [3, 2], got [2]"),
        Bad(
            "sf_a with bfloat16 a",
            put(a=as_dtype(torch.bfloat16)),
            "sf_a: expected None because a is bfloat16, got a tensor",
        ),
        Bad(
            "sf_a with float32 a",
            put(a=as_dtype(torch.float32)),
            "sf_a: expected None because a is float32, got a tensor",
        ),
        Bad(
            "sf_b is float16",
            put(sf_b=as_dtype(torch.float16)),
            "sf_b: expected float32, bfloat16 or float8_e8m0fnu, got float16",
        ),
        Bad("sf_b is transposed", put(sf_b=one_wider), "sf_b: expected shape [2, 2], got [2, 3]"),
        Bad("sf_b is too short", put(sf_b=lambda s: s[:1]), "sf_b: expected shape [2, 2], got [1, 2]"),
        Bad("sf_b is 3-D", put(sf_b=lambda s: s[None]), "sf_b: expected shape [2, 2], got [1, 2, 2]"),
        Bad("bias is float64", put(bias=as_dtype(torch.float64)), f"bias: expected {FLOATS}, got float64"),
        Bad("bias is e4m3", put(bias=as_dtype(E4M3)), f"bias: expected {FLOATS}, got float8_e4m3fn"),
        Bad("bias is too short", put(bias=lambda v: v[:129]), "bias: expected shape [130], got [129]"),
        Bad("bias is 2-D", put(bias=lambda v: v[None]), "bias: expected shape [130], got [1, 130]"),
        Bad("out_dtype is e4m3", put(out_dtype=E4M3), f"out_dtype: expected {FLOATS}, got float8_e4m3fn"),
        Bad("out_dtype is int8", put(out_dtype=torch.int8), f"out_dtype: expected {FLOATS}, got int8"),
        Bad(
            "d is float64",
            put(d=as_dtype(torch.float64)),
            f"out_dtype: expected {FLOATS}, got float64",
            is_out=True,
        ),
        Bad("d is too wide", put(d=one_wider), "d: expected shape [3, 130], got [3, 131]", is_out=True),
        Bad(
            "d is too tall",
            put(d=lambda d: d.new_empty(4, 130)),
            "d: expected shape [3, 130], got [4, 130]",
            True,
        ),
        Bad("N of d is strided", put(d=col_major), "d: " + LAST_DIM.format(3), is_out=True),
        Bad(
            "no sf_a",
            put(sf_a=None),
            "sf_a: expected a tensor because a is float8_e4m3fn, got None",
            is_out=True,
        ),
    ],
    "per_token_group_quant_fp8": [
        Bad("x is 0-D", put(x=lambda x: x[0, 0]), "x: expected a tensor of at least 1 dimension, got 0-D"),
        Bad("x is float64", put(x=as_dtype(torch.float64)), f"x: expected {FLOATS}, got float64"),
        Bad("x is e4m3", put(x=as_dtype(E4M3)), f"x: expected {FLOATS}, got float8_e4m3fn"),
        Bad("x is int32", put(x=as_dtype(torch.int32)), f"x: expected {FLOATS}, got int32"),
        Bad("K of x is strided", put(x=col_major), "x: " + LAST_DIM.format(3)),
        Bad("group_size is 0", put(group_size=0), "group_size: expected a positive number, got 0"),
        Bad("group_size is -1", put(group_size=-1), "group_size: expected a positive number, got -1"),
        Bad(
            "group_size is 0", put(group_size=0), "group_size: expected a positive number, got 0", is_out=True
        ),
        Bad(
            "q is uint8",
            put(q=lambda q: q.view(torch.uint8)),
            "q: expected float8_e4m3fn, got uint8",
            is_out=True,
        ),
        Bad("q is too wide", put(q=one_wider), "q: expected shape [3, 200], got [3, 201]", is_out=True),
        Bad("q is strided", put(q=row_strided), "q: " + DENSE, is_out=True),
        Bad(
            "sf is bfloat16",
            put(sf=as_dtype(torch.bfloat16)),
            "sf: expected float32, got bfloat16",
            is_out=True,
        ),
        Bad(
            "sf is too short",
            put(sf=lambda s: s[:, :1]),
            "sf: expected shape [3, 2], got [3, 1]",
            is_out=True,
        ),
        Bad("sf is transposed", put(sf=col_major), "sf: " + DENSE, is_out=True),
    ],
    "per_block_quant_fp8": [
        Bad("w is 1-D", put(w=lambda w: w[0]), "w: expected a tensor of at least 2 dimensions, got 1-D"),
        Bad("w is float64", put(w=as_dtype(torch.float64)), f"w: expected {FLOATS}, got float64"),
        Bad("w is e4m3", put(w=as_dtype(E4M3)), f"w: expected {FLOATS}, got float8_e4m3fn"),
        Bad("K of w is strided", put(w=col_major), "w: " + LAST_DIM.format(130)),
        Bad(
            "q is e5m2",
            put(q=lambda q: q.view(torch.float8_e5m2)),
            "q: expected float8_e4m3fn, got float8_e5m2",
            True,
        ),
        Bad(
            "q is too tall",
            put(q=lambda q: q.new_empty(131, 200)),
            "q: expected shape [130, 200], got [131, 200]",
            True,
        ),
        Bad("q is strided", put(q=row_strided), "q: " + DENSE, is_out=True),
        Bad(
            "sf is float16", put(sf=as_dtype(torch.float16)), "sf: expected float32, got float16", is_out=True
        ),
        Bad(
            "sf is per row",
            put(sf=lambda s: s.new_empty(130, 2)),
            "sf: expected shape [2, 2], got [130, 2]",
            True,
        ),
        Bad("sf is transposed", put(sf=col_major), "sf: " + DENSE, is_out=True),
    ],
    "per_block_dequant_fp8": [
        Bad("q is 1-D", put(q=lambda q: q[0]), "q: expected a tensor of at least 2 dimensions, got 1-D"),
        Bad("q is bfloat16", put(q=as_dtype(torch.bfloat16)), "q: expected float8_e4m3fn, got bfloat16"),
        Bad("K of q is strided", put(q=col_major), "q: " + LAST_DIM.format(130)),
        Bad(
            "sf is float64",
            put(sf=as_dtype(torch.float64)),
            "sf: expected float32, bfloat16 or float8_e8m0fnu, got float64",
        ),
        Bad("sf is too wide", put(sf=one_wider), "sf: expected shape [2, 2], got [2, 3]"),
        Bad("sf is 1-D", put(sf=lambda s: s[0]), "sf: expected shape [2, 2], got [2]"),
        Bad("dtype is e4m3", put(dtype=E4M3), f"dtype: expected {FLOATS}, got float8_e4m3fn"),
        Bad(
            "w is float64",
            put(w=as_dtype(torch.float64)),
            f"dtype: expected {FLOATS}, got float64",
            is_out=True,
        ),
        Bad("w is too wide", put(w=one_wider), "w: expected shape [130, 200], got [130, 201]", is_out=True),
        Bad("w is strided", put(w=row_strided), "w: " + DENSE, is_out=True),
    ],
    "moe_topk": [
        Bad("logits are 1-D", put(logits=lambda x: x[0]), "logits: expected a 2-D tensor, got 1-D"),
        Bad("logits are int32", put(logits=as_dtype(torch.int32)), f"logits: expected {FLOATS}, got int32"),
        Bad("logits are strided", put(logits=col_major), "logits: " + LAST_DIM.format(3)),
        Bad(
            "scoring is tanh",
            put(scoring="tanh"),
            "scoring: expected softmax, sigmoid or sqrtsoftplus, got tanh",
        ),
        Bad("bias is float64", put(bias=as_dtype(torch.float64)), f"bias: expected {FLOATS}, got float64"),
        Bad("bias is short", put(bias=lambda b: b[:31]), "bias: expected shape [32], got [31]"),
        Bad("bias is 2-D", put(bias=lambda b: b[None]), "bias: expected shape [32], got [1, 32]"),
        Bad("no groups", put(num_groups=0), "num_groups: expected a positive number, got 0"),
        Bad("groups do not divide E", put(num_groups=7), "num_groups: expected a divisor of E=32, got 7"),
        Bad("no group stays", put(topk_groups=0), "topk_groups: expected 1 .. num_groups=8, got 0"),
        Bad("too many groups stay", put(topk_groups=9), "topk_groups: expected 1 .. num_groups=8, got 9"),
        Bad("group_score is min", put(group_score="min"), "group_score: expected max or top2sum, got min"),
        Bad("topk is 0", put(topk=0), "topk: expected 1 .. 12 (experts in the groups that stay), got 0"),
        Bad("topk is 13", put(topk=13), "topk: expected 1 .. 12 (experts in the groups that stay), got 13"),
        Bad("scaling is NaN", put(scaling=float("nan")), "scaling: expected a finite number, got nan"),
        Bad("scaling is Inf", put(scaling=float("inf")), "scaling: expected a finite number, got inf", True),
        Bad(
            "weights are bfloat16",
            put(topk_weights=as_dtype(torch.bfloat16)),
            "topk_weights: expected float32, got bfloat16",
            True,
        ),
        Bad(
            "weights are wide",
            put(topk_weights=one_wider),
            "topk_weights: expected shape [3, 4], got [3, 5]",
            True,
        ),
        Bad(
            "ids are int64", put(topk_ids=as_dtype(torch.int64)), "topk_ids: expected int32, got int64", True
        ),
        Bad("ids are strided", put(topk_ids=row_strided), "topk_ids: " + DENSE, True),
    ],
    "ep_plan": [
        Bad("ids are 1-D", put(topk_ids=lambda t: t[0]), "topk_ids: expected a 2-D tensor, got 1-D"),
        Bad(
            "ids are int16",
            put(topk_ids=as_dtype(torch.int16)),
            "topk_ids: expected int32 or int64, got int16",
        ),
        Bad("slots are strided", put(topk_ids=col_major), "topk_ids: " + LAST_DIM.format(3)),
        Bad(
            "more pairs than int32 counts",
            put(topk_ids=lambda t: t[:1].expand(2**29, 4)),
            "topk_ids: expected less than 2^31 elements, got 2147483648",
        ),
        Bad("no experts", put(num_experts=0), "num_experts: expected a positive number, got 0"),
        Bad("no ranks", put(num_ranks=0), "num_ranks: expected a positive number, got 0"),
        Bad(
            "send_rows is short",
            put(send_rows=lambda t: t[:8]),
            "send_rows: expected shape [9], got [8]",
            True,
        ),
        Bad("counts is int64", put(counts=as_dtype(torch.int64)), "counts: expected int32, got int64", True),
        Bad("slots is strided", put(slots=row_strided), "slots: " + DENSE, True),
    ],
    "moe_permute": [
        Bad("x is 3-D", put(x=lambda x: x[None]), "x: expected a 2-D tensor, got 3-D"),
        Bad(
            "x is float64",
            put(x=as_dtype(torch.float64)),
            f"x: expected {ROW_DTYPES}, got float64",
        ),
        Bad("columns of x are strided", put(x=col_major), "x: " + LAST_DIM.format(3)),
        Bad("ids are 1-D", put(topk_ids=lambda t: t[0]), "topk_ids: expected a 2-D tensor, got 1-D"),
        Bad(
            "ids are int16",
            put(topk_ids=as_dtype(torch.int16)),
            "topk_ids: expected int32 or int64, got int16",
        ),
        Bad("ids of fewer tokens", put(topk_ids=lambda t: t[:2]), "topk_ids: expected T=3, got T=2"),
        Bad("slots are strided", put(topk_ids=col_major), "topk_ids: " + LAST_DIM.format(3)),
        Bad(
            "more pairs than int32 counts",
            put(x=lambda x: x[:1].expand(2**29, 40), topk_ids=lambda t: t[:1].expand(2**29, 4)),
            "topk_ids: expected less than 2^31 elements, got 2147483648",
        ),
        Bad("no experts", put(num_experts=0), "num_experts: expected a positive number, got 0"),
        Bad("no experts", put(num_experts=0), "num_experts: expected a positive number, got 0", True),
        Bad(
            "x_sorted is float32",
            put(x_sorted=as_dtype(torch.float32)),
            "x_sorted: expected bfloat16, got float32",
            True,
        ),
        Bad(
            "x_sorted is short",
            put(x_sorted=lambda t: t[:11]),
            "x_sorted: expected shape [12, 40], got [11, 40]",
            True,
        ),
        Bad("x_sorted is strided", put(x_sorted=row_strided), "x_sorted: " + DENSE, True),
        Bad(
            "expert_offsets without the end",
            put(expert_offsets=lambda t: t[:8]),
            "expert_offsets: expected shape [9], got [8]",
            True,
        ),
        Bad(
            "inverse is int64", put(inverse=as_dtype(torch.int64)), "inverse: expected int32, got int64", True
        ),
    ],
    "moe_unpermute": [
        Bad("y is 1-D", put(y=lambda y: y[0]), "y: expected a 2-D tensor, got 1-D"),
        Bad("y is e4m3", put(y=as_dtype(E4M3)), f"y: expected {FLOATS}, got float8_e4m3fn"),
        Bad("columns of y are strided", put(y=col_major), "y: " + LAST_DIM.format(12)),
        Bad("inverse is 3-D", put(inverse=lambda t: t[None]), "inverse: expected a 2-D tensor, got 3-D"),
        Bad("inverse is int64", put(inverse=as_dtype(torch.int64)), "inverse: expected int32, got int64"),
        Bad("slots are strided", put(inverse=col_major), "inverse: " + LAST_DIM.format(3)),
        Bad(
            "weights are bfloat16",
            put(topk_weights=as_dtype(torch.bfloat16)),
            "topk_weights: expected float32, got bfloat16",
        ),
        Bad(
            "weights are wide",
            put(topk_weights=one_wider),
            "topk_weights: expected shape [3, 4], got [3, 5]",
        ),
        Bad("weights are strided", put(topk_weights=col_major), "topk_weights: " + LAST_DIM.format(3)),
        Bad("out is float32", put(out=as_dtype(torch.float32)), "out: expected bfloat16, got float32", True),
        Bad(
            "out is short", put(out=lambda t: t[:2]), "out: expected shape [3, 40], got [2, 40]", is_out=True
        ),
        Bad("out is strided", put(out=row_strided), "out: " + DENSE, is_out=True),
    ],
}
