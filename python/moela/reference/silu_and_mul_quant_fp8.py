"""Definition of ``silu_and_mul_quant_fp8``: the activation, rounded to float32 only, then the cast."""

from torch import Tensor

from moela.reference.per_token_group_quant_fp8 import per_token_group_quant_fp8
from moela.reference.silu_and_mul import swiglu


def silu_and_mul_quant_fp8(
    x: Tensor,
    limit: float | None = None,
    alpha: float | None = None,
    group_size: int = 128,
    ue8m0: bool = False,
) -> tuple[Tensor, Tensor]:
    """The specification of ``moela.silu_and_mul_quant_fp8``."""
    return per_token_group_quant_fp8(swiglu(x, limit, alpha).float(), group_size, ue8m0)
