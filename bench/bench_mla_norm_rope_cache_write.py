"""New tokens from the projection into the latent cache: norm, rotation, cast to e4m3 and write."""

from collections.abc import Callable

import torch
from moela import ops
from moela.bench.bench_merge_states import attention
from moela.bench.bench_mla_cache_write import dims
from moela.bench.bench_moe_topk import parts
from moela.bench.suite import Baseline, Bench, Inputs, Outputs
from torch import Tensor


def in_model_code(kv: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(kv_c, k_pe), op by op: torch's norm, and pairs of columns as complex numbers, as DeepSeek rotates."""
    kv_c, k_pe = kv.tensor_split([weight.size(0)], 1)
    kv_c = torch.nn.functional.rms_norm(kv_c, weight.shape, weight, eps)
    pairs = torch.view_as_complex(k_pe.float().unflatten(1, (-1, 2)))  # [T, R / 2]
    return kv_c, torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(1).to(kv.dtype)


def unfused(inputs: Inputs) -> Callable[[], Outputs]:
    """moela writes. What torch rounds otherwise has other codes here and there."""
    cache = inputs["cache"].clone()
    values = tuple(inputs[name] for name in ("kv", "weight", "cos", "sin", "eps"))

    def write() -> Outputs:
        ops.mla_cache_write(*in_model_code(*values), cache, inputs["slot_mapping"])
        return (cache,)

    return write


BENCH = Bench(
    op="mla_norm_rope_cache_write",
    dtypes=("bf16",),
    has_tokens=True,
    dims=dims,
    item_bytes=lambda dtype: {"x_bytes": 2},
    parts=parts,
    baselines=(Baseline("unfused", "torch's norm and rotation, then mla_cache_write", unfused, 0.1),),
    layers=attention,
)


def bench_mla_norm_rope_cache_write(benchmark, contestant):
    benchmark(contestant)
