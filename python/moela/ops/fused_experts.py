"""The experts of a mixture-of-experts layer as one op: both products, the activation and the weighted sum."""

from typing import Any

import torch
from torch import Tensor

from moela.ops import _check
from moela.ops._fused_experts_bound import bound
from moela.ops._spec import OpSpec, register
from moela.ops.fp8_gemm import SF_DTYPES
from moela.ops.silu_and_mul import check_limits
from moela.reference import fused_experts as reference
from moela.reference.fp8_gemm import BLOCK

OP = "fused_experts"
ACTIVATIONS = ("silu",)
QUANTIZATIONS = ("fp8", "fp8_ue8m0")
E4M3 = torch.float8_e4m3fn


def fused_experts(
    x: Tensor,
    w13: Tensor,
    w2: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    *,
    sf_w13: Tensor | None = None,
    sf_w2: Tensor | None = None,
    b13: Tensor | None = None,
    b2: Tensor | None = None,
    activation: str = "silu",
    limit: float | None = None,
    alpha: float | None = None,
    quantize_activations: str | None = None,
) -> Tensor:
    """Compute ``out[t] = sum_e weight[t, e] * (h @ w2[e].T + b2[e])`` over the experts that token t picked.

    h = silu_and_mul(x[t] @ w13[e].T + b13[e], limit, alpha)

    Args:
        x: [T, H] bfloat16, float16 or float32, H contiguous, rows may be strided. T may be 0.
        w13: [E, 2*I, H], the gate's I rows first, then up's: float8_e4m3fn with `sf_w13`, or of x's dtype.
            H contiguous, other strides free. I need not be a multiple of 128.
        w2: [E, H, I] of w13's dtype, I contiguous, other strides free.
        topk_weights: [T, topk] float32, any strides.
        topk_ids: [T, topk] int32 or int64, any strides. An id outside [0, E) contributes nothing, and its
            weight does not matter; an id twice in a row counts twice. topk may be 0.
        sf_w13: [E, ceil(2*I/128), ceil(H/128)] float32, bfloat16 or float8_e8m0fnu, any strides; the blocks
            run over the rows of w13, gate and up alike. None unless w13 is float8_e4m3fn.
        sf_w2: [E, ceil(H/128), ceil(I/128)], as sf_w13.
        b13: [E, 2*I] bfloat16, float16 or float32.
        b2: [E, H] likewise.
        activation: "silu": that of `silu_and_mul`, its clamped kinds by `limit` and `alpha`.
        limit: positive; None: nothing is clamped.
        alpha: positive, needs a limit; None: plain silu.
        quantize_activations: "fp8": x and h are cast to FP8 as `per_token_group_quant_fp8` and
            `silu_and_mul_quant_fp8` do, "fp8_ue8m0" with ue8m0=True; for FP8 weights. None: they are not
            rounded but to x's dtype.

    Returns:
        out: [T, H] of x's dtype, contiguous. Zero for a token whose ids are all outside.

    Numerics: float32 sums, over the experts of a token in ascending order. A GPU backend may round gate_up,
        h and the experts' results to x's dtype; the CPU keeps float32, but of h where it multiplies pairs of
        bfloat16 and x is bfloat16. The error of each of these goes through all that follows;
        ops/_fused_experts_bound.py adds them up, per element. A row of out depends on its row of x,
        topk_weights and topk_ids only (batch-invariant). Weights of experts that no token picked do not
        matter.
        No derivative: backward raises. To train, use `moela.nn.run_experts`, which has one.

    Source: DeepSeek-V3 technical report (arXiv 2412.19437), sections 2.1.2 and 3.3; the order of w13 is that
        of transformers and vLLM; activations as in `silu_and_mul`.
    """
    return torch.ops.moela.fused_experts(
        x,
        w13,
        w2,
        topk_weights,
        topk_ids,
        sf_w13=sf_w13,
        sf_w2=sf_w2,
        b13=b13,
        b2=b2,
        activation=activation,
        limit=limit,
        alpha=alpha,
        quantize_activations=quantize_activations,
    )


def fused_experts_out(
    x: Tensor, w13: Tensor, w2: Tensor, topk_weights: Tensor, topk_ids: Tensor, *, out: Tensor, **options: Any
) -> None:
    """`fused_experts` into `out`, contiguous; `options` are its keywords."""
    torch.ops.moela.fused_experts_out(x, w13, w2, topk_weights, topk_ids, **options, out=out)


