"""One expert: its bounds hold for what is right, and for nothing else."""

import moela
import pytest
import torch
from moela.bench import expert_mlp
from moela.bench.checkpoint import Expert, Weight
from moela.bench.expert_mlp import Linears, mlp, verify
from moela.ops import SPECS
from moela.reference.fp8_gemm import dequantize_blocks
from moela.testing import FLOAT32_SUM, assert_within, same_bits

SIZES = [(384, 256), (200, 130)]  # hidden, intermediate: multiples of 128, and none
M = 5


def make(hidden, intermediate):
    """x [M, hidden] and an expert whose products are of the order of one, where silu bends."""
    g = torch.Generator().manual_seed(hidden)
    shapes = ((intermediate, hidden), (intermediate, hidden), (hidden, intermediate))
    weights = [
        Weight(*moela.per_block_quant_fp8(torch.randn(s, generator=g) * 1.5 * s[1] ** -0.5)) for s in shapes
    ]
    return torch.randn(M, hidden, generator=g).bfloat16(), Expert(*weights)


@pytest.fixture(params=SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def x_and_expert(request):
    return make(*request.param)


def test_what_moela_computes_is_within_its_bounds(x_and_expert):
    x, expert = x_and_expert
    verify(x, mlp(x, expert_mlp.fp8(expert)), expert)


def test_what_is_returned_is_the_definition_in_float64(x_and_expert):
    x, expert = x_and_expert
    gate, up, down = (dequantize_blocks(*weight, torch.float64) for weight in expert)
    exact = (torch.nn.functional.silu(x.double() @ gate.T) * (x.double() @ up.T)) @ down.T
    torch.testing.assert_close(verify(x, mlp(x, expert_mlp.fp8(expert)), expert), exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "linears", [expert_mlp.dequantize_each_call, expert_mlp.bf16_ahead, expert_mlp.fp32_ahead]
)
def test_a_baseline_is_within_the_bound_of_rounded_weights(x_and_expert, linears):
    x, expert = x_and_expert
    verify(x, mlp(x, expert_mlp.fp8(expert)), expert, {"baseline": mlp(x, linears(expert)).y})


# --- planted faults --------------------------------------------------------------------------------------


def one_scale_factor_off(which):
    def plant(x, expert):
        weight = expert[which]
        sf = weight.sf.clone()
        sf[-1, -1] *= 1 + 2.0**-6
        return x, expert._replace(**{Expert._fields[which]: weight._replace(sf=sf)})

    return plant


def one_row_zeroed(which):
    def plant(x, expert):
        weight = expert[which]
        q = weight.q.float()
        q[-1] = 0
        return x, expert._replace(**{Expert._fields[which]: weight._replace(q=q.to(torch.float8_e4m3fn))})

    return plant


def one_column_dropped(x, expert):
    x = x.clone()
    x[:, -1] = 0
    return x, expert


def gate_and_up_swapped(x, expert):
    return x, Expert(expert.up, expert.gate, expert.down)


def one_token_in_the_place_of_another(x, expert):
    return x.flip(0), expert


FAULTS = {
    **{f"scale factor of {name}": one_scale_factor_off(i) for i, name in enumerate(Expert._fields)},
    **{f"row of {name}": one_row_zeroed(i) for i, name in enumerate(Expert._fields)},
    "column": one_column_dropped,
    "gate and up": gate_and_up_swapped,
    "tokens": one_token_in_the_place_of_another,
}


@pytest.mark.parametrize("plant", FAULTS.values(), ids=FAULTS.keys())
def test_a_planted_fault_is_out_of_bounds(x_and_expert, plant):
    x, expert = x_and_expert
    wrong_x, wrong_expert = plant(x, expert)
    with pytest.raises(AssertionError, match="out of bounds"):
        verify(x, mlp(wrong_x, expert_mlp.fp8(wrong_expert)), expert)


def test_a_column_of_h_that_the_last_product_drops_is_out_of_bounds(x_and_expert):
    x, expert = x_and_expert
    gate, up, down = expert_mlp.fp8(expert)
    K = expert.down.q.size(1)
    keep = torch.arange(K) < K - 1
    with pytest.raises(AssertionError, match="down_proj: "):
        verify(x, mlp(x, Linears(gate, up, lambda h: down(h * keep))), expert)


def test_one_wrong_element_of_the_gated_product_is_out_of_bounds(x_and_expert):
    x, expert = x_and_expert
    steps = mlp(x, expert_mlp.fp8(expert))
    h = steps.h.clone()
    h[2, 3] *= 1.02
    with pytest.raises(AssertionError, match=r"silu\(gate\) \* up: 1 of "):
        verify(x, steps._replace(h=h), expert)


@pytest.mark.parametrize("plant", [gate_and_up_swapped, one_token_in_the_place_of_another])
def test_the_whole_alone_shows_what_is_swapped(x_and_expert, plant):
    x, expert = x_and_expert
    wrong_x, wrong_expert = plant(x, expert)
    right, wrong = mlp(x, expert_mlp.fp8(expert)), mlp(wrong_x, expert_mlp.fp8(wrong_expert))
    with pytest.raises(AssertionError, match="swapped: "):
        verify(x, right, expert, {"swapped": wrong.y})


def test_a_zeroed_token_of_a_baseline_is_out_of_bounds(x_and_expert):
    x, expert = x_and_expert
    right = mlp(x, expert_mlp.fp8(expert))
    y = right.y.clone()
    y[1] = 0
    with pytest.raises(AssertionError, match="zeroed: "):
        verify(x, right, expert, {"zeroed": y})


# --- the pieces of the bound -----------------------------------------------------------------------------


def test_weights_are_dequantized_as_the_definition_does(x_and_expert):
    for weight in x_and_expert[1]:
        blocks = zip(weight.q.split(128), weight.sf.double(), strict=True)
        exact = torch.cat([expert_mlp.dequantized_exactly(q, sf) for q, sf in blocks])
        assert same_bits(exact, dequantize_blocks(*weight, torch.float64))


def test_the_bound_of_one_product_is_that_of_the_op(x_and_expert):
    x, (weight, *_) = x_and_expert
    exact, spread = expert_mlp.product(x.double(), x.double().abs(), weight)
    mine = expert_mlp.rounded(exact, FLOAT32_SUM * spread)
    inputs = {"a": x, "sf_a": None, "b": weight.q, "sf_b": weight.sf, "out_dtype": torch.bfloat16}
    [(op_exact, op_error)] = SPECS["fp8_gemm"].bound(inputs, FLOAT32_SUM)
    torch.testing.assert_close(exact, op_exact, rtol=0, atol=1e-12)
    # More by the rounding of the error itself, which the op's bound leaves out.
    assert ((mine >= op_error * (1 - 1e-9)) & (mine <= op_error * (1 + 2.0**-7))).all()


def test_errors_of_gate_and_up_stay_within_the_bound_of_their_product():
    g = torch.Generator().manual_seed(0)
    gate, up = (3 * torch.randn(200, 300, generator=g, dtype=torch.float64) for _ in range(2))
    for size in (0.0, 2.0**-8, 0.5):
        e_gate, e_up = size * gate.abs(), torch.full_like(up, size)
        h, error = expert_mlp.gated(gate, e_gate, up, e_up)
        for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            off = (gate + signs[0] * e_gate, up + signs[1] * e_up)
            assert_within(torch.nn.functional.silu(off[0]) * off[1], h, error)


def test_silu_in_bfloat16_is_within_its_bound_for_every_number():
    gate = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    gate = gate[gate.isfinite()]
    up = torch.full_like(gate, 1.25)
    got = torch.nn.functional.silu(gate) * up
    assert_within(
        got[got.isfinite()],
        *(t[got.isfinite()] for t in expert_mlp.gated(gate.double(), 0.0, up.double(), 0.0)),
    )


def test_the_cost_counts_every_weight_and_scale_factor_once():
    _, expert = make(384, 256)
    flops, num_bytes = expert_mlp.cost(7, expert)
    assert flops == 7 * 2 * 3 * 384 * 256
    assert num_bytes == 3 * 384 * 256 + 3 * 4 * 3 * 2 + 7 * 2 * (384 + 384)
