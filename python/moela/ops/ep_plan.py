"""Which rows of a batch travel to which rank, and in which order."""

from typing import Any

import torch
from torch import Tensor

from moela.ops import _check
from moela.ops._spec import OpSpec, exactly, register
from moela.reference import ep_plan as reference

OP = "ep_plan"
ID_DTYPES = (torch.int32, torch.int64)


def ep_plan(topk_ids: Tensor, num_experts: int, num_ranks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the order in which tokens travel to the ranks of their experts, ``rows = x[send_rows]``.

    A row is a token on its way to a rank: one, however many of its experts are there. Rows are sorted by
    rank, those of a rank by token. Rank r of num_ranks has a contiguous range of experts, as
    torch.tensor_split cuts
    it: the first num_experts % num_ranks ranks have one more than the others.

    Args:
        topk_ids: [T, topk] int32 or int64, last dimension contiguous; T may be 0. An id below 0 or at least
            num_experts is dropped. A token may have an expert twice.
        num_experts: of all ranks, positive; may be less than num_ranks.
        num_ranks: positive.

    Returns:
        send_rows [T * min(topk, num_ranks)] int32: the token of each row; -1 past the last row.
        counts [num_ranks] int32: rows for each rank.
        slots [T, topk] int32: the row that brings the token to the expert, -1 where it is dropped. Experts of
            one rank have the same.
        The shapes do not depend on the ids, so nothing waits for the device.

    Numerics: exact; the same on every backend and in every run.

    Source: DeepSeek-V3 report, section 3.2.2: a token is sent once to wherever several of its experts are.
    """
    return torch.ops.moela.ep_plan(topk_ids, num_experts, num_ranks)


def ep_plan_out(
    topk_ids: Tensor, num_experts: int, num_ranks: int, *, send_rows: Tensor, counts: Tensor, slots: Tensor
) -> None:
    """`ep_plan` into `send_rows`, `counts` and `slots`, contiguous."""
    torch.ops.moela.ep_plan_out(
        topk_ids, num_experts, num_ranks, send_rows=send_rows, counts=counts, slots=slots
    )


def _check_args(topk_ids, num_experts, num_ranks) -> None:
    _check.expect_dim(OP, "topk_ids", topk_ids, 2)
    _check.expect_dtype(OP, "topk_ids", topk_ids.dtype, ID_DTYPES)
    _check.expect_last_dim_contiguous(OP, "topk_ids", topk_ids)
    num_pairs = topk_ids.size(0) * topk_ids.size(1)
    _check.expect(num_pairs < 2**31, OP, "topk_ids", "less than 2^31 elements", num_pairs)
    _check.expect(num_experts > 0, OP, "num_experts", "a positive number", num_experts)
    _check.expect(num_ranks > 0, OP, "num_ranks", "a positive number", num_ranks)


def _empty(topk_ids, num_experts, num_ranks) -> tuple[Tensor, Tensor, Tensor]:
    T, topk = topk_ids.shape
    return (
        topk_ids.new_empty((T * min(topk, num_ranks),), dtype=torch.int32),
        topk_ids.new_empty((num_ranks,), dtype=torch.int32),
        topk_ids.new_empty((T, topk), dtype=torch.int32),
    )


def make_inputs(
    T: int,
    topk: int,
    num_experts: int,
    num_ranks: int,
    ids_dtype: torch.dtype = torch.int32,
    hostile: bool = True,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """None of the ids is the last expert. Hostile: a tenth of them is out of range, in every way."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, max(num_experts - 1, 1), (T, topk), generator=g)
    strange = torch.tensor([-1, num_experts, -(2**31), 2**31 - 1, num_experts + 2**20])
    if ids_dtype == torch.int64:
        strange = torch.cat([strange, torch.tensor([2**32, -(2**63), 2**63 - 1])])
    is_strange = torch.rand(T, topk, generator=g) < (0.1 if hostile else 0.0)
    ids = torch.where(is_strange, strange[torch.randint(len(strange), (T, topk), generator=g)], ids)
    return {"topk_ids": ids.to(ids_dtype).to(device), "num_experts": num_experts, "num_ranks": num_ranks}


register(
    OpSpec(
        name=OP,
        schema="Tensor topk_ids, int num_experts, int num_ranks",
        outputs=("send_rows", "counts", "slots"),
        dtype_arg=None,
        check=_check_args,
        empty=_empty,
        reference=reference,
        public=ep_plan,
        make_inputs=make_inputs,
        bound=exactly(reference),
        cases=(
            {"T": 0, "topk": 2, "num_experts": 8, "num_ranks": 2},
            {"T": 1, "topk": 1, "num_experts": 1, "num_ranks": 1},
            {"T": 5, "topk": 8, "num_experts": 256, "num_ranks": 8},
            {"T": 33, "topk": 3, "num_experts": 7, "num_ranks": 3, "ids_dtype": torch.int64},
            {"T": 9, "topk": 9, "num_experts": 3, "num_ranks": 5},
            {"T": 300, "topk": 4, "num_experts": 61, "num_ranks": 40},
            {"T": 3, "topk": 0, "num_experts": 4, "num_ranks": 2},
        ),
        flops=lambda T, topk, **_: T * topk,
        bytes=lambda T, topk, num_ranks, **_: T * (2 * topk + min(topk, num_ranks)) * 4,
    )
)  # fmt: skip
