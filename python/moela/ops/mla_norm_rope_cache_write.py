"""New tokens into the latent cache of MLA, from the projection on: norm, rotation, cast and write."""

import math
from typing import Any

import torch
from torch import Tensor

from moela.ops import _check
from moela.ops._spec import OpSpec, register
from moela.ops.mla_cache_write import check_destination
from moela.ops.mla_cache_write import make_inputs as make_rows
from moela.reference import mla_norm_rope_cache_write as reference
from moela.reference._mla_cache import row_size

OP = "mla_norm_rope_cache_write"


def mla_norm_rope_cache_write(
    kv: Tensor,
    weight: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    cache: Tensor,
    slot_mapping: Tensor,
    *,
    eps: float,
    interleaved: bool = True,
    ue8m0: bool = False,
) -> None:
    """Do ``mla_cache_write(rms_norm(kv[:, :L]) * weight, rope(kv[:, L:]), cache, slot_mapping)`` in one pass.

    rms_norm(x) = x / sqrt(mean(x^2) + eps); rope turns a pair (a, b) of columns to (a cos - b sin, b cos +
    a sin). Changes `cache` and returns nothing: for tokens whose attention reads the cache, as in decoding.

    Args:
        kv: [T, L + R] bfloat16, float16 or float32, what `kv_a_proj_with_mqa` gives; last dimension
            contiguous, rows may be strided. T may be 0, R even or 0.
        weight: [L] bfloat16, float16 or float32, that of `kv_a_layernorm`, contiguous. L is not 0.
        cos: [T, R / 2] bfloat16, float16 or float32, the cosines for each token's position; last dimension
            contiguous, rows may be strided: of transformers' [B, S, R] the first half of the columns, of a
            table with cosines and sines side by side the rows at the positions, once for all layers. None
            where R is 0.
        sin: likewise of the sines, in cos's dtype.
        cache: as in `mla_cache_write`: [num_pages, page_size, row], rows of L + R bfloat16, float16 or
            float32 elements, or of bytes (656 for L = 512 and R = 64).
        slot_mapping: as in `mla_cache_write`: [T] int32 or int64; -1 writes nothing.
        eps: added to the mean of the squares; finite, not negative.
        interleaved: pairs are columns (2 i, 2 i + 1), as DeepSeek's and GLM's checkpoints have them; False:
            (i, i + R / 2). They stay where they are: transformers moves interleaved pairs apart, so its k_pe
            has other columns in another order, and scores are the same where q_pe is rotated alike.
        ue8m0: round the scale factors up to powers of two. For a cache of bytes only.

    Returns:
        Nothing.

    Numerics: float32 throughout; the normalized latent and the rotated part are rounded to kv's dtype once,
        as in DeepSeek's model code, and then written as `mla_cache_write` does. (transformers and vLLM round
        before the product with weight too, and transformers rotates in the dtype of kv.) The same bits on
        every backend, NaN aside: a NaN in a latent makes the whole latent NaN.

    Source: DeepSeek-V2, arXiv 2405.04434, section 2.1. MLA in inference/model.py of
        deepseek-ai/DeepSeek-V3.2-Exp.
    """
    torch.ops.moela.mla_norm_rope_cache_write(
        kv, weight, cos, sin, cache, slot_mapping, eps=eps, interleaved=interleaved, ue8m0=ue8m0
    )


def _check_args(kv, weight, cos, sin, cache, slot_mapping, *, eps, interleaved=True, ue8m0=False) -> None:
    _check.expect_dim(OP, "kv", kv, 2)
    _check.expect_dtype(OP, "kv", kv.dtype, _check.FLOAT_DTYPES)
    _check.expect_last_dim_contiguous(OP, "kv", kv)
    T, D = kv.shape
    _check.expect_dim(OP, "weight", weight, 1)
    _check.expect_dtype(OP, "weight", weight.dtype, _check.FLOAT_DTYPES)
    L = weight.size(0)
    _check.expect(1 <= L <= D, OP, "weight", f"L within [1, {D}]", f"L={L}")
    _check.expect_last_dim_contiguous(OP, "weight", weight)
    _check.expect_device(OP, "weight", weight, kv.device, "kv")
    R = D - L
    _check.expect(R % 2 == 0, OP, "kv", f"an even number of columns after the L={L} of weight", R)
    _check_angles("cos", cos, None, T, R, kv)
    _check_angles("sin", sin, cos, T, R, kv)
    check_destination(OP, "weight", L, R, cache, slot_mapping, ue8m0, "kv", kv)
    _check.expect(0 <= eps < math.inf, OP, "eps", "a finite number that is not negative", f"{eps:g}")


