"""Attention of one new token over a latent cache, or two (layer mla_two).

--tokens: how many the cache holds of each request; --batch: how many requests.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from moela.bench.bench_merge_states import attention
from moela.bench.suite import Baseline, Bench, Inputs, Outputs, Part
from moela.reference._mla_cache import decode
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
    shape = {"H": layer.num_heads, "S": tokens, "L": layer.kv_lora_rank, "R": layer.qk_rope_head_dim}
    s_q = 2 if isinstance(layer, TwoTokens) else 1
    return shape | {"s_q": s_q, "cache_dtype": CACHES[dtype], "hostile": False}


def parts(inputs: Inputs) -> Iterator[Part]:
    """One request at a time."""
    for b in range(len(inputs["seqlens"])):
        mine = slice(b, b + 1)
        one = {name: inputs[name][mine] for name in ("q", "block_table", "seqlens")}
        yield inputs | one, lambda outputs, mine=mine: tuple(t[mine] for t in outputs)


def latents(inputs: Inputs) -> Tensor:
    """[B, S, row_size]: the rows of the requests, without pages."""
    cache, table, S = inputs["cache"], inputs["block_table"], int(inputs["seqlens"][0])
    rows = [cache[pages[: -(-S // cache.size(1))].long()].flatten(0, 1)[:S] for pages in table]
    return torch.stack(rows)


def decoded(rows: Tensor, inputs: Inputs) -> Tensor:
    """[..., D]: torch has no attention over rows of bytes, so every call decodes them, to the dtype of q."""
    return decode(rows, inputs["v_dim"]).to(inputs["q"].dtype) if rows.dtype == torch.uint8 else rows


def rows(inputs: Inputs, S: int) -> tuple[Tensor, Tensor | None]:
    """The heads of all queries as rows of one, [B, s_q * H, D], and which of S keys each sees, if not all."""
    q = inputs["q"]
    s_q, H = q.shape[1:3]
    if s_q == 1:
        return q[:, 0], None
    limits = S - torch.arange(s_q, device=q.device).flip(0)
    seen = torch.arange(S, device=q.device) < limits.repeat_interleave(H)[:, None]
    return q.flatten(1, 2), seen


def shaped(inputs: Inputs, out: Tensor, lse: Tensor) -> Outputs:
    batch = inputs["q"].shape[:3]
    return out[..., : inputs["v_dim"]].reshape(*batch, inputs["v_dim"]), lse.reshape(batch)


def scores_of(q: Tensor, keys: Tensor, seen: Tensor | None, sm_scale: float) -> Tensor:
    scores = q.float() @ keys.mT * sm_scale
    return scores if seen is None else scores.masked_fill(~seen, -torch.inf)


def sdpa(inputs: Inputs) -> Callable[[], Outputs]:
    """torch's attention; its value is the whole row, and it has no lse."""
    cached, sm_scale = latents(inputs), inputs["sm_scale"]
    q, seen = rows(inputs, cached.size(1))
    keys = decoded(cached, inputs).float()
    lse = torch.stack([scores_of(*pair, seen, sm_scale).logsumexp(-1) for pair in zip(q, keys, strict=True)])

    def attend() -> Outputs:
        kv = decoded(cached, inputs)
        many = (t[:, None] for t in (q, kv, kv))  # [B, 1, rows, D]
        out = torch.nn.functional.scaled_dot_product_attention(*many, attn_mask=seen, scale=sm_scale)
        return shaped(inputs, out[:, 0], lse)

    return attend


def converted(inputs: Inputs) -> Callable[[], Outputs]:
    """The rows of one request after the other to float32, two products and a softmax."""
    kv, v_dim = latents(inputs), inputs["v_dim"]
    q, seen = rows(inputs, kv.size(1))

    def attend() -> Outputs:
        outs, lses = [], []
        for x, row in zip(q, kv, strict=True):
            keys = decoded(row, inputs).float()
            scores = scores_of(x, keys, seen, inputs["sm_scale"])
            outs.append((scores.softmax(-1) @ keys[:, :v_dim]).to(q.dtype))
            lses.append(scores.logsumexp(-1))
        return shaped(inputs, torch.stack(outs), torch.stack(lses))

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
    has_batch=True,
)


def bench_mla_decode(benchmark, contestant):
    benchmark(contestant)
