"""The model of the demo: DeepSeek-V3 with few layers and experts, its weights a function of their names.

The checkpoint is written from these weights, and so are the models that stock transformers runs. So what
moela computes went through the file and the loader, and what it is held against did not.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from statistics import NormalDist
from typing import Any
from zlib import crc32

import moela
import numpy as np
import torch
from moela.bench.checkpoint import DTYPES, Shard, Spec
from moela.shapes import ModelShape
from torch import Tensor, nn

BLOCK = 128
SEED = 1
# Groups of experts, of which a token keeps some, as in the published model.
NUM_GROUPS, KEPT_GROUPS = 4, 3
SF = "_scale_inv"  # what a checkpoint appends to the name of a weight for its scale factors
_SIGMA_CODE = 112.0  # in FP8: four times this, 448, is the largest, as the largest of a block's 16384 normals
_EMBEDDING_STD = 0.25  # less than what the layers add, so that an error of theirs shows in the logits


@dataclass(frozen=True)
class DemoModel:
    """A decoder with the dimensions of `shape`: its last layers have experts, its first ones are dense."""

    shape: ModelShape
    vocab: int

    @property
    def name(self) -> str:
        return f"{self.shape.name}.layers{self.shape.num_layers}.experts{self.shape.num_experts}"

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json, with the fields of the published one."""
        shape, mla = self.shape, self.shape.mla
        return {
            "architectures": ["DeepseekV3ForCausalLM"],
            "model_type": "deepseek_v3",
            "attention_bias": False,
            "bos_token_id": 0,
            "eos_token_id": None,  # nothing was trained to stop
            "first_k_dense_replace": shape.num_dense_layers,
            "hidden_act": "silu",
            "hidden_size": shape.hidden,
            "intermediate_size": shape.dense_intermediate,
            "kv_lora_rank": mla.kv_lora_rank,
            "max_position_embeddings": 163840,
            "moe_intermediate_size": shape.intermediate,
            "moe_layer_freq": 1,
            "n_group": NUM_GROUPS,
            "n_routed_experts": shape.num_experts,
            "n_shared_experts": shape.shared_intermediate // shape.intermediate,
            "norm_topk_prob": True,
            "num_attention_heads": mla.num_heads,
            "num_experts_per_tok": shape.topk,
            "num_hidden_layers": shape.num_layers,
            "num_key_value_heads": mla.num_heads,
            "num_nextn_predict_layers": 0,
            "q_lora_rank": mla.q_lora_rank,
            "qk_nope_head_dim": mla.qk_nope_head_dim,
            "qk_rope_head_dim": mla.qk_rope_head_dim,
            "quantization_config": {
                "activation_scheme": "dynamic",
                "fmt": "e4m3",
                "quant_method": "fp8",
                "weight_block_size": [BLOCK, BLOCK],
            },
            "rms_norm_eps": 1e-06,
            "rope_scaling": {
                "beta_fast": 32,
                "beta_slow": 1,
                "factor": 40,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 4096,
                "type": "yarn",
            },
            "rope_theta": 10000,
            "routed_scaling_factor": 2.5,
            "scoring_func": "sigmoid",
            "tie_word_embeddings": False,
            "topk_group": KEPT_GROUPS,
            "topk_method": "noaux_tc",
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "v_head_dim": mla.v_head_dim,
            "vocab_size": self.vocab,
        }

    @cached_property
    def shards(self) -> list[Shard]:
        """A file per layer; what comes before and after the layers is in the first and the last."""
        shards = [self._layer(layer) for layer in range(self.shape.num_layers)]
        H = self.shape.hidden
        shards[0]["model.embed_tokens.weight"] = Spec("BF16", (self.vocab, H))
        shards[-1]["model.norm.weight"] = Spec("BF16", (H,))
        shards[-1]["lm_head.weight"] = Spec("BF16", (self.vocab, H))
        return shards

    @cached_property
    def specs(self) -> dict[str, Spec]:
        return {name: spec for shard in self.shards for name, spec in shard.items()}

    @property
    def num_weights(self) -> int:
        return sum(math.prod(spec.shape) for name, spec in self.specs.items() if not name.endswith(SF))

    def _layer(self, layer: int) -> dict[str, Spec]:
        shape, mla, layers = self.shape, self.shape.mla, self.shape.linear_layers()
        H, prefix = shape.hidden, f"model.layers.{layer}."
        specs = {
            "input_layernorm.weight": Spec("BF16", (H,)),
            "post_attention_layernorm.weight": Spec("BF16", (H,)),
            "self_attn.q_a_layernorm.weight": Spec("BF16", (mla.q_lora_rank,)),
            "self_attn.kv_a_layernorm.weight": Spec("BF16", (mla.kv_lora_rank,)),
        }
        linears = {
            f"self_attn.{name}": (layers[key].N, layers[key].K)
            for name, key in {
                "q_a_proj": "q_a",
                "q_b_proj": "q_b",
                "kv_a_proj_with_mqa": "kv_a",
                "kv_b_proj": "kv_b",
                "o_proj": "o_proj",
            }.items()
        }
        if layer < shape.num_dense_layers:
            linears |= _mlp("mlp", H, shape.dense_intermediate)
        else:
            specs["mlp.gate.weight"] = Spec("BF16", (shape.num_experts, H))
            specs["mlp.gate.e_score_correction_bias"] = Spec("F32", (shape.num_experts,))
            linears |= _mlp("mlp.shared_experts", H, shape.shared_intermediate)
            for expert in range(shape.num_experts):
                linears |= _mlp(f"mlp.experts.{expert}", H, shape.intermediate)
        for name, (N, K) in linears.items():
            specs[f"{name}.weight"] = Spec("F8_E4M3", (N, K))
            specs[f"{name}.weight{SF}"] = Spec("F32", (-(-N // BLOCK), -(-K // BLOCK)))
        return {prefix + name: spec for name, spec in specs.items()}

    # --- values ------------------------------------------------------------------------------------------

    def tensor(self, name: str) -> Tensor:
        """The tensor of the checkpoint that has this name."""
        dtype, shape = self.specs[name]
        codes = _random_bytes(name, math.prod(shape))
        if dtype == "F8_E4M3":
            return _tensor(codes.tobytes().translate(_fp8_table())).view(DTYPES[dtype]).view(shape)
        normal = torch.from_numpy(np.take(_normal_table(), codes)).view(shape)
        if name.endswith(SF):
            K = self.specs[name.removesuffix(SF)].shape[1]
            return (0.25 * normal).exp2() * (K**-0.5 / _SIGMA_CODE)
        if name.endswith("norm.weight"):
            value = 1 + 0.1 * normal
        elif name.endswith("bias"):
            value = 0.1 * normal
        else:
            value = normal * (_EMBEDDING_STD if "embed" in name else shape[1] ** -0.5)
        return value.to(DTYPES[dtype])

    def weight(self, name: str, dtype: torch.dtype) -> Tensor:
        """The same in the dtype of a model without quantization."""
        t = self.tensor(name)
        if t.dtype != torch.float8_e4m3fn:
            return t.to(dtype)
        return moela.per_block_dequant_fp8(t, self.tensor(name + SF), dtype)

    def stock(self, dtype: torch.dtype, experts: str, on_tensor: Callable[[], object]) -> nn.Module:
        """transformers' own model with dequantized weights; no other copy of them is made."""
        from transformers import AutoConfig, AutoModelForCausalLM

        fields = {key: value for key, value in self.config.items() if key != "quantization_config"}
        config = AutoConfig.for_model(**fields)
        with torch.device("meta"):
            net = AutoModelForCausalLM.from_config(config, dtype=dtype, experts_implementation=experts)
        net.to_empty(device="cpu")
        net.model.rotary_emb = type(net.model.rotary_emb)(net.config)  # has a buffer that no file has
        state = net.state_dict()
        for name in self.specs:
            if not name.endswith(SF):
                target = _target(state, name)
                target.copy_(self.weight(name, target.dtype))
            on_tensor()
        return net.eval().requires_grad_(False)


def _mlp(prefix: str, H: int, intermediate: int) -> dict[str, tuple[int, int]]:
    """[N, K] of its three linears."""
    return {
        f"{prefix}.gate_proj": (intermediate, H),
        f"{prefix}.up_proj": (intermediate, H),
        f"{prefix}.down_proj": (H, intermediate),
    }


def _target(state: Mapping[str, Tensor], name: str) -> Tensor:
    """Where transformers keeps the tensor of a checkpoint: experts lie in two, [E, 2 I, H] and [E, H, I]."""
    prefix, is_expert, rest = name.partition(".experts.")
    if not is_expert:
        return state[name]
    expert, projection, _ = rest.split(".")
    if projection == "down_proj":
        return state[f"{prefix}.experts.down_proj"][int(expert)]
    gate, up = state[f"{prefix}.experts.gate_up_proj"][int(expert)].chunk(2)
    return gate if projection == "gate_proj" else up


def _random_bytes(name: str, count: int) -> np.ndarray:
    """Of a generator whose bits are the same in every version of numpy."""
    bits = np.random.SFC64(np.random.SeedSequence([SEED, crc32(name.encode())]))
    return bits.random_raw(-(-count // 8)).astype("<u8", copy=False).view(np.uint8)[:count]


@cache
def _normal_table() -> np.ndarray:
    """By byte, quantiles of the standard normal distribution: as good as randn here, and much faster."""
    return np.array([NormalDist().inv_cdf((code + 0.5) / 256) for code in range(256)], np.float32)


@cache
def _fp8_table() -> bytes:
    """By byte, the same in FP8."""
    codes = torch.from_numpy(_SIGMA_CODE * _normal_table()).to(torch.float8_e4m3fn)
    return codes.view(torch.uint8).numpy().tobytes()


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
