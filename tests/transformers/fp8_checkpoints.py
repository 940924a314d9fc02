"""Tiny FP8 checkpoints in the layout of DeepSeek-V3's, for the tests of this folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import models
import moela
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FP8 = torch.float8_e4m3fn
CONFIG = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}
INDEX = "model.safetensors.index.json"
# 192 x 256 bytes are 12 pages.
_EXPERTS = {"moe_intermediate_size": 192, "hidden_size": 256}
SETTINGS: dict[str, dict[str, Any]] = {
    # q_a_proj has 192 rows, kv_a_proj_with_mqa 512 + 64: neither is a multiple of 128.
    "deepseek_v3": _EXPERTS | {"q_lora_rank": 192, "kv_lora_rank": 512, "qk_rope_head_dim": 64},
    "qwen3_moe": _EXPERTS,
    "glm4_moe": _EXPERTS,
    "mixtral": {"intermediate_size": 192, "hidden_size": 256},
}


@dataclass
class Checkpoint:
    """path: a folder for from_pretrained. tensors: what its files have. model: the same, dequantized."""

    path: Path
    tensors: dict[str, Tensor]
    model: nn.Module

    @property
    def file(self) -> Path:
        return self.path / "model.safetensors"

    def rewrite(self, changed: dict[str, Tensor | None]) -> None:
        """Write the file again with some tensors replaced or, if None, left out."""
        kept = self.tensors | changed
        self.tensors = {name: tensor for name, tensor in kept.items() if tensor is not None}
        save_file(self.tensors, self.file, {"format": "pt"})

    def configure(self, **changed: Any) -> None:
        """Change the quantization_config."""
        file = self.path / "config.json"
        config = json.loads(file.read_text())
        config["quantization_config"] |= changed
        file.write_text(json.dumps(config))


def write(
    path: Path,
    name: str = "deepseek_v3",
    *,
    sf_dtype: torch.dtype = torch.float32,
    sf_name: str = "weight_scale_inv",
    shards: int = 1,
    **settings: Any,
) -> Checkpoint:
    """A checkpoint of a model of `models`; its tensors are dealt to `shards` files in turn of their names."""
    plain = path / "plain"
    models.build(name, **SETTINGS[name] | settings).save_pretrained(plain)
    tensors = load_file(plain / "model.safetensors")
    dequantized = dict(tensors)
    for weight in [each for each in tensors if _is_quantized(each, tensors[each])]:
        q, sf = quantize(tensors[weight], sf_dtype)
        tensors[weight] = q
        tensors[f"{weight.removesuffix('weight')}{sf_name}"] = sf
        dequantized[weight] = dequantize(q, sf)
    save_file(dequantized, plain / "model.safetensors", {"format": "pt"})
    model = load(plain, experts_implementation="eager")
    _save(path, tensors, shards)
    config = json.loads((plain / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"quantization_config": CONFIG}))
    return Checkpoint(path, tensors, model)


def _is_quantized(name: str, tensor: Tensor) -> bool:
    is_kept = any(part in name for part in ("embed_tokens", "lm_head", ".gate.weight"))
    return tensor.dim() == 2 and name.endswith(".weight") and not is_kept


def quantize(w: Tensor, sf_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    is_power = sf_dtype in (torch.uint8, torch.float8_e8m0fnu)
    q, sf = moela.per_block_quant_fp8(w.contiguous(), ue8m0=is_power)
    if sf_dtype == torch.uint8:
        return q, sf.to(torch.float8_e8m0fnu).view(torch.uint8)
    return q, sf.to(sf_dtype)


def dequantize(q: Tensor, sf: Tensor) -> Tensor:
    sf = sf.view(torch.float8_e8m0fnu) if sf.dtype == torch.uint8 else sf
    rows = sf.float().repeat_interleave(128, 0)[: q.size(0)]
    return q.float() * rows.repeat_interleave(128, 1)[:, : q.size(1)]


def _save(path: Path, tensors: dict[str, Tensor], shards: int) -> None:
    if shards == 1:
        save_file(tensors, path / "model.safetensors", {"format": "pt"})
        return
    names, weight_map = sorted(tensors), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        mine = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        # A file's header decides where in a page its tensors begin: let each have another one.
        metadata = {"format": "pt", "shard": "x" * (1 + 8 * shard)}
        save_file({name: tensors[name] for name in mine}, path / file, metadata)
        weight_map |= dict.fromkeys(mine, file)
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def load(path: Path, dtype: torch.dtype = torch.float32, **options: Any) -> nn.Module:
    options = {"dtype": dtype, "attn_implementation": "eager"} | options
    return transformers.AutoModelForCausalLM.from_pretrained(path, **options).eval()


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bytes(a), _bytes(b))


def _bytes(t: Tensor) -> Tensor:
    return t.detach().contiguous().reshape(-1).view(torch.uint8)