def _check_args(
    x,
    w13,
    w2,
    topk_weights,
    topk_ids,
    *,
    sf_w13=None,
    sf_w2=None,
    b13=None,
    b2=None,
    activation="silu",
    limit=None,
    alpha=None,
    quantize_activations=None,
) -> None:
    _check.expect_dim(OP, "x", x, 2)
    _check.expect_dtype(OP, "x", x.dtype, _check.FLOAT_DTYPES)
    _check.expect_last_dim_contiguous(OP, "x", x)
    T, H = x.shape
    _check.expect_dim(OP, "w13", w13, 3)
    _check.expect_dtype(OP, "w13", w13.dtype, (E4M3, x.dtype))
    _check.expect(w13.size(2) == H, OP, "w13", f"H={H} (that of x)", f"H={w13.size(2)}")
    _check.expect(w13.size(1) % 2 == 0, OP, "w13", "an even number of rows", w13.size(1))
    E, I = w13.size(0), w13.size(1) // 2
    _check.expect_dtype(OP, "w2", w2.dtype, (w13.dtype,))
    _check.expect_shape(OP, "w2", w2, (E, H, I))
    for name, w in (("w13", w13), ("w2", w2)):
        _check.expect_last_dim_contiguous(OP, name, w)
        _check.expect_device(OP, name, w, x.device, "x")
    _check.expect_dim(OP, "topk_ids", topk_ids, 2)
    _check.expect_dtype(OP, "topk_ids", topk_ids.dtype, (torch.int32, torch.int64))
    _check.expect(topk_ids.size(0) == T, OP, "topk_ids", f"T={T} (that of x)", f"T={topk_ids.size(0)}")
    _check.expect_device(OP, "topk_ids", topk_ids, x.device, "x")
    _check.expect_dtype(OP, "topk_weights", topk_weights.dtype, (torch.float32,))
    _check.expect_shape(OP, "topk_weights", topk_weights, (T, topk_ids.size(1)))
    _check.expect_device(OP, "topk_weights", topk_weights, x.device, "x")
    _check_sf("sf_w13", sf_w13, "w13", w13)
    _check_sf("sf_w2", sf_w2, "w2", w2)
    _check_bias("b13", b13, w13)
    _check_bias("b2", b2, w2)
    _check.expect(activation in ACTIVATIONS, OP, "activation", _check.one_of(ACTIVATIONS), activation)
    check_limits(OP, limit, alpha)
    _check_quantization(quantize_activations, w13)


