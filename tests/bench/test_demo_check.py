"""What the demo calls wrong, and where it says that time goes."""

import pytest
import torch
from moela.bench import demo_check, demo_profile
from moela.bench.demo_race import Pass
from torch import nn


def a_pass(logits, experts=((0, 1), (0, 2), (1, 2))):
    return Pass(torch.tensor(logits), [torch.tensor(experts)], [], 0.0, [])


REFERENCE = a_pass([[3.0, 4.0], [0.0, 1.0], [2.0, 0.0]])


def test_the_error_of_a_token_is_relative_to_its_own_logits():
    found = demo_check.compare(a_pass([[3.0, 4.5], [0.0, 1.0], [2.0, 0.1]]), REFERENCE)
    assert (found.worst, found.worst_token) == (pytest.approx(0.1), 0)
    assert found.total == pytest.approx((0.26 / 30) ** 0.5)
    assert (found.num_rerouted, found.num_same_next, found.num_tokens) == (0, 3, 3)


def test_a_token_that_went_to_other_experts_is_counted_and_not_judged():
    found = demo_check.compare(
        a_pass([[3.0, 4.0], [9.0, 1.0], [2.0, 0.0]], ((0, 1), (1, 2), (1, 2))), REFERENCE
    )
    assert (found.worst, found.num_rerouted, found.num_same_next) == (0.0, 1, 2)
    fault = demo_check.faults_in_float32(found, 1.0)
    assert fault == "1 of 3 tokens went to other experts than in the dequantized model, at most 1% may"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 4.01])
def test_logits_out_of_bounds_are_said_with_their_token(value):
    found = demo_check.compare(a_pass([[3.0, 4.0], [0.0, 1.0], [2.0, value]]), REFERENCE)
    assert "logits of token 2 are off" in demo_check.faults_in_float32(found, 1e-3)


@pytest.mark.parametrize("value", [float("nan"), 4.3])
def test_more_than_twice_the_error_of_stock_bf16_is_wrong(value):
    stock = demo_check.compare(a_pass([[3.0, 4.1], [0.0, 1.0], [2.0, 0.0]]), REFERENCE)
    right = demo_check.compare(a_pass([[3.0, 4.2], [0.0, 1.0], [2.0, 0.0]]), REFERENCE)
    wrong = demo_check.compare(a_pass([[3.0, value], [0.0, 1.0], [2.0, 0.0]]), REFERENCE)
    assert demo_check.faults_in_bf16(right, stock) is None
    assert "logits are off" in demo_check.faults_in_bf16(wrong, stock)


def test_tokens_agree_until_the_first_that_does_not():
    assert demo_check.agreeing([1, 2, 3], [1, 2, 3]) == 3
    assert demo_check.agreeing([1, 9, 3], [1, 2, 3]) == 1


# --- where time goes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.layers.0.mlp", "dense MLP"),
        ("model.layers.0.mlp.down_proj", "dense MLP"),
        ("model.layers.1.mlp.experts", "routed experts"),
        ("model.layers.1.mlp.shared_experts.up_proj", "shared expert"),
        ("model.layers.1.mlp.gate", "router"),
        ("model.layers.1.self_attn.kv_b_proj", "kv_b_proj"),
        ("model.layers.1.self_attn.kv_a_proj_with_mqa", "other projections of attention"),
        ("model.layers.1.self_attn", "attention itself"),
        ("model.layers.1.self_attn.q_a_layernorm", demo_profile.REST),
        ("model.layers.1.input_layernorm", demo_profile.REST),
        ("lm_head", "lm_head"),
        ("", demo_profile.REST),
    ],
)
def test_a_module_belongs_to_the_part_that_it_is_for(name, part):
    assert demo_profile.part_of(name) == part


def test_a_linear_layer_reads_its_weight_once_and_multiplies_every_row():
    layer = nn.Linear(6, 5, bias=False)
    assert demo_profile.cost(layer, (torch.zeros(2, 3, 6),)) == (4 * 30, 2 * 6 * 30)


def test_experts_read_what_is_chosen_and_multiply_for_each_choice():
    experts = nn.Module()
    experts.gate_up_proj = nn.Parameter(torch.zeros(4, 10, 6))
    experts.down_proj = nn.Parameter(torch.zeros(4, 6, 5))
    ids = torch.tensor([[0, 1], [1, 3], [0, 3]])
    num_bytes, flops = demo_profile.cost(experts, (torch.zeros(3, 6), ids))
    assert num_bytes == 3 * 4 * (60 + 30)
    assert flops == 2 * 6 * (60 + 30)
    assert demo_profile.bytes_per_token(experts, topk=2) == 2 * 4 * (60 + 30)


def test_what_is_only_looked_up_is_not_read():
    assert demo_profile.cost(nn.Embedding(9, 4), (torch.tensor([1]),)) == (0, 0)
    assert demo_profile.bytes_per_token(nn.Embedding(9, 4), topk=1) == 0


def test_another_new_token_is_a_fault():
    assert demo_check.faults_in_tokens([3, 1, 4], [3, 1, 4]) is None
    fault = demo_check.faults_in_tokens([3, 2, 4], [3, 1, 4])
    assert fault == "new token 1 is 2 with float32 activations, the dequantized model generates 1"


def test_an_absorbed_projection_is_read_in_the_dtype_of_the_tokens():
    attention = nn.Module()
    attention.kv_b_proj = nn.Linear(8, 40)
    out = torch.zeros(1, 3, 16, dtype=torch.bfloat16)
    assert demo_profile.absorbed_cost(attention, out) == (2 * 320, 2 * 320 * 3)