def _check_angles(name: str, t: Tensor | None, cos: Tensor | None, T: int, R: int, kv: Tensor) -> None:
    """`cos`, and then `sin` beside it."""
    if R == 0:
        _check.expect(t is None, OP, name, "None because kv and weight have L columns both", "a tensor")
        return
    _check.expect(t is not None, OP, name, f"a tensor because R={R}", "None")
    if cos is None:
        _check.expect_dtype(OP, name, t.dtype, _check.FLOAT_DTYPES)
    else:
        wanted = f"{_check.dtype_name(cos.dtype)} (that of cos)"
        _check.expect(t.dtype == cos.dtype, OP, name, wanted, _check.dtype_name(t.dtype))
    _check.expect_shape(OP, name, t, (T, R // 2))
    _check.expect_last_dim_contiguous(OP, name, t)
    _check.expect_device(OP, name, t, kv.device, "kv")


def make_inputs(
    T: int,
    L: int,
    R: int,
    page_size: int,
    num_pages: int | None = None,
    x_dtype: torch.dtype = torch.bfloat16,
    cache_dtype: torch.dtype = torch.bfloat16,
    weight_dtype: torch.dtype | None = None,
    angle_dtype: torch.dtype = torch.float32,
    slot_dtype: torch.dtype = torch.int64,
    interleaved: bool = True,
    ue8m0: bool = False,
    hostile: bool = True,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Rows, cache and slots of mla_cache_write's inputs. Hostile: tokens without a slot are NaN."""
    rows = make_rows(T, L, R, page_size, num_pages, x_dtype, cache_dtype, slot_dtype, ue8m0, hostile, seed)
    kv = torch.cat([rows["kv_c"], rows["k_pe"]], 1)
    if hostile:
        kv[rows["slot_mapping"] < 0] = torch.nan
    g = torch.Generator().manual_seed(seed + 1)
    weight = torch.randn(L, generator=g).to(weight_dtype or x_dtype)
    angles = torch.randn(T, R // 2, generator=g) * 100
    cos, sin = (f(angles).to(angle_dtype).to(device) if R else None for f in (torch.cos, torch.sin))
    return {
        "kv": kv.to(device),
        "weight": weight.to(device),
        "cos": cos,
        "sin": sin,
        "cache": rows["cache"].to(device),
        "slot_mapping": rows["slot_mapping"].to(device),
        "eps": 1e-6,
        "interleaved": interleaved,
        "ue8m0": ue8m0,
    }


def _bound(inputs: dict[str, Any], accum: float) -> list[tuple[Tensor, Tensor]]:
    """The definition's values, and no error."""
    cache = inputs["cache"].clone()
    reference(**inputs | {"cache": cache})
    return [(cache.double(), torch.zeros(cache.shape, dtype=torch.float64, device=cache.device))]


register(
    OpSpec(
        name=OP,
        schema=(
            "Tensor kv, Tensor weight, Tensor? cos, Tensor? sin, Tensor(a!) cache, Tensor slot_mapping, *, "
            "float eps, bool interleaved=True, bool ue8m0=False"
        ),
        outputs=("cache",),
        in_place=True,
        dtype_arg=None,
        check=_check_args,
        empty=lambda kv, weight, cos, sin, cache, slot_mapping, **_: (cache,),
        reference=reference,
        public=mla_norm_rope_cache_write,
        make_inputs=make_inputs,
        bound=_bound,
        cases=(
            {"T": 0, "L": 512, "R": 64, "page_size": 64},
            {"T": 1, "L": 512, "R": 64, "page_size": 1},
            {"T": 9, "L": 512, "R": 64, "page_size": 16, "cache_dtype": torch.uint8},
            {
                "T": 7,
                "L": 512,
                "R": 64,
                "page_size": 576,
                "cache_dtype": torch.uint8,
                "ue8m0": True,
                "weight_dtype": torch.float32,
            },
            {"T": 5, "L": 256, "R": 64, "page_size": 3, "x_dtype": torch.float32, "cache_dtype": torch.uint8},
            {"T": 6, "L": 128, "R": 0, "page_size": 2, "x_dtype": torch.float16, "cache_dtype": torch.uint8},
            {"T": 5, "L": 512, "R": 0, "page_size": 64, "x_dtype": torch.float32},
            {
                "T": 4,
                "L": 37,
                "R": 6,
                "page_size": 7,
                "cache_dtype": torch.float16,
                "angle_dtype": torch.float16,
                "interleaved": False,
            },
            {
                "T": 3,
                "L": 300,
                "R": 192,
                "page_size": 53,
                "cache_dtype": torch.float32,
                "angle_dtype": torch.bfloat16,
                "slot_dtype": torch.int32,
            },
            {"T": 3, "L": 1, "R": 258, "page_size": 5, "x_dtype": torch.float32, "interleaved": False},
        ),
        flops=lambda **_: 0,
        bytes=lambda T, L, R, cache_dtype=torch.bfloat16, x_bytes=2, **_: (
            T * ((L + R) * x_bytes + 4 * R + row_size(L, R, cache_dtype) * cache_dtype.itemsize + 8)
            + L * x_bytes
        ),
        to_train="call it under torch.no_grad()",
    )
)
