"""A gated MLP: what shared experts are."""

import torch
from torch import Tensor, nn

from moela.nn._twin import Stub, twin_of
from moela.nn.fp8_linear import E4M3, Fp8Linear
from moela.nn.gate import SwiGlu, swiglu_of

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


class GatedMlp(nn.Module):
    """``y = down_proj(gate([gate_proj(x), up_proj(x)]))``, under transformers' names.

    Args:
        hidden, intermediate: H and I.
        gate: a SwiGlu.
        bias: whether the projections have one.
        device, dtype: of the parameters; float8_e4m3fn: each projection is an Fp8Linear.
        quantize_activations: as in `run_fp8_linear`, for these.
    """

    def __init__(
        self,
        hidden: int,
        intermediate: int,
        *,
        gate: SwiGlu = SwiGlu(),  # noqa: B008 (frozen)
        bias: bool = False,
        quantize_activations: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.gate = gate
        H, I = hidden, intermediate
        for name, K, N in zip(PROJECTIONS, (H, H, I), (I, I, H), strict=True):
            if dtype == E4M3:
                linear = Fp8Linear(K, N, bias, quantize_activations=quantize_activations, device=device)
            else:
                linear = nn.Linear(K, N, bias, device=device, dtype=dtype)
            self.add_module(name, linear)

    @classmethod
    def from_module(
        cls, module: nn.Module, *, quantize_activations: str | None = None
    ) -> "GatedMlp | nn.Module":
        """The same layer with the parameters of a transformers MLP; one that is another layer, as it is."""
        swiglu = _swiglu_of_mlp(module)
        if swiglu is None:
            return module
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self.gate = swiglu
        for name in PROJECTIONS:
            linear = getattr(module, name)
            is_fp8 = linear.weight.dtype == E4M3
            if is_fp8:
                linear = Fp8Linear.from_module(linear, quantize_activations=quantize_activations)
            self.add_module(name, linear)
        return self.train(module.training)

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] -> [..., H]."""
        return self.down_proj(self.gate(torch.cat([self.gate_proj(x), self.up_proj(x)], -1)))


def _swiglu_of_mlp(module: nn.Module) -> SwiGlu | None:
    """The module's own code, with the halves of a probe in the place of its first two products."""
    children = [name for name, _ in module.named_children() if name != "act_fn"]
    tensors = [*module._parameters, *module._buffers]
    if sorted(children) != sorted(PROJECTIONS) or tensors:
        return None

    def theirs(gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        stubs = {"gate_proj": Stub(lambda x: gate), "up_proj": Stub(lambda x: up), "down_proj": nn.Identity()}
        return twin_of(module, lambda name, t: t, stubs.get)(gate_up)

    return swiglu_of(module, theirs)
