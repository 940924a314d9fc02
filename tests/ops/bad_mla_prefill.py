"""What the ops of attention over a prompt refuse."""

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

DIMS = {"T": 5, "H": 4, "D": 24, "Dv": 16, "lens": ((3, 4), (2, 2))}
GOOD: dict[str, Args] = {"mla_prefill": DIMS, "mla_prefill_backward": DIMS}


def offsets(*values: int) -> Callable[[Tensor], Tensor]:
    return lambda t: t.new_tensor(values)


# What forward and backward refuse alike.
BOTH = [
    Bad("q is 2-D", put(q=lambda t: t[0]), "q: expected a 3-D tensor, got 2-D"),
    Bad("q is e4m3", put(q=as_dtype(E4M3)), f"q: expected {FLOATS}, got float8_e4m3fn"),
    Bad("columns of q are strided", put(q=col_major), "q: " + LAST_DIM.format(4)),
    Bad("q has no columns", put(q=lambda t: t[..., :0]), "q: expected at least one column, got 0"),
    Bad("k has a batch", put(k=lambda t: t[None]), "k: expected a 3-D tensor, got 4-D"),
    Bad("k is float32", put(k=as_dtype(torch.float32)), "k: expected bfloat16 (that of q), got float32"),
    Bad("k has one head", put(k=lambda t: t[:, :1]), "k: expected H=4 (that of q), got H=1"),
    Bad("k is wide", put(k=one_wider), "k: expected D=24 (that of q), got D=25"),
    Bad("columns of k are strided", put(k=col_major), "k: " + LAST_DIM.format(4)),
    Bad("v is float16", put(v=as_dtype(torch.float16)), "v: expected bfloat16 (that of q), got float16"),
    Bad("v has few heads", put(v=lambda t: t[:, :3]), "v: expected H=4 (that of q), got H=3"),
    Bad("v is short", put(v=lambda t: t[:4]), "v: expected Tk=6 (that of k), got Tk=4"),
    Bad("columns of v are strided", put(v=col_major), "v: " + LAST_DIM.format(4)),
    Bad("v has no columns", put(v=lambda t: t[..., :0]), "v: expected at least one column, got 0"),
    Bad(
        "offsets have a column",
        put(cu_seqlens_q=lambda t: t[:, None]),
        "cu_seqlens_q: expected a 1-D tensor, got 2-D",
    ),
    Bad("no offset", put(cu_seqlens_q=offsets()), "cu_seqlens_q: expected at least one element, got 0"),
    Bad(
        "offsets are int64",
        put(cu_seqlens_q=as_dtype(torch.int64)),
        "cu_seqlens_q: expected int32, got int64",
    ),
    Bad(
        "offsets are strided",
        put(cu_seqlens_q=lambda t: t.repeat_interleave(2)[::2]),
        "cu_seqlens_q: " + LAST_DIM.format(2),
    ),
    Bad(
        "offsets begin late",
        put(cu_seqlens_q=offsets(1, 3, 5)),
        "cu_seqlens_q: expected a non-decreasing sequence from 0 to 5, got 1 at the start",
    ),
    Bad(
        "offsets end early",
        put(cu_seqlens_q=offsets(0, 3, 4)),
        "cu_seqlens_q: expected a non-decreasing sequence from 0 to 5, got 4 at the end",
    ),
    Bad(
        "offsets fall",
        put(cu_seqlens_k=offsets(0, 7, 6)),
        "cu_seqlens_k: expected a non-decreasing sequence from 0 to 6, got 7 before 6 at sequence 1",
    ),
    Bad(
        "offsets of more sequences",
        put(cu_seqlens_k=offsets(0, 3, 4, 6)),
        "cu_seqlens_k: expected shape [3], got [4]",
    ),
    Bad("sm_scale is NaN", put(sm_scale=float("nan")), "sm_scale: expected a finite number, got nan"),
    Bad("sm_scale is Inf", put(sm_scale=float("inf")), "sm_scale: expected a finite number, got inf"),
]

BAD: dict[str, list[Bad]] = {
    "mla_prefill": [
        *BOTH,
        Bad("out is float32", put(out=as_dtype(torch.float32)), "out: expected bfloat16, got float32", True),
        Bad(
            "out is narrow",
            put(out=lambda t: t[..., :8]),
            "out: expected shape [5, 4, 16], got [5, 4, 8]",
            True,
        ),
        Bad("out is strided", put(out=row_strided), "out: " + DENSE, True),
        Bad("lse is transposed", put(lse=lambda t: t.T), "lse: expected shape [5, 4], got [4, 5]", True),
    ],
    "mla_prefill_backward": [
        *BOTH,
        Bad("dout is 2-D", put(dout=lambda t: t[0]), "dout: expected a 3-D tensor, got 2-D"),
        Bad(
            "dout is float32",
            put(dout=as_dtype(torch.float32)),
            "dout: expected bfloat16 (that of q), got float32",
        ),
        Bad("dout is wide", put(dout=one_wider), "dout: expected shape [5, 4, 16], got [5, 4, 17]"),
        Bad("columns of dout are strided", put(dout=col_major), "dout: " + LAST_DIM.format(4)),
        Bad(
            "fwd_out is float16",
            put(fwd_out=as_dtype(torch.float16)),
            "fwd_out: expected bfloat16 (that of q), got float16",
        ),
        Bad(
            "fwd_out is short",
            put(fwd_out=lambda t: t[1:]),
            "fwd_out: expected shape [5, 4, 16], got [4, 4, 16]",
        ),
        Bad("columns of fwd_out are strided", put(fwd_out=col_major), "fwd_out: " + LAST_DIM.format(4)),
        Bad("lse is bfloat16", put(lse=as_dtype(torch.bfloat16)), "lse: expected float32, got bfloat16"),
        Bad("lse is transposed", put(lse=lambda t: t.T), "lse: expected shape [5, 4], got [4, 5]"),
        Bad("dlse is float64", put(dlse=as_dtype(torch.float64)), "dlse: expected float32, got float64"),
        Bad("dlse is short", put(dlse=lambda t: t[:4]), "dlse: expected shape [5, 4], got [4, 4]"),
        Bad("dq is float32", put(dq=as_dtype(torch.float32)), "dq: expected bfloat16, got float32", True),
        Bad(
            "dk is turned",
            put(dk=lambda t: t.transpose(0, 1)),
            "dk: expected shape [6, 4, 24], got [4, 6, 24]",
            True,
        ),
        Bad("dv is strided", put(dv=row_strided), "dv: " + DENSE, True),
    ],
}