def _check_sf(name: str, sf: Tensor | None, owner: str, w: Tensor) -> None:
    if w.dtype != E4M3:
        _check.expect(
            sf is None, OP, name, f"None because {owner} is {_check.dtype_name(w.dtype)}", "a tensor"
        )
        return
    _check.expect(sf is not None, OP, name, f"a tensor because {owner} is float8_e4m3fn", "None")
    _check.expect_dtype(OP, name, sf.dtype, SF_DTYPES)
    E, N, K = w.shape
    _check.expect_shape(OP, name, sf, (E, (N + BLOCK - 1) // BLOCK, (K + BLOCK - 1) // BLOCK))
    _check.expect_device(OP, name, sf, w.device, "x")


def _check_bias(name: str, bias: Tensor | None, w: Tensor) -> None:
    if bias is not None:
        _check.expect_dtype(OP, name, bias.dtype, _check.FLOAT_DTYPES)
        _check.expect_shape(OP, name, bias, w.shape[:2])
        _check.expect_last_dim_contiguous(OP, name, bias)
        _check.expect_device(OP, name, bias, w.device, "x")


def _check_quantization(name: str | None, w13: Tensor) -> None:
    if name is None:
        return
    _check.expect(
        name in QUANTIZATIONS, OP, "quantize_activations", _check.one_of(["None", *QUANTIZATIONS]), name
    )
    wanted = f"None because w13 is {_check.dtype_name(w13.dtype)}"
    _check.expect(w13.dtype == E4M3, OP, "quantize_activations", wanted, name)


def _empty(x, *args, **kwargs) -> tuple[Tensor]:
    return (x.new_empty(x.shape),)


def make_inputs(
    T: int,
    H: int,
    I: int,
    E: int = 4,
    topk: int = 2,
    x_dtype: torch.dtype = torch.bfloat16,
    w_dtype: torch.dtype | None = None,
    sf_dtype: torch.dtype = torch.float32,
    topk_ids: Tensor | None = None,
    bias: bool = False,
    limit: float | None = None,
    alpha: float | None = None,
    quantize_activations: str | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """w_dtype None: x's. Without topk_ids expert 1 has no token and weights of NaN, an id in eight is outside
    and has a weight of NaN, and if topk > E - 1 some ids are twice in a row."""
    g = torch.Generator().manual_seed(seed)
    # Rows of different size, so that gates are on both sides of a limit.
    x = torch.randn(T, H, generator=g) * torch.exp2(torch.randint(-4, 5, (T, 1), generator=g).float())
    topk_weights = torch.rand(T, topk, generator=g)
    w13, sf_w13 = _weights(E, 2 * I, H, w_dtype or x_dtype, sf_dtype, g)
    w2, sf_w2 = _weights(E, H, I, w_dtype or x_dtype, sf_dtype, g)
    if topk_ids is None:
        topk_ids = _hostile_ids(T, E, topk, g)
        topk_weights[(topk_ids < 0) | (topk_ids >= E)] = float("nan")
        for w in (w13, w2):
            w[1:2].view(torch.uint8).fill_(0xFF)  # NaN in every float type
    tensors = {"x": x.to(x_dtype), "w13": w13, "w2": w2, "topk_weights": topk_weights, "topk_ids": topk_ids}
    tensors |= {"sf_w13": sf_w13, "sf_w2": sf_w2}
    tensors |= {"b13": torch.randn(E, 2 * I, generator=g) if bias else None}
    tensors |= {"b2": torch.randn(E, H, generator=g).to(x_dtype) if bias else None}
    options = {"activation": "silu", "limit": limit, "alpha": alpha}
    options |= {"quantize_activations": quantize_activations}
    return {k: None if t is None else t.to(device) for k, t in tensors.items()} | options


def _weights(
    E: int, N: int, K: int, dtype: torch.dtype, sf_dtype: torch.dtype, g: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """[E, N, K] as a checkpoint has them, each entry about K^-1/2. One expert at a time: these are large."""
    w = torch.empty(E, N, K, dtype=dtype)
    size = max(K, 1) ** -0.5
    sf = None
    if dtype == E4M3:  # the largest of a block of normal numbers, about 4, becomes about 448
        sf = (torch.rand(E, -(-N // BLOCK), -(-K // BLOCK), generator=g) + 0.5) * size / 110
        sf, size = sf.to(sf_dtype), 110.0
    for expert in w:
        expert.copy_((torch.randn(N, K, generator=g) * size).clamp(-448, 448))
    return w, sf


def _hostile_ids(T: int, E: int, topk: int, g: torch.Generator) -> Tensor:
    """[T, topk] int32."""
    used = torch.tensor([e for e in range(E) if e != 1], dtype=torch.int32)
    if topk <= len(used):
        order = torch.rand(T, len(used), generator=g).argsort(1)[:, :topk]  # without replacement
    else:
        order = torch.randint(max(len(used), 1), (T, topk), generator=g)
    ids = used[order] if len(used) else order.to(torch.int32)
    outside = torch.tensor([-1, E, 2**31 - 1, -(2**31)], dtype=torch.int32)
    outside = outside[torch.randint(4, (T, topk), generator=g)]
    return torch.where(torch.rand(T, topk, generator=g) < 0.125, outside, ids)


def _flops(T, H, I, topk=2, **_: Any) -> int:
    return 6 * T * topk * H * I


def _bytes(T, H, I, E=4, topk=2, topk_ids=None, x_bytes=2, w_bytes=1.0, **_: Any) -> int:
    """Weights of the experts that have tokens, read once; w_bytes counts an element's share of its sf."""
    experts = min(E, T * topk) if topk_ids is None else topk_ids.unique().numel()
    return int(experts * 3 * H * I * w_bytes) + 2 * T * H * x_bytes + 8 * T * topk


BF16, FP16, FP32, E8M0 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e8m0fnu

register(
    OpSpec(
        name=OP,
        schema=(
            "Tensor x, Tensor w13, Tensor w2, Tensor topk_weights, Tensor topk_ids, *, Tensor? sf_w13=None, "
            "Tensor? sf_w2=None, Tensor? b13=None, Tensor? b2=None, str activation='silu', "
            "float? limit=None, float? alpha=None, str? quantize_activations=None"
        ),
        outputs=("out",),
        dtype_arg=None,
        check=_check_args,
        empty=_empty,
        reference=reference,
        public=fused_experts,
        make_inputs=make_inputs,
        bound=bound,
        cases=(
            {"T": 0, "H": 64, "I": 32},
            {"T": 1, "H": 128, "I": 128, "topk": 0},
            {"T": 1, "H": 200, "I": 96, "w_dtype": E4M3, "topk": 3},
            {"T": 3, "H": 96, "I": 33, "E": 2, "x_dtype": FP32, "limit": 7.0},
            {"T": 5, "H": 136, "I": 192, "w_dtype": E4M3, "bias": True, "limit": 7.0, "alpha": 1.702},
            {"T": 7, "H": 130, "I": 70, "E": 8, "topk": 4, "w_dtype": E4M3, "quantize_activations": "fp8"},
            {
                "T": 4,
                "H": 256,
                "I": 129,
                "w_dtype": E4M3,
                "sf_dtype": E8M0,
                "quantize_activations": "fp8_ue8m0",
            },
            {"T": 9, "H": 40, "I": 24, "E": 3, "topk": 6, "x_dtype": FP16, "bias": True},
            {"T": 6, "H": 72, "I": 40, "E": 1, "topk": 1, "x_dtype": FP32, "w_dtype": E4M3, "sf_dtype": BF16},
            {"T": 33, "H": 64, "I": 48, "E": 5},
        ),
        flops=_flops,
        bytes=_bytes,
        batch_args=("x", "topk_weights", "topk_ids"),
        to_train="to train, use moela.nn.run_experts",
    )
)
