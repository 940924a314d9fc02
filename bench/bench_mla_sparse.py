"""Attention of one token over the 2048 slots that it names, or all, of a cache of --tokens."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from moela.bench.bench_merge_states import attention
from moela.bench.bench_mla_decode import CACHES, decoded
from moela.bench.suite import Baseline, Bench, Inputs, Outputs, Part
from moela.shapes import MlaShape
from torch import Tensor

TOPK = 2048  # index_topk of DeepSeek-V3.2 and GLM-5


def dims(layer: MlaShape, tokens: int, dtype: str) -> dict[str, Any]:
    shape = {"T": 1, "H": layer.num_heads, "topk": min(TOPK, tokens), "S": tokens}
    latents = {"L": layer.kv_lora_rank, "R": layer.qk_rope_head_dim, "cache_dtype": CACHES[dtype]}
    return shape | latents | {"hostile": False}


def parts(inputs: Inputs) -> Iterator[Part]:
    """One token: one part."""
    yield inputs, lambda outputs: outputs


def gathered(inputs: Inputs) -> Callable[[], Tensor]:
    """-> [topk, D], the rows that the token names."""
    cache, slots = inputs["cache"], inputs["indices"][0].long()
    flat, slots = cache.flatten(0, 1), slots[slots >= 0]
    return lambda: decoded(flat.index_select(0, slots), inputs)


def sdpa(inputs: Inputs) -> Callable[[], Outputs]:
    """Rows gathered, then torch's attention; its value is the whole row, and it has no lse."""
    q, gather = inputs["q"], gathered(inputs)  # [1, H, D]
    lse = (q[0].float() @ gather().float().T * inputs["sm_scale"]).logsumexp(-1)[None]

    def attend() -> Outputs:
        kv = gather()[None, None]
        scale = inputs["sm_scale"]
        out = torch.nn.functional.scaled_dot_product_attention(q[None], kv, kv, scale=scale)
        return out[0, ..., : inputs["v_dim"]], lse

    return attend


def converted(inputs: Inputs) -> Callable[[], Outputs]:
    """Rows gathered and converted to float32, two products and a softmax."""
    q, gather = inputs["q"][0], gathered(inputs)

    def attend() -> Outputs:
        keys = gather().float()
        scores = q.float() @ keys.T * inputs["sm_scale"]
        out = scores.softmax(-1) @ keys[:, : inputs["v_dim"]]
        return out.to(q.dtype)[None], scores.logsumexp(-1)[None]

    return attend


BENCH = Bench(
    op="mla_sparse",
    dtypes=tuple(CACHES),
    has_tokens=True,
    dims=dims,
    item_bytes=lambda dtype: {"x_bytes": 2},
    parts=parts,
    baselines=(
        Baseline("torch-sdpa", "index_select and scaled_dot_product_attention", sdpa, 2e-2),
        Baseline("torch-fp32", "index_select, converted to float32, matmul and softmax", converted, 1e-2),
    ),
    layers=attention,
)


def bench_mla_sparse(benchmark, contestant):
    benchmark(contestant)
