"""What attention over a latent cache in float32 may be off by, per element."""

from typing import Any

import torch
from torch import Tensor

from moela.ops._spec import rounding
from moela.reference.mla_decode import attend, queries

UNIT = 2.0**-24  # one rounding of float32


def decode_bound(
    inputs: dict[str, Any], accum: float, p_dtype: torch.dtype | None
) -> list[tuple[Tensor, Tensor]]:
    """[(exact out, allowed error), (exact lse, allowed error)]; p_dtype: what the weights are rounded to.

    w: the exact weights, s: the scores, v: the values. In units of UNIT, beside accum:
    - a score is off by a = accum sum |q||k| |sm_scale|, and by 3 sum |q||k| |sm_scale| for a scale factor's
      product, sm_scale and its product;
    - e^(s - max): 4 for the exponential (ex2.approx has 2^-22, the CPU's polynomial less), and 4 (max - s)
      for the rounding of its argument and of what it is multiplied with. While a maximum grows the terms
      before it are scaled again: the arguments add up to max - s whatever the steps; 5 for each step. A
      maximum over keys in random order grows as often as the logarithm of their number; 8 steps are allowed
      for, and 4 for the merge of parts and for the quotient: 48 in all. So w is off by
      w (d + sum w d), d of the key;
    - the sums of weights and of weighted values: accum each, and 2 for a scale factor's product and the last.
    What is below 2^-126 of the largest weight may be lost.
    """
    q, v_dim, sm_scale = inputs["q"], inputs["v_dim"], inputs["sm_scale"]
    out = q.new_empty((*q.shape[:-1], v_dim), dtype=torch.float64)
    lse, error = q.new_empty(q.shape[:-1], dtype=torch.float64), torch.empty_like(out)
    error_lse = torch.empty_like(lse)
    names = ("q", "cache", "block_table", "seqlens", "v_dim", "causal", "cu_seqlens_q")
    for at, keys, is_seen in queries(*(inputs[name] for name in names)):
        scores, total = attend(q[at], keys, is_seen, sm_scale)  # [H, capacity], [H]
        w = torch.where(total[:, None] == -torch.inf, 0.0, torch.exp(scores - total[:, None]))
        v = keys[:, :v_dim]
        out[at], lse[at] = w @ v, total
        magnitude = q[at].double().abs() @ keys.abs().T * abs(sm_scale)
        below = torch.where(w > 0, scores.amax(-1, keepdim=True) - scores, 0.0) if len(keys) else w
        d = w * ((accum + 3 * UNIT) * magnitude + UNIT * (48 + 4 * below))
        of_v = w @ v.abs()  # [H, v_dim]
        error[at] = d @ v.abs() + d.sum(-1, keepdim=True) * of_v + (2 * accum + 2 * UNIT) * of_v
        error[at] += len(keys) * 2.0**-126 * (v.abs().amax(0) if len(keys) else 0.0)
        if inputs["cache"].dtype == torch.uint8:  # weights times scale factors meet codes of at most 448
            error[at] += len(keys) * 2.0**-125
        if p_dtype is not None:
            rounded = rounding(w, p_dtype)
            # The sum of the weights is that of the unrounded ones.
            error[at] += rounded @ v.abs()
        error_lse[at] = d.sum(-1) + accum + UNIT * (8 + total.abs())
    error += rounding(out.abs() + error, q.dtype)
    return [
        (out, torch.where(out.isfinite(), error, 0.0)),
        (lse, torch.where(lse.isfinite(), error_lse, 0.0)),
    ]
