"""recognise: every router of transformers is read right, or not at all."""

import random
from dataclasses import replace

import pytest
import stock
import torch
from moela import testing
from moela.nn import RouterSettings, TopkRouter, recognise
from torch import Tensor, nn

BF16, FP32 = torch.bfloat16, torch.float32
# Logits in the dtype of the model, as in Qwen, with weights in float32 (Mixtral) or in that dtype too.
AS_MODEL, AS_MIXTRAL = {"logits_dtype": None, "weights_dtype": None}, {"logits_dtype": None}
ROUNDED = {"weights_dtype": None}
SOFTMAX, RENORM = {}, {"renormalize": True}
SIGMOID = {"scoring": "sigmoid", "renormalize": True}
NOAUX = SIGMOID | {"num_groups": 4, "topk_groups": 2, "group_score": "top2sum"}
TOP2SUM = {"num_groups": 4, "topk_groups": 2, "group_score": "top2sum", "renormalize": True}
GATE, BLOCK = "gate.e_score_correction_bias", "e_score_correction_bias"

# (model, block): settings but for topk, and the bias of the choice.
KNOWN: dict[tuple[str, str], tuple[dict, str | None]] = {
    ("afmoe", "AfmoeSparseMoeBlock"): (SIGMOID | AS_MIXTRAL, "expert_bias"),
    ("aria", "AriaTextMoELayer"): (RENORM | AS_MODEL, None),
    ("axk1", "AXK1MoE"): (NOAUX | {"scaling": 2.5}, GATE),
    ("axk2", "AXK2MoE"): (SIGMOID | {"scaling": 2.5}, GATE),
    ("bailing_hybrid", "BailingHybridMoE"): (NOAUX | {"scaling": 2.5}, GATE),
    ("beam", "BeamMoE"): (NOAUX, GATE),
    ("cohere2_moe", "Cohere2MoeSparseMoeBlock"): (RENORM | AS_MODEL, None),
    ("deepseek_ocr2", "DeepseekOcr2TextMoe"): (SOFTMAX, None),
    ("deepseek_v2", "DeepseekV2Moe"): (SOFTMAX, None),
    ("deepseek_v3", "DeepseekV3MoE"): (NOAUX | {"scaling": 2.5}, GATE),
    ("deepseek_v32", "DeepseekV32MoE"): (NOAUX | {"scaling": 2.5}, GATE),
    ("deepseek_v4", "DeepseekV4SparseMoeBlock"): (
        SIGMOID | AS_MODEL | {"scoring": "sqrtsoftplus", "scaling": 1.5},
        GATE,
    ),
    ("dots1", "Dots1MoE"): (NOAUX | {"renormalize": False}, GATE),
    ("dots3_note", "Dots3NoteTextMoE"): (NOAUX, GATE),
    ("dots3_note", "Dots3NoteVisionMoE"): (SIGMOID, BLOCK),
    ("ernie4_5_moe", "Ernie4_5_MoeSparseMoeBlock"): (
        RENORM | ROUNDED,
        "gate.moe_statics.e_score_correction_bias",
    ),
    ("ernie4_5_vl_moe", "Ernie4_5_VLMoeSparseMoeBlock"): (
        RENORM | ROUNDED,
        "gate.moe_statics.e_score_correction_bias",
    ),
    ("exaone_moe", "ExaoneMoeSparseMoEBlock"): (NOAUX | {"scaling": 2.5}, GATE),
    ("flex_olmo", "FlexOlmoSparseMoeBlock"): (SOFTMAX | AS_MODEL, None),
    ("flint", "FlintSparseMoeBlock"): (SIGMOID, None),
    ("glm4_moe", "Glm4MoeMoE"): (NOAUX, GATE),
    ("glm4_moe_lite", "Glm4MoeLiteMoE"): (NOAUX | {"scaling": 1.8}, GATE),
    ("glm4v_moe", "Glm4vMoeTextMoE"): (NOAUX, GATE),
    ("glm5_next", "Glm5NextTextMoE"): (NOAUX | {"scaling": 2.5}, GATE),
    ("glm_moe_dsa", "GlmMoeDsaMoE"): (NOAUX | {"scaling": 2.5}, GATE),
    ("gpt_oss", "GptOssMLP"): (RENORM | AS_MODEL, None),
    ("granitemoe", "GraniteMoeMoE"): (RENORM | AS_MODEL, None),
    ("granitemoe_swa", "GraniteMoeSWAMoE"): (RENORM | AS_MODEL, None),
    ("granitemoehybrid", "GraniteMoeHybridMoE"): (RENORM | AS_MODEL, None),
    ("granitemoeshared", "GraniteMoeSharedMoE"): (RENORM | AS_MODEL, None),
    ("hunyuan_v1_moe", "HunYuanMoEV1Moe"): (RENORM | AS_MODEL, None),
    ("hy_v3", "HYV3MoE"): (SIGMOID | {"scaling": 2.826}, BLOCK),
    ("hy_v4", "HYV4MoE"): (NOAUX | {"scaling": 2.827}, GATE),
    ("hy_v4_vl", "HYV4VLMoE"): (NOAUX | {"scaling": 2.827}, GATE),
    ("inkling2", "Inkling2SparseMoeBlock"): (SIGMOID | {"scaling": 8.0}, GATE),
    ("inkling2_loop", "Inkling2LoopSparseMoeBlock"): (SIGMOID | {"scaling": 8.0}, GATE),
    ("jamba", "JambaSparseMoeBlock"): (SOFTMAX | AS_MODEL, None),
    ("kimi_linear", "KimiLinearMoE"): (NOAUX | {"scaling": 2.446}, GATE),
    ("laguna", "LagunaSparseMoeBlock"): (SIGMOID | AS_MODEL, GATE),
    ("lara_mini", "LaraMiniSparseMoeBlock"): (RENORM | ROUNDED, None),
    ("longcat_flash", "LongcatFlashMoE"): (SOFTMAX | {"scaling": 6.0}, "router.e_score_correction_bias"),
    ("mellum", "MellumSparseMoeBlock"): (RENORM | AS_MODEL, None),
    ("mimo_v2_flash", "MiMoV2FlashMoE"): (NOAUX, GATE),
    ("minimax", "MiniMaxSparseMoeBlock"): (RENORM | AS_MIXTRAL, None),
    ("minimax_m2", "MiniMaxM2SparseMoeBlock"): (SIGMOID | AS_MIXTRAL, BLOCK),
    ("minimax_m3_vl", "MiniMaxM3VLSparseMoeBlock"): (SIGMOID | AS_MIXTRAL, GATE),
    ("mistral4", "Mistral4MoE"): (TOP2SUM | AS_MODEL, None),
    ("mistral_large4", "MistralLarge4TextMoE"): (TOP2SUM, None),
    ("mixtral", "MixtralSparseMoeBlock"): (RENORM | AS_MIXTRAL, None),
    ("nemotron_h", "NemotronHMoE"): (NOAUX, GATE),
    ("olmoe", "OlmoeSparseMoeBlock"): (SOFTMAX | AS_MODEL, None),
    ("openai_privacy_filter", "OpenAIPrivacyFilterMLP"): (RENORM | {"scaling": 0.25}, None),
    ("qwen2_moe", "Qwen2MoeSparseMoeBlock"): (SOFTMAX | AS_MODEL, None),
    ("qwen3_5_moe", "Qwen3_5MoeSparseMoeBlock"): (RENORM | AS_MODEL, None),
    ("qwen3_moe", "Qwen3MoeSparseMoeBlock"): (SOFTMAX | AS_MODEL, None),
    ("qwen3_next", "Qwen3NextSparseMoeBlock"): (RENORM | AS_MODEL, None),
    ("qwen3_omni_moe", "Qwen3OmniMoeThinkerTextSparseMoeBlock"): (RENORM | AS_MODEL, None),
    ("qwen3_vl_moe", "Qwen3VLMoeTextSparseMoeBlock"): (RENORM | AS_MODEL, None),
    ("qwen4_exp", "Qwen4ExpTextSparseMoeBlock"): (RENORM | AS_MODEL, None),
    ("solar_open", "SolarOpenMoE"): (NOAUX, GATE),
    ("step3p7", "Step3p7SparseMoeBlock"): (SIGMOID | AS_MIXTRAL, GATE),
    ("unlimited_ocr", "UnlimitedOcrTextMoe"): (SOFTMAX, None),
}
# What moela.moe_topk does not compute, and how that is said.
REFUSED = {
    ("inkling", "InklingMoE"): "neither a weight nor a bias: global_scale",
    ("kolibri1", "Kolibri1SparseMoeBlock"): "routes in no way",  # adds the bias to logits
    ("lfm2_moe", "Lfm2MoeSparseMoeBlock"): "times as far off as float32 explains",  # 1e-6 to the sum
    ("llama4", "Llama4TextMoe"): "does not give its experts ids and weights",
    ("muse_spark", "MuseSparkMoE"): "routes in no way",  # multiplies its logits
    ("nllb_moe", "NllbMoeSparseMLP"): "routes in no way",  # drops what is beyond a capacity
    ("phimoe", "PhimoeSparseMoeBlock"): "adds noise in training",
    ("switch_transformers", "SwitchTransformersSparseMLP"): "adds noise in training",
    ("zaya", "ZayaSparseMoeBlock"): "has 4 weight matrices",
}
# Not built here: dbrx has another number of experts per token in a config of its own, the talker a config
# without sizes.
NOT_BUILT = {("dbrx", "DbrxFFN"), ("qwen3_omni_moe", "Qwen3OmniMoeTalkerTextSparseMoeBlock")}


