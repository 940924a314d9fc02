"""What the indexer's logits over a tensor and over pages share: a tile of keys times the heads of a query."""

from dataclasses import dataclass

import triton
import triton.language as tl
from moela.kernels import _fp8
from moela.kernels._gemm import dot


@dataclass(frozen=True)
class Plan:
    BLOCK_N: int  # keys of one program
    BLOCK_H: int  # heads that are multiplied at a time
    BLOCK_D: int  # columns, all of them
    QUERIES: int  # of one program, one after the other
    num_warps: int


def plan(H: int, D: int, queries: int, interpreted: bool) -> Plan:
    """A tile of keys has at most 16 KB and stays in registers or shared memory for all its queries."""
    block_d = max(triton.next_power_of_2(D), 32)
    block_n = max(16384 // block_d, 16)
    return Plan(
        BLOCK_N=block_n if interpreted else min(block_n, 128),
        BLOCK_H=min(max(triton.next_power_of_2(H), 16), 64),
        BLOCK_D=block_d,
        QUERIES=queries if interpreted else 4,
        num_warps=4,
    )


def dot_dtype(target: _fp8.Target) -> tl.dtype:
    """What multiplies e4m3 codes; either holds every value of them."""
    return tl.float8e4nv if target.fp8 else tl.float16


@triton.jit
def load_codes(ptrs, mask, DOT: tl.constexpr):
    """uint8 codes -> DOT, zeros where there is no mask."""
    codes = tl.load(ptrs, mask=mask, other=0)
    if tl.float8e4nv == DOT:
        return codes.to(tl.float8e4nv, bitcast=True)
    return _fp8.decode_e4m3(codes, DOT)


@triton.jit
def sum_of_heads(
    k, q_ptr, weights_ptr, H, D, stride_qh,
    DOT: tl.constexpr, BLOCK_H: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """k [BLOCK_N, BLOCK_D] -> sum_h weights[h] * relu(k @ q[h]), [BLOCK_N] float32."""
    BLOCK_N: tl.constexpr = k.shape[0]
    BLOCK_D: tl.constexpr = k.shape[1]
    col = tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_N,), tl.float32)
    for first in range(0, H, BLOCK_H):
        head = first + tl.arange(0, BLOCK_H)
        live = head < H
        q_ptrs = q_ptr + head[:, None] * stride_qh + col[None, :]
        q = load_codes(q_ptrs, live[:, None] & (col < D)[None, :], DOT)  # [BLOCK_H, BLOCK_D]
        product = dot(k, q.T, tl.zeros((BLOCK_N, BLOCK_H), tl.float32), INTERPRETED)
        weights = tl.load(weights_ptr + head, mask=live, other=0.0)
        # A comparison, since a maximum may drop a NaN.
        total += tl.sum(tl.where(product < 0.0, 0.0, product) * weights[None, :], axis=1)
    return total
