"""Causal attention of one prompt of --tokens with keys and values of every head."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from moela.bench.bench_merge_states import attention
from moela.bench.suite import Baseline, Bench, Inputs, Outputs, Part
from moela.shapes import MlaShape
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


def dims(layer: MlaShape, tokens: int, dtype: str) -> dict[str, Any]:
    D = layer.qk_nope_head_dim + layer.qk_rope_head_dim
    shape = {"T": tokens, "H": layer.num_heads, "D": D, "Dv": layer.v_head_dim}
    return shape | {"x_dtype": DTYPES[dtype], "hostile": False}


def head_parts(inputs: Inputs) -> Iterator[Part]:
    """One head at a time."""
    per_head = [n for n, t in inputs.items() if isinstance(t, Tensor) and not n.startswith("cu_seqlens")]
    for head in range(inputs["q"].size(1)):
        h = slice(head, head + 1)
        yield (
            inputs | {n: inputs[n][:, h] for n in per_head},
            lambda outputs, h=h: tuple(t[:, h] for t in outputs),
        )


def lse_of(inputs: Inputs) -> Tensor:
    """[T, H], head after head: torch's attention gives none."""
    T = inputs["q"].size(0)
    hidden = torch.ones(T, T, dtype=torch.bool).triu(1)
    lses = []
    for head in range(inputs["q"].size(1)):
        scores = inputs["q"][:, head].float() @ inputs["k"][:, head].float().T * inputs["sm_scale"]
        lses.append(scores.masked_fill(hidden, -torch.inf).logsumexp(-1))
    return torch.stack(lses, 1)


def heads_first(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """[1, H, T, columns] each, contiguous."""
    return tuple(inputs[name].transpose(0, 1)[None].contiguous() for name in "qkv")


def sdpa(inputs: Inputs) -> Callable[[], Outputs]:
    """As model code calls it. With a v that is narrower than q torch has no fused kernel for the CPU."""
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
    parts=head_parts,
    baselines=(
        Baseline("torch-sdpa", "scaled_dot_product_attention", sdpa, 2e-2),
        Baseline("torch-sdpa-padded", "the same, v padded to the width of q", sdpa_padded, 2e-2),
    ),
    layers=attention,
    warm_tokens=128,
)


def bench_mla_prefill(benchmark, contestant):
    benchmark(contestant)
