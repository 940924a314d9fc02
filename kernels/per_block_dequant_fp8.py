"""Triton backend of ``per_block_dequant_fp8``."""

import torch
import triton
import triton.language as tl
from moela.kernels import _fp8
from torch import Tensor

BLOCK = 128  # rows and columns that share a scale factor: the tile of a program, so there is nothing to plan


@triton.jit
def _per_block_dequant_fp8_kernel(
    q_ptr, sf_ptr, w_ptr,
    N, K, stride_qe, stride_qn, stride_sfe, stride_sfn, stride_sfk,
    IS_E8M0: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One program owns one 128 x 128 block of w.

    Grid: (cdiv(K, 128), cdiv(N, 128), E). Invariant: what lies beyond N or K is masked in the load and the
    store.
    """
    BLOCK: tl.constexpr = 128
    block_k, block_n, e = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    n = block_n.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[:, None]  # [128, 1]
    k = block_k * BLOCK + tl.arange(0, BLOCK)[None, :]  # [1, 128]
    mask = (n < N) & (k < K)
    sf = _fp8.load_sf(sf_ptr + e * stride_sfe + block_n * stride_sfn + block_k * stride_sfk, IS_E8M0)
    codes = tl.load(q_ptr + e * stride_qe + n * stride_qn + k, mask=mask, other=0)
    w = _fp8.decode_e4m3(codes, tl.float32) * sf
    tl.store(w_ptr + (e * N + n) * K + k, _fp8.round_to(w, w_ptr.dtype.element_ty, INTERPRETED), mask=mask)


def launch(q: Tensor, sf: Tensor, dtype: torch.dtype = torch.bfloat16, *, out: tuple[Tensor]) -> None:
    (w,) = out
    if w.numel() == 0:
        return
    N, K = q.shape[-2:]
    matrices = _fp8.codes_argument(q).reshape(-1, N, K)  # [E, N, K]
    sfs = _fp8.sf_argument(sf).reshape(-1, *sf.shape[-2:])  # [E, ceil(N/128), ceil(K/128)]
    _per_block_dequant_fp8_kernel[(triton.cdiv(K, BLOCK), triton.cdiv(N, BLOCK), matrices.size(0))](
        matrices, sfs, w,
        N, K, matrices.stride(0), matrices.stride(1), sfs.stride(0), sfs.stride(1), sfs.stride(2),
        IS_E8M0=sf.dtype == torch.float8_e8m0fnu,
        INTERPRETED=_fp8.target_of(q.device).interpreted, num_warps=8,
    )  # fmt: skip
