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
    "fused_experts": {"T": 3, "H": 200, "I": 96, "topk": 2, "w_dtype": E4M3, "bias": True, "limit": 7.0}
    | {"alpha": 1.702, "quantize_activations": "fp8"},
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


def plain(*names: str) -> Callable[[Args], Args]:
    """Weights of x's dtype; the names are what is left of what FP8 ones need."""

    def spoil(args: Args) -> Args:
        fp8 = dict.fromkeys(("sf_w13", "sf_w2", "quantize_activations"))
        weights = {name: args[name].to(torch.bfloat16) for name in ("w13", "w2")}
        return args | {k: v for k, v in fp8.items() if k not in names} | weights

    return spoil


BAD_FUSED_EXPERTS = [
    Bad("x is 1-D", put(x=lambda x: x[0]), "x: expected a 2-D tensor, got 1-D"),
    Bad("x is 3-D", put(x=lambda x: x[None]), "x: expected a 2-D tensor, got 3-D"),
    Bad("x is float64", put(x=as_dtype(torch.float64)), f"x: expected {FLOATS}, got float64"),
    Bad("x is e4m3", put(x=as_dtype(E4M3)), f"x: expected {FLOATS}, got float8_e4m3fn"),
    Bad("columns of x are strided", put(x=col_major), "x: " + LAST_DIM.format(3)),
    Bad("w13 is 2-D", put(w13=lambda w: w[0]), "w13: expected a 3-D tensor, got 2-D"),
    Bad(
        "w13 is float32",
        put(w13=as_dtype(torch.float32)),
        "w13: expected float8_e4m3fn or bfloat16, got float32",
    ),
    Bad("H of w13 differs", put(w13=lambda w: w[..., :199]), "w13: expected H=200 (that of x), got H=199"),
    Bad("w13 is odd", put(w13=lambda w: w[:, :191]), "w13: expected an even number of rows, got 191"),
    Bad("columns of w13 are strided", put(w13=col_major), "w13: " + LAST_DIM.format(192)),
    Bad("w2 is bfloat16", put(w2=as_dtype(torch.bfloat16)), "w2: expected float8_e4m3fn, got bfloat16"),
    Bad("w2 is 2-D", put(w2=lambda w: w[0]), "w2: expected shape [4, 200, 96], got [200, 96]"),
    Bad("w2 is short", put(w2=lambda w: w[:3]), "w2: expected shape [4, 200, 96], got [3, 200, 96]"),
    Bad("w2 is transposed", put(w2=lambda w: w.mT), "w2: expected shape [4, 200, 96], got [4, 96, 200]"),
    Bad("columns of w2 are strided", put(w2=col_major), "w2: " + LAST_DIM.format(200)),
    Bad("topk_ids is 1-D", put(topk_ids=lambda t: t[0]), "topk_ids: expected a 2-D tensor, got 1-D"),
    Bad(
        "topk_ids is int16",
        put(topk_ids=as_dtype(torch.int16)),
        "topk_ids: expected int32 or int64, got int16",
    ),
    Bad("topk_ids is short", put(topk_ids=lambda t: t[:2]), "topk_ids: expected T=3 (that of x), got T=2"),
    Bad(
        "topk_weights is bfloat16",
        put(topk_weights=as_dtype(torch.bfloat16)),
        "topk_weights: expected float32, got bfloat16",
    ),
    Bad(
        "topk_weights is wide",
        put(topk_weights=one_wider),
        "topk_weights: expected shape [3, 2], got [3, 3]",
    ),
    Bad(
        "topk_weights is 1-D",
        put(topk_weights=lambda t: t[0]),
        "topk_weights: expected shape [3, 2], got [2]",
    ),
    Bad("no sf_w13", put(sf_w13=None), "sf_w13: expected a tensor because w13 is float8_e4m3fn, got None"),
    Bad("no sf_w2", put(sf_w2=None), "sf_w2: expected a tensor because w2 is float8_e4m3fn, got None"),
    Bad(
        "sf_w13 with bfloat16 w13",
        plain("sf_w13"),
        "sf_w13: expected None because w13 is bfloat16, got a tensor",
    ),
    Bad(
        "sf_w2 with bfloat16 w2", plain("sf_w2"), "sf_w2: expected None because w2 is bfloat16, got a tensor"
    ),
    Bad(
        "sf_w13 is float16",
        put(sf_w13=as_dtype(torch.float16)),
        "sf_w13: expected float32, bfloat16 or float8_e8m0fnu, got float16",
    ),
    Bad("sf_w13 is short", put(sf_w13=lambda s: s[:3]), "sf_w13: expected shape [4, 2, 2], got [3, 2, 2]"),
    Bad("sf_w13 is 2-D", put(sf_w13=lambda s: s[0]), "sf_w13: expected shape [4, 2, 2], got [2, 2]"),
    Bad("sf_w2 is wide", put(sf_w2=one_wider), "sf_w2: expected shape [4, 2, 1], got [4, 2, 2]"),
    Bad("b13 is float64", put(b13=as_dtype(torch.float64)), f"b13: expected {FLOATS}, got float64"),
    Bad("b13 is of gate only", put(b13=lambda b: b[:, :96]), "b13: expected shape [4, 192], got [4, 96]"),
    Bad("columns of b13 are strided", put(b13=col_major), "b13: " + LAST_DIM.format(4)),
    Bad("b2 is e4m3", put(b2=as_dtype(E4M3)), f"b2: expected {FLOATS}, got float8_e4m3fn"),
    Bad("b2 is of one expert", put(b2=lambda b: b[0]), "b2: expected shape [4, 200], got [200]"),
    Bad("activation is gelu", put(activation="gelu"), "activation: expected silu, got gelu"),
    Bad("limit is 0", put(limit=0.0), "limit: expected a positive number, got 0"),
    Bad("alpha without limit", put(limit=None), "alpha: expected None because limit is None, got 1.702"),
    Bad("alpha is NaN", put(alpha=float("nan")), "alpha: expected a positive number, got nan"),
    Bad(
        "quantize_activations is int8",
        put(quantize_activations="int8"),
        "quantize_activations: expected None, fp8 or fp8_ue8m0, got int8",
    ),
    Bad(
        "quantize_activations with bfloat16 weights",
        plain("quantize_activations"),
        "quantize_activations: expected None because w13 is bfloat16, got fp8",
    ),
    Bad(
        "alpha without limit", put(limit=None), "alpha: expected None because limit is None, got 1.702", True
    ),
    Bad(
        "out is float32", put(out=as_dtype(torch.float32)), "out: expected bfloat16, got float32", is_out=True
    ),
    Bad("out is wide", put(out=one_wider), "out: expected shape [3, 200], got [3, 201]", is_out=True),
    Bad("out is strided", put(out=row_strided), "out: " + DENSE, is_out=True),
]

BAD: dict[str, list[Bad]] = {
    **bad_grouped.BAD,
    "fused_experts": BAD_FUSED_EXPERTS,
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
