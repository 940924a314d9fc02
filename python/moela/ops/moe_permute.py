"""Tokens to experts: the rows of a batch, once per chosen expert, sorted by expert."""

from typing import Any

import torch
from torch import Tensor

from moela.ops import _check
from moela.ops._spec import Autograd, OpSpec, exactly, register
from moela.reference import moe_permute as reference

OP = "moe_permute"
# Activations, scale factors of every kind, and packed formats: rows are moved as bytes.
ROW_DTYPES = (
    *_check.FLOAT_DTYPES,
    torch.float8_e4m3fn,
    torch.float8_e8m0fnu,
    torch.int32,
    torch.uint8,
)
ID_DTYPES = (torch.int32, torch.int64)


def moe_permute(x: Tensor, topk_ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ``x_sorted = x[tokens in the order of their experts]``, as grouped GEMMs take it.

    The pairs (token, slot) of topk_ids are sorted by expert; pairs of one expert keep their order, by token,
    then by slot. That order depends on topk_ids alone, so scale factors, or anything else that has a row per
    token, go along by a second call with the same topk_ids: `sf_sorted = moe_permute(sf, topk_ids, E)[0]`.

    Args:
        x: [T, H] bfloat16, float16, float32, float8_e4m3fn, float8_e8m0fnu, int32 or uint8; last dimension
            contiguous, rows may be strided. T and H may be 0.
        topk_ids: [T, topk] int32 or int64, last dimension contiguous. An id below 0 or at least num_experts
            is one of another device's experts: its pair is dropped. A token may have an expert twice.
        num_experts: positive.

    Returns:
        x_sorted [T * topk, H] of x's dtype: expert e has the rows expert_offsets[e] to expert_offsets[e + 1];
            rows from expert_offsets[num_experts] on, as many as pairs were dropped, are zero bytes.
        expert_offsets [num_experts + 1] int32.
        inverse [T, topk] int32: the row of each pair in x_sorted, -1 where it was dropped.
        The shapes do not depend on the ids, so nothing waits for the device. Differentiable with respect to
        x: a token's gradient is the sum over its rows, `moe_unpermute` without weights.

    Numerics: exact; the same on every backend and in every run.

    Source: the layout of DeepSeek-V3's experts (inference/model.py, MoE, which loops over them) as one
        tensor; what vLLM calls moe_permute and torch's grouped_mm takes with `offs = expert_offsets[1:]`.
    """
    return torch.ops.moela.moe_permute(x, topk_ids, num_experts)


def moe_permute_out(
    x: Tensor,
    topk_ids: Tensor,
    num_experts: int,
    *,
    x_sorted: Tensor,
    expert_offsets: Tensor,
    inverse: Tensor,
) -> None:
    """`moe_permute` into `x_sorted`, `expert_offsets` and `inverse`, contiguous."""
    torch.ops.moela.moe_permute_out(
        x, topk_ids, num_experts, x_sorted=x_sorted, expert_offsets=expert_offsets, inverse=inverse
    )


def _check_args(x, topk_ids, num_experts) -> None:
    _check.expect_dim(OP, "x", x, 2)
    _check.expect_dtype(OP, "x", x.dtype, ROW_DTYPES)
    _check.expect_last_dim_contiguous(OP, "x", x)
    _check.expect_dim(OP, "topk_ids", topk_ids, 2)
    _check.expect_dtype(OP, "topk_ids", topk_ids.dtype, ID_DTYPES)
    _check.expect(topk_ids.size(0) == x.size(0), OP, "topk_ids", f"T={x.size(0)}", f"T={topk_ids.size(0)}")
    _check.expect_last_dim_contiguous(OP, "topk_ids", topk_ids)
    num_pairs = topk_ids.size(0) * topk_ids.size(1)
    _check.expect(num_pairs < 2**31, OP, "topk_ids", "less than 2^31 elements", num_pairs)
    _check.expect_device(OP, "topk_ids", topk_ids, x.device, "x")
    _check.expect(num_experts > 0, OP, "num_experts", "a positive number", num_experts)


def _empty(x, topk_ids, num_experts) -> tuple[Tensor, Tensor, Tensor]:
    T, topk = topk_ids.shape
    return (
        x.new_empty((T * topk, x.size(1))),
        topk_ids.new_empty((num_experts + 1,), dtype=torch.int32),
        topk_ids.new_empty((T, topk), dtype=torch.int32),
    )


def make_inputs(
    T: int,
    H: int,
    topk: int,
    num_experts: int,
    x_dtype: torch.dtype = torch.bfloat16,
    ids_dtype: torch.dtype = torch.int32,
    hostile: bool = True,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """None of the ids is the last expert. Hostile: a tenth of them is out of range, in every way."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(-100, 100, (T, H), generator=g)
    x = (x % 128).to(x_dtype) if x_dtype in (torch.uint8, torch.float8_e8m0fnu) else x.to(x_dtype)
    ids = torch.randint(0, max(num_experts - 1, 1), (T, topk), generator=g)
    strange = torch.tensor([-1, num_experts, -(2**31), 2**31 - 1, num_experts + 2**20])
    if ids_dtype == torch.int64:
        strange = torch.cat([strange, torch.tensor([2**32, -(2**63), 2**63 - 1])])
    is_strange = torch.rand(T, topk, generator=g) < (0.1 if hostile else 0.0)
    ids = torch.where(is_strange, strange[torch.randint(len(strange), (T, topk), generator=g)], ids)
    return {"x": x.to(device), "topk_ids": ids.to(ids_dtype).to(device), "num_experts": num_experts}


def _setup_context(ctx, inputs, keyword_only_inputs, output) -> None:
    _, expert_offsets, inverse = output
    ctx.mark_non_differentiable(expert_offsets, inverse)
    ctx.save_for_backward(inverse)


def _backward(ctx, grad_sorted: Tensor, *_) -> tuple[Tensor | None, ...]:
    (inverse,) = ctx.saved_tensors
    return torch.ops.moela.moe_unpermute(grad_sorted.contiguous(), None, inverse), None, None


register(
    OpSpec(
        name=OP,
        schema="Tensor x, Tensor topk_ids, int num_experts",
        outputs=("x_sorted", "expert_offsets", "inverse"),
        dtype_arg=None,
        check=_check_args,
        empty=_empty,
        reference=reference,
        public=moe_permute,
        make_inputs=make_inputs,
        bound=exactly(reference),
        cases=(
            {"T": 0, "H": 128, "topk": 2, "num_experts": 8},
            {"T": 1, "H": 1, "topk": 1, "num_experts": 1, "x_dtype": torch.uint8},
            {"T": 5, "H": 576, "topk": 8, "num_experts": 256},
            {"T": 33, "H": 200, "topk": 3, "num_experts": 7, "x_dtype": torch.float8_e4m3fn},
            {"T": 33, "H": 2, "topk": 3, "num_experts": 7, "x_dtype": torch.float32},
            {"T": 70, "H": 37, "topk": 4, "num_experts": 16, "x_dtype": torch.float16,
             "ids_dtype": torch.int64},
            {"T": 9, "H": 5, "topk": 9, "num_experts": 3, "x_dtype": torch.float8_e8m0fnu},
            {"T": 3, "H": 0, "topk": 2, "num_experts": 4},
            {"T": 3, "H": 16, "topk": 0, "num_experts": 4},
        ),
        flops=lambda T, topk, **_: T * topk,
        bytes=lambda T, H, topk, x_bytes=2, **_: T * (1 + topk) * H * x_bytes + T * topk * 8,
        autograd=Autograd(_setup_context, _backward),
    )
)  # fmt: skip
