"""run_experts: what it promises on both of its ways, the one op and the steps."""

import re
from typing import Any

import pytest
import torch
from expert_loop import E4M3, loop, make_inputs, weight_of
from moela import testing
from moela.nn import SwiGlu, expert_layer, run_experts
from torch import Tensor

BF16, FP16, FP32, E8M0 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e8m0fnu
OAI = SwiGlu(7.0, 1.702)
CASES = {
    "bf16": {"T": 7, "H": 40, "I": 24},
    "fp16-bias": {"T": 5, "H": 33, "I": 17, "dtype": FP16, "bias": True, "topk": 3},
    "fp32-clamped": {"T": 9, "H": 64, "I": 48, "dtype": FP32, "gate": SwiGlu(2.0)},
    "bf16-oai-bias": {"T": 6, "H": 40, "I": 24, "gate": OAI, "bias": True},
    "one-expert": {"T": 4, "H": 16, "I": 8, "E": 1, "topk": 1},
    "no-tokens": {"T": 0, "H": 40, "I": 24, "bias": True},
    "no-slots": {"T": 3, "H": 40, "I": 24, "topk": 0},
    "x-of-another-dtype": {"T": 6, "H": 40, "I": 24, "dtype": FP32, "w_dtype": BF16, "bias": True},
}
FP8_CASES = {
    "fp8": {"T": 7, "H": 200, "I": 128, "w_dtype": E4M3},
    "fp8-bias": {"T": 5, "H": 136, "I": 256, "w_dtype": E4M3, "bias": True, "gate": OAI},
    "fp8-192": {"T": 5, "H": 200, "I": 192, "w_dtype": E4M3, "bias": True},  # 2 + 2 block rows, not 3
    "fp8-96": {"T": 3, "H": 130, "I": 96, "w_dtype": E4M3, "dtype": FP32, "sf_dtype": BF16},
    "fp8-64": {"T": 3, "H": 130, "I": 64, "w_dtype": E4M3, "dtype": FP16, "sf_dtype": E8M0},
    "fp8-192-cast": {"T": 4, "H": 200, "I": 192, "w_dtype": E4M3, "quantize_activations": "fp8"},
    "fp8-128-cast": {"T": 4, "H": 256, "I": 128, "w_dtype": E4M3, "quantize_activations": "fp8_ue8m0"},
}
FLOATS = ("x", "w13", "w2", "topk_weights", "b13", "b2")


def recorded(args: dict[str, Any]) -> dict[str, Any]:
    """The same, each float tensor a leaf that asks for its gradient."""
    leaves = {n: args[n].clone().requires_grad_() for n in FLOATS if isinstance(args.get(n), Tensor)}
    return args | leaves


