"""The gradient of causal attention over one prompt of --tokens."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from moela.bench import bench_mla_prefill as forward
from moela.bench.bench_merge_states import attention
from moela.bench.suite import Baseline, Bench, Inputs, Outputs, Part
from moela.shapes import MlaShape
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

MOST_TOKENS = 8192


def dims(layer: MlaShape, tokens: int, dtype: str) -> dict[str, Any]:
    if tokens > MOST_TOKENS:
        wanted = f"at most {MOST_TOKENS} for mla_prefill_backward, whose exact result takes gigabytes"
        raise ValueError(f"--tokens: expected {wanted}, got {tokens}")
    return forward.dims(layer, tokens, dtype) | {"has_dlse": False}


def parts(inputs: Inputs) -> Iterator[Part]:
    """One head at a time."""
    per_head = [n for n, t in inputs.items() if isinstance(t, Tensor) and not n.startswith("cu_seqlens")]
    for head in range(inputs["q"].size(1)):
        h = slice(head, head + 1)
        yield (
            inputs | {n: inputs[n][:, h] for n in per_head},
            lambda outputs, h=h: tuple(t[:, h] for t in outputs),
        )


def autograd(is_padded: bool) -> Callable[[Inputs], Callable[[], Outputs]]:
    """Backward alone, of a graph that is kept; v padded ahead, as in bench_mla_prefill."""

    def prepare(inputs: Inputs) -> Callable[[], Outputs]:
        Dv = inputs["v"].size(-1)
        if not is_padded:
            forward.expect_room(inputs)
        with torch.inference_mode(False), torch.enable_grad():
            q, k, v = (t.clone() for t in forward.heads_first(inputs))
            dout = inputs["dout"].clone().transpose(0, 1)[None].contiguous()
            if is_padded:
                v, dout = (pad(t, (0, q.size(-1) - Dv)) for t in (v, dout))
            leaves = [t.requires_grad_() for t in (q, k, v)]
            out = scaled_dot_product_attention(*leaves, is_causal=True, scale=inputs["sm_scale"])

        def backward() -> Outputs:
            dq, dk, dv = torch.autograd.grad(out, leaves, dout, retain_graph=True)
            return tuple(t[0].transpose(0, 1) for t in (dq, dk, dv[..., :Dv]))

        return backward

    return prepare


BENCH = Bench(
    op="mla_prefill_backward",
    dtypes=tuple(forward.DTYPES),
    has_tokens=True,
    dims=dims,
    item_bytes=lambda dtype: {"x_bytes": forward.DTYPES[dtype].itemsize},
    parts=parts,
    baselines=(
        Baseline("torch-sdpa", "autograd of scaled_dot_product_attention", autograd(False), 3e-2),
        Baseline("torch-sdpa-padded", "the same, v padded to the width of q", autograd(True), 3e-2),
    ),
    layers=attention,
    warm_tokens=128,
)


def bench_mla_prefill_backward(benchmark, contestant):
    benchmark(contestant)
