"""What fused_experts refuses, and in which words."""

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

GOOD = {"T": 3, "H": 200, "I": 96, "topk": 2, "w_dtype": E4M3, "bias": True, "limit": 7.0, "alpha": 1.702}
GOOD |= {"quantize_activations": "fp8"}


def plain(*names: str) -> Callable[[Args], Args]:
    """Weights of x's dtype; the names are what is left of what FP8 ones need."""

    def spoil(args: Args) -> Args:
        fp8 = dict.fromkeys(("sf_w13", "sf_w2", "quantize_activations"))
        weights = {name: args[name].to(torch.bfloat16) for name in ("w13", "w2")}
        return args | {k: v for k, v in fp8.items() if k not in names} | weights

    return spoil


BAD = [
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
