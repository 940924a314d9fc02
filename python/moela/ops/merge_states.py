"""Two results of attention over different keys as one: split keys, chunked prefill, keys on several ranks."""

from typing import Any

import torch
from torch import Tensor

from moela.ops import _check
from moela.ops._spec import Autograd, OpSpec, register, rounding
from moela.reference import merge_states as reference
from moela.reference.merge_states import merge

OP = "merge_states"


def merge_states(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Compute ``out = (e^lse_a out_a + e^lse_b out_b) / (e^lse_a + e^lse_b)`` and the lse of both.

    Args:
        out_a: [..., D] bfloat16, float16 or float32, attention over some keys; last dimension contiguous.
            May be empty.
        lse_a: [...] float32, any strides: the natural logarithm of the sum of e^score over these keys; -Inf
            where there are none. What out_a holds there does not matter.
        out_b: [..., D] of out_a's dtype and shape: the same over other keys.
        lse_b: [...] float32.

    Returns:
        out: [..., D] of out_a's dtype, contiguous; 0 where neither state has a key.
        lse: [...] float32: log(e^lse_a + e^lse_b), -Inf where neither has a key.
        Differentiable; a state without keys has a gradient of 0.

    Numerics: float32, out rounded once. With d = |lse_a - lse_b|, w and s the weight and the element of the
        state with the smaller lse, A the weighted sum of |out_a| and |out_b|, before that rounding
        |error of out| <= 2^-24 (6 A + (5 + 4 d) w (|s| + |out|)) + 2^-126 (|out_a| + |out_b| + 1),
        |error of lse| <= 2^-24 (|lse| + (5 + 4 d) w + 8).
        A state without keys leaves the other one as it is, bit for bit, and a and b may change places. An lse
        of NaN makes its row NaN, and so does +Inf, which no attention gives: some libraries mark a row
        without keys by it, and taken for a number it would hide the other state. The same bits for every
        instruction set of the CPU. A row of the result depends on that row of the arguments only.

    Source: online softmax, arXiv 1805.02867; attention over parts of the keys, arXiv 2501.01005, section 2.2.
    """
    return torch.ops.moela.merge_states(out_a, lse_a, out_b, lse_b)


def merge_states_out(
    out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor, *, out: Tensor, lse: Tensor
) -> None:
    """`merge_states` into `out` and `lse`, contiguous and apart from the arguments."""
    torch.ops.moela.merge_states_out(out_a, lse_a, out_b, lse_b, out=out, lse=lse)


def _check_args(out_a, lse_a, out_b, lse_b) -> None:
    _check.expect_min_dim(OP, "out_a", out_a, 1)
    _check.expect_dtype(OP, "out_a", out_a.dtype, _check.FLOAT_DTYPES)
    _check.expect_last_dim_contiguous(OP, "out_a", out_a)
    _check_lse("lse_a", lse_a, out_a)
    wanted = f"{_check.dtype_name(out_a.dtype)} (that of out_a)"
    _check.expect(out_b.dtype == out_a.dtype, OP, "out_b", wanted, _check.dtype_name(out_b.dtype))
    _check.expect_shape(OP, "out_b", out_b, out_a.shape)
    _check.expect_last_dim_contiguous(OP, "out_b", out_b)
    _check.expect_device(OP, "out_b", out_b, out_a.device, "out_a")
    _check_lse("lse_b", lse_b, out_a)


def _check_lse(arg: str, lse: Tensor, out_a: Tensor) -> None:
    _check.expect_dtype(OP, arg, lse.dtype, (torch.float32,))
    _check.expect_shape(OP, arg, lse, out_a.shape[:-1])
    _check.expect_device(OP, arg, lse, out_a.device, "out_a")


def _empty(out_a, lse_a, out_b, lse_b) -> tuple[Tensor, Tensor]:
    return out_a.new_empty(out_a.shape), out_a.new_empty(out_a.shape[:-1], dtype=torch.float32)


def make_inputs(
    T: int,
    H: int,
    D: int,
    x_dtype: torch.dtype = torch.bfloat16,
    hostile: bool = True,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """T tokens of H heads. Hostile: a fifth of the states has no keys, and NaN for out."""
    g = torch.Generator().manual_seed(seed)
    inputs = {}
    for name in "ab":
        out = torch.randn(T, H, D, generator=g)
        lse = torch.randn(T, H, generator=g) * torch.exp2(torch.randint(-2, 6, (T, H), generator=g).float())
        is_empty = torch.rand(T, H, generator=g) < (0.2 if hostile else 0.0)
        out[is_empty], lse[is_empty] = float("nan"), -torch.inf
        inputs |= {f"out_{name}": out.to(x_dtype).to(device), f"lse_{name}": lse.to(device)}
    return inputs


def _bound(inputs: dict[str, Any], accum: float) -> list[tuple[Tensor, Tensor]]:
    """What float32 may be off by, in units of 2^-24.

    e, the e^-d of the smaller state: 4 for the exponential (ex2.approx has 2^-22, the CPU's polynomial less),
    d for the rounding of d and 3 d for what d log2(e) may add to it, 1 for products of these. It changes w by
    w (1 - w) of that, so out by at most w |s - out|. The weights, 1 / (1 + e) and e / (1 + e): 2 each; their
    products with out and the sum: 2; and 2 for products of these: 6. log(1 + e): 1 for the sum, 7 for the
    logarithm (lg2.approx has 2^-22, and 2 roundings of at most log 2 follow), and w of e; the sum with the
    larger lse rounds once. Weights and elements below 2^-126 may be lost.
    """
    out, lse, weight_a, weight_b = merge(**inputs)
    a_is_less = inputs["lse_a"] < inputs["lse_b"]
    is_both = torch.isfinite(inputs["lse_a"]) & torch.isfinite(inputs["lse_b"])
    d = torch.where(is_both, (inputs["lse_a"].double() - inputs["lse_b"].double()).abs(), 0.0)
    less = torch.where(is_both, torch.where(a_is_less, weight_a, weight_b), 0.0)
    a, b = inputs["out_a"].double().abs(), inputs["out_b"].double().abs()  # [..., D]
    a, b = (
        torch.where((t == -torch.inf)[..., None], 0.0, x) for t, x in zip(_lses(inputs), (a, b), strict=True)
    )
    total = weight_a[..., None] * a + weight_b[..., None] * b
    of_e = ((5 + 4 * d) * less)[..., None]
    error = 2.0**-24 * (6 * total + of_e * (torch.where(a_is_less[..., None], a, b) + out.abs()))
    error += 2.0**-126 * (a + b + 1)
    error_lse = 2.0**-24 * (lse.abs() + (5 + 4 * d) * less + 8)
    error, error_lse = torch.where(out.isfinite(), error, 0.0), torch.where(lse.isfinite(), error_lse, 0.0)
    return [(out, error + rounding(out.abs() + error, inputs["out_a"].dtype)), (lse, error_lse)]


def _lses(inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return inputs["lse_a"], inputs["lse_b"]


def _setup_context(ctx, inputs, keyword_only_inputs, output) -> None:
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx, dout: Tensor, dlse: Tensor) -> tuple[Tensor, ...]:
    """A state's weight e^(its lse - lse) times dout, and times what the result gains where its lse grows."""
    out_a, lse_a, out_b, lse_b, out, lse = ctx.saved_tensors
    grads = []
    for of_state, its_lse in ((out_a, lse_a), (out_b, lse_b)):
        is_empty = its_lse == -torch.inf
        weight = torch.where(is_empty, 0.0, torch.exp(its_lse - lse))  # [...]
        gain = dlse + (dout.float() * (of_state.float() - out.float())).sum(-1)
        # Selected, as what a state without keys holds, and its gradient, may be NaN.
        d_state = torch.where(is_empty[..., None], 0.0, weight[..., None] * dout.float())
        grads += [d_state.to(out.dtype), torch.where(is_empty, 0.0, weight * gain)]
    return tuple(grads)


register(
    OpSpec(
        name=OP,
        schema="Tensor out_a, Tensor lse_a, Tensor out_b, Tensor lse_b",
        outputs=("out", "lse"),
        dtype_arg=None,
        check=_check_args,
        empty=_empty,
        reference=reference,
        public=merge_states,
        make_inputs=make_inputs,
        bound=_bound,
        cases=(
            {"T": 0, "H": 4, "D": 128},
            {"T": 1, "H": 1, "D": 1},
            {"T": 5, "H": 16, "D": 512},
            {"T": 33, "H": 3, "D": 37, "x_dtype": torch.float32},
            {"T": 3, "H": 7, "D": 1100, "x_dtype": torch.float16},
            {"T": 3, "H": 2, "D": 0},
        ),
        flops=lambda T, H, D, **_: 3 * T * H * D,
        bytes=lambda T, H, D, x_bytes=2, **_: 3 * T * H * (D * x_bytes + 4),
        batch_args=("out_a", "lse_a", "out_b", "lse_b"),
        autograd=Autograd(_setup_context, _backward),
    )
)
