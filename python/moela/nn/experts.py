"""The experts of a mixture-of-experts layer as a module."""

import torch
from torch import Tensor, nn

from moela.nn.expert_layer import BLOCK, E4M3, run_experts
from moela.nn.gate import Gate, SwiGlu, gate_of
from moela.ops import _check

NAME = "moela.nn.Experts"
TENSORS = ("gate_up_proj", "up_proj", "down_proj")


class Experts(nn.Module):
    """`run_experts` with its weights, under the names of transformers' experts modules.

    Args:
        hidden, intermediate, num_experts: H, I and E.
        gate: a SwiGlu, or a function of [S, N1] that gives [S, I].
        is_gated: N1 = 2 * I and the first weight is called gate_up_proj; else N1 = I and it is up_proj.
        has_bias: whether both products have one.
        is_transposed: weights are [E, H, N1] and [E, I, H].
        post_norm: a module from [S, H] to [S, H], after the second product.
        sf_dtype: of the scale factors of FP8 weights: float32, bfloat16 or float8_e8m0fnu.
        quantize_activations: as in `run_experts`.
        device, dtype: of the parameters; float8_e4m3fn: FP8 weights with scale factors.

    The state dict has gate_up_proj (or up_proj) and down_proj; with FP8 each has a `_scale_inv`, with biases
    a `_bias`; a post_norm is in post_expert_norm. Float weights begin as those of nn.Linear do, FP8 ones
    as zero.
    """

    def __init__(
        self,
        hidden: int,
        intermediate: int,
        num_experts: int,
        *,
        gate: Gate = SwiGlu(),  # noqa: B008 (frozen)
        is_gated: bool = True,
        has_bias: bool = False,
        is_transposed: bool = False,
        post_norm: nn.Module | None = None,
        sf_dtype: torch.dtype = torch.float32,
        quantize_activations: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        is_swiglu = isinstance(gate, SwiGlu)
        _check.expect(is_gated or not is_swiglu, NAME, "gate", "a function because is_gated is False", gate)
        self._configure(gate, is_gated, is_transposed, post_norm, quantize_activations)
        H, I = hidden, intermediate
        # The gate's rows and up's begin with a scale block each.
        for name, parts, rows, K in ((self._first, 1 + is_gated, I, H), ("down_proj", 1, H, I)):
            N = parts * rows
            shape = (num_experts, K, N) if is_transposed else (num_experts, N, K)
            blocks = (num_experts, parts * -(-rows // BLOCK), -(-K // BLOCK))
            self._add(name, _weight(shape, K, device, dtype), blocks, sf_dtype)
            bias = torch.zeros((num_experts, N), device=device, dtype=dtype) if has_bias else None
            self.register_parameter(f"{name}_bias", None if bias is None else nn.Parameter(bias))

    def _configure(self, gate, is_gated, is_transposed, post_norm, quantize_activations) -> None:
        self.gate, self.is_gated, self.is_transposed = gate, is_gated, is_transposed
        self.post_expert_norm, self.quantize_activations = post_norm, quantize_activations
        self._first = "gate_up_proj" if is_gated else "up_proj"

    def _add(self, name: str, w: Tensor, blocks: tuple[int, int, int], sf_dtype: torch.dtype) -> None:
        is_fp8 = w.dtype == E4M3
        self.register_parameter(name, nn.Parameter(w, requires_grad=not is_fp8))
        sf = torch.ones(blocks, device=w.device).to(sf_dtype) if is_fp8 else None
        sf = None if sf is None else nn.Parameter(sf, requires_grad=False)
        self.register_parameter(f"{name}_scale_inv", sf)

    @classmethod
    def from_module(cls, module: nn.Module, *, quantize_activations: str | None = None) -> "Experts":
        """The same layer with the parameters of a transformers experts module, which it shares.

        The gate is a SwiGlu where that is what the module's own gate computes on a probe, else that gate.
        Raises ValueError for what it does not know.
        """
        is_gated = isinstance(getattr(module, "gate_up_proj", None), Tensor)
        first = "gate_up_proj" if is_gated else "up_proj"
        for name in (first, "down_proj"):
            w = getattr(module, name, None)
            ok = isinstance(w, Tensor) and w.dim() == 3
            _expect(ok, f"{name} of 3 dimensions", f"a {type(module).__name__} with {_shape(w)}")
        scheme = getattr(module, "activation_scheme", "dynamic")
        _expect(scheme == "dynamic", "activation_scheme dynamic", scheme)
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        norm = getattr(module, "post_expert_norm", None)
        self._configure(
            gate_of(module), is_gated, getattr(module, "is_transposed", False), norm, quantize_activations
        )
        for name in (first, "down_proj"):
            for suffix in ("", "_scale_inv", "_bias"):
                self.register_parameter(name + suffix, getattr(module, name + suffix, None))
        unknown = [n for n, _ in module.named_parameters() if n not in dict(self.named_parameters())]
        _expect(not unknown, "weights, scales and biases", f"{unknown[:1]} too")
        return self.train(module.training)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """[T, H], [T, topk] and [T, topk] -> [T, H]."""
        w13, sf_w13, b13 = (getattr(self, self._first + s) for s in ("", "_scale_inv", "_bias"))
        return run_experts(
            hidden_states,
            w13,
            self.down_proj,
            top_k_weights,
            top_k_index,
            sf_w13=sf_w13,
            sf_w2=self.down_proj_scale_inv,
            b13=b13,
            b2=self.down_proj_bias,
            gate=self.gate,
            is_transposed=self.is_transposed,
            post_norm=self.post_expert_norm,
            quantize_activations=self.quantize_activations,
        )

    @property
    def num_experts(self) -> int:
        return self.down_proj.size(0)

    def part(self, experts: range) -> "Experts":
        """The layer with copies of some of its experts: id 0 is the first of them."""
        part = type(self).__new__(type(self))
        nn.Module.__init__(part)
        part._configure(
            self.gate,
            self.is_gated,
            self.is_transposed,
            self.post_expert_norm,
            self.quantize_activations,
        )
        for name, p in self._parameters.items():
            mine = None if p is None else p.detach()[experts.start : experts.stop].clone()
            part.register_parameter(name, None if p is None else nn.Parameter(mine, p.requires_grad))
        return part.train(self.training)

    def extra_repr(self) -> str:
        w13 = getattr(self, self._first)
        return f"{self._first}={list(w13.shape)}, down_proj={list(self.down_proj.shape)}, gate={self.gate}"


def _weight(
    shape: tuple[int, int, int], K: int, device: torch.device | str | None, dtype: torch.dtype | None
) -> Tensor:
    """[E, N, K] or [E, K, N], uniform in +-K^-1/2; FP8: zero."""
    w = torch.zeros(shape, device=device, dtype=dtype)
    return w if dtype == E4M3 else w.uniform_(-(max(K, 1) ** -0.5), max(K, 1) ** -0.5)


def _shape(w: object) -> str:
    return f"one of shape {list(w.shape)}" if isinstance(w, Tensor) else "none"


def _expect(ok: bool, expected: str, got: object) -> None:
    _check.expect(ok, NAME, "module", expected, got)
