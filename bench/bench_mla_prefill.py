"""Causal attention of one prompt of --tokens with keys and values of every head."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from moela.bench.bench_merge_states import attention
from moela.bench.suite import Baseline, Bench, Inputs, Outputs, Part
from moela.shapes import MlaShape
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

MANY_TOKENS = 4096  # of which the exact result of all queries takes minutes
MOST_BYTES = 8 << 30
DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


def dims(layer: MlaShape, tokens: int, dtype: str) -> dict[str, Any]:
    D = layer.qk_nope_head_dim + layer.qk_rope_head_dim
    shape = {"T": tokens, "H": layer.num_heads, "D": D, "Dv": layer.v_head_dim}
    return shape | {"x_dtype": DTYPES[dtype], "hostile": False}


def rows_at_once(T: int) -> int:
    """Of so many queries the scores of one head are 64 MB in float64."""
    return max((1 << 23) // T, 1)


def parts(inputs: Inputs) -> Iterator[Part]:
    """One head at a time, and of a long prompt the first queries and the last."""
    T, H = inputs["q"].shape[:2]
    n = rows_at_once(T)
    ends = range(n, T + n, n) if T <= MANY_TOKENS else (n, T)
    for head in range(H):
        h = slice(head, head + 1)
        for end in ends:
            queries, keys = slice(max(end - n, 0), min(end, T)), slice(0, min(end, T))
            part = {"q": inputs["q"][queries, h], "k": inputs["k"][keys, h], "v": inputs["v"][keys, h]}
            for name, rows in (("cu_seqlens_q", queries), ("cu_seqlens_k", keys)):
                part[name] = torch.tensor([0, rows.stop - rows.start], dtype=torch.int32)
            yield inputs | part, lambda outputs, at=(queries, h): tuple(t[at] for t in outputs)


def lse_of(inputs: Inputs) -> Tensor:
    """[T, H], some queries of a head at a time: torch's attention gives none."""
    (T, H), device = inputs["q"].shape[:2], inputs["q"].device
    lse, n = torch.empty(T, H, device=device), rows_at_once(T)
    for head in range(H):
        for first in range(0, T, n):
            end = min(first + n, T)
            scores = inputs["q"][first:end, head].float() @ inputs["k"][:end, head].float().T
            hidden = torch.ones(end - first, end, dtype=torch.bool, device=device).triu(first + 1)
            lse[first:end, head] = (scores * inputs["sm_scale"]).masked_fill(hidden, -torch.inf).logsumexp(-1)
    return lse


def expect_room(inputs: Inputs) -> None:
    """Without a fused kernel torch makes scores of all heads, several times, one of them in float32."""
    T, H = inputs["q"].shape[:2]
    if (size := 3 * 4 * H * T * T) > MOST_BYTES:
        raise NotImplementedError(f"takes {size >> 30} GB for scores of {T} tokens")


def heads_first(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """[1, H, T, columns] each, contiguous."""
    return tuple(inputs[name].transpose(0, 1)[None].contiguous() for name in "qkv")


def sdpa(inputs: Inputs) -> Callable[[], Outputs]:
    """As model code calls it. With a v that is narrower than q torch has no fused kernel for the CPU."""
    expect_room(inputs)
    q, k, v = heads_first(inputs)
    lse = lse_of(inputs)

    def attend() -> Outputs:
        out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=inputs["sm_scale"])
        return out[0].transpose(0, 1), lse

    return attend


def sdpa_padded(inputs: Inputs) -> Callable[[], Outputs]:
    """v with zeros to the width of q, so that the fused kernel takes it; padded ahead."""
    q, k, v = heads_first(inputs)
    Dv, v, lse = v.size(-1), pad(v, (0, q.size(-1) - v.size(-1))), lse_of(inputs)

    def attend() -> Outputs:
        out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=inputs["sm_scale"])
        return out[0, ..., :Dv].transpose(0, 1), lse

    return attend


BENCH = Bench(
    op="mla_prefill",
    dtypes=tuple(DTYPES),
    has_tokens=True,
    dims=dims,
    item_bytes=lambda dtype: {"x_bytes": DTYPES[dtype].itemsize},
    parts=parts,
    baselines=(
        Baseline("torch-sdpa", "scaled_dot_product_attention", sdpa, 2e-2),
        Baseline("torch-sdpa-padded", "the same, v padded to the width of q", sdpa_padded, 2e-2),
    ),
    layers=attention,
    warm_tokens=128,
)


def bench_mla_prefill(benchmark, contestant):
    benchmark(contestant)
