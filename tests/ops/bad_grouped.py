"""What the grouped ops refuse."""

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
    "grouped_fp8_gemm": {"M": 12, "N": 130, "K": 200, "counts": (3, 0, 4, 2)},
    "grouped_fp8_gemm_masked": {"M": 12, "N": 130, "K": 200, "counts": (3, 0, 12)},
    "grouped_gemm": {"M": 12, "N": 130, "K": 200, "counts": (3, 0, 4, 2)},
    "grouped_gemm_wgrad": {"M": 12, "N": 130, "K": 200, "counts": (3, 0, 4, 2)},
}


def int32s(*values: int) -> Callable[[Tensor], Tensor]:
    return lambda t: torch.tensor(values, dtype=torch.int32, device=t.device)


SEQUENCE = "expert_offsets: expected a non-decreasing sequence within [0, 12], got "
# What every op with 12 rows and 4 experts refuses of its offsets.
BAD_OFFSETS = [
    Bad(
        "offsets are int64",
        put(expert_offsets=as_dtype(torch.int64)),
        "expert_offsets: expected int32, got int64",
    ),
    Bad(
        "offsets are strided",
        put(expert_offsets=lambda t: t.repeat_interleave(2)[::2]),
        "expert_offsets: " + LAST_DIM.format(2),
    ),
    Bad("offsets decrease", put(expert_offsets=int32s(0, 3, 3, 7, 5)), SEQUENCE + "7 before 5 at expert 3"),
    Bad(
        "offsets decrease at first",
        put(expert_offsets=int32s(4, 3, 3, 7, 8)),
        SEQUENCE + "4 before 3 at expert 0",
    ),
    Bad(
        "offsets begin before the rows",
        put(expert_offsets=int32s(-1, 3, 3, 7, 9)),
        SEQUENCE + "-1 at the start",
    ),
    Bad(
        "offsets end beyond the rows", put(expert_offsets=int32s(0, 3, 3, 7, 13)), SEQUENCE + "13 at the end"
    ),
    Bad(
        "offsets end beyond the rows",
        put(expert_offsets=int32s(0, 3, 3, 7, 13)),
        SEQUENCE + "13 at the end",
        True,
    ),
]
# Of their shape, where the number of experts is that of b.
BAD_NUM_OFFSETS = [
    Bad(
        "an offset per expert",
        put(expert_offsets=lambda t: t[1:]),
        "expert_offsets: expected shape [5], got [4]",
    ),
    Bad(
        "offsets are 2-D",
        put(expert_offsets=lambda t: t[None]),
        "expert_offsets: expected shape [5], got [1, 5]",
    ),
]


def bad_expert_products(sf_rows: str) -> list[Bad]:
    """What both grouped FP8 products refuse of a weight per expert."""
    return [
        Bad(
            "a is float64",
            put(a=as_dtype(torch.float64)),
            f"a: expected float8_e4m3fn, {FLOATS}, got float64",
        ),
        Bad("b is 2-D", put(b=lambda b: b[0]), "b: expected a 3-D tensor, got 2-D"),
        Bad("b is bfloat16", put(b=as_dtype(torch.bfloat16)), "b: expected float8_e4m3fn, got bfloat16"),
        Bad("K differs", put(b=lambda b: b[..., :199]), "b: expected K=200 (that of a), got K=199"),
        Bad("K of b is strided", put(b=col_major), "b: " + LAST_DIM.format(130)),
        Bad("no sf_a", put(sf_a=None), "sf_a: expected a tensor because a is float8_e4m3fn, got None"),
        Bad("sf_a is bfloat16", put(sf_a=as_dtype(torch.bfloat16)), "sf_a: expected float32, got bfloat16"),
        Bad(
            "sf_a is too wide",
            put(sf_a=one_wider),
            f"sf_a: expected shape [{sf_rows}, 2], got [{sf_rows}, 3]",
        ),
        Bad(
            "sf_a with bfloat16 a",
            put(a=as_dtype(torch.bfloat16)),
            "sf_a: expected None because a is bfloat16, got a tensor",
        ),
        Bad(
            "sf_b is float16",
            put(sf_b=as_dtype(torch.float16)),
            "sf_b: expected float32, bfloat16 or float8_e8m0fnu, got float16",
        ),
        Bad("out_dtype is e4m3", put(out_dtype=E4M3), f"out_dtype: expected {FLOATS}, got float8_e4m3fn"),
        Bad(
            "d is float64", put(d=as_dtype(torch.float64)), f"out_dtype: expected {FLOATS}, got float64", True
        ),
        Bad("N of d is strided", put(d=col_major), "d: " + LAST_DIM.format(12), is_out=True),
    ]


