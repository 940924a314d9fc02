"""Layer shapes of real models, each with the file that its numbers were read from.

>>> MODELS["deepseek-v3"].linear_layers()["expert_down"]
LinearShape(N=7168, K=2048)
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class LinearShape:
    """A weight [N, K] of d = a @ b.T."""

    N: int
    K: int

    def __str__(self) -> str:
        return f"{self.N} x {self.K}"


@dataclass(frozen=True)
class ExpertShape:
    """A routed expert: gate and up [2 * intermediate, hidden], down [hidden, intermediate]."""

    hidden: int
    intermediate: int

    def __str__(self) -> str:
        return f"{self.hidden} x {self.intermediate}"


@dataclass(frozen=True)
class RouterShape:
    """A router: num_experts logits of a token of `hidden` columns, of which topk are chosen."""

    num_experts: int
    topk: int
    hidden: int

    def __str__(self) -> str:
        return f"top {self.topk} of {self.num_experts}, hidden {self.hidden}"


@dataclass(frozen=True)
class MlaShape:
    """Multi-head latent attention. q_lora_rank None: the query has no low-rank projection."""

    num_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int

    def __str__(self) -> str:
        return f"{self.num_heads} heads, latents of {self.kv_lora_rank} + {self.qk_rope_head_dim}"


@dataclass(frozen=True)
class GroupShape:
    """A router's limit on groups: of `num` equal groups of experts a token uses the `topk` best.

    score: what a group counts as, in the words of `moela.moe_topk`.
    """

    num: int
    topk: int
    score: str

    def __str__(self) -> str:
        return f"top {self.topk} of {self.num} groups"


@dataclass(frozen=True)
class IndexerShape:
    """The lightning indexer of sparse attention: heads that score keys, of which topk are attended to."""

    num_heads: int
    dim: int
    topk: int

    def __str__(self) -> str:
        return f"{self.num_heads} heads of {self.dim}, top {self.topk}"


@dataclass(frozen=True)
class ModelShape:
    """One model. `intermediate` is the width of a routed expert, `shared_intermediate` of all shared ones."""

    name: str
    hidden: int
    intermediate: int
    num_experts: int
    topk: int
    shared_intermediate: int
    dense_intermediate: int | None
    num_layers: int
    num_dense_layers: int
    mla: MlaShape | None
    source: str
    indexer: IndexerShape | None = None
    groups: GroupShape | None = None

    def linear_layers(self) -> dict[str, LinearShape]:
        """The linear layers by name. Routers are left out: they are not quantized."""
        H = self.hidden
        layers = {
            "expert_gate": LinearShape(self.intermediate, H),
            "expert_gate_up": LinearShape(2 * self.intermediate, H),
            "expert_down": LinearShape(H, self.intermediate),
        }
        if self.shared_intermediate:
            layers["shared_gate_up"] = LinearShape(2 * self.shared_intermediate, H)
            layers["shared_down"] = LinearShape(H, self.shared_intermediate)
        if self.dense_intermediate and self.num_dense_layers:
            layers["dense_gate_up"] = LinearShape(2 * self.dense_intermediate, H)
            layers["dense_down"] = LinearShape(H, self.dense_intermediate)
        return layers | (_mla_layers(self.mla, H) if self.mla else {})


def _mla_layers(mla: MlaShape, hidden: int) -> dict[str, LinearShape]:
    q_rows = mla.num_heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim)
    kv_rows = mla.num_heads * (mla.qk_nope_head_dim + mla.v_head_dim)
    if mla.q_lora_rank is None:
        q = {"q_proj": LinearShape(q_rows, hidden)}
    else:
        q = {"q_a": LinearShape(mla.q_lora_rank, hidden), "q_b": LinearShape(q_rows, mla.q_lora_rank)}
    return q | {
        "kv_a": LinearShape(mla.kv_lora_rank + mla.qk_rope_head_dim, hidden),
        "kv_b": LinearShape(kv_rows, mla.kv_lora_rank),
        "o_proj": LinearShape(hidden, mla.num_heads * mla.v_head_dim),
    }


# Columns: name, hidden, intermediate, num_experts, topk, shared_intermediate, dense_intermediate, num_layers,
# num_dense_layers, mla (heads, q rank, kv rank, nope, rope, v), source.
_TABLE = (
    ("deepseek-v2-lite", 2048, 1408, 64, 6, 2816, 10944, 27, 1, (16, None, 512, 128, 64, 128),
     "deepseek-ai/DeepSeek-V3: inference/configs/config_16B.json @ 9b4e978"),
    ("deepseek-v2", 5120, 1536, 160, 6, 3072, 12288, 60, 1, (128, 1536, 512, 128, 64, 128),
     "deepseek-ai/DeepSeek-V3: inference/configs/config_236B.json @ 9b4e978"),
    ("deepseek-v3", 7168, 2048, 256, 8, 2048, 18432, 61, 3, (128, 1536, 512, 128, 64, 128),
     "deepseek-ai/DeepSeek-V3: inference/configs/config_671B.json @ 9b4e978"),
    ("deepseek-v3.2", 7168, 2048, 256, 8, 2048, 18432, 61, 3, (128, 1536, 512, 128, 64, 128),
     "deepseek-ai/DeepSeek-V3.2-Exp: inference/config_671B_v3.2.json @ 3b99a53"),
    ("kimi-k2", 7168, 2048, 384, 8, 2048, 18432, 61, 1, (64, 1536, 512, 128, 64, 128),
     "THUDM/slime: scripts/models/kimi-k2.sh @ 624b824"),
    ("moonlight-16b-a3b", 2048, 1408, 64, 6, 2816, 11264, 27, 1, (16, None, 512, 128, 64, 128),
     "pytorch/torchtitan: torchtitan/models/kimi_k2_7/__init__.py @ b5bcd76"),
    ("mistral-large-3", 7168, 4096, 128, 4, 4096, 16384, 61, 3, (128, 1536, 512, 128, 64, 128),
     "wenhaochai/llm-architecture-lineage: data/configs/mistral-large-3.json @ 45f0a97"),
    ("glm-4.5", 5120, 1536, 160, 8, 1536, 12288, 92, 3, None,
     "THUDM/slime: scripts/models/glm4.5-355B-A32B.sh @ 624b824"),
    ("glm-4.5-air", 4096, 1408, 128, 8, 1408, 10944, 46, 1, None,
     "wenhaochai/llm-architecture-lineage: data/configs/glm-4-5-air.json @ 45f0a97"),
    ("glm-4.7-flash", 2048, 1536, 64, 4, 1536, 10240, 47, 1, (20, 768, 512, 192, 64, 256),
     "huggingface/transformers 5.23.0: models/glm4_moe_lite/configuration_glm4_moe_lite.py"),
    ("glm-5", 6144, 2048, 256, 8, 2048, 12288, 78, 3, (64, 2048, 512, 192, 64, 256),
     "huggingface/transformers 5.23.0: models/glm_moe_dsa/configuration_glm_moe_dsa.py"),
    ("qwen3-30b-a3b", 2048, 768, 128, 8, 0, None, 48, 0, None,
     "THUDM/slime: scripts/models/qwen3-30B-A3B.sh @ 624b824"),
    ("qwen3-235b-a22b", 4096, 1536, 128, 8, 0, None, 94, 0, None,
     "THUDM/slime: scripts/models/qwen3-235B-A22B.sh @ 624b824"),
    ("qwen3-coder-480b-a35b", 6144, 2560, 160, 8, 0, None, 62, 0, None,
     "ai-dynamo/aiconfigurator: aic-core/src/aiconfigurator_core/model_configs/Qwen--Qwen3-Coder-480B-A35B"),
    ("minimax-m2", 3072, 1536, 256, 8, 0, None, 62, 0, None,
     "wenhaochai/llm-architecture-lineage: data/configs/minimax-m2-230b.json @ 45f0a97"),
    ("mixtral-8x7b", 4096, 14336, 8, 2, 0, None, 32, 0, None,
     "huggingface/transformers 5.23.0: models/mixtral/configuration_mixtral.py"),
    ("mixtral-8x22b", 6144, 16384, 8, 2, 0, None, 56, 0, None,
     "AMD-AGI/Primus: primus/configs/models/megatron/mixtral_8x22B_v0.1.yaml @ fd1eeab"),
    ("gpt-oss-20b", 2880, 2880, 32, 4, 0, None, 24, 0, None,
     "pytorch/torchtitan: torchtitan/models/gpt_oss/__init__.py @ b5bcd76"),
    ("gpt-oss-120b", 2880, 2880, 128, 4, 0, None, 36, 0, None,
     "openai/gpt-oss: gpt_oss/torch/model.py"),
)  # fmt: skip

# From the same sources.
_INDEXERS = {"deepseek-v3.2": IndexerShape(64, 128, 2048), "glm-5": IndexerShape(32, 128, 2048)}
_GROUPS = {
    "deepseek-v2": GroupShape(8, 3, "max"),
    "deepseek-v3": GroupShape(8, 4, "top2sum"),
    "deepseek-v3.2": GroupShape(8, 4, "top2sum"),
}


def _model(name: str, *values) -> ModelShape:
    *numbers, mla, source = values
    return ModelShape(
        name, *numbers, MlaShape(*mla) if mla else None, source, _INDEXERS.get(name), _GROUPS.get(name)
    )


MODELS = {row[0]: _model(*row) for row in _TABLE}
