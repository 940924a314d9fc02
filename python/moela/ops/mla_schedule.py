"""Which part of a GPU attends which keys of a batch."""

from typing import Any

import torch
from torch import Tensor

from moela.ops import _check
from moela.ops._spec import OpSpec, exactly, register
from moela.reference import mla_schedule as reference
from moela.reference.mla_schedule import COLUMNS

OP = "mla_schedule"
MAX_PARTS = 1024
MAX_ROWS = 2**20


def mla_schedule(seqlens: Tensor, *, rows: int, num_parts: int, batch_invariant: bool = False) -> Tensor:
    """Divide the keys of a batch among num_parts parts: work for `mla_decode` that is as even as pays.

    One schedule serves every layer of a decoding step: lengths are the same in all. It is made on the device
    of seqlens without waiting for it and its shape is fixed, so both calls belong in one CUDA graph.

    Args:
        seqlens: [B] int32, contiguous: tokens of each request in the cache, not negative. B may be 0.
        rows: query rows of a request that share its keys: s_q * H, from 0 to 2^20.
        num_parts: how many parts there may be, from 1 to 1024: the number of multiprocessors, divided by how
            many of them work on the rows of one piece (64 rows each in CUDA, 16 or 32 in Triton).
        batch_invariant: cut each request at every 2048th key and nowhere else, so that the result of a
            request does not depend on its batch.

    Returns:
        [1 + (num_parts + 1) + (B + 1), 4] int32. A block is 64 keys; a piece is what a part has of a request.
        Row 0: (B, num_parts, rows, 1 if batch_invariant else 0).
        Then for each part, and for the end, where it begins: (request, block, piece, 0). It has what lies
        before the beginning of the next, in the order of requests and of their blocks, and equal beginnings
        have nothing between them. piece: the number, in that order, of the piece that it begins with.
        Then for each request, and for the end: (first_piece, seqlen, 0, 0): its first piece, and the length
        that the schedule was made for. At the end, the number of pieces, and 0. A request without keys is one
        piece: its result has to be written too.

    Numerics: whole numbers, the same from every backend. The number of parts that are used minimizes a model
        (python/moela/reference/mla_schedule.py), in which a piece and the merge of a split request have a
        price that grows with rows: a small batch is not split as often as it could be, and not at all where
        whole requests are as fast. No part exceeds what the model says of the best number by more than a
        block, or with batch_invariant its even share by more than a piece.

    Source: split keys, "Flash-Decoding", https://crfm.stanford.edu/2023/10/12/flashdecoding.html.
    """
    return torch.ops.moela.mla_schedule(
        seqlens, rows=rows, num_parts=num_parts, batch_invariant=batch_invariant
    )


def mla_schedule_out(
    seqlens: Tensor, *, rows: int, num_parts: int, batch_invariant: bool = False, schedule: Tensor
) -> None:
    """`mla_schedule` into `schedule`, contiguous."""
    torch.ops.moela.mla_schedule_out(
        seqlens, rows=rows, num_parts=num_parts, batch_invariant=batch_invariant, schedule=schedule
    )


def _check_args(seqlens, *, rows, num_parts, batch_invariant=False) -> None:
    _check.expect_dim(OP, "seqlens", seqlens, 1)
    _check.expect_dtype(OP, "seqlens", seqlens.dtype, (torch.int32,))
    _check.expect_last_dim_contiguous(OP, "seqlens", seqlens)
    _check.expect(0 <= rows <= MAX_ROWS, OP, "rows", f"a number within [0, {MAX_ROWS}]", rows)
    wanted = f"a number within [1, {MAX_PARTS}]"
    _check.expect(1 <= num_parts <= MAX_PARTS, OP, "num_parts", wanted, num_parts)
    _check.expect_lengths(OP, seqlens)


def _empty(seqlens, *, rows, num_parts, batch_invariant=False) -> tuple[Tensor]:
    return (seqlens.new_empty(1 + num_parts + 1 + seqlens.size(0) + 1, COLUMNS),)


def make_inputs(
    B: int,
    S: int = 4096,
    rows: int = 128,
    num_parts: int = 132,
    batch_invariant: bool = False,
    hostile: bool = True,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """B requests of at most S tokens. Hostile: lengths from 0 on."""
    g = torch.Generator().manual_seed(seed)
    seqlens = torch.randint(0, S + 1, (B,), generator=g) if hostile else torch.full((B,), S)
    return {
        "seqlens": seqlens.int().to(device),
        "rows": rows,
        "num_parts": num_parts,
        "batch_invariant": batch_invariant,
    }


register(
    OpSpec(
        name=OP,
        schema="Tensor seqlens, *, int rows, int num_parts, bool batch_invariant=False",
        outputs=("schedule",),
        dtype_arg=None,
        check=_check_args,
        empty=_empty,
        reference=reference,
        public=mla_schedule,
        make_inputs=make_inputs,
        bound=exactly(reference),
        cases=(
            {"B": 0},
            {"B": 1, "S": 0},
            {"B": 1, "S": 4096, "rows": 16, "hostile": False},
            {"B": 1, "S": 131072, "hostile": False},
            {"B": 7, "S": 300, "rows": 1, "num_parts": 1},
            {"B": 128, "hostile": False},
            {"B": 128, "num_parts": 66, "rows": 256},
            {"B": 33, "S": 9000, "num_parts": 20, "batch_invariant": True},
            {"B": 200, "S": 700, "num_parts": 304},
            {"B": 3, "S": 2**31 - 1, "num_parts": 1024, "rows": 2**20},
        ),
        flops=lambda B, **_: 0,
        bytes=lambda B, num_parts=132, **_: 4 * B + 4 * COLUMNS * (B + num_parts + 3),
    )
)
