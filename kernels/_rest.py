"""Zeros in the rows that an op leaves alone: one launch, which reads two numbers where there are none."""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _clear_rest_kernel(
    t_ptr, begin_ptr, end_ptr,
    rows, N,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_M rows of one contiguous matrix [rows, N].

    Grid: (cdiv(rows, BLOCK_M), matrices). Invariant: rows from begin up to end are not touched.
    """
    matrix = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    is_rest = row >= tl.load(end_ptr + matrix)
    if begin_ptr is not None:
        is_rest |= row < tl.load(begin_ptr + matrix)
    is_rest &= row < rows
    if tl.sum(is_rest.to(tl.int32), 0) > 0:
        row_ptrs = t_ptr + (matrix.to(tl.int64) * rows + row)[:, None] * N
        for start in range(0, N, BLOCK_N):
            n = start + tl.arange(0, BLOCK_N)[None, :]  # [1, BLOCK_N]
            zeros = tl.zeros((BLOCK_M, BLOCK_N), t_ptr.dtype.element_ty)
            tl.store(row_ptrs + n, zeros, mask=is_rest[:, None] & (n < N))


def clear_rest(t: Tensor, begin: Tensor | None, end: Tensor) -> None:
    """t [..., rows, N], contiguous; begin (None: 0) and end: [matrices] int32."""
    if t.numel() == 0:
        return
    rows, N = t.shape[-2:]
    BLOCK_M, BLOCK_N = 16, min(triton.next_power_of_2(N), 512)
    _clear_rest_kernel[(triton.cdiv(rows, BLOCK_M), end.numel())](
        t, begin, end, rows, N, BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, num_warps=4
    )
