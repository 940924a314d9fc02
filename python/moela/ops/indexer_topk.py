"""The tokens that sparse attention reads: where the indexer's largest logits are."""

from typing import Any

import torch
from torch import Tensor

from moela.ops import _check
from moela.ops._indexer_check import expect_ranges, expect_requests
from moela.ops._spec import OpSpec, exactly, register
from moela.reference import indexer_topk as reference

OP = "indexer_topk"


def indexer_topk(
    logits: Tensor,
    topk: int,
    *,
    ks: Tensor | None = None,
    ke: Tensor | None = None,
    block_table: Tensor | None = None,
    page_size: int | None = None,
    request_ids: Tensor | None = None,
) -> Tensor:
    """Give the columns of the topk largest logits of each row, ascending, or the slots of their tokens.

    Args:
        logits: [..., S] float32 of at least two dimensions, last dimension contiguous; of `indexer_logits` or
            `indexer_logits_paged`. Any extent may be 0.
        topk: how many, at least 1; may be more than S.
        ks: [...] int32: a row's first column to choose from, at least 0. None: 0.
        ke: [...] int32: the first one after it not to choose from, at most S. None: S. Columns outside are
            not read: what is there does not matter, and a row takes the time of its own length. Ranges
            beyond S are refused on the CPU; on a GPU (but under MOELA_DEBUG) they are cut.
        block_table: [B, max_pages] int32, last dimension contiguous: the pages of each request, in order.
            Then the result has the slots `page * page_size + offset` of tokens, as `mla_sparse` takes them:
            column s is token s - ks of its request. Entries beyond the chosen tokens are not read. None: the
            result has columns.
        page_size: of block_table.
        request_ids: [...] int32: the request of each row, a row of block_table; -1: of none, and nothing is
            chosen. None: it is the first index of logits, and B is its extent.

    Returns:
        [..., topk] int32, contiguous. -1 after the last one where fewer than topk of a row's columns are
        above -Inf: a row that sees at most topk tokens gives all of them.

    Numerics: exact. Of equal logits (-0 equals 0) the one of the lower column comes first; NaN is larger than
        every number, so that a NaN is seen and not dropped. Columns ascend: attention gathers in the order
        of the cache, and the result depends on nothing but the row. The same on every backend.

    Source: DeepSeek-V3.2-Exp, DeepSeek_V3_2.pdf, section 2.1, equation 2.
    """
    return torch.ops.moela.indexer_topk(
        logits, topk, ks=ks, ke=ke, block_table=block_table, page_size=page_size, request_ids=request_ids
    )


def indexer_topk_out(
    logits: Tensor,
    topk: int,
    *,
    ks: Tensor | None = None,
    ke: Tensor | None = None,
    block_table: Tensor | None = None,
    page_size: int | None = None,
    request_ids: Tensor | None = None,
    indices: Tensor,
) -> None:
    """`indexer_topk` into `indices`, contiguous."""
    torch.ops.moela.indexer_topk_out(
        logits,
        topk,
        ks=ks,
        ke=ke,
        block_table=block_table,
        page_size=page_size,
        request_ids=request_ids,
        indices=indices,
    )


def _check_args(logits, topk, ks=None, ke=None, block_table=None, page_size=None, request_ids=None) -> None:
    _check.expect_min_dim(OP, "logits", logits, 2)
    _check.expect_dtype(OP, "logits", logits.dtype, (torch.float32,))
    _check.expect_last_dim_contiguous(OP, "logits", logits)
    _check.expect(topk > 0, OP, "topk", "a positive number", topk)
    expect_ranges(OP, ks, ke, logits.shape[:-1], logits, logits.size(-1))
    expect_requests(OP, logits, ks, ke, block_table, page_size, request_ids)


def make_inputs(
    T: int,
    S: int,
    topk: int,
    s_q: int | None = None,
    page_size: int | None = None,
    ranges: bool = False,
    requests: int | None = None,
    num_values: int | None = None,
    hostile: bool = True,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Rows [T, S] or [T, s_q, S]; num_values: how many different logits there are; requests: with their ids.

    Hostile: NaN and -Inf among the logits, NaN outside of the ranges, and the block table ends in garbage.
    """
    g = torch.Generator().manual_seed(seed)
    lead = (T,) if s_q is None else (T, s_q)
    logits = torch.randn(*lead, S, generator=g)
    if num_values is not None:
        logits = (logits * num_values / 6).round() * 0.5
    if hostile:
        logits[torch.rand(logits.shape, generator=g) < 0.1] = -torch.inf
        logits[torch.rand(logits.shape, generator=g) < 0.02] = float("nan")
    inputs: dict[str, Any] = {"logits": logits, "topk": topk}
    if ranges:
        ke = torch.randint(0, S + 1, lead, generator=g)
        ks = (torch.rand(lead, generator=g) * ke * 0.5).int()
        column = torch.arange(S)
        logits[(column < ks[..., None]) | (column >= ke[..., None])] = float("nan")
        inputs |= {"ks": ks, "ke": ke.int()}
    if page_size is not None:
        B, blocks = requests or T, -(-S // page_size)
        table = torch.full((B, blocks + hostile), 2147480000, dtype=torch.int32)
        table[:, :blocks] = torch.randperm(B * blocks, generator=g).view(B, blocks)
        inputs |= {"block_table": table, "page_size": page_size}
    if requests is not None:
        inputs["request_ids"] = torch.randint(-hostile, requests, lead, generator=g).int()
    return {name: t.to(device) if isinstance(t, Tensor) else t for name, t in inputs.items()}


register(
    OpSpec(
        name=OP,
        schema=(
            "Tensor logits, SymInt topk, *, Tensor? ks=None, Tensor? ke=None, Tensor? block_table=None, "
            "int? page_size=None, Tensor? request_ids=None"
        ),
        outputs=("indices",),
        dtype_arg=None,
        check=_check_args,
        empty=lambda logits, topk, **_: (logits.new_empty((*logits.shape[:-1], topk), dtype=torch.int32),),
        reference=reference,
        public=indexer_topk,
        make_inputs=make_inputs,
        bound=exactly(reference),
        cases=(
            {"T": 0, "S": 40, "topk": 8},
            {"T": 3, "S": 0, "topk": 4},
            {"T": 2, "S": 1, "topk": 1},
            {"T": 3, "S": 130, "topk": 16},
            {"T": 2, "S": 5, "topk": 16, "s_q": 3, "page_size": 2},
            {"T": 4, "S": 500, "topk": 100, "num_values": 9, "ranges": True},
            {"T": 3, "S": 300, "topk": 64, "num_values": 1},
            {"T": 2, "S": 257, "topk": 31, "s_q": 2, "ranges": True, "page_size": 16},
            {"T": 7, "S": 200, "topk": 40, "ranges": True, "page_size": 64, "requests": 3},
        ),
        flops=lambda **_: 0,
        bytes=lambda T, S, topk, s_q=None, **_: 4 * T * (s_q or 1) * (S + topk),
        batch_args=("logits", "ks", "ke", "request_ids"),
    )
)
