"""moela: fast operators for models with a mixture of experts and multi-head latent attention."""

from moela.backends import explain, use_backend
from moela.ops import (
    fp8_gemm,
    fp8_gemm_out,
    moe_permute,
    moe_permute_out,
    moe_topk,
    moe_topk_out,
    moe_unpermute,
    moe_unpermute_out,
    per_block_dequant_fp8,
    per_block_dequant_fp8_out,
    per_block_quant_fp8,
    per_block_quant_fp8_out,
    per_token_group_quant_fp8,
    per_token_group_quant_fp8_out,
    silu_and_mul,
    silu_and_mul_out,
    silu_and_mul_quant_fp8,
    silu_and_mul_quant_fp8_out,
)

__version__ = "0.1.0"

__all__ = [
    "explain",
    "fp8_gemm",
    "fp8_gemm_out",
    "moe_permute",
    "moe_permute_out",
    "moe_topk",
    "moe_topk_out",
    "moe_unpermute",
    "moe_unpermute_out",
    "per_block_dequant_fp8",
    "per_block_dequant_fp8_out",
    "per_block_quant_fp8",
    "per_block_quant_fp8_out",
    "per_token_group_quant_fp8",
    "per_token_group_quant_fp8_out",
    "silu_and_mul",
    "silu_and_mul_out",
    "silu_and_mul_quant_fp8",
    "silu_and_mul_quant_fp8_out",
    "use_backend",
]
