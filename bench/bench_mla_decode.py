"""Attention of one new token over a latent cache, or two (layer mla_two); --tokens: how many it holds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from moela.bench.bench_merge_states import attention
from moela.bench.bench_moe_topk import parts
from moela.bench.suite import Baseline, Bench, Inputs, Outputs
from moela.shapes import MlaShape, ModelShape
from torch import Tensor

CACHES = {"bf16": torch.bfloat16, "e4m3": torch.uint8}


@dataclass(frozen=True)
class TwoTokens(MlaShape):
    """The same layer with the token that a draft has added."""


def layers(model: ModelShape) -> Mapping[str, MlaShape]:
    found = dict(attention(model))
    if "mla" in found:
        mla = found["mla"]
        found["mla_two"] = TwoTokens(**{field.name: getattr(mla, field.name) for field in fields(mla)})
    return found


def dims(layer: MlaShape, tokens: int, dtype: str) -> dict[str, Any]:
    shape = {"B": 1, "H": layer.num_heads, "S": tokens, "L": layer.kv_lora_rank, "R": layer.qk_rope_head_dim}
    s_q = 2 if isinstance(layer, TwoTokens) else 1
    return shape | {"s_q": s_q, "cache_dtype": CACHES[dtype], "hostile": False}


def latents(inputs: Inputs) -> Tensor:
    """[S, D]: the rows of the one request, without pages. Baselines read no rows of bytes."""
    cache, table, S = inputs["cache"], inputs["block_table"][0], int(inputs["seqlens"][0])
    if cache.dtype == torch.uint8:
        raise NotImplementedError("takes no rows of bytes")
    pages = table[: -(-S // cache.size(1))].long()
    return cache[pages].flatten(0, 1)[:S].contiguous()


def rows(inputs: Inputs, S: int) -> tuple[Tensor, Tensor | None]:
    """The heads of all queries as rows of one, [s_q * H, D], and which of S keys each sees, where not all."""
    q = inputs["q"][0]
    s_q, H = q.shape[:2]
    if s_q == 1:
        return q[0], None
    limits = S - torch.arange(s_q, device=q.device).flip(0)
    return q.flatten(0, 1), torch.arange(S, device=q.device) < limits.repeat_interleave(H)[:, None]


def shaped(inputs: Inputs, out: Tensor, lse: Tensor) -> Outputs:
    batch = inputs["q"].shape[:3]
    return out[:, : inputs["v_dim"]].reshape(*batch, inputs["v_dim"]), lse.reshape(batch)


def scores_of(q: Tensor, keys: Tensor, seen: Tensor | None, sm_scale: float) -> Tensor:
    scores = q.float() @ keys.T * sm_scale
    return scores if seen is None else scores.masked_fill(~seen, -torch.inf)


def sdpa(inputs: Inputs) -> Callable[[], Outputs]:
    """torch's attention; its value is the whole row, and it has no lse."""
    kv = latents(inputs)
    q, seen = rows(inputs, len(kv))
    lse = scores_of(q, kv.float(), seen, inputs["sm_scale"]).logsumexp(-1)

    def attend() -> Outputs:
        many = (t[None, None] for t in (q, kv, kv))  # [1, 1, rows, D]
        out = torch.nn.functional.scaled_dot_product_attention(
            *many, attn_mask=seen, scale=inputs["sm_scale"]
        )
        return shaped(inputs, out[0, 0], lse)

    return attend


def converted(inputs: Inputs) -> Callable[[], Outputs]:
    """The rows to float32, two products and a softmax."""
    kv = latents(inputs)
    q, seen = rows(inputs, len(kv))

    def attend() -> Outputs:
        keys = kv.float()
        scores = scores_of(q, keys, seen, inputs["sm_scale"])
        out = scores.softmax(-1) @ keys[:, : inputs["v_dim"]]
        return shaped(inputs, out.to(q.dtype), scores.logsumexp(-1))

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
    layers=layers,
)


def bench_mla_decode(benchmark, contestant):
    benchmark(contestant)
