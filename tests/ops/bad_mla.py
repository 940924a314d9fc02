"""What the ops of latent attention refuse."""

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
    "merge_states": {"T": 3, "H": 4, "D": 40},
}

BAD: dict[str, list[Bad]] = {
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
