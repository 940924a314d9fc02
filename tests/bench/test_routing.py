"""Routing of the bench: what each kind is, and how an op with experts gets it."""

import gc
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from moela.bench import bench_fused_experts, report, routing, selection, suite, tables
from moela.bench.bench_fp8_gemm import BENCH as LINEAR
from moela.bench.bench_fused_experts import BENCH as EXPERTS
from moela.bench.report import Case
from moela.bench.routing import KINDS, Routed, topk_ids
from moela.bench.selection import Wanted
from moela.shapes import MODELS, ExpertShape

SIZES = ((1, 16, 8), (16, 16, 8), (100, 8, 2), (7, 256, 8), (5, 4, 4))
WANTED = Wanted("mixtral-8x7b", None, [1, 16], None, None, ["balanced", "one"], 16)


def counts(ids, num_experts):
    return ids.view(-1).bincount(minlength=num_experts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("num_tokens", "num_experts", "topk"), SIZES)
def test_every_token_has_different_experts_that_exist_and_the_same_in_every_run(
    kind, num_tokens, num_experts, topk
):
    ids = topk_ids(kind, num_tokens, num_experts, topk)
    assert (ids.dtype, ids.shape) == (torch.int32, (num_tokens, topk))
    assert int(ids.min()) >= 0
    assert int(ids.max()) < num_experts
    assert all(len(set(row)) == topk for row in ids.tolist())
    assert torch.equal(ids, topk_ids(kind, num_tokens, num_experts, topk))


@pytest.mark.parametrize(("num_tokens", "num_experts", "topk"), SIZES)
def test_balanced_gives_every_expert_the_same_number_of_rows(num_tokens, num_experts, topk):
    rows = counts(topk_ids("balanced", num_tokens, num_experts, topk), num_experts)
    assert int(rows.max() - rows.min()) <= 1


def test_one_gives_all_rows_to_the_same_experts():
    rows = counts(topk_ids("one", 100, 256, 8), 256)
    assert rows.sort(descending=True).values[:9].tolist() == [100] * 8 + [0]


def test_zipf_gives_an_expert_of_rank_r_a_share_of_one_over_r():
    """With one expert a token, as drawing without replacement flattens the law."""
    num_tokens, num_experts = 50_000, 64
    rows = counts(topk_ids("zipf", num_tokens, num_experts, 1), num_experts).double()
    odds = 1 / torch.arange(1, num_experts + 1, dtype=torch.float64)
    expected = num_tokens * odds / odds.sum()
    # Six standard deviations of a binomial count; a wrong exponent is off by tens.
    assert ((rows.sort(descending=True).values - expected).abs() < 6 * expected.sqrt()).all()


def test_zipf_is_as_uneven_as_its_description_says():
    for num_experts, ratio in ((128, 13), (256, 25)):
        rows = counts(topk_ids("zipf", 4096, num_experts, 8), num_experts).double()
        assert round((rows.max() / rows.mean()).item()) == ratio


@pytest.mark.parametrize("kind", KINDS)
def test_the_counts_of_a_layer_are_those_of_its_ids(kind):
    layer = Routed(ExpertShape(128, 128), num_experts=16, topk=4, kind=kind)
    assert layer.expert_counts(30) == tuple(counts(layer.topk_ids(30), 16).tolist())
    assert sum(layer.expert_counts(30)) == 30 * 4


# --- cases -----------------------------------------------------------------------------------------------


@pytest.fixture
def bench(monkeypatch):
    """A bench with routing, of a made-up op whose dims are what it was asked for."""
    spec = SimpleNamespace(flops=lambda layer, M: M, bytes=lambda layer, M: layer.num_experts)
    monkeypatch.setitem(suite.SPECS, "made_up", spec)
    found = replace(
        LINEAR,
        op="made_up",
        dtypes=("fp8", "bf16"),
        dims=lambda layer, tokens, dtype: {"layer": layer, "M": tokens},
        item_bytes=lambda dtype: {},
        layers=routing.experts,
        has_routing=True,
        dtype_option="weights",
    )
    monkeypatch.setattr(tables, "bench_of", lambda op: found)
    return found


def test_a_bench_with_routing_gets_the_experts_that_are_held_in_memory(bench):
    cases = selection.select_cases([bench], WANTED)
    assert [(c.routing, c.num_experts, c.tokens) for c in cases] == [
        ("balanced", 8, 1),
        ("balanced", 8, 16),
        ("one", 8, 1),
        ("one", 8, 16),
    ]
    assert {c.layer for c in cases} == {"experts"}
    assert bench.layer(cases[3]) == Routed(ExpertShape(4096, 14336), num_experts=8, topk=2, kind="one")


