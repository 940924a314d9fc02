"""Triton backend of ``per_block_quant_fp8``."""

import torch
import triton
import triton.language as tl
from moela.kernels import _fp8
from torch import Tensor

BLOCK = 128  # rows and columns that share a scale factor: the tile of a program, so there is nothing to plan


@triton.jit
def _per_block_quant_fp8_kernel(
    w_ptr, q_ptr, sf_ptr,
    N, K, stride_we, stride_wn,
    UE8M0: tl.constexpr, NATIVE: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One program owns one 128 x 128 block of q and its element of sf.

    Grid: (cdiv(K, 128), cdiv(N, 128), E). Invariant: what lies beyond N or K is masked in the load and the
    store.
    """
    BLOCK: tl.constexpr = 128
    block_k, block_n, e = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    n = block_n.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[:, None]  # [128, 1]
    k = block_k * BLOCK + tl.arange(0, BLOCK)[None, :]  # [1, 128]
    mask = (n < N) & (k < K)
    w = _fp8.to_float32(tl.load(w_ptr + e * stride_we + n * stride_wn + k, mask=mask, other=0.0), INTERPRETED)
    amax = tl.max(tl.max(_fp8.magnitude_bits(w), axis=1), axis=0)
    sf = _fp8.scale_factor(amax, UE8M0)
    tl.store(sf_ptr + (e * tl.cdiv(N, BLOCK) + block_n) * tl.cdiv(K, BLOCK) + block_k, sf)
    codes = _fp8.encode_e4m3(tl.div_rn(w, sf + tl.zeros_like(w)), NATIVE)
    tl.store(q_ptr + (e * N + n) * K + k, codes, mask=mask)


def launch(w: Tensor, ue8m0: bool = False, *, out: tuple[Tensor, Tensor]) -> None:
    q, sf = out
    if q.numel() == 0:
        return
    N, K = w.shape[-2:]
    matrices = w.reshape(-1, N, K)  # [E, N, K]
    target = _fp8.target_of(w.device)
    _per_block_quant_fp8_kernel[(triton.cdiv(K, BLOCK), triton.cdiv(N, BLOCK), matrices.size(0))](
        matrices, q.view(torch.uint8), sf,
        N, K, matrices.stride(0), matrices.stride(1),
        UE8M0=ue8m0, NATIVE=target.fp8, INTERPRETED=target.interpreted, num_warps=8,
    )  # fmt: skip