def calls_of_the_op(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    calls: list[None] = []
    op = expert_layer.fused_experts
    monkeypatch.setattr(expert_layer, "fused_experts", lambda *a, **k: calls.append(None) or op(*a, **k))
    return calls


@pytest.mark.parametrize("name", [*CASES, *FP8_CASES])
def test_equals_a_loop_over_experts_within_the_errors_of_its_steps(name):
    args = make_inputs(**(CASES | FP8_CASES)[name])
    testing.assert_within(run_experts(**args), *loop(args))


@pytest.mark.parametrize("name", CASES)
def test_equals_it_where_gradients_are_asked_for(name):
    args = make_inputs(**CASES[name])
    out = run_experts(**recorded(args))
    assert out.requires_grad
    testing.assert_within(out.detach(), *loop(args))


@pytest.mark.parametrize(
    ("changes", "is_op"),
    [
        ({}, True),
        ({"w_dtype": E4M3, "I": 128}, True),
        ({"w_dtype": E4M3, "I": 192}, False),
        ({"post_norm": lambda y: y}, False),
    ],
)
def test_runs_as_one_op_where_that_computes_it(monkeypatch, changes, is_op):
    calls = calls_of_the_op(monkeypatch)
    run_experts(**make_inputs(**{"T": 3, "H": 40, "I": 24} | changes))
    assert len(calls) == is_op


def test_runs_as_one_op_whatever_asks_for_gradients_when_none_are_recorded(monkeypatch):
    calls = calls_of_the_op(monkeypatch)
    args = recorded(make_inputs(T=3, H=40, I=24))
    with torch.no_grad():
        run_experts(**args)
    assert len(calls) == 1
    run_experts(**args)
    assert len(calls) == 1


def test_weights_that_are_transposed_views_run_as_one_op(monkeypatch):
    calls = calls_of_the_op(monkeypatch)
    args = make_inputs(T=3, H=40, I=24)
    expected = run_experts(**args)
    args |= {"w13": args["w13"].mT, "w2": args["w2"].mT, "is_transposed": True}
    assert testing.same_bits(run_experts(**args), expected)
    assert len(calls) == 2


def plain_loop(args: dict[str, Any], gate: Any, norm: Any = lambda y: y) -> Tensor:
    """The layer in torch's own operations, differentiable, in the dtype of the arguments."""
    x, E = args["x"], args["w13"].size(0)
    out = torch.zeros_like(x)
    for expert in range(E):
        token, slot = torch.where(args["topk_ids"] == expert)
        w13, w2 = (args[n][expert] for n in ("w13", "w2"))
        w13, w2 = (w13, w2) if args.get("is_transposed") else (w13.mT, w2.mT)
        b13, b2 = (0 if args.get(n) is None else args[n][expert] for n in ("b13", "b2"))
        y = norm(gate(x[token] @ w13 + b13) @ w2 + b2)
        out = out.index_add(0, token, y * args["topk_weights"][token, slot][:, None])
    return out


def interleaved(gate_up: Tensor) -> Tensor:
    """gpt-oss's gate."""
    gate, up = gate_up[..., ::2].clamp(max=7.0), gate_up[..., 1::2].clamp(-7.0, 7.0)
    return (up + 1) * gate * torch.sigmoid(gate * 1.702)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return torch.nn.functional.silu(gate) * up


def squared_relu(up: Tensor) -> Tensor:
    return torch.relu(up).square()


def rms_norm(y: Tensor) -> Tensor:
    return y * (y.square().mean(-1, keepdim=True) + 1e-5).rsqrt()


def kinds(T: int = 6) -> dict[str, tuple[dict[str, Any], Any, dict[str, Any]]]:
    """Arguments, the loop's gate and the loop's options, of layers that are not the plain one."""
    plain = make_inputs(T, H=32, I=24, dtype=FP32, bias=True)
    contiguous = {n: plain[n].mT.contiguous() for n in ("w13", "w2")}
    ungated = {"w13": plain["w13"][:, :24], "b13": plain["b13"][:, :24]}
    return {
        "plain": (plain, silu_and_mul, {}),
        "no-bias": (plain | {"b13": None, "b2": None}, silu_and_mul, {}),
        "transposed": (plain | contiguous | {"is_transposed": True}, silu_and_mul, {}),
        "gpt-oss": (plain | contiguous | {"is_transposed": True, "gate": interleaved}, interleaved, {}),
        "ungated": (plain | ungated | {"gate": squared_relu}, squared_relu, {}),
        "post-norm": (plain | {"post_norm": rms_norm}, silu_and_mul, {"norm": rms_norm}),
    }


@pytest.mark.parametrize("kind", kinds())
def test_has_the_values_and_the_gradients_of_a_plain_loop(kind):
    args, gate, options = kinds()[kind]
    mine = recorded(args)
    out = run_experts(**mine)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (out * direction).sum().backward()
    wide = {n: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t for n, t in args.items()}
    wide = recorded(wide)
    expected = plain_loop(wide, gate, **options)
    (expected * direction).sum().backward()
    names = [n for n in FLOATS if isinstance(args.get(n), Tensor)]
    for name, got, exact in [("out", out, expected), *((n, mine[n].grad, wide[n].grad) for n in names)]:
        # float32 in chains of sums of up to 48 terms: 2^9 units of the largest.
        is_nan = exact.isnan()
        assert torch.equal(got.isnan(), is_nan), name
        error = torch.full_like(exact, 2.0**-15) * exact[~is_nan].abs().max()
        testing.assert_within(got.detach(), exact.detach(), error, name)


@pytest.mark.parametrize("kind", kinds())
def test_is_the_same_without_gradients(kind):
    args, gate, options = kinds()[kind]
    wide = {n: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t for n, t in args.items()}
    expected = plain_loop(wide, gate, **options)
    error = torch.full_like(expected, 2.0**-15) * expected.abs().max()
    testing.assert_within(run_experts(**args), expected, error)


def test_gradients_of_dropped_pairs_and_idle_experts_are_zero():
    args = recorded(make_inputs(T=9, H=32, I=24, topk=6, dtype=FP32, bias=True))
    run_experts(**args).sum().backward()
    is_outside = (args["topk_ids"] < 0) | (args["topk_ids"] >= 4)
    assert is_outside.any()
    assert args["topk_weights"].grad[is_outside].eq(0).all()
    for name in ("w13", "w2", "b13", "b2"):
        assert args[name].grad[1].eq(0).all(), name
        assert args[name].grad.isfinite().all(), name
    assert args["x"].grad.isfinite().all()


@pytest.mark.parametrize("is_trained", [False, True])
@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_weights_of_slots_may_have_any_float_dtype(is_trained, dtype):
    args = make_inputs(T=5, H=40, I=24)
    args["topk_weights"] = args["topk_weights"].to(dtype)
    wide = args | {"topk_weights": args["topk_weights"].float()}
    run = recorded if is_trained else dict
    assert testing.same_bits(run_experts(**run(args)).detach(), run_experts(**run(wide)).detach())


def test_ids_may_be_int64():
    args = make_inputs(T=5, H=40, I=24)
    wide = args | {"topk_ids": args["topk_ids"].long()}
    assert testing.same_bits(run_experts(**wide), run_experts(**args))


@pytest.mark.parametrize("name", ["bf16", "fp8", "fp8-192"])
def test_takes_tensors_of_other_strides(name):
    args = make_inputs(**(CASES | FP8_CASES)[name])
    padded = {}
    for n in ("w13", "w2"):  # experts that are further apart than they are large, as in a mapped file
        w = args[n]
        apart = (
            torch.empty((w.size(0), w.size(1) + 3, w.size(2)), dtype=w.dtype).view(torch.uint8).fill_(0xFF)
        )
        padded[n] = apart.view(w.dtype)[:, : w.size(1)]
        padded[n].copy_(w)
    for n in ("x", "topk_ids", "topk_weights"):
        padded[n] = args[n].mT.contiguous().mT
    assert testing.same_bits(run_experts(**args | padded), run_experts(**args))


def test_all_tokens_may_go_to_one_expert():
    args = make_inputs(T=20, H=40, I=24, topk=1)
    args |= {"topk_ids": torch.full((20, 1), 2), "topk_weights": torch.ones(20, 1)}
    testing.assert_within(run_experts(**args), *loop(args))
    testing.assert_within(run_experts(**recorded(args)).detach(), *loop(args))


@pytest.mark.parametrize("name", ["bf16", "fp8-192"])
def test_a_row_does_not_depend_on_its_batch(name):
    args = make_inputs(**(CASES | FP8_CASES)[name])
    whole = run_experts(**args)
    for row in range(whole.size(0)):
        one = {n: args[n][row : row + 1] for n in ("x", "topk_ids", "topk_weights")}
        assert testing.same_bits(run_experts(**args | one), whole[row : row + 1])


@pytest.mark.parametrize("I", [128, 192])
def test_gradients_go_through_frozen_fp8_weights(I):
    args = make_inputs(T=6, H=136, I=I, dtype=FP32, w_dtype=E4M3, bias=True)
    names = ("x", "topk_weights", "b13", "b2")
    mine = args | {n: args[n].clone().requires_grad_() for n in names}
    wide = args | {n: args[n].double().requires_grad_() for n in names}
    for n in ("w13", "w2"):
        wide[n] = torch.stack([weight_of(args, n, expert) for expert in range(4)])
    run_experts(**mine).sum().backward()
    plain_loop(wide, silu_and_mul).sum().backward()
    for n in names:
        exact = wide[n].grad  # float32 in chains of sums of up to 272 terms: 2^9 units of the largest
        error = torch.full_like(exact, 2.0**-15) * exact.abs().max()
        testing.assert_within(mine[n].grad, exact, error, n)


def test_backward_for_fp8_weights_says_what_to_do():
    args = make_inputs(T=5, H=136, I=128, w_dtype=E4M3)
    args["w2"].requires_grad_()
    with pytest.raises(
        NotImplementedError, match=r"grouped_fp8_gemm: b: has no derivative; call b.requires_grad_"
    ):
        run_experts(**args).float().sum().backward()


def test_backward_through_quantized_activations_says_that_there_is_none():
    args = make_inputs(T=5, H=136, I=128, w_dtype=E4M3, quantize_activations="fp8")
    args["x"].requires_grad_()
    with pytest.raises(NotImplementedError, match=r"has no derivative"):
        run_experts(**args).float().sum().backward()


@pytest.mark.parametrize("name", ["bf16", "fp8-192", "bf16-oai-bias"])
def test_compiles_as_one_graph(name):
    args = make_inputs(**(CASES | FP8_CASES)[name])
    compiled = torch.compile(run_experts, fullgraph=True, backend="aot_eager")
    assert testing.same_bits(compiled(**args), run_experts(**args))


def test_compiles_as_one_graph_with_gradients():
    args, other = (
        recorded(make_inputs(T=5, H=32, I=24, bias=True)),
        recorded(make_inputs(5, 32, 24, bias=True)),
    )
    compiled = torch.compile(run_experts, fullgraph=True, backend="aot_eager")
    compiled(**args).float().sum().backward()
    run_experts(**other).float().sum().backward()
    for name in ("x", "w13", "b2"):
        assert testing.same_bits(args[name].grad, other[name].grad), name


def test_leaves_its_inputs_unchanged():
    for name in ("bf16-oai-bias", "fp8-192", "x-of-another-dtype"):
        args = make_inputs(**(CASES | FP8_CASES)[name])
        before = {n: t.clone() for n, t in args.items() if isinstance(t, Tensor)}
        run_experts(**args)
        assert all(testing.same_bits(t, args[n]) for n, t in before.items())


FP8 = {"T": 3, "H": 200, "I": 192, "w_dtype": E4M3, "bias": True}
BAD = [
    ({}, {"x": lambda x: x[0]}, "x: expected a 2-D tensor, got 1-D"),
    ({}, {"x": lambda x: x[:, :39]}, "w13: expected H=39 (that of x), got H=40"),
    ({}, {"w13": lambda w: w[0]}, "w13: expected a 3-D tensor, got 2-D"),
    ({}, {"w13": lambda w: w[:, :46]}, "w13: expected 48 rows (twice the I=24 of w2), got 46"),
    ({}, {"w2": lambda w: w.float()}, "w2: expected bfloat16, got float32"),
    ({}, {"w2": lambda w: w[:3]}, "w2: expected E=4 (that of w13), got E=3"),
    ({}, {"w2": lambda w: w[:, :39]}, "w2: expected H=40 (that of w13), got H=39"),
    ({}, {"topk_ids": lambda i: i.float()}, "topk_ids: expected int32 or int64, got float32"),
    ({}, {"topk_ids": lambda i: i[:2]}, "topk_ids: expected T=3 (that of x), got T=2"),
    ({}, {"topk_weights": lambda w: w[:, :1]}, "topk_weights: expected shape [3, 2], got [3, 1]"),
    ({}, {"topk_weights": lambda w: w.int()}, "topk_weights: expected a float dtype, got int32"),
    ({}, {"b13": lambda b: torch.zeros(4, 24)}, "b13: expected shape [4, 48], got [4, 24]"),
    (
        {},
        {"b2": lambda b: torch.ones(4, 40).double()},
        "b2: expected bfloat16, float16 or float32, got float64",
    ),
    ({}, {"sf_w2": lambda s: torch.ones(4, 1)}, "sf_w2: expected None because w13 is bfloat16, got a tensor"),
    (
        {},
        {"quantize_activations": lambda q: "fp8"},
        "quantize_activations: expected None because w13 is bfloat16, got fp8",
    ),
    (FP8, {"x": lambda x: x.double()}, "x: expected bfloat16, float16 or float32, got float64"),
    (FP8, {"w13": lambda w: w[:0]}, "w13: expected at least one expert, got none"),
    (FP8, {"sf_w13": lambda s: None}, "sf_w13: expected a tensor because w13 is float8_e4m3fn, got None"),
    (FP8, {"sf_w13": lambda s: s[:, :3]}, "sf_w13: expected shape [4, 4, 2], got [4, 3, 2]"),
    (FP8, {"sf_w2": lambda s: s.half()}, "sf_w2: expected float32, bfloat16 or float8_e8m0fnu, got float16"),
    (
        FP8,
        {"quantize_activations": lambda q: "int8"},
        "quantize_activations: expected None, fp8 or fp8_ue8m0, got int8",
    ),
]


@pytest.mark.parametrize(("dims", "spoil", "message"), BAD, ids=[message for *_, message in BAD])
def test_the_steps_name_the_argument_that_is_wrong(dims, spoil, message):
    args = make_inputs(**{"T": 3, "H": 40, "I": 24} | dims)
    args |= {n: change(args.get(n)) for n, change in spoil.items()}
    args["x"].requires_grad_()  # so that the steps run where there is one op, too
    with pytest.raises(ValueError, match=re.escape(f"moela.nn.run_experts: {message}")):
        run_experts(**args)


def test_the_one_op_names_it_in_its_own_words():
    args = make_inputs(T=3, H=40, I=24)
    with pytest.raises(ValueError, match=r"fused_experts: w13: expected H=39 \(that of x\), got H=40"):
        run_experts(**args | {"x": args["x"][:, :39]})
    fp8 = make_inputs(T=3, H=200, I=128, w_dtype=E4M3)
    with pytest.raises(
        ValueError, match=r"fused_experts: sf_w13: expected shape \[4, 2, 2\], got \[4, 1, 2\]"
    ):
        run_experts(**fp8 | {"sf_w13": fp8["sf_w13"][:, :1]})
