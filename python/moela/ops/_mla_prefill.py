"""What forward and backward of ``mla_prefill`` share: checks, and lengths of sequences for their inputs."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from moela.ops import _check

Lens = Sequence[tuple[int, int]]  # (queries, keys) of each sequence
# Around the tiles that kernels have.
AROUND_TILES = ((63, 64), (1, 130), (65, 33))


def check_attention(
    op: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    sm_scale: float,
    owner: str,
    first: Tensor,
) -> None:
    """owner, `first`: the op's first argument, whose device all have to be on."""
    _check.expect_dim(op, "q", q, 3)
    _check.expect_dtype(op, "q", q.dtype, _check.FLOAT_DTYPES)
    _check.expect(q.size(2) >= 1, op, "q", "at least one column", q.size(2))
    for name, t in (("q", q), ("k", k), ("v", v)):
        _check.expect_dim(op, name, t, 3)
        wanted = f"{_check.dtype_name(q.dtype)} (that of q)"
        _check.expect(t.dtype == q.dtype, op, name, wanted, _check.dtype_name(t.dtype))
        _check.expect(t.size(1) == q.size(1), op, name, f"H={q.size(1)} (that of q)", f"H={t.size(1)}")
        _check.expect_last_dim_contiguous(op, name, t)
        _check.expect_device(op, name, t, first.device, owner)
    _check.expect(k.size(2) == q.size(2), op, "k", f"D={q.size(2)} (that of q)", f"D={k.size(2)}")
    _check.expect(v.size(0) == k.size(0), op, "v", f"Tk={k.size(0)} (that of k)", f"Tk={v.size(0)}")
    _check.expect(v.size(2) >= 1, op, "v", "at least one column", v.size(2))
    _check.expect_cu_seqlens(op, "cu_seqlens_q", cu_seqlens_q, None, q.size(0), owner, first)
    _check.expect_cu_seqlens(op, "cu_seqlens_k", cu_seqlens_k, cu_seqlens_q, k.size(0), owner, first)
    _check.expect(-math.inf < sm_scale < math.inf, op, "sm_scale", "a finite number", f"{sm_scale:g}")


def default_lens(T: int) -> list[tuple[int, int]]:
    """T queries in four sequences: after a prefix, without queries, without keys, with too few keys."""
    a, b = T // 2, T // 8
    rest = T - a - b
    return [(a, a + 5), (0, 3), (b, 0), (rest, rest - rest // 4)]


def lens_of(T: int, lens: Lens | None, hostile: bool) -> Lens:
    return lens if lens is not None else default_lens(T) if hostile else [(T, T)]


def num_pairs(T: int, lens: Lens | None = None, hostile: bool = True, causal: bool = True, **_: Any) -> int:
    """Of a query and a key that it sees, for the count of flops."""
    pairs = 0
    for s_q, s_k in lens_of(T, lens, hostile):
        first = max(s_q - s_k, 0)  # the first query that sees a key
        n = s_q - first
        pairs += n * s_k - n * (n - 1) // 2 if causal else s_q * s_k
    return pairs
