"""Attention of a prompt over keys and values of every head, several sequences in one call."""

from typing import Any

import torch
from torch import Tensor

from moela.ops._mla_prefill import AROUND_TILES, Lens, check_attention, lens_of, num_pairs
from moela.ops._mla_prefill_bound import prefill_bound
from moela.ops._spec import Autograd, OpSpec, register
from moela.reference import mla_prefill as reference

OP = "mla_prefill"


def mla_prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    sm_scale: float,
    causal: bool = True,
) -> tuple[Tensor, Tensor]:
    """Compute ``out = softmax(sm_scale * q @ k.T) @ v`` per sequence and head, over the keys a query sees.

    Sequence b has the queries cu_seqlens_q[b] up to, not including, cu_seqlens_q[b + 1], and keys likewise.

    Args:
        q: [Tq, H, D] bfloat16, float16 or float32; last dimension contiguous, any other strides. Tq and H may
            be 0. DeepSeek: D 192, Dv 128; GLM-5: 256 and 256; any others from 1 on.
        k: [Tk, H, D] of q's dtype, strides as q's, of 0 too: the rotated part is the same for every head. Tk
            may be 0.
        v: [Tk, H, Dv] of q's dtype, strides as q's.
        cu_seqlens_q: [B + 1] int32, from 0, non-decreasing, to Tq: sequences may have no queries. Its values
            are checked on the CPU, on a GPU under MOELA_DEBUG only; there queries beyond the last offset see
            no key.
        cu_seqlens_k: [B + 1] int32, likewise to Tk: sequences may have no keys, and more or fewer than
            queries.
        sm_scale: what scores are multiplied by: D^-0.5, times the square of YaRN's mscale.
        causal: query j of s_q sees the keys before s_k - (s_q - 1 - j): the last one all, the one before all
            but one, so that a sequence may continue a prefix.

    Returns:
        out: [Tq, H, Dv] of q's dtype, contiguous; 0 where a query sees no key.
        lse: [Tq, H] float32: the natural logarithm of the sum of e^score; -Inf where there is no key. See
            `merge_states`, which makes one result of those over pieces of the keys. A score of +Inf makes
            out and lse NaN, as softmax does; scores of -Inf only are as no key.
        Differentiable with respect to q, k and v, also through lse, once: see `mla_prefill_backward`.

    Numerics: float32 sums, out rounded once; the weights are rounded to q's dtype, before they are multiplied
        with v, on a GPU if it is bfloat16 or float16, on a CPU with AMX if it is bfloat16. The error is
        bounded per element (python/moela/ops/_mla_prefill_bound.py) by what scores and sums lose. NaN and
        infinity of a token reach the queries that see it, and no other. A sequence's result depends on that
        sequence only, not on its batch or on the number of threads. The same bits for every instruction set
        of the CPU but amx_bf16, which has its own for bfloat16.

    Source: DeepSeek-V2, arXiv 2405.04434, section 2.1; tiles of keys: FlashAttention-2, arXiv 2307.08691.
    """
    return torch.ops.moela.mla_prefill(q, k, v, cu_seqlens_q, cu_seqlens_k, sm_scale=sm_scale, causal=causal)


def mla_prefill_out(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    sm_scale: float,
    causal: bool = True,
    out: Tensor,
    lse: Tensor,
) -> None:
    """`mla_prefill` into `out` and `lse`, contiguous."""
    torch.ops.moela.mla_prefill_out(
        q, k, v, cu_seqlens_q, cu_seqlens_k, sm_scale=sm_scale, causal=causal, out=out, lse=lse
    )


def _check_args(q, k, v, cu_seqlens_q, cu_seqlens_k, *, sm_scale, causal=True) -> None:
    check_attention(OP, q, k, v, cu_seqlens_q, cu_seqlens_k, sm_scale, "q", q)


def _empty(q, k, v, cu_seqlens_q, cu_seqlens_k, *, sm_scale, causal=True) -> tuple[Tensor, Tensor]:
    return q.new_empty((*q.shape[:2], v.size(2))), q.new_empty(q.shape[:2], dtype=torch.float32)


