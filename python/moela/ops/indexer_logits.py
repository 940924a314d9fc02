"""The lightning indexer's scores of keys in one tensor: prefill, where requests lie one after the other."""

from typing import Any

import torch
from torch import Tensor

from moela.ops import _check
from moela.ops._indexer_bound import logits_bound
from moela.ops._indexer_check import expect_queries, expect_ranges
from moela.ops._spec import OpSpec, register
from moela.reference import indexer_logits as reference
from moela.reference._indexer_cache import encode

OP = "indexer_logits"


def indexer_logits(q: Tensor, k: Tensor, sf_k: Tensor, weights: Tensor, ks: Tensor, ke: Tensor) -> Tensor:
    """Compute ``logits[t, s] = sf_k[s] * sum_h weights[t, h] * relu(q[t, h] @ k[s])``, ks[t] <= s < ke[t].

    Args:
        q: [T, H, D] float8_e4m3fn, last dimension contiguous. Any extent may be 0. Its scale factors and the
            model's constants are part of the weights.
        k: [S, D] float8_e4m3fn, last dimension contiguous: one key for all heads. S may be 0.
        sf_k: [S] float32, of any stride; it multiplies to dequantize.
        weights: [T, H] float32, last dimension contiguous: of a head, times the scale factor of q[t, h].
        ks: [T] int32: the first key that a query sees, at least 0.
        ke: [T] int32: the first one after it that it does not see, at most S; one that is not above ks: it
            sees none. Ranges beyond are refused on the CPU; on a GPU (but under MOELA_DEBUG) they are cut.

    Returns:
        [T, S] float32, contiguous; -Inf where a query does not see a key. See `indexer_topk`.

    Numerics: products are exact, sums float32. The error is bounded per element
        (python/moela/ops/_indexer_bound.py). NaN of a key, of a query or of a weight reaches the logits that
        it is part of, and no other; what the keys that a query does not see hold does not matter. A logit's
        bits depend on its query and its key only. The same bits for every instruction set of the CPU but
        avx512_bf16 and amx_bf16, which have their own.

    Source: DeepSeek-V3.2-Exp, DeepSeek_V3_2.pdf, section 2.1, equation 1.
    """
    return torch.ops.moela.indexer_logits(q, k, sf_k, weights, ks, ke)


def indexer_logits_out(
    q: Tensor, k: Tensor, sf_k: Tensor, weights: Tensor, ks: Tensor, ke: Tensor, *, logits: Tensor
) -> None:
    """`indexer_logits` into `logits`, whose rows may be strided."""
    torch.ops.moela.indexer_logits_out(q, k, sf_k, weights, ks, ke, logits=logits)


def _check_args(q, k, sf_k, weights, ks, ke) -> None:
    expect_queries(OP, q, weights, 3)
    T, D = q.size(0), q.size(2)
    _check.expect_dim(OP, "k", k, 2)
    _check.expect_dtype(OP, "k", k.dtype, (torch.float8_e4m3fn,))
    _check.expect(k.size(1) == D, OP, "k", f"D={D} (that of q)", f"D={k.size(1)}")
    _check.expect_last_dim_contiguous(OP, "k", k)
    _check.expect_device(OP, "k", k, q.device, "q")
    _check.expect_dtype(OP, "sf_k", sf_k.dtype, (torch.float32,))
    _check.expect_shape(OP, "sf_k", sf_k, (k.size(0),))
    _check.expect_device(OP, "sf_k", sf_k, q.device, "q")
    expect_ranges(OP, ks, ke, (T,), q, k.size(0))


def make_inputs(
    T: int,
    S: int,
    H: int,
    D: int = 128,
    hostile: bool = True,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Hostile: ranges of any length, none too, and NaN in the first and the last key, which nobody sees."""
    g = torch.Generator().manual_seed(seed)
    codes, sf = encode(torch.randn(S, D, generator=g), False)
    k, sf_k = codes.view(torch.float8_e4m3fn), sf.view(torch.float32).flatten()
    ks, ke = torch.zeros(T), torch.full((T,), float(S))
    if hostile:
        ks, ke = (1 + torch.rand(T, generator=g) * (S - 1) for _ in range(2))
        ks, ke = (ks / 2).clamp(min=1), ke.clamp(max=S - 1)
        for end in (0, -1) if S else ():
            k.view(torch.uint8)[end], sf_k[end] = 0xFF, float("nan")
    return {
        "q": torch.randn(T, H, D, generator=g).mul(100).clamp(-448, 448).to(torch.float8_e4m3fn).to(device),
        "k": k.to(device),
        "sf_k": sf_k.to(device),
        "weights": (torch.randn(T, H, generator=g) * max(H, 1) ** -0.5).to(device),
        "ks": ks.int().to(device),
        "ke": ke.int().to(device),
    }


def _bound(inputs: dict[str, Any], accum: float) -> list[tuple[Tensor, Tensor]]:
    k, sf_k, ks, ke = (inputs[name] for name in ("k", "sf_k", "ks", "ke"))
    key = torch.arange(k.size(0), device=k.device)
    exact = torch.empty(len(ks), len(key), dtype=torch.float64, device=k.device)
    error = torch.zeros_like(exact)
    for t, (q, weights) in enumerate(zip(inputs["q"], inputs["weights"], strict=True)):
        is_seen = (ks[t] <= key) & (key < ke[t])
        values, allowed = logits_bound(q, k, sf_k, weights, accum)
        exact[t] = values.masked_fill(~is_seen, -torch.inf)
        error[t] = allowed.masked_fill(~is_seen, 0.0)
    return [(exact, error)]


register(
    OpSpec(
        name=OP,
        schema="Tensor q, Tensor k, Tensor sf_k, Tensor weights, Tensor ks, Tensor ke",
        outputs=("logits",),
        dtype_arg=None,
        check=_check_args,
        empty=lambda q, k, sf_k, weights, ks, ke: (q.new_empty((q.size(0), k.size(0)), dtype=torch.float32),),
        reference=reference,
        public=indexer_logits,
        make_inputs=make_inputs,
        bound=_bound,
        cases=(
            {"T": 0, "S": 40, "H": 4},
            {"T": 3, "S": 0, "H": 4},
            {"T": 2, "S": 3, "H": 0},
            {"T": 2, "S": 9, "H": 3, "D": 0},
            {"T": 1, "S": 1, "H": 1, "D": 1, "hostile": False},
            {"T": 3, "S": 130, "H": 64},
            {"T": 5, "S": 97, "H": 32},
            {"T": 9, "S": 33, "H": 5, "D": 37},
            {"T": 4, "S": 70, "H": 17, "D": 64, "hostile": False},
            {"T": 2, "S": 50, "H": 33, "D": 200},
        ),
        flops=lambda T, S, H, D=128, **_: 2 * T * S * H * D,
        bytes=lambda T, S, H, D=128, **_: T * H * (D + 4) + S * (D + 4) + 4 * T * S,
        strided_out=True,
        batch_args=("weights", "q", "ks", "ke"),
    )
)
