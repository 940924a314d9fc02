"""What attention of a prompt, and its gradient, may be off by in float32, per element."""

from typing import Any

import torch
from torch import Tensor

from moela.ops._mla_bound import UNIT
from moela.ops._spec import rounding
from moela.reference.mla_decode import lse_of
from moela.reference.mla_prefill import scores, sees, sequences, weighted

Bounds = list[tuple[Tensor, Tensor]]
TINY = 2.0**-126


def seen_by_nobody(error: Tensor, exact: Tensor) -> Tensor:
    """No error where the exact value is no number: a NaN or an infinity has to be one."""
    return torch.where(exact.isfinite(), error, 0.0)


def prefill_bound(inputs: dict[str, Any], accum: float, p_dtype: torch.dtype | None) -> Bounds:
    """[(exact out, allowed error), (exact lse, allowed error)]; p_dtype: what the weights are rounded to.

    As in decode_bound, whose docstring counts: w the exact weights, d what each is off by, relative to it.
    """
    q, k, v, sm_scale = (inputs[name] for name in ("q", "k", "v", "sm_scale"))
    out = q.new_zeros((*q.shape[:2], v.size(2)), dtype=torch.float64)
    lse = q.new_full(q.shape[:2], -torch.inf, dtype=torch.float64)
    error, error_lse = torch.zeros_like(out), torch.zeros_like(lse)
    for rows, keys in sequences(inputs["cu_seqlens_q"], inputs["cu_seqlens_k"]):
        queries, all_keys, values = q[rows].double(), k[keys].double(), v[keys].double()
        seen = sees(len(queries), len(all_keys), inputs["causal"], q.device)
        if seen.numel() == 0:
            continue
        s = scores(queries, all_keys, sm_scale, seen)  # [H, s_q, s_k]
        total = lse_of(s)  # [H, s_q]
        w = torch.where(total[..., None] == -torch.inf, 0.0, torch.exp(s - total[..., None]))
        out[rows], lse[rows] = weighted(w, values, seen), total.T
        magnitude = torch.einsum("qhd,khd->hqk", queries.abs(), all_keys.abs()) * abs(sm_scale)
        below = torch.where(w > 0, s.amax(-1, keepdim=True) - s, 0.0)
        d = torch.where(seen, w * ((accum + 3 * UNIT) * magnitude + UNIT * (48 + 4 * below)), 0.0)
        size = values.abs()  # [s_k, H, Dv]
        of_v = weighted(w, size, seen)  # [s_q, H, Dv]
        off = d + rounding(w, p_dtype) if p_dtype else d  # the sum of the weights is that of unrounded ones
        error[rows] = weighted(off, size, seen) + (d.sum(-1).T[..., None] + 2 * accum + 2 * UNIT) * of_v
        error[rows] += seen.sum(-1)[:, None, None] * TINY * size.amax(0)
        error_lse[rows] = (d.sum(-1) + accum + UNIT * (8 + total.abs())).T
    error += rounding(out.abs() + error, q.dtype)
    return [(out, seen_by_nobody(error, out)), (lse, seen_by_nobody(error_lse, lse))]


def prefill_backward_bound(inputs: dict[str, Any], accum: float, p_dtype: torch.dtype | None) -> Bounds:
    """The same of (dq, dk, dv); p_dtype: what weights and the gradient of scores are rounded to.

    Of one pair of query and key, s the score, w = e^(s - lse), x = dout v - delta, ds = w x sm_scale:
    - s is off by accum sum |q||k| |sm_scale|, and by 3 UNIT of that for the scale; w by 8 UNIT for the
      exponential, and by 4 UNIT |s - lse| for its argument: d in all, relative;
    - x is off by accum (sum |dout||v| + sum |dout||out|) and by 4 UNIT of its terms; ds by what w and x are,
      and by 4 UNIT for products;
    - the sums lose accum of their terms' magnitudes.
    """
    names = ("dout", "q", "k", "v", "fwd_out", "lse", "sm_scale", "causal")
    dout, q, k, v, out, lse, sm_scale, causal = (inputs[name] for name in names)
    wide = [t.new_zeros(t.shape, dtype=torch.float64) for t in (q, k, v)]
    errors = [torch.zeros_like(t) for t in wide]
    for rows, keys in sequences(inputs["cu_seqlens_q"], inputs["cu_seqlens_k"]):
        s_q, s_k = rows.stop - rows.start, keys.stop - keys.start
        rows = slice(rows.start + max(s_q - s_k, 0) if causal else rows.start, rows.stop)
        if s_k == 0 or rows.start >= rows.stop:
            continue
        x_q, x_dout, x_out, x_k, x_v = (
            t.double() for t in (q[rows], dout[rows], out[rows], k[keys], v[keys])
        )
        seen = sees(len(x_q), s_k, causal, q.device)
        s = scores(x_q, x_k, sm_scale, seen)  # [H, s_q, s_k]
        under = s - lse[rows].double().T[..., None]
        w = torch.exp(under).masked_fill(~seen, 0.0)

        def pairs(a: Tensor, b: Tensor) -> Tensor:
            return torch.einsum("qhd,khd->hqk", a, b)  # [H, s_q, s_k]

        delta, size_delta = (x_dout * x_out).sum(-1), (x_dout * x_out).abs().sum(-1)  # [s_q, H]
        if inputs["dlse"] is not None:
            dlse = inputs["dlse"][rows].double()
            delta, size_delta = delta - dlse, size_delta + dlse.abs()
        x = pairs(x_dout, x_v) - delta.T[..., None]
        size_x = pairs(x_dout.abs(), x_v.abs()) + size_delta.T[..., None]
        ds = (w * x * sm_scale).masked_fill(~seen, 0.0)
        of_s = (accum + 3 * UNIT) * abs(sm_scale) * pairs(x_q.abs(), x_k.abs())
        of_w = w * torch.expm1(of_s + UNIT * (8 + 4 * torch.where(w > 0, under.abs(), 0.0))) + TINY
        of_w = torch.where(seen, of_w, 0.0)
        of_ds = abs(sm_scale) * (of_w * x.abs() + (w + of_w) * (accum + 4 * UNIT) * size_x)
        of_ds += 4 * UNIT * ds.abs() + TINY
        if p_dtype:
            of_w = of_w + torch.where(seen, rounding(w + of_w, p_dtype), 0.0)
            # sm_scale may be applied to what is rounded, or to the sum.
            smallest = max(abs(sm_scale), 1.0)
            of_ds += rounding(ds.abs() + of_ds, p_dtype) * smallest
        of_ds = torch.where(seen, of_ds, 0.0)
        sums = (
            (rows, seen, ds, of_ds, x_k),
            (keys, seen.T, ds.mT, of_ds.mT, x_q),
            (keys, seen.T, w.mT, of_w.mT, x_dout),
        )
        for i, (part, of_part, exact, off, b) in enumerate(sums):
            wide[i][part] = weighted(exact, b, of_part)
            errors[i][part] = weighted(off + accum * (exact.abs() + off), b.abs(), of_part)
    return [
        (e, seen_by_nobody(off + rounding(e.abs() + off, q.dtype), e))
        for e, off in zip(wide, errors, strict=True)
    ]