def make_inputs(
    T: int,
    H: int,
    D: int = 192,
    Dv: int = 128,
    lens: Lens | None = None,
    causal: bool = True,
    x_dtype: torch.dtype = torch.bfloat16,
    hostile: bool = True,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """lens: (queries, keys) of each sequence, T queries in all; None: default_lens, or one if not hostile.

    Scores vary by some units, as those of a model do.
    """
    g = torch.Generator().manual_seed(seed)
    lens = lens_of(T, lens, hostile)
    of_q, of_k = (torch.tensor([0, *column], dtype=torch.int32) for column in zip(*lens, strict=True))
    of_q, of_k = of_q.cumsum(0, dtype=torch.int32), of_k.cumsum(0, dtype=torch.int32)
    Tk = int(of_k[-1])
    return {
        "q": torch.randn(T, H, D, generator=g).to(x_dtype).to(device),
        "k": torch.randn(Tk, H, D, generator=g).to(x_dtype).to(device),
        "v": torch.randn(Tk, H, Dv, generator=g).to(x_dtype).to(device),
        "cu_seqlens_q": of_q.to(device),
        "cu_seqlens_k": of_k.to(device),
        "sm_scale": 2.0 / D**0.5,
        "causal": causal,
    }


def _bound(inputs: dict[str, Any], accum: float) -> list[tuple[Tensor, Tensor]]:
    dtype = inputs["q"].dtype
    return prefill_bound(inputs, accum, None if dtype == torch.float32 else dtype)


def _bytes(T, H, D=192, Dv=128, lens=None, hostile=True, x_bytes=2, **_: Any) -> int:
    lens = lens_of(T, lens, hostile)
    Tk = sum(s_k for _, s_k in lens)
    return H * ((T + Tk) * (D + Dv) * x_bytes + 4 * T) + 8 * (len(lens) + 1)


def _setup_context(ctx, inputs, keyword_only_inputs, output) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, *output)
    ctx.options = keyword_only_inputs


def _backward(ctx, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, cu_seqlens_q, cu_seqlens_k, out, lse = ctx.saved_tensors
    dout = torch.zeros_like(out) if dout is None else dout.contiguous()  # that of a sum has strides of 0
    grads = torch.ops.moela.mla_prefill_backward(
        dout, dlse, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, **ctx.options
    )
    return *grads, None, None


FP16, FP32 = torch.float16, torch.float32

register(
    OpSpec(
        name=OP,
        schema=(
            "Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k, *, float sm_scale, "
            "bool causal=True"
        ),
        outputs=("out", "lse"),
        dtype_arg=None,
        check=_check_args,
        empty=_empty,
        reference=reference,
        public=mla_prefill,
        make_inputs=make_inputs,
        bound=_bound,
        cases=(
            {"T": 0, "H": 2, "D": 16, "Dv": 16},
            {"T": 1, "H": 1, "D": 1, "Dv": 1, "hostile": False, "x_dtype": FP32},
            {"T": 40, "H": 2},
            {"T": 33, "H": 1, "D": 256, "Dv": 256, "x_dtype": FP16},
            {"T": 50, "H": 3, "D": 37, "Dv": 70, "x_dtype": FP32},
            {"T": 50, "H": 2, "D": 24, "Dv": 8, "causal": False, "x_dtype": FP32},
            {"T": 129, "H": 1, "D": 32, "Dv": 16, "lens": AROUND_TILES},
            {"T": 4, "H": 2, "D": 16, "Dv": 16, "lens": ((4, 100),), "x_dtype": FP16},
            {"T": 3, "H": 2, "D": 16, "Dv": 16, "lens": ((3, 0),), "causal": False},
        ),
        flops=lambda T, H, D=192, Dv=128, **dims: 2 * H * (D + Dv) * num_pairs(T, **dims),
        bytes=_bytes,
        autograd=Autograd(_setup_context, _backward),
    )
)
