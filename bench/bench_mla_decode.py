"""Attention of one new token over a latent cache; --tokens says how many the cache holds."""

from collections.abc import Callable
from typing import Any

import torch
from moela.bench.bench_merge_states import attention
from moela.bench.bench_moe_topk import parts
from moela.bench.suite import Baseline, Bench, Inputs, Outputs
from moela.shapes import MlaShape
from torch import Tensor

CACHES = {"bf16": torch.bfloat16, "e4m3": torch.uint8}


def dims(layer: MlaShape, tokens: int, dtype: str) -> dict[str, Any]:
    shape = {"B": 1, "H": layer.num_heads, "S": tokens, "L": layer.kv_lora_rank, "R": layer.qk_rope_head_dim}
    return shape | {"cache_dtype": CACHES[dtype], "hostile": False}


def latents(inputs: Inputs) -> Tensor:
    """[S, D]: the rows of the one request, without pages. Baselines read no rows of bytes."""
    cache, table, S = inputs["cache"], inputs["block_table"][0], int(inputs["seqlens"][0])
    if cache.dtype == torch.uint8:
        raise NotImplementedError("takes no rows of bytes")
    pages = table[: -(-S // cache.size(1))].long()
    return cache[pages].flatten(0, 1)[:S].contiguous()


def lse_of(scores: Tensor) -> Tensor:
    return scores.float().logsumexp(-1)[None, None]


def sdpa(inputs: Inputs) -> Callable[[], Outputs]:
    """torch's attention, the heads as rows of one query; its value is the whole row, and it has no lse."""
    q, kv = inputs["q"][0], latents(inputs)[None, None]  # [1, H, D], [1, 1, S, D]
    lse = lse_of(q[0].float() @ kv[0, 0].float().T * inputs["sm_scale"])

    def attend() -> Outputs:
        scale = inputs["sm_scale"]
        out = torch.nn.functional.scaled_dot_product_attention(q[None], kv, kv, scale=scale)
        return out[..., : inputs["v_dim"]], lse

    return attend


def converted(inputs: Inputs) -> Callable[[], Outputs]:
    """The rows to float32, two products and a softmax."""
    q, rows = inputs["q"][0, 0], latents(inputs)

    def attend() -> Outputs:
        keys = rows.float()
        scores = q.float() @ keys.T * inputs["sm_scale"]
        out = scores.softmax(-1) @ keys[:, : inputs["v_dim"]]
        return out.to(q.dtype)[None, None], lse_of(scores)

    return attend


BENCH = Bench(
    op="mla_decode",
    dtypes=tuple(CACHES),
    has_tokens=True,
    dims=dims,
    item_bytes=lambda dtype: {"x_bytes": 2},
    parts=parts,
    baselines=(
        Baseline("torch-sdpa", "scaled_dot_product_attention on latents", sdpa, 2e-2),
        Baseline("torch-fp32", "converted to float32, matmul and softmax", converted, 1e-2),
    ),
    layers=attention,
)


def bench_mla_decode(benchmark, contestant):
    benchmark(contestant)
