"""Which experts the tokens of a bench go to, and what a bench of an op with experts is measured on.

What a layer of experts costs depends on how many experts have rows, and on how many rows the busiest has:

- balanced: every expert gets the same number of rows, give or take one. The best case of many tokens, and the
  worst of few, as no expert's weights are read twice.
- zipf: a token's experts are drawn without replacement with odds 1 / rank: Zipf's law, EXPONENT 1. It is
  what vllm-project/vllm#57100 proposes for tuning (router logits less log(rank)), and as uneven as what was
  counted in a real model: the busiest of 128 experts, top 8, gets 13 times the mean, of 256 experts 25
  times; kekzl/imp#1741 counted 13 to 16 times in Qwen3-30B-A3B, which has 128 experts, top 8.
- one: all tokens go to the same topk experts, as all tokens of one repeated word do.

The ids are functions of the arguments and the seed alone: the same in every run, for every contestant.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from moela.shapes import ExpertShape, LinearShape, ModelShape, RouterShape
from torch import Tensor

KINDS = ("balanced", "zipf", "one")
EXPONENT = 1.0  # of zipf
DEFAULT_EXPERTS = 16  # held in memory: all of a layer seldom fit beside their copies for the baselines


def topk_ids(kind: str, num_tokens: int, num_experts: int, topk: int, seed: int = 0) -> Tensor:
    """[num_tokens, topk] int32 on the CPU; the ids of a token are different from each other.

    The order of the experts is shuffled, so that the busy ones are not neighbours in memory.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(num_experts, generator=generator)  # from the busiest to the idlest
    if kind == "zipf":
        odds = torch.arange(1, num_experts + 1, dtype=torch.float64) ** -EXPONENT
        rank = odds.expand(num_tokens, -1).multinomial(topk, generator=generator)  # [num_tokens, topk]
    elif kind == "balanced":
        rank = torch.arange(num_tokens * topk).view(num_tokens, topk) % num_experts
    else:
        rank = torch.arange(topk).expand(num_tokens, topk)
    return order[rank].to(torch.int32)


@dataclass(frozen=True)
class Routed:
    """A layer of experts, and how tokens are routed to them: what `dims` of a bench with routing gets.

    `num_experts` is how many are held in memory, at most those of the model.
    """

    shape: LinearShape | ExpertShape  # of one expert
    num_experts: int
    topk: int
    kind: str

    def topk_ids(self, num_tokens: int) -> Tensor:
        return topk_ids(self.kind, num_tokens, self.num_experts, self.topk)

    def expert_counts(self, num_tokens: int) -> tuple[int, ...]:
        """Rows of each expert: they sum to num_tokens * topk."""
        return tuple(self.topk_ids(num_tokens).view(-1).bincount(minlength=self.num_experts).tolist())


def expert_linears(model: ModelShape) -> Mapping[str, LinearShape]:
    """The two products of a routed expert: the layers of a grouped GEMM."""
    layers = model.linear_layers()
    return {name: layers[name] for name in ("expert_gate_up", "expert_down")}


def experts(model: ModelShape) -> Mapping[str, ExpertShape]:
    """The routed experts as one layer."""
    return {"experts": ExpertShape(model.hidden, model.intermediate)}


def router(model: ModelShape) -> Mapping[str, RouterShape]:
    """What comes before the experts and after them: the layer of ops that move tokens."""
    return {"router": RouterShape(model.num_experts, model.topk, model.hidden)}
