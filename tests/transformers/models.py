"""Tiny random models of each kind, for the tests of this folder."""

import copy
import inspect
import math
from collections.abc import Iterator
from typing import Any

import moela
import pytest
import torch
import transformers
from torch import Tensor, nn

VOCAB, HIDDEN = 96, 64
PAD = 0

_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}
_MLA = {
    "q_lora_rank": 32,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
# Keys that a model or a release does not have are ignored by its configuration.
_EXPERTS = {"moe_intermediate_size": 40, "n_shared_experts": 1, "first_k_dense_replace": 1}
_GROUPS = {"n_routed_experts": 8, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3}
_ONE_GROUP = {"n_routed_experts": 12, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 4}
_NOAUX = {"norm_topk_prob": True, "routed_scaling_factor": 2.5}
_INDEX = {"index_topk": 6, "index_head_dim": 16, "index_n_heads": 2}

# The configuration's class and settings: experts and routers of every form that transformers has.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek_v2": (
        "DeepseekV2Config",
        _MLA | _EXPERTS | _GROUPS | {"topk_method": "greedy", "routed_scaling_factor": 1.5},
    ),
    "deepseek_v2_groups": (
        "DeepseekV2Config",
        _MLA | _EXPERTS | _GROUPS | {"topk_method": "group_limited_greedy", "routed_scaling_factor": 1.5},
    ),
    "deepseek_v3": ("DeepseekV3Config", _MLA | _EXPERTS | _GROUPS | _NOAUX),
    "deepseek_v32": ("DeepseekV32Config", _MLA | _EXPERTS | _GROUPS | _NOAUX | _INDEX),
    # As released: the class of DeepSeek-V3 with one group and half as many experts again.
    "kimi_k2": ("DeepseekV3Config", _MLA | _EXPERTS | _ONE_GROUP | _NOAUX | {"routed_scaling_factor": 2.827}),
    "glm4_moe": ("Glm4MoeConfig", _EXPERTS | _ONE_GROUP | _NOAUX | {"head_dim": 16, "use_qk_norm": True}),
    "glm_moe_dsa": (
        "GlmMoeDsaConfig",
        _MLA | _EXPERTS | _ONE_GROUP | _NOAUX | _INDEX | {"mlp_layer_types": ["dense", "sparse"]},
    ),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {"moe_intermediate_size": 40, "num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": True}
        | {"head_dim": 16},
    ),
    "mixtral": ("MixtralConfig", {"num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 48}),
    # Its block has the bias of the choice and hands it to the router.
    "minimax_m2": (
        "MiniMaxM2Config",
        {"num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 48, "head_dim": 16},
    ),
    "gpt_oss": (
        "GptOssConfig",
        {"num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 48, "head_dim": 16},
    ),
}

_HYBRID = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_head_dim": 16,
    "linear_num_heads": 4,
}
_YARN = {"type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0, "rope_theta": 10000.0}
_YARN |= {"beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 32, "rope_type": "yarn"}
# More of those with latent attention, for what is about it.
MLA_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek_v2_lite": (
        "DeepseekV2Config",
        _MLA | _EXPERTS | _GROUPS | {"topk_method": "greedy", "q_lora_rank": None},
    ),
    "deepseek_v3_yarn": ("DeepseekV3Config", _MLA | _EXPERTS | _GROUPS | _NOAUX | {"rope_scaling": _YARN}),
    "glm4_moe_lite": (
        "Glm4MoeLiteConfig",
        _MLA | _EXPERTS | _ONE_GROUP | _NOAUX | {"qk_nope_head_dim": 24, "v_head_dim": 32},
    ),
    "kimi_linear": (
        "KimiLinearConfig",
        _MLA | _EXPERTS | _ONE_GROUP | _NOAUX | _HYBRID | {"q_lora_rank": None},
    ),
}


def version() -> tuple[int, ...]:
    return tuple(int(part) for part in transformers.__version__.split(".")[:2])


def config_of(name: str, **settings: Any) -> Any:
    """A configuration of this release; a release without the model skips the test."""
    if name == "deepseek_v2_groups" and version() < (5, 14):
        pytest.skip("transformers < 5.14 has no num_experts where DeepSeek-V2 reads it for groups")
    class_name, own = (MODELS | MLA_MODELS)[name]
    if not hasattr(transformers, class_name):
        pytest.skip(f"transformers {transformers.__version__} has no {class_name}")
    # A new one each time: transformers changes the dicts that it is given.
    return getattr(transformers, class_name)(**_COMMON | own | settings)


def build(
    name: str, seed: int = 0, dtype: torch.dtype = torch.float32, attention: str = "eager", **settings: Any
) -> nn.Module:
    """A model in eval mode, with its experts in transformers' own implementation, "eager"."""
    config = config_of(name, **settings)
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation=attention, experts_implementation="eager"
    )
    fill(model, seed)
    return model.to(dtype).eval()


def fill(model: nn.Module, seed: int) -> None:
    """Values as trained models have them: products keep the size of their input, routers have opinions.

    Biases of the choice are positive: until 5.12 transformers lets an expert of a group that was not chosen
    win over one with a negative value.
    """
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, t in [*model.named_parameters(), *model.named_buffers()]:
            if not t.is_floating_point() or "inv_freq" in name or "e_score" in name:
                continue
            noise = torch.randn(t.shape, generator=g)
            if t.dim() == 1:
                t.copy_(1 + 0.1 * noise if "norm" in name else 0.1 * noise)
            elif "embed" in name:
                t.copy_(noise)
            else:
                is_transposed = getattr(model.get_submodule(name.rpartition(".")[0]), "is_transposed", False)
                size = t.size(-2 if is_transposed else -1) ** -0.5
                t.copy_(noise * size * (3 if is_router(name) else 1))
        for name, t in [*model.named_parameters(), *model.named_buffers()]:
            if "e_score" in name:
                t.copy_(torch.rand(t.shape, generator=g) * 0.5)


def is_router(name: str) -> bool:
    return name.endswith((".gate.weight", ".router.weight"))


def prompt(seed: int = 0, rows: int = 2, length: int = 7) -> dict[str, Tensor]:
    """Left-padded: row i begins with i tokens of padding."""
    g = torch.Generator().manual_seed(100 + seed)
    ids = torch.randint(2, VOCAB, (rows, length), generator=g)
    mask = torch.ones_like(ids)
    for row in range(rows):
        ids[row, :row], mask[row, :row] = PAD, 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def has_latents(model: nn.Module) -> bool:
    """Whether this release caches latents in the model's attention."""
    return any(hasattr(type(m), "expand_kv") for m in model.modules())


def experts_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if name.endswith(".experts"):
            yield name, module


def routing_of(model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
    """The experts of each token in each layer, in ascending order."""
    found: list[Tensor] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        given = dict(zip(names, args, strict=False)) | kwargs
        ids = next(t for t in given.values() if t.dtype in (torch.int32, torch.int64))
        found.append(ids.long().sort(-1).values)

    hooks = [m.register_forward_pre_hook(record, with_kwargs=True) for _, m in experts_of(model)]
    with torch.no_grad():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    return found


def logits_of(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Those of tokens that are no padding, in float64."""
    with torch.no_grad():
        logits = model(**inputs).logits.double()
    return logits[inputs["attention_mask"].bool()]  # [T, VOCAB]


def exact_logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """In float64 where the model's code lets it be: its norms, softmax and routers round to float32.

    A row at a time and without its padding, where transformers' masks are NaN in float64.
    """
    wide = copy.deepcopy(model).double()
    rows = []
    for row, mask in enumerate(inputs["attention_mask"].bool()):
        one = {k: v[row : row + 1, mask] for k, v in inputs.items()}
        rows.append(logits_of(wide, one))
    return torch.cat(rows)


def put_on_moela(model: nn.Module, way: str) -> None:
    """By the name of an experts implementation, by patch, or by both."""
    if way in ("name", "both"):
        moela.register()
        model.set_experts_implementation("moela")
    if way in ("patch", "both"):
        moela.patch(model)


def gradients(model: nn.Module, inputs: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """Of a loss that every logit has a part in, by parameter, in float64; `options` for the forward."""
    model.zero_grad()
    logits = model(**inputs, **options).logits
    g = torch.Generator().manual_seed(7)
    (logits * torch.randn(logits.shape, generator=g).to(logits.dtype)).sum().backward()
    return {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}


def worst(got: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """The largest relative error of a parameter's gradient, in the root mean square."""
    assert got.keys() == exact.keys()
    return max(rms(got[n] - g) / rms(g) for n, g in exact.items() if rms(g))


def largest(t: Tensor) -> float:
    return t.abs().max().item() if t.numel() else 0.0


def rms(t: Tensor) -> float:
    return math.sqrt(t.double().square().mean().item())


def quantized(model: nn.Module, sf_dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    """The model with FP8 layers, as a checkpoint has them, and the one whose values these stand for."""
    from transformers.integrations.finegrained_fp8 import replace_with_fp8_linear

    exact, config = copy.deepcopy(model), transformers.FineGrainedFP8Config(weight_block_size=(128, 128))
    replace_with_fp8_linear(model, ["lm_head"], config)
    names = [n.removesuffix("_scale_inv") for n, _ in model.named_parameters() if n.endswith("_scale_inv")]
    for name in names:
        owner, _, weight = name.rpartition(".")
        layer, w = model.get_submodule(owner), exact.get_parameter(name)
        # gate and up are two matrices, with scale blocks of their own.
        parts = w.detach().chunk(2, -2) if weight == "gate_up_proj" else (w.detach(),)
        codes, sfs, values = zip(*(quantize(part, sf_dtype) for part in parts), strict=True)
        setattr(layer, weight, frozen(torch.cat(codes, -2)))
        setattr(layer, f"{weight}_scale_inv", frozen(torch.cat(sfs, -2)))
        w.data.copy_(torch.cat(values, -2))
    return model.eval(), exact


def quantize(w: Tensor, sf_dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """[..., N, K] of at most 128 x 128 -> codes, scale factors [..., 1, 1] and what they stand for."""
    assert max(w.shape[-2:]) <= 128
    sf = w.abs().amax((-2, -1), keepdim=True) / 448
    sf = sf.log2().ceil().exp2() if sf_dtype == torch.float8_e8m0fnu else sf
    sf = sf.to(sf_dtype)
    codes = (w / sf.float()).clamp(-448, 448).to(torch.float8_e4m3fn)
    return codes, sf, codes.float() * sf.float()


def frozen(t: Tensor) -> nn.Parameter:
    return nn.Parameter(t, requires_grad=False)