@pytest.mark.parametrize("dtype", EXPERTS.dtypes)
def test_every_contestant_of_fused_experts_is_right(dtype):
    cpu = torch.device("cpu")
    [case] = EXPERTS.cases("glm-4.7-flash", ["experts"], [9], [dtype], ["zipf"], 4)
    inputs = EXPERTS.small_inputs(case, cpu)
    [lineup] = selection.lineups([EXPERTS], cpu, ["all"], ["all"])
    entries = lineup.entries(inputs, inputs)
    assert len(entries) >= (1 if inputs["quantize_activations"] else 3)  # torch's are always there
    verdicts = suite.check(EXPERTS, inputs, entries)
    assert {name: verdict for name, verdict in verdicts.items() if isinstance(verdict, str)} == {}


def test_the_baselines_of_fused_experts_share_their_copies_and_leave_none_behind():
    [case] = EXPERTS.cases("glm-4.7-flash", ["experts"], [1], ["fp8"], num_experts=4)
    inputs = EXPERTS.small_inputs(case, torch.device("cpu"))
    w13, w2 = bench_fused_experts.weights(inputs, torch.bfloat16)
    again = bench_fused_experts.weights(inputs, torch.bfloat16)
    assert (again[0] is w13, again[1] is w2) == (True, True)
    copies = len(bench_fused_experts._copies)
    del inputs
    gc.collect()
    assert len(bench_fused_experts._copies) == copies - 1


def test_a_bench_without_routing_has_the_same_cases_whatever_the_routing():
    cases = selection.select_cases([LINEAR], WANTED)
    assert cases == selection.select_cases([LINEAR], replace(WANTED, routing=["zipf"], experts=8))
    assert {(c.routing, c.num_experts) for c in cases} == {("", 0)}


def test_dtypes_come_from_the_option_of_the_op(bench):
    wanted = replace(WANTED, activations=["e4m3"], weights=["bf16"], routing=["one"])
    cases = selection.select_cases([LINEAR, bench], wanted)
    assert {(c.op, c.dtype) for c in cases} == {("fp8_gemm", "e4m3"), ("made_up", "bf16")}


REFUSED = {
    "fewer experts than a token has": (
        {"model": "deepseek-v3", "experts": 7},
        "--experts of deepseek-v3: expected at least its topk 8, got 7",
    ),
    "weights": ({"weights": ["fp9"]}, "--weights: expected one of fp8, bf16, got 'fp9'"),
    "activations of an op that has none": (
        {"activations": ["bf16"]},
        "--activations: expected none for made_up, got 'bf16'",
    ),
    "a layer without experts": (
        {"layers": "kv_a"},
        "--layers of mixtral-8x7b: expected one of experts, all, got 'kv_a'",
    ),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_what_makes_no_sense_is_refused_by_name(bench, change, message):
    with pytest.raises(ValueError, match="^" + message):
        selection.select_cases([bench], replace(WANTED, **change))


def test_the_table_says_which_experts_and_which_routing(bench):
    [case, *_] = selection.select_cases([bench], replace(WANTED, model="deepseek-v3", routing=["zipf"]))
    assert tables._title(case) == (
        "made_up  deepseek-v3.experts  7168 x 2048  fp8  16 of 256 experts, top 8, zipf"
    )


def test_the_two_products_of_an_expert_are_the_layers_of_a_grouped_gemm():
    layers = routing.expert_linears(MODELS["qwen3-30b-a3b"])
    assert {name: str(shape) for name, shape in layers.items()} == {
        "expert_gate_up": "1536 x 2048",
        "expert_down": "2048 x 768",
    }


def test_cases_of_different_routing_or_experts_are_not_compared_with_each_other():
    case = Case("made_up", "mixtral-8x7b", "experts", "fp8", 1, 0, 0, "zipf", 8)
    keys = {case.key, replace(case, routing="one").key, replace(case, num_experts=4).key}
    assert len(keys) == 3
    assert str(case) == "made_up mixtral-8x7b.experts fp8 zipf E=8 M=1"


def test_a_file_from_before_there_was_routing_can_be_read(tmp_path):
    case = Case("fp8_gemm", "deepseek-v3", "kv_a", "bf16", 1, 8, 4)
    result = report.Result(case, "cpu", False, 10.0, 9.0, 11.0, 0.0, 1.0, 1.0)
    path = tmp_path / "old.json"
    report.write(report.report({}, [result], []), path)
    data = json.loads(path.read_text())
    for name in ("routing", "num_experts"):
        del data["results"][0]["case"][name]
    del data["results"][0]["extra_bytes"]
    path.write_text(json.dumps(data))
    assert report.read(path).results == [result]
