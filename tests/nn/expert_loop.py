"""What an expert layer computes, as a loop over experts in float64, and how far off its steps may be."""

from typing import Any

import torch
from moela import testing
from moela.nn import SwiGlu
from moela.ops._fused_experts_bound import UNIT, activation, cast, product, rounded
from moela.ops._spec import rounding
from moela.reference.fp8_gemm import BLOCK, dequantize_blocks
from moela.reference.fused_experts import as_multiplied, tokens_of
from torch import Tensor

E4M3 = torch.float8_e4m3fn


def make_inputs(
    T: int,
    H: int,
    I: int,
    E: int = 4,
    topk: int = 2,
    dtype: torch.dtype = torch.bfloat16,
    w_dtype: torch.dtype | None = None,
    sf_dtype: torch.dtype = torch.float32,
    bias: bool = False,
    gate: SwiGlu = SwiGlu(),  # noqa: B008
    seed: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Arguments of run_experts. Expert 1 has no token, and weights and biases of NaN; some ids are outside,
    with weights of NaN. FP8: the scale blocks of gate and up are those of two matrices."""
    g = torch.Generator().manual_seed(seed)
    w_dtype = w_dtype or dtype
    x = torch.randn(T, H, generator=g) * torch.exp2(torch.randint(-4, 5, (T, 1), generator=g).float())
    used = torch.tensor([e for e in range(E) if e != 1] or [0])
    ids = used[torch.randint(len(used), (T, topk), generator=g)].int()
    topk_weights = torch.rand(T, topk, generator=g)
    is_outside = torch.rand(T, topk, generator=g) < 0.125
    ids[is_outside] = torch.tensor([-1, E, 2**31 - 1])[torch.arange(int(is_outside.sum())) % 3].int()
    topk_weights[is_outside] = float("nan")
    args = {"x": x.to(dtype), "topk_weights": topk_weights, "topk_ids": ids}
    for name, parts, rows, K in (("w13", 2, I, H), ("w2", 1, H, I)):
        size = 110.0 if w_dtype == E4M3 else K**-0.5
        w = (torch.randn(E, parts * rows, K, generator=g) * size).clamp(-448, 448).to(w_dtype)
        w[1:2].view(torch.uint8).fill_(0xFF)  # NaN
        args[name] = w
        if w_dtype == E4M3:
            blocks = (E, parts * -(-rows // BLOCK), -(-K // BLOCK))
            args[f"sf_{name}"] = ((torch.rand(blocks, generator=g) + 0.5) * K**-0.5 / 110).to(sf_dtype)
        if bias:
            b = torch.randn(E, parts * rows, generator=g)
            b[1:2] = float("nan")
            args[f"b{name[1:]}"] = b.to(dtype)
    return args | {"gate": gate} | options


def weight_of(args: dict[str, Any], name: str, expert: int) -> Tensor:
    """[N, K] float64."""
    w, sf = args[name][expert], args.get(f"sf_{name}")
    if sf is None:
        return w.double()
    parts = 2 if name == "w13" else 1
    halves = zip(w.chunk(parts), sf[expert].chunk(parts), strict=True)
    return torch.cat([dequantize_blocks(half, s, torch.float64) for half, s in halves])


def loop(args: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """(out, allowed error) in float64: that of ops/_fused_experts_bound.py, with one more rounding for each
    bias, which the steps add to a product that is rounded already."""
    x, gate, quantize = args["x"], args["gate"], args.get("quantize_activations")
    dtype = x.dtype if args["w13"].dtype == E4M3 else args["w13"].dtype
    a = as_multiplied(x.to(dtype), quantize)
    out, error = torch.zeros_like(a), torch.zeros_like(a)
    for expert in range(args["w13"].size(0)):
        token, weight = tokens_of(expert, args["topk_weights"], args["topk_ids"])
        if token.numel() == 0:
            continue

        def linear(a: Tensor, e_a: Tensor, w: str, expert: int = expert) -> tuple[Tensor, Tensor]:
            b = args.get(f"b{w[1:]}")
            b = None if b is None else b[expert].double()
            d, e_d = product(a, e_a, weight_of(args, w, expert), b, testing.FLOAT32_SUM, dtype)
            return (d, e_d) if b is None else (d, e_d + rounding((d - b).abs() + e_d, dtype))

        rows = a[token]
        h = activation(*linear(rows, torch.zeros_like(rows), "w13"), gate.limit, gate.alpha)
        h = rounded(*h, dtype)
        h = h if quantize is None else cast(*h, quantize == "fp8_ue8m0")
        y, e_y = linear(*h, "w2")
        out[token] += weight * y
        terms = args["topk_ids"].size(1) + 1
        error[token] += weight.abs() * (e_y + terms * UNIT * (y.abs() + e_y))
    error = error + rounding(out.abs() + error, dtype)
    return out, error + rounding(out.abs() + error, x.dtype)
