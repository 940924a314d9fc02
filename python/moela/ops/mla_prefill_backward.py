"""The gradient of ``mla_prefill``."""

from typing import Any

import torch
from torch import Tensor

from moela.ops import _check
from moela.ops._mla_prefill import AROUND_TILES, Lens, check_attention, lens_of, num_pairs
from moela.ops._mla_prefill_bound import prefill_backward_bound
from moela.ops._spec import OpSpec, register
from moela.ops.mla_prefill import make_inputs as forward_inputs
from moela.reference import mla_prefill as forward
from moela.reference import mla_prefill_backward as reference

OP = "mla_prefill_backward"


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
    """Compute ``dq = ds @ k, dk = ds.T @ q, dv = w.T @ dout`` of `mla_prefill`, per sequence and head.

    ``w = e^(sm_scale * q @ k.T - lse), ds = sm_scale * w * (dout @ v.T - sum(dout * fwd_out) + dlse)``.

    Args:
        dout: [Tq, H, Dv] of q's dtype, the gradient with respect to out; last dimension contiguous. Where a
            query sees no key it does not matter.
        dlse: [Tq, H] float32, any strides: that with respect to lse; None: 0.
        q: [Tq, H, D], as `mla_prefill` got it. Tq and H may be 0.
        k: [Tk, H, D], likewise. Tk may be 0.
        v: [Tk, H, Dv], likewise.
        fwd_out: [Tq, H, Dv] of q's dtype, the out that `mla_prefill` gave; last dimension contiguous.
        lse: [Tq, H] float32, any strides: likewise.
        cu_seqlens_q: [B + 1] int32, as `mla_prefill` got it.
        cu_seqlens_k: [B + 1] int32, likewise.
        sm_scale: as `mla_prefill` got it.
        causal: as `mla_prefill` got it.

    Returns:
        dq: [Tq, H, D] of q's dtype, contiguous; 0 where a query sees no key.
        dk: [Tk, H, D] of q's dtype, contiguous: of every head, also where those of k are one memory.
        dv: [Tk, H, Dv] of q's dtype, contiguous. Both are 0 where no query sees the key.

    Numerics: float32 sums, rounded once; on a GPU, and in the tiles of AMX, w and ds are rounded to q's dtype
        before the products. The error is bounded per element (python/moela/ops/_mla_prefill_bound.py).
        Deterministic: the sums over queries are made in one order, whatever the number of threads. A
        sequence's result depends on that sequence only. NaN and infinity of a key, of q or of dout reach the
        pairs of a query and a key that it sees, and what sums over these. Beside the results the CPU takes
        float32 sums of dk and dv of one sequence and head a thread, and for tiles copies of its k and v.

    Source: FlashAttention-2, arXiv 2307.08691, section 3.1.
    """
    return torch.ops.moela.mla_prefill_backward(
        dout, dlse, q, k, v, fwd_out, lse, cu_seqlens_q, cu_seqlens_k, sm_scale=sm_scale, causal=causal
    )


def mla_prefill_backward_out(
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
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
) -> None:
    """`mla_prefill_backward` into `dq`, `dk` and `dv`, contiguous."""
    args = (dout, dlse, q, k, v, fwd_out, lse, cu_seqlens_q, cu_seqlens_k)
    torch.ops.moela.mla_prefill_backward_out(*args, sm_scale=sm_scale, causal=causal, dq=dq, dk=dk, dv=dv)


def _check_args(
    dout, dlse, q, k, v, fwd_out, lse, cu_seqlens_q, cu_seqlens_k, *, sm_scale, causal=True
) -> None:
    _check.expect_dim(OP, "dout", dout, 3)
    check_attention(OP, q, k, v, cu_seqlens_q, cu_seqlens_k, sm_scale, "dout", dout)
    shape = (*q.shape[:2], v.size(2))
    for name, t in (("dout", dout), ("fwd_out", fwd_out)):
        wanted = f"{_check.dtype_name(q.dtype)} (that of q)"
        _check.expect(t.dtype == q.dtype, OP, name, wanted, _check.dtype_name(t.dtype))
        _check.expect_shape(OP, name, t, shape)
        _check.expect_last_dim_contiguous(OP, name, t)
        _check.expect_device(OP, name, t, dout.device, "dout")
    for name, t in (("lse", lse), ("dlse", dlse)):
        if t is not None:
            _check.expect_dtype(OP, name, t.dtype, (torch.float32,))
            _check.expect_shape(OP, name, t, shape[:2])
            _check.expect_device(OP, name, t, dout.device, "dout")


