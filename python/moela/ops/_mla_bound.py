"""What attention over a latent cache in float32 may be off by, per element."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moela.ops._spec import rounding
from moela.reference.mla_decode import attend, queries
from moela.reference.mla_sparse import chosen, share_of_keys

UNIT = 2.0**-24  # one rounding of float32
LOST = 2.0**-126  # of the largest weight: what may be lost of another one
Bounds = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Attended:
    """The heads of one query, exactly, and what each element may be off by before out is rounded."""

    out: Tensor  # [H, v_dim]
    error: Tensor  # [H, v_dim]
    lse: Tensor  # [H]
    error_lse: Tensor  # [H]
    most: Tensor  # [H]: the largest score
    lost: Tensor  # [v_dim]: of out, whatever its size


def attended(
    q: Tensor, keys: Tensor, is_seen: Tensor, sm_scale: float, v_dim: int, accum: float,
    p_dtype: torch.dtype | None, k_dtype: torch.dtype | None = None,
) -> Attended:  # fmt: skip
    """q [H, D] over the keys [N, D] that are seen [N]; p_dtype, k_dtype: of rounded weights and keys.

    w: the exact weights, s: the scores, v: the values. In units of UNIT, beside accum:
    - a score is off by a = accum sum |q||k| |sm_scale|, and by 3 sum |q||k| |sm_scale| for a scale factor's
      product, sm_scale and its product;
    - e^(s - max): 4 for the exponential (ex2.approx has 2^-22, the CPU's polynomial less), and 4 (max - s)
      for the rounding of its argument and of what it is multiplied with. While a maximum grows the terms
      before it are scaled again: the arguments add up to max - s whatever the steps; 5 for each step. A
      maximum over keys in random order grows as often as the logarithm of their number; 8 steps are allowed
      for, and 4 for the merge of parts and for the quotient: 48 in all. So w is off by
      w (d + sum w d), d of the key;
    - the sums of weights and of weighted values: accum each, and 2 for a scale factor's product and the last;
    - rounded keys: exactly what each loses. A score is then off by a = sum |q| lost |sm_scale|, which is not
      small: a weight by e^(a + a') - 1 at most, which is less than (e^2a - 1) / 2 + (e^2a' - 1) / 2.
    What is below LOST of the largest weight may be lost.
    """
    scores, total = attend(q, keys, is_seen, sm_scale)  # [H, N], [H]
    w = torch.where(total[:, None] == -torch.inf, 0.0, torch.exp(scores - total[:, None]))
    v = keys[:, :v_dim]
    magnitude = q.double().abs() @ keys.abs().T * abs(sm_scale)
    most = scores.amax(-1) if len(keys) else total
    below = torch.where(w > 0, most[:, None] - scores, 0.0)
    d = w * ((accum + 3 * UNIT) * magnitude + UNIT * (48 + 4 * below))
    rounded = keys if k_dtype is None else keys.to(k_dtype).double()
    lost_of_keys = torch.where(keys.isfinite(), (rounded - keys).abs(), 0.0)  # [N, D]
    d += w * torch.expm1(2 * q.double().abs() @ lost_of_keys.T * abs(sm_scale)) / 2
    lost_of_v = lost_of_keys[:, :v_dim]
    of_v = w @ (v.abs() + lost_of_v)  # [H, v_dim]
    lost = len(keys) * LOST * (v.abs().amax(0) if len(keys) else v.new_zeros(v_dim))
    error = d @ (v.abs() + lost_of_v) + d.sum(-1, keepdim=True) * of_v + (2 * accum + 2 * UNIT) * of_v + lost
    error += w @ lost_of_v
    if p_dtype is not None:  # the sum of the weights is that of the unrounded ones
        error += rounding(w, p_dtype) @ (v.abs() + lost_of_v)
    error_lse = d.sum(-1) + accum + UNIT * (8 + total.abs())
    return Attended(w @ v, error, total, torch.where(total.isfinite(), error_lse, 0.0), most, lost)


def with_sink(a: Attended, attn_sink: Tensor) -> tuple[Tensor, Tensor]:
    """out [H, v_dim] times f = share_of_keys, and its error.

    f = T / (T + S), T the sum of weights, S = e^(sink - max). It is off by f (1 - f) times what T and S are
    off by, relatively: T as lse is; S, whose maximum is that of T, by 4 for the exponential, 4 |sink - max|
    for its argument, and 8 for where the larger of sink and maximum is taken out of both. Then 4 for the
    sum and the quotient.
    """
    f = share_of_keys(a.lse, attn_sink)
    apart = torch.where((f > 0) & (f < 1), (attn_sink.double() - a.most).abs(), 0.0)
    relative = (1 - f) * (a.error_lse + UNIT * (12 + 4 * apart)) + 4 * UNIT
    out = torch.where(f[:, None] > 0, a.out * f[:, None], 0.0)
    return out, f[:, None] * a.error + out.abs() * relative[:, None] + a.lost


def decode_bound(
    inputs: dict[str, Any], accum: float, p_dtype: torch.dtype | None, k_dtype: torch.dtype | None = None
) -> Bounds:
    """[(exact out, allowed error), (exact lse, allowed error)] of ``mla_decode``."""
    q, v_dim, sm_scale = inputs["q"], inputs["v_dim"], inputs["sm_scale"]
    names = ("q", "cache", "block_table", "seqlens", "v_dim", "causal", "cu_seqlens_q")
    rows = []
    for at, keys, is_seen in queries(*(inputs[name] for name in names)):
        a = attended(q[at], keys, is_seen, sm_scale, v_dim, accum, p_dtype, k_dtype)
        # Weights times scale factors meet codes of at most 448.
        of_codes = len(keys) * 2.0**-125 if inputs["cache"].dtype == torch.uint8 else 0.0
        rows.append((a.out, a.error + of_codes, a.lse, a.error_lse))
    return _joined(rows, q, v_dim)


def sparse_bound(
    inputs: dict[str, Any], accum: float, p_dtype: torch.dtype | None, k_dtype: torch.dtype | None = None
) -> Bounds:
    """The same of ``mla_sparse``."""
    q, v_dim, sm_scale = inputs["q"], inputs["v_dim"], inputs["sm_scale"]
    arguments = (inputs[name] for name in ("q", "cache", "indices", "topk_length", "v_dim"))
    rows = []
    for row, keys, is_seen in chosen(*arguments):
        a = attended(row, keys, is_seen, sm_scale, v_dim, accum, p_dtype, k_dtype)
        has_sink = inputs["attn_sink"] is not None
        out, error = with_sink(a, inputs["attn_sink"]) if has_sink else (a.out, a.error)
        rows.append((out, error, a.lse, a.error_lse))
    return _joined(rows, q, v_dim)


def _joined(rows: list[tuple[Tensor, ...]], q: Tensor, v_dim: int) -> Bounds:
    """Of (out, error, lse, error_lse) of every query in order; out is rounded to q's dtype."""
    shapes = ((*q.shape[:-1], v_dim), (*q.shape[:-1], v_dim), q.shape[:-1], q.shape[:-1])
    out, error, lse, error_lse = (
        torch.stack([row[i] for row in rows]).view(shape) if rows else q.new_empty(shape, dtype=torch.float64)
        for i, shape in enumerate(shapes)
    )
    error = error + rounding(out.abs() + error, q.dtype)
    return [(out, torch.where(out.isfinite(), error, 0.0)), (lse, error_lse)]
