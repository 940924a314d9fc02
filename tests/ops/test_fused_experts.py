"""fused_experts: routing, both products, the casts between them, and that its bound finds what is wrong."""

from typing import Any

import moela
import pytest
import torch
from moela import backends, info, reference, testing
from moela.ops._fused_experts_bound import bound
from torch import Tensor

BF16, FP16, FP32, E4M3 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn
FLOATS = (BF16, FP16, FP32)
NAN = float("nan")
QUANTIZATIONS = ("fp8", "fp8_ue8m0")


def assert_bound(run: Any, inputs: dict[str, Any], got: Tensor, **options: Any) -> None:
    [(exact, error)] = bound(inputs, run.accum(inputs), **options)
    testing.assert_within(got, exact, error, "fused_experts")


def experts(run: Any, **changes: Any) -> dict[str, Any]:
    """Float32, so that a difference of order or of one rounding shows; every id is good and picked once."""
    dims = {"T": 9, "H": 72, "I": 40, "E": 5, "topk": 3, "x_dtype": FP32, "bias": True} | changes
    scores = torch.rand(dims["T"], dims["E"], generator=torch.Generator().manual_seed(7))
    return run.inputs(**dims, topk_ids=scores.argsort(1)[:, : dims["topk"]].to(torch.int32))


# --- what it computes ------------------------------------------------------------------------------------


def test_is_the_formula_of_the_docstring(run):
    """In float64 and written again, one token and one expert at a time."""
    inputs = experts(run, limit=7.0, alpha=1.702)
    x, w13, w2, b13, b2 = (inputs[k].cpu().double() for k in ("x", "w13", "w2", "b13", "b2"))
    expected = torch.zeros_like(x)
    for t, (ids, weights) in enumerate(zip(inputs["topk_ids"], inputs["topk_weights"], strict=True)):
        for e, weight in zip(ids.tolist(), weights.tolist(), strict=True):
            g, u = w13[e, :40] @ x[t] + b13[e, :40], w13[e, 40:] @ x[t] + b13[e, 40:]
            g, u = g.clamp(max=7), u.clamp(-7, 7)
            h = g / (1 + (-1.702 * g).exp()) * (u + 1)
            expected[t] += weight * (w2[e] @ h + b2[e])
    torch.testing.assert_close(run(inputs)[0].cpu().double(), expected, rtol=1e-5, atol=1e-4)


def in_steps(inputs: dict[str, Any], gate_up_dtype: torch.dtype) -> Tensor:
    """The casts of the two ops that the docstring names, and float64 products: only gate_up is rounded."""
    ue8m0 = inputs["quantize_activations"] == "fp8_ue8m0"
    q, sf = reference.per_token_group_quant_fp8(inputs["x"], ue8m0=ue8m0)
    out = torch.zeros(inputs["x"].shape, dtype=torch.float64)
    for t in range(len(out)):
        for e, weight in zip(inputs["topk_ids"][t].tolist(), inputs["topk_weights"][t].tolist(), strict=True):
            w13, sf_w13 = inputs["w13"][e], inputs["sf_w13"][e]
            gate_up = reference.fp8_gemm(q[t : t + 1], sf[t : t + 1], w13, sf_w13, out_dtype=gate_up_dtype)
            h, sf_h = reference.silu_and_mul_quant_fp8(gate_up, ue8m0=ue8m0)
            y = reference.fp8_gemm(h, sf_h, inputs["w2"][e], inputs["sf_w2"][e], out_dtype=FP32)
            out[t] += weight * y[0].double()
    return out


@pytest.mark.parametrize("quantize", QUANTIZATIONS)
@pytest.mark.parametrize("x_dtype", [BF16, FP32], ids=str)
def test_quantizes_activations_as_the_two_casts_do(run, quantize, x_dtype):
    """Each row within 2 % of its size: some codes of h may come out as their neighbours."""
    dims = {"T": 6, "H": 256, "I": 200, "x_dtype": x_dtype, "w_dtype": E4M3, "bias": False}
    inputs = experts(run, **dims, quantize_activations=quantize)
    gate_up_dtype = x_dtype if run.backend in ("cuda", "triton") else FP32
    expected = in_steps({k: on_cpu(v) for k, v in inputs.items()}, gate_up_dtype)
    got = run(inputs)[0].cpu().double()
    assert ((got - expected).norm(dim=1) <= 2e-2 * expected.norm(dim=1)).all()