BAD: dict[str, list[Bad]] = {
    "grouped_fp8_gemm": [
        *bad_expert_products("12"),
        *BAD_OFFSETS,
        *BAD_NUM_OFFSETS,
        Bad("a is 3-D", put(a=lambda a: a[None]), "a: expected a 2-D tensor, got 3-D"),
        Bad("K of a is strided", put(a=col_major), "a: " + LAST_DIM.format(12)),
        Bad(
            "sf_b lacks an expert", put(sf_b=lambda s: s[1:]), "sf_b: expected shape [4, 2, 2], got [3, 2, 2]"
        ),
        Bad("sf_b is one matrix", put(sf_b=lambda s: s[0]), "sf_b: expected shape [4, 2, 2], got [2, 2]"),
        Bad("d is too wide", put(d=one_wider), "d: expected shape [12, 130], got [12, 131]", is_out=True),
    ],
    "grouped_fp8_gemm_masked": [
        *bad_expert_products("3, 12"),
        Bad("a is 2-D", put(a=lambda a: a[0]), "a: expected a 3-D tensor, got 2-D"),
        Bad("K of a is strided", put(a=col_major), "a: " + LAST_DIM.format(12)),
        Bad("b lacks an expert", put(b=lambda b: b[1:]), "b: expected E=3 (that of a), got E=2"),
        Bad(
            "sf_b lacks an expert", put(sf_b=lambda s: s[1:]), "sf_b: expected shape [3, 2, 2], got [2, 2, 2]"
        ),
        Bad(
            "counts are int64",
            put(expert_counts=as_dtype(torch.int64)),
            "expert_counts: expected int32, got int64",
        ),
        Bad(
            "counts are offsets",
            put(expert_counts=int32s(0, 3, 3, 15)),
            "expert_counts: expected shape [3], got [4]",
        ),
        Bad(
            "counts are strided",
            put(expert_counts=lambda t: t.repeat_interleave(2)[::2]),
            "expert_counts: " + LAST_DIM.format(2),
        ),
        Bad(
            "a count is negative",
            put(expert_counts=int32s(3, -1, 12)),
            "expert_counts: expected counts within [0, 12], got -1 at expert 1",
        ),
        Bad(
            "a count is beyond Mmax",
            put(expert_counts=int32s(3, 0, 13)),
            "expert_counts: expected counts within [0, 12], got 13 at expert 2",
        ),
        Bad(
            "a count is beyond Mmax",
            put(expert_counts=int32s(3, 0, 13)),
            "expert_counts: expected counts within [0, 12], got 13 at expert 2",
            True,
        ),
        Bad(
            "d lacks an expert",
            put(d=lambda d: d[1:]),
            "d: expected shape [3, 12, 130], got [2, 12, 130]",
            is_out=True,
        ),
    ],
    "grouped_gemm": [
        *BAD_OFFSETS,
        *BAD_NUM_OFFSETS,
        Bad("a is 3-D", put(a=lambda a: a[None]), "a: expected a 2-D tensor, got 3-D"),
        Bad("a is e4m3", put(a=as_dtype(E4M3)), f"a: expected {FLOATS}, got float8_e4m3fn"),
        Bad("K of a is strided", put(a=col_major), "a: " + LAST_DIM.format(12)),
        Bad("b is 2-D", put(b=lambda b: b[0]), "b: expected a 3-D tensor, got 2-D"),
        Bad("b is float32", put(b=as_dtype(torch.float32)), "b: expected bfloat16 (that of a), got float32"),
        Bad("b is transposed", put(b=lambda b: b.mT), "b: expected K=200 (that of a), got K=130"),
        Bad(
            "N and K of b are strided",
            put(b=lambda b: b.repeat_interleave(2, 2)[..., ::2]),
            "b: expected stride 1 in one of its last two dimensions, got strides 400 and 2; "
            "call .contiguous()",
        ),
        Bad("d is float32", put(d=as_dtype(torch.float32)), "d: expected bfloat16, got float32", is_out=True),
        Bad("d is too wide", put(d=one_wider), "d: expected shape [12, 130], got [12, 131]", is_out=True),
        Bad("N of d is strided", put(d=col_major), "d: " + LAST_DIM.format(12), is_out=True),
    ],
    "grouped_gemm_wgrad": [
        *BAD_OFFSETS,
        Bad("grad is 1-D", put(grad=lambda t: t[0]), "grad: expected a 2-D tensor, got 1-D"),
        Bad("grad is e4m3", put(grad=as_dtype(E4M3)), f"grad: expected {FLOATS}, got float8_e4m3fn"),
        Bad("N of grad is strided", put(grad=col_major), "grad: " + LAST_DIM.format(12)),
        Bad("a is 3-D", put(a=lambda a: a[None]), "a: expected a 2-D tensor, got 3-D"),
        Bad(
            "a is float32", put(a=as_dtype(torch.float32)), "a: expected bfloat16 (that of grad), got float32"
        ),
        Bad("a is short", put(a=lambda a: a[:11]), "a: expected M=12 (that of grad), got M=11"),
        Bad("K of a is strided", put(a=col_major), "a: " + LAST_DIM.format(12)),
        Bad(
            "offsets are 2-D",
            put(expert_offsets=lambda t: t[None]),
            "expert_offsets: expected a 1-D tensor, got 2-D",
        ),
        Bad(
            "no offsets", put(expert_offsets=int32s()), "expert_offsets: expected at least one element, got 0"
        ),
        Bad(
            "grad_b is float32",
            put(grad_b=as_dtype(torch.float32)),
            "grad_b: expected bfloat16, got float32",
            True,
        ),
        Bad(
            "grad_b lacks an expert",
            put(grad_b=lambda t: t[1:]),
            "grad_b: expected shape [4, 130, 200], got [3, 130, 200]",
            is_out=True,
        ),
        Bad("grad_b is strided", put(grad_b=row_strided), "grad_b: " + DENSE, is_out=True),
    ],
}
