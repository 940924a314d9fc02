"""The router of a mixture-of-experts layer as a module."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from moela.ops import _check, moe_topk

NAME = "moela.nn.TopkRouter"


@dataclass(frozen=True)
class RouterSettings:
    """What a router does beside its tensors: the arguments of `moela.moe_topk`, and two dtypes.

    logits_dtype: float32: x and the weight are cast to it before their product, under autocast too. None: the
        product has the weight's dtype, to which x is cast.
    weights_dtype: of the weights that are returned: float32, or None: that of x.
    """

    topk: int
    scoring: str = "softmax"
    num_groups: int = 1
    topk_groups: int = 1
    group_score: str = "max"
    renormalize: bool = False
    scaling: float = 1.0
    logits_dtype: torch.dtype | None = torch.float32
    weights_dtype: torch.dtype | None = torch.float32

    def logits(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """[T, H], [E, H], [E] -> [T, E]."""
        if self.logits_dtype is None:
            return nn.functional.linear(x.to(weight.dtype), weight, bias)
        with torch.autocast(x.device.type, enabled=False):
            return nn.functional.linear(
                *(None if t is None else t.to(self.logits_dtype) for t in (x, weight, bias))
            )

    def choose(self, logits: Tensor, correction_bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """[T, E], [E] -> topk_weights [T, topk] float32 and topk_ids [T, topk] int32: `moela.moe_topk`."""
        return moe_topk(
            logits,
            self.topk,
            scoring=self.scoring,
            bias=correction_bias,
            num_groups=self.num_groups,
            topk_groups=self.topk_groups,
            group_score=self.group_score,
            renormalize=self.renormalize,
            scaling=self.scaling,
        )


def run_router(
    x: Tensor,
    weight: Tensor,
    settings: RouterSettings,
    *,
    bias: Tensor | None = None,
    correction_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ``logits = x @ weight.T + bias``, then `moela.moe_topk` of these with the correction bias.

    Args:
        x: [..., H] bfloat16, float16 or float32.
        weight: [E, H] bfloat16, float16 or float32.
        settings: what to do.
        bias: [E], of the logits.
        correction_bias: [E], of the choice only (`e_score_correction_bias`).

    Returns:
        logits [T, E], topk_weights [T, topk] and topk_ids [T, topk] int64, the best first, with T the
        product of the leading dimensions. Differentiable as `moe_topk` is.

    Numerics: the product is torch's; the rest is `moe_topk`, in float32.

    Source: the routers of transformers 5.24.0, which return these three.
    """
    x = x.reshape(-1, x.size(-1))  # [T, H]
    logits = settings.logits(x, weight, bias)  # [T, E]
    topk_weights, topk_ids = settings.choose(logits, correction_bias)
    return logits, topk_weights.to(settings.weights_dtype or x.dtype), topk_ids.long()


class TopkRouter(nn.Module):
    """`run_router` with its tensors, under the names of transformers' routers.

    Args:
        hidden, num_experts: H and E.
        topk: how many experts a token has.
        has_bias: whether the logits have one.
        has_correction_bias: whether there is an e_score_correction_bias, a float32 buffer.
        device, dtype: of weight and bias.
        settings: the other fields of `RouterSettings`.
    """

    def __init__(
        self,
        hidden: int,
        num_experts: int,
        topk: int,
        *,
        has_bias: bool = False,
        has_correction_bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.settings = RouterSettings(topk, **settings)
        weight = torch.empty((num_experts, hidden), device=device, dtype=dtype)
        self.weight = nn.Parameter(weight.uniform_(-(hidden**-0.5), hidden**-0.5))
        bias = torch.zeros(num_experts, device=device, dtype=dtype) if has_bias else None
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))
        correction = torch.zeros(num_experts, device=device) if has_correction_bias else None
        self.register_buffer("e_score_correction_bias", correction)

    @classmethod
    def from_module(cls, router: nn.Module, block: nn.Module | None = None) -> "TopkRouter":
        """The same router with the tensors of a transformers router, which it shares.

        Args:
            router: the module, an nn.Linear in older releases.
            block: the mixture-of-experts block that it is in, where that has a part in routing.

        Raises ValueError with the reason where `recognise` has one.
        """
        from moela.nn.recognition import recognise

        found = recognise(router, block)
        _check.expect(not isinstance(found, str), NAME, "router", "one that is recognised", found)
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self.settings = found.settings
        weight, bias, correction = found.tensors()
        self.weight = weight
        self.register_parameter("bias", bias)
        if isinstance(correction, nn.Parameter):
            self.register_parameter("e_score_correction_bias", correction)
        else:
            self.register_buffer("e_score_correction_bias", correction)
        return self.train(router.training)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[..., H] -> logits [T, E], topk_weights [T, topk], topk_ids [T, topk] int64."""
        return run_router(
            hidden,
            self.weight,
            self.settings,
            bias=self.bias,
            correction_bias=self.e_score_correction_bias,
        )

    def extra_repr(self) -> str:
        E, H = self.weight.shape
        return f"hidden={H}, num_experts={E}, {self.settings}"