def on_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value


@pytest.mark.parametrize("x_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("w_dtype", [E4M3, None], ids=["fp8", "float"])
def test_cpu_keeps_float32_between_its_steps_but_for_h_where_it_multiplies_bfloat16(
    make_runner, x_dtype, w_dtype
):
    run = make_runner("fused_experts", "cpu-cpu")
    h_dtype = BF16 if x_dtype == BF16 and info.picked_isa() in ("amx_bf16", "avx512_bf16") else FP32
    for T, dims in ((1, {}), (5, {"limit": 7.0}), (70, {"limit": 7.0, "alpha": 1.702, "bias": True})):
        inputs = run.inputs(T=T, H=300, I=200, topk=2, x_dtype=x_dtype, w_dtype=w_dtype, **dims)
        assert_bound(run, inputs, run(inputs)[0], gate_up_dtype=FP32, h_dtype=h_dtype)


SHAPES = [(1, 1, 1), (2, 7, 129), (3, 129, 5), (2, 384, 192), (9, 65, 63)]


@pytest.mark.parametrize(("T", "H", "intermediate"), SHAPES)
@pytest.mark.parametrize("x_dtype", FLOATS, ids=str)
def test_any_hidden_and_intermediate_in_every_dtype(run, x_dtype, T, H, intermediate):
    kinds = [{}, {"w_dtype": E4M3}, *({"w_dtype": E4M3, "quantize_activations": q} for q in QUANTIZATIONS)]
    if run.is_slow:  # a Latin square: each kind with each shape, and with each dtype
        kinds = [kinds[(SHAPES.index((T, H, intermediate)) + FLOATS.index(x_dtype)) % 3]]
    for seed, kind in enumerate(kinds):
        inputs = run.inputs(
            T=T, H=H, I=intermediate, E=3, x_dtype=x_dtype, bias=(seed + T) % 2 > 0, seed=seed, **kind
        )
        assert_bound(run, inputs, run(inputs)[0])


# --- routing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("w_dtype", [E4M3, None], ids=["fp8", "float"])
def test_an_id_outside_contributes_nothing_whatever_its_weight(run, w_dtype):
    inputs = experts(run, w_dtype=w_dtype)
    ids, weights = inputs["topk_ids"].long(), inputs["topk_weights"]
    without = weights.clone()
    without[:, 1] = 0
    expected = run(inputs | {"topk_weights": without})[0]
    weights[:, 1] = NAN
    # Some of these end in 32 bits that are an expert.
    outside = (-1, 5, 2**31, -(2**31), 2**32 + 1, -(2**40) + 1, 2**63 - 1, -(2**63), 6)
    ids[:, 1] = torch.tensor(outside)
    assert testing.same_bits(run(inputs | {"topk_ids": ids})[0] + 0.0, expected + 0.0)


def test_a_token_whose_ids_are_all_outside_is_zero(run):
    inputs = experts(run)
    inputs["topk_ids"][4], inputs["topk_weights"][4] = torch.tensor([-1, 5, 99]), NAN
    inputs["x"][4] = NAN
    (got,) = run(inputs)
    assert (got[4] == 0).all()
    assert got.isfinite().all()


def test_without_ids_every_token_is_zero(run):
    inputs = run.inputs(T=3, H=40, I=24, topk=0)
    assert torch.equal(run(inputs)[0], torch.zeros(3, 40, dtype=BF16, device=run.device))


def test_without_experts_every_token_is_zero(run):
    inputs = run.inputs(T=3, H=40, I=24, E=0)
    assert torch.equal(run(inputs)[0], torch.zeros(3, 40, dtype=BF16, device=run.device))


def test_an_id_twice_in_a_row_counts_twice(run):
    inputs = experts(run)
    inputs["topk_ids"][:, 2] = inputs["topk_ids"][:, 0]
    assert_bound(run, inputs, run(inputs)[0])
    once = inputs | {"topk_ids": inputs["topk_ids"].clone()}
    once["topk_ids"][:, 2] = -1
    assert not torch.allclose(run(once)[0], run(inputs)[0])


def test_the_order_of_the_ids_of_a_token_does_not_matter(run):
    """Its experts are added up in ascending order, so not even to the last bit."""
    inputs = experts(run, topk=5)
    (expected,) = run(inputs)
    for order in ([4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        shuffled = {k: inputs[k][:, order] for k in ("topk_ids", "topk_weights")}
        assert testing.same_bits(run(inputs | shuffled)[0], expected), order


def test_ids_of_32_and_64_bits_and_of_any_strides_mean_the_same(run):
    inputs = experts(run)
    (expected,) = run(inputs)
    assert testing.same_bits(run(inputs | {"topk_ids": inputs["topk_ids"].long()})[0], expected)
    transposed = {k: inputs[k].T.contiguous().T for k in ("topk_ids", "topk_weights")}
    assert testing.same_bits(run(inputs | transposed)[0], expected)
    wide = {k: inputs[k].repeat_interleave(3, 1)[:, ::3] for k in ("topk_ids", "topk_weights")}
    assert testing.same_bits(run(inputs | wide)[0], expected)


@pytest.mark.parametrize("w_dtype", [E4M3, None], ids=["fp8", "float"])
def test_experts_without_tokens_are_not_looked_at(run, w_dtype):
    """And all tokens on one expert are the same as that expert alone."""
    inputs = experts(run, topk=1, w_dtype=w_dtype)
    inputs["topk_ids"][:] = 3
    alone = {
        k: v[3:4]
        for k, v in inputs.items()
        if v is not None and k in ("w13", "w2", "sf_w13", "sf_w2", "b13", "b2")
    }
    alone["topk_ids"] = torch.zeros_like(inputs["topk_ids"])
    (expected,) = run(inputs | alone)
    for expert in (0, 1, 2, 4):
        for name in alone:
            if name != "topk_ids":
                inputs[name][expert].view(torch.uint8).fill_(0xFF)
    assert testing.same_bits(run(inputs)[0], expected)


def test_a_weight_of_nan_reaches_the_tokens_of_its_expert_only(run):
    for w_dtype in (E4M3, None):
        inputs = experts(run, w_dtype=w_dtype)
        (clean,) = run(inputs)
        mine = (inputs["topk_ids"] == 2).any(1)
        assert mine.any()
        assert not mine.all()
        inputs["w13"][2, 79, 71] = NAN
        (got,) = run(inputs)
        assert got[mine].isnan().all()
        assert testing.same_bits(got[~mine], clean[~mine])


# --- parameters ------------------------------------------------------------------------------------------


def test_scale_factors_have_the_same_meaning_in_every_dtype(run):
    inputs = experts(run, w_dtype=E4M3, sf_dtype=torch.float8_e8m0fnu)
    (e8m0,) = run(inputs)
    for dtype in (FP32, BF16):
        changed = {k: inputs[k].to(dtype) for k in ("sf_w13", "sf_w2")}
        assert testing.same_bits(run(inputs | changed)[0], e8m0), dtype


def test_biases_have_the_same_meaning_in_every_dtype(run):
    inputs = experts(run)
    same = {k: inputs[k].to(BF16).to(FP16).float() for k in ("b13", "b2")}  # values that all three types have
    (expected,) = run(inputs | same)
    for dtype in (BF16, FP16):
        assert testing.same_bits(run(inputs | {k: v.to(dtype) for k, v in same.items()})[0], expected), dtype


def test_either_bias_may_be_absent(run):
    for name in ("b13", "b2"):
        inputs = experts(run) | {name: None}
        assert_bound(run, inputs, run(inputs)[0])


# --- the bound -------------------------------------------------------------------------------------------


def swapped(w: Tensor) -> Tensor:
    return torch.cat(w.chunk(2, 1)[::-1], 1)


@pytest.mark.parametrize("w_dtype", [E4M3, None], ids=["fp8", "float"])
def test_the_bound_finds_what_is_wrong(make_runner, w_dtype):
    run = make_runner("fused_experts", "reference-cpu")
    inputs = experts(run, I=192, w_dtype=w_dtype, limit=7.0, alpha=1.702)
    (good,) = run(inputs)
    assert_bound(run, inputs, good)
    ids, weights = inputs["topk_ids"], inputs["topk_weights"]
    one_outside = ids.clone()
    one_outside[5, 1] = -1
    planted = {
        "gate and up swapped": {"w13": swapped(inputs["w13"]), "b13": swapped(inputs["b13"])},
        "alpha forgotten": {"alpha": None},
        "no limit": {"limit": 1e30},
        "one expert of one token left out": {"topk_ids": one_outside},
        "weights in another order": {"topk_weights": weights.roll(1, 1)},
        "the bias of a neighbour": {"b13": inputs["b13"].roll(1, 0)},
        "no second bias": {"b2": None},
        "the last column of x dropped": {"x": torch.cat([inputs["x"][:, :-1], 0 * inputs["x"][:, -1:]], 1)},
    }
    if (
        w_dtype is not None
    ):  # 192 gate rows: a grid that began anew at up would give its first 64 the row of gate
        sf = inputs["sf_w13"]
        planted["scale factors of w2 off by little"] = {"sf_w2": inputs["sf_w2"] * (1 + 2.0**-9)}
        planted["scale rows of up begin at its first row"] = {"sf_w13": sf[:, [0, 0, 2]]}
    for change in planted.values():
        wrong = run(inputs | change)[0]
        with pytest.raises(AssertionError, match="out of bounds"):
            assert_bound(run, inputs, wrong)
    off = good.clone()
    off[3, 17] += 2.0**-9 * good[3].abs().amax()
    with pytest.raises(AssertionError, match=r"1 of \d+ elements out of bounds"):
        assert_bound(run, inputs, off)


def test_the_bound_of_quantized_activations_finds_what_is_wrong(make_runner):
    run = make_runner("fused_experts", "reference-cpu")
    for quantize in QUANTIZATIONS:
        inputs = experts(run, H=256, I=192, w_dtype=E4M3, quantize_activations=quantize)
        (good,) = run(inputs)
        assert_bound(run, inputs, good)
        other = next(q for q in QUANTIZATIONS if q != quantize)
        for change in (
            {"quantize_activations": None},
            {"quantize_activations": other},
            {"w13": swapped(inputs["w13"])},
            {"sf_w2": inputs["sf_w2"] * 1.5},
        ):
            with pytest.raises(AssertionError, match="out of bounds"):
                assert_bound(run, inputs, run(inputs | change)[0])


# --- backends --------------------------------------------------------------------------------------------


def test_what_it_is_made_of_stays_on_the_backend_that_was_asked_for(make_runner, monkeypatch):
    run = make_runner("fused_experts", "triton-cpu")
    launcher, before, used = backends.launcher, backends.forced(), []

    def recorded(backend: str, op: str) -> Any:
        used.append((backend, op))
        return launcher(backend, op)

    monkeypatch.setattr(backends, "launcher", recorded)
    run(experts(run, T=2, w_dtype=E4M3, quantize_activations="fp8"))
    assert {backend for backend, _ in used} == {"triton"}
    assert [op for _, op in used] == [
        "fused_experts",
        "per_token_group_quant_fp8",
        "moe_permute",
        "grouped_fp8_gemm",
        "silu_and_mul_quant_fp8",
        "grouped_fp8_gemm",
        "moe_unpermute",
    ]
    assert backends.forced() == before


# --- autograd --------------------------------------------------------------------------------------------


def test_backward_says_what_to_train_with():
    inputs = moela.ops.SPECS["fused_experts"].make_inputs(T=3, H=40, I=24)
    expected = moela.fused_experts(**inputs)
    for name in ("x", "w13", "w2", "topk_weights"):
        tracked = moela.fused_experts(**inputs | {name: inputs[name].clone().requires_grad_()})
        assert testing.same_bits(tracked.detach(), expected)
        with pytest.raises(
            NotImplementedError, match=r"^fused_experts: has no derivative; to train, use moela.nn"
        ):
            tracked.sum().backward()


def test_without_gradients_parameters_that_want_some_are_fine():
    inputs = moela.ops.SPECS["fused_experts"].make_inputs(T=3, H=40, I=24)
    tracked = inputs | {k: inputs[k].clone().requires_grad_() for k in ("x", "w13", "w2")}
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            out = moela.fused_experts(**tracked)
            assert not out.requires_grad
            compiled = torch.compile(moela.fused_experts, fullgraph=True, backend="aot_eager")
            assert testing.same_bits(compiled(**tracked), out)
