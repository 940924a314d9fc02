"""What the indexer's ops ask of their arguments, in the words of csrc/common/indexer.h."""

from collections.abc import Sequence

import torch
from torch import Tensor

from moela.ops import _check
from moela.ops._check import _can_read
from moela.reference._indexer_cache import SF_BYTES


def expect_cache(op: str, cache: Tensor, D: int, owner: str, t: Tensor) -> None:
    """`cache`: pages of keys of D columns, each one run of bytes; beside `t`, the argument `owner`."""
    _check.expect_dim(op, "cache", cache, 3)
    _check.expect_dtype(op, "cache", cache.dtype, (torch.uint8,))
    row = D + SF_BYTES
    _check.expect(cache.size(2) == row, op, "cache", f"rows of {row} bytes", cache.size(2))
    _check.expect_last_dim_contiguous(op, "cache", cache)
    is_run = cache.size(1) <= 1 or cache.stride(1) == row
    wanted = f"pages without gaps (rows {row} bytes apart)"
    _check.expect(is_run, op, "cache", wanted, f"rows {cache.stride(1)} apart")
    _check.expect_device(op, "cache", cache, t.device, owner)


def expect_queries(op: str, q: Tensor, weights: Tensor, dim: int) -> None:
    """`q`: [..., H, D] e4m3 of `dim` dimensions; `weights`: [..., H] float32."""
    _check.expect_dim(op, "q", q, dim)
    _check.expect_dtype(op, "q", q.dtype, (torch.float8_e4m3fn,))
    _check.expect_last_dim_contiguous(op, "q", q)
    _check.expect_dtype(op, "weights", weights.dtype, (torch.float32,))
    _check.expect_shape(op, "weights", weights, q.shape[:-1])
    _check.expect_last_dim_contiguous(op, "weights", weights)
    _check.expect_device(op, "weights", weights, q.device, "q")


def expect_ranges(op: str, ks: Tensor | None, ke: Tensor | None, shape: Sequence[int], t: Tensor, S: int):
    """`ks`, `ke`: of each row of `shape` the columns [ks, ke) of S; beside `t`, the first argument."""
    owner = "q" if op == "indexer_logits" else "logits"
    for arg, bounds in (("ks", ks), ("ke", ke)):
        if bounds is not None:
            _check.expect_dtype(op, arg, bounds.dtype, (torch.int32,))
            _check.expect_shape(op, arg, bounds, shape)
            _check.expect_device(op, arg, bounds, t.device, owner)
    for row, start in enumerate(_values(ks)):
        _check.expect(start >= 0, op, "ks", "starts of at least 0", f"{start} at row {row}")
    for row, end in enumerate(_values(ke)):
        _check.expect(end <= S, op, "ke", f"ends of at most {S}", f"{end} at row {row}")


def expect_requests(
    op: str,
    logits: Tensor,
    ks: Tensor | None,
    ke: Tensor | None,
    block_table: Tensor | None,
    page_size: int | None,
    request_ids: Tensor | None,
) -> None:
    """What says where the tokens that the columns of `logits` stand for lie."""
    if block_table is None:
        wanted = "None because block_table is None"
        _check.expect(page_size is None, op, "page_size", wanted, page_size)
        _check.expect(request_ids is None, op, "request_ids", wanted, "a tensor")
        return
    _check.expect_block_table(op, block_table, "logits", logits)
    wanted = "a positive number because there is a block_table"
    _check.expect(page_size is not None and page_size > 0, op, "page_size", wanted, page_size)
    B = block_table.size(0)
    if request_ids is None:
        rows = logits.size(0)
        _check.expect(B == rows, op, "block_table", f"B={rows} (that of logits)", f"B={B}")
    else:
        _check.expect_dtype(op, "request_ids", request_ids.dtype, (torch.int32,))
        _check.expect_shape(op, "request_ids", request_ids, logits.shape[:-1])
        _check.expect_device(op, "request_ids", request_ids, logits.device, "logits")
    for row, request in enumerate(_values(request_ids)):
        wanted = f"requests within [-1, {B - 1}]"
        _check.expect(-1 <= request < B, op, "request_ids", wanted, f"{request} at row {row}")
    if all(bounds is None or _can_read(bounds) for bounds in (ks, ke)):
        capacity, S = block_table.size(1) * page_size, logits.size(-1)
        starts = _values(ks) or [0] * len(_values(ke)) or [0]
        ends = _values(ke) or [S] * len(starts)
        longest = max((end - start for start, end in zip(starts, ends, strict=True)), default=0)
        wanted = f"pages for {longest} tokens a request"
        _check.expect(longest <= capacity, op, "block_table", wanted, f"pages for {capacity}")


def _values(t: Tensor | None) -> list[int]:
    """What is in it, where there may be a look."""
    return t.flatten().tolist() if t is not None and _can_read(t) else []
