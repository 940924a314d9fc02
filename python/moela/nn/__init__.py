"""Layers that other libraries know, on operators of moela."""

from moela.nn.expert_layer import run_experts
from moela.nn.experts import Experts
from moela.nn.fp8_linear import Fp8Linear, run_fp8_linear
from moela.nn.gate import Gate, SwiGlu, gate_of
from moela.nn.gated_mlp import GatedMlp
from moela.nn.mla_attention import MlaAttention
from moela.nn.moe import MoE
from moela.nn.recognition import Recognised, recognise
from moela.nn.topk_router import RouterSettings, TopkRouter, run_router

__all__ = [
    "Experts",
    "Fp8Linear",
    "Gate",
    "GatedMlp",
    "MlaAttention",
    "MoE",
    "Recognised",
    "RouterSettings",
    "SwiGlu",
    "TopkRouter",
    "gate_of",
    "recognise",
    "run_experts",
    "run_fp8_linear",
    "run_router",
]