def _empty(dout, dlse, q, k, v, *others, **named) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def make_inputs(
    T: int,
    H: int,
    D: int = 192,
    Dv: int = 128,
    lens: Lens | None = None,
    causal: bool = True,
    has_dlse: bool = True,
    x_dtype: torch.dtype = torch.bfloat16,
    hostile: bool = True,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Those of `mla_prefill` and its result. Hostile: the gradients of queries without keys are NaN."""
    x = forward_inputs(T, H, D, Dv, lens, causal, x_dtype, hostile, seed)
    out, lse = forward(**x)
    g = torch.Generator().manual_seed(seed + 1)
    dout = torch.randn(T, H, Dv, generator=g)
    dlse = torch.randn(T, H, generator=g)
    if hostile:
        dout[lse == -torch.inf], dlse[lse == -torch.inf] = float("nan"), float("nan")
    grads = {"dout": dout.to(x_dtype), "dlse": dlse if has_dlse else None}
    offsets = {name: x.pop(name) for name in ("cu_seqlens_q", "cu_seqlens_k")}
    options = {name: x.pop(name) for name in ("sm_scale", "causal")}
    args = grads | x | {"fwd_out": out, "lse": lse} | offsets
    return {n: t.to(device) if isinstance(t, Tensor) else t for n, t in args.items()} | options


def _bound(inputs: dict[str, Any], accum: float) -> list[tuple[Tensor, Tensor]]:
    dtype = inputs["q"].dtype
    return prefill_backward_bound(inputs, accum, None if dtype == torch.float32 else dtype)


def _bytes(T, H, D=192, Dv=128, lens=None, hostile=True, x_bytes=2, **_: Any) -> int:
    lens = lens_of(T, lens, hostile)
    Tk = sum(s_k for _, s_k in lens)
    return H * (2 * (T + Tk) * (D + Dv) * x_bytes + 8 * T) + 8 * (len(lens) + 1)


FP16, FP32 = torch.float16, torch.float32

register(
    OpSpec(
        name=OP,
        schema=(
            "Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor fwd_out, Tensor lse, "
            "Tensor cu_seqlens_q, Tensor cu_seqlens_k, *, float sm_scale, bool causal=True"
        ),
        outputs=("dq", "dk", "dv"),
        dtype_arg=None,
        check=_check_args,
        empty=_empty,
        reference=reference,
        public=mla_prefill_backward,
        make_inputs=make_inputs,
        bound=_bound,
        cases=(
            {"T": 0, "H": 2, "D": 16, "Dv": 16},
            {"T": 1, "H": 1, "D": 1, "Dv": 1, "hostile": False, "x_dtype": FP32},
            {"T": 40, "H": 2},
            {"T": 33, "H": 1, "D": 256, "Dv": 256, "x_dtype": FP16, "has_dlse": False},
            {"T": 50, "H": 3, "D": 37, "Dv": 70, "x_dtype": FP32},
            {"T": 50, "H": 2, "D": 24, "Dv": 8, "causal": False, "x_dtype": FP32},
            {"T": 129, "H": 1, "D": 32, "Dv": 16, "lens": AROUND_TILES, "x_dtype": FP32},
            {"T": 3, "H": 2, "D": 16, "Dv": 16, "lens": ((3, 0),), "causal": False},
        ),
        flops=lambda T, H, D=192, Dv=128, **dims: 2 * H * (3 * D + 2 * Dv) * num_pairs(T, **dims),
        bytes=_bytes,
    )
)