def choice(block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Ids, ascending, and weights that a block gives its experts."""
    given = []
    handle = block.experts.register_forward_pre_hook(lambda _, args: given.extend(args))
    with torch.no_grad():
        block(x)
    handle.remove()
    ids, weights = sorted(given[1:3], key=lambda t: t.is_floating_point())
    order = ids.argsort(-1)
    return ids.gather(-1, order), weights.gather(-1, order)


@pytest.mark.parametrize(("model", "name"), KNOWN, ids=lambda v: v)
def test_a_router_of_transformers_is_recognised(model, name):
    settings, bias = KNOWN[model, name]
    block = stock.block_of(model, name)
    found = recognise(stock.router_of(block), block)
    if isinstance(found, str):
        stock.skip_if_older(found)
    expected = RouterSettings(stock.TOPK, **settings)
    if not stock.is_newest():  # older ones let the weights of some models be float32
        expected = replace(expected, weights_dtype=found.settings.weights_dtype)
    assert found.settings == expected
    assert (found.correction_bias and found.correction_bias.name) == bias
    x = torch.randn(1, 9, found.weight.get().size(1), generator=torch.Generator().manual_seed(1))
    ids, weights = choice(block, x)
    _, mine, my_ids = found.run(x)
    order = my_ids.argsort(-1)
    assert torch.equal(my_ids.gather(-1, order), ids)
    torch.testing.assert_close(mine.gather(-1, order), weights, rtol=2.0**-14, atol=0)


@pytest.mark.parametrize(("model", "name"), REFUSED, ids=lambda v: v)
def test_another_is_refused_with_a_reason(model, name):
    block = stock.block_of(model, name)
    reason = recognise(stock.router_of(block), block)
    assert isinstance(reason, str)
    assert REFUSED[model, name] in reason
    assert type(stock.router_of(block)).__name__ in reason


def test_every_block_of_the_newest_transformers_is_here():
    pytest.importorskip("transformers")
    stock.skip_if_older("the lists are those of the newest")
    assert stock.blocks_with_a_router() == {*KNOWN, *REFUSED} | NOT_BUILT


@pytest.mark.parametrize(
    ("options", "groups"),
    [
        ({"topk_method": "greedy"}, {}),
        ({"topk_method": "group_limited_greedy"}, {"num_groups": 4, "topk_groups": 2}),
    ],
)
def test_a_method_that_ignores_its_groups_is_told_from_one_that_does_not(options, groups):
    sizes = {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 16.0}
    block = stock.block_of("deepseek_v2", "DeepseekV2Moe", **sizes, **options)
    found = recognise(block.gate, block)
    if isinstance(found, str) and "has no attribute 'num_experts'" in found:
        pytest.skip("transformers up to 5.12 cannot run that method itself")
    assert found.settings == RouterSettings(stock.TOPK, scaling=16.0, **groups)


SIZES = [(8, 4, 3, 2), (8, 4, 2, 2), (12, 3, 2, 1), (16, 2, 1, 8), (16, 4, 3, 8), (32, 8, 7, 1)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("hidden", [32, 64, 96])
def test_rules_that_choose_alike_in_most_rows_are_told_apart(sizes, hidden):
    """With most groups kept and few experts chosen, the score of a group hardly ever matters."""
    names = ("n_routed_experts", "n_group", "topk_group", "num_experts_per_tok")
    options = dict(zip(names, sizes, strict=True)) | {"num_local_experts": sizes[0], "hidden_size": hidden}
    block = stock.block_of("deepseek_v3", "DeepseekV3MoE", **options)
    assert recognise(block.gate, block).settings.group_score == "top2sum"


@pytest.mark.parametrize("renormalize", [False, True])
def test_the_same_class_has_the_settings_of_its_config(renormalize):
    block = stock.block_of("qwen3_moe", "Qwen3MoeSparseMoeBlock", norm_topk_prob=renormalize)
    assert recognise(block.gate, block).settings.renormalize is renormalize


def test_a_router_that_does_it_all_needs_no_block():
    block = stock.block_of("deepseek_v3", "DeepseekV3MoE")
    alone = recognise(block.gate)
    if isinstance(alone, str):  # transformers up to 5.12
        assert "cannot be tried out" in alone or "does not give its experts" in alone
    else:
        assert alone.settings == recognise(block.gate, block).settings
        assert alone.correction_bias.name == "e_score_correction_bias"


def test_values_of_parameters_do_not_matter():
    block = stock.block_of("deepseek_v3", "DeepseekV3MoE")
    expected = recognise(block.gate, block).settings
    for value in (0.0, float("nan")):
        for t in (block.gate.weight, block.gate.e_score_correction_bias):
            t.data.fill_(value)
        assert recognise(block.gate, block).settings == expected
    assert recognise(block.gate.to(BF16), block).settings == expected
    assert recognise(block.gate.to("meta"), block).settings == expected


def test_nothing_is_changed_and_no_random_state_is_used():
    block = stock.block_of("deepseek_v3", "DeepseekV3MoE").train()
    block.gate.register_forward_hook(lambda *_: pytest.fail("ran the module itself"))
    before = {n: t.clone() for n, t in block.state_dict().items()}
    modules, state, python_state = list(block.modules()), torch.get_rng_state(), random.getstate()
    assert not isinstance(recognise(block.gate, block), str)
    assert all(testing.same_bits(t, before[n]) for n, t in block.state_dict().items())
    assert [id(m) for m in block.modules()] == [id(m) for m in modules]
    assert all(m.training for m in modules)
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python_state


class Router(nn.Module):
    """A plain router, which each of the following misleads about."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 32))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        logits = nn.functional.linear(x, self.weight)
        return self.choose(logits, logits.softmax(-1))

    def choose(self, logits: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        weights, ids = scores.topk(4, -1)
        return logits, weights, ids


class Scaled(Router):
    def choose(self, logits: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        logits, weights, ids = super().choose(logits, scores)
        return logits, weights * 1.01, ids


class WithEpsilon(Router):
    def choose(self, logits: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        logits, weights, ids = super().choose(logits, logits.sigmoid())
        return logits, weights / (weights.sum(-1, keepdim=True) + 1e-6), ids


class Squared(Router):
    def choose(self, logits: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        _, weights, ids = super().choose(logits, scores)
        return logits, weights.square(), ids


class Worst(Router):
    def choose(self, logits: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        weights, ids = scores.topk(4, -1, largest=False)
        return logits, weights, ids


class OfTheBatch(Router):
    def choose(self, logits: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        return super().choose(logits, logits.softmax(0))


class Failing(Router):
    def choose(self, logits: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError("no\nway")


def test_a_router_of_ones_own_is_recognised_by_what_it_computes():
    found = recognise(Router())
    assert found.settings == RouterSettings(4, logits_dtype=None, weights_dtype=None)


@pytest.mark.parametrize("router", [Scaled, WithEpsilon, Squared, Worst, OfTheBatch])
def test_a_router_that_computes_something_else_is_refused(router):
    assert "routes in no way that moela.moe_topk knows" in recognise(router())


def test_reasons_name_what_stands_in_the_way():
    assert recognise(Failing()) == "Failing cannot be tried out: RuntimeError: no"
    assert recognise(Router(), nn.Linear(2, 2)) == "Router is no part of the Linear"
    router = Router()
    router.scale = nn.Parameter(torch.ones(32))
    assert recognise(router) == "Router has a tensor that is neither a weight nor a bias: scale"
    router = Router()
    router.first, router.second = (nn.Parameter(torch.ones(16)) for _ in range(2))
    assert recognise(router) == "Router has more than one bias of the choice: first, second"
    router = Router()
    router.jitter_noise = 0.1
    assert recognise(router) == "Router adds noise in training (jitter_noise)"
    with pytest.raises(
        ValueError, match=r"moela.nn.TopkRouter: router: expected one that is recognised, got Failing"
    ):
        TopkRouter.from_module(Failing())


def test_tensors_are_those_that_the_module_has_now():
    block = stock.block_of("hy_v3", "HYV3MoE")
    found = recognise(block.gate, block)
    block.to(torch.float64).to(FP32)  # buffers are replaced
    block.e_score_correction_bias = torch.ones(stock.E)
    weight, bias, correction = found.tensors()
    assert weight is block.gate.weight
    assert bias is None
    assert correction is block.e_score_correction_bias
