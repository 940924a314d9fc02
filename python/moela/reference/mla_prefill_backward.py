"""Definition of ``mla_prefill_backward``: the chain rule, with the weights recomputed from the lse."""

import torch
from torch import Tensor

from moela.reference.mla_prefill import scores, sees, sequences, weighted


def mla_prefill_backward(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    fwd_out: Tensor,
    lse: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    sm_scale: float,
    causal: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """The specification of ``moela.mla_prefill_backward``."""
    dq, dk, dv = (t.new_zeros(t.shape) for t in (q, k, v))
    for rows, keys in sequences(cu_seqlens_q, cu_seqlens_k):
        s_q, s_k = rows.stop - rows.start, keys.stop - keys.start
        rows = slice(rows.start + max(s_q - s_k, 0) if causal else rows.start, rows.stop)  # that see a key
        if s_k == 0:
            continue
        queries, d_out, of_out = (t[rows].double() for t in (q, dout, fwd_out))
        all_keys, values = k[keys].double(), v[keys].double()
        seen = sees(len(queries), s_k, causal, q.device)  # [s_q, s_k]
        s = scores(queries, all_keys, sm_scale, seen)  # [H, s_q, s_k]
        weights = torch.exp(s - lse[rows].double().T[..., None]).masked_fill(~seen, 0.0)
        delta = (d_out * of_out).sum(-1)  # [s_q, H]
        if dlse is not None:
            delta = delta - dlse[rows].double()
        d_weights = torch.einsum("qhd,khd->hqk", d_out, values)
        d_scores = sm_scale * weights * (d_weights - delta.T[..., None])  # [H, s_q, s_k]
        d_scores = d_scores.masked_fill(~seen, 0.0)
        dq[rows] = weighted(d_scores, all_keys, seen).to(q.dtype)
        dk[keys] = weighted(d_scores.mT, queries, seen.T).to(k.dtype)
        dv[keys] = weighted(weights.mT, d_out, seen.T).to(v.dtype)
    return dq, dk, dv
