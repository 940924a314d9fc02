"""What each op refuses, and in which words. The words are the same on every backend, compiled or not.

A `spoil` changes a good dict of arguments by name; those of an _out variant have its outputs among them.
"""

import bad_grouped
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

# Good arguments that the spoiled ones start from.
GOOD: dict[str, Args] = {
    **bad_grouped.GOOD,
    "fp8_gemm": {"M": 3, "N": 130, "K": 200, "bias": True},
    "per_token_group_quant_fp8": {"M": 3, "K": 200},
    "per_block_quant_fp8": {"N": 130, "K": 200},
    "silu_and_mul": {"M": 3, "K": 200, "limit": 7.0, "alpha": 1.702},
    "silu_and_mul_quant_fp8": {"M": 3, "K": 200, "limit": 7.0, "alpha": 1.702},
    "per_block_dequant_fp8": {"N": 130, "K": 200},
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
}
