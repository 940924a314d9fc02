"""A whole mixture-of-experts block as a module."""

from typing import Any

import torch
from torch import Tensor, nn

from moela.ep import buffer_of, expert_range
from moela.nn._twin import Stub, tried_out, twin_of
from moela.nn.experts import Experts
from moela.nn.gated_mlp import GatedMlp
from moela.nn.topk_router import TopkRouter
from moela.ops import _check, ep_combine, ep_dispatch, ep_dispatch_dynamic

NAME = "moela.nn.MoE"
ROUTERS, SHARED = ("gate", "router"), ("shared_experts", "shared_expert")


class MoE(nn.Module):
    """``out = experts(x, *gate(x)) + shared_experts(x)``, the latter times sigmoid(shared_expert_gate(x)).

    Args:
        gate: from [T, H] to (logits, topk_weights, topk_ids): a TopkRouter.
        experts: from [T, H], ids and weights to [T, H]: an Experts.
        shared_experts: from [..., H] to [..., H], for every token; None: there are none.
        shared_expert_gate: from [..., H] to [..., 1].
        ep_group: the name of an EpBuffer: `experts` are those of this rank, and tokens travel to the rank of
            their experts. Every rank of the group runs the block, forward and backward, with tokens of its
            own and the same gate and shared experts; gradients of these are not summed over ranks. None:
            `experts` are all.

    The state dict has gate.*, experts.* and shared_experts.*: that of transformers' DeepseekV3MoE and all
    blocks that are built like it. Where theirs says router or shared_expert, so does `from_module`.
    """

    def __init__(
        self,
        gate: nn.Module,
        experts: nn.Module,
        shared_experts: nn.Module | None = None,
        shared_expert_gate: nn.Module | None = None,
        *,
        ep_group: str | None = None,
    ) -> None:
        super().__init__()
        self.gate, self.experts = gate, experts
        self.shared_experts, self.shared_expert_gate = shared_experts, shared_expert_gate
        self._names = ("gate", "shared_experts")
        self._spread(ep_group)

    def _spread(self, ep_group: str | None) -> None:
        self.ep_group, self._has_experts = ep_group, True
        if ep_group is not None:
            buffer = buffer_of(ep_group, NAME)
            mine, E = buffer.num_local_experts, buffer.num_experts
            self._has_experts = mine > 0
            got = self.experts.num_experts if isinstance(self.experts, Experts) else mine
            _check.expect(got == mine, NAME, "experts", f"the {mine} of this rank, of {E}", got)

    @classmethod
    def from_module(
        cls, block: nn.Module, *, quantize_activations: str | None = None, ep_group: str | None = None
    ) -> "MoE":
        """The same block with the parameters of a transformers block, which it shares. With an ep_group: with
        a copy of those of this rank's experts.

        Its parts are recognised one by one; that the block does with them what this class does is tried out,
        on stand-ins. Raises ValueError for what is not known. State dict names stay, but for a bias of the
        choice that the block held: it is the router's now.
        """
        router_name = next((n for n in ROUTERS if isinstance(getattr(block, n, None), nn.Module)), None)
        _expect(router_name is not None, "a gate or a router", f"a {type(block).__name__} without")
        experts = getattr(block, "experts", None)
        _expect(isinstance(experts, nn.Module), "experts", f"a {type(block).__name__} without")
        shared_name = next((n for n in SHARED if isinstance(getattr(block, n, None), nn.Module)), None)
        known = {router_name, "experts", shared_name, "shared_expert_gate"}
        unknown = [n for n, _ in block.named_children() if n not in known]
        _expect(not unknown, "gate, experts and shared experts", f"{unknown[:1]} too")
        noise = [n for n, v in vars(block).items() if ("jitter" in n or "noise" in n) and v]
        _expect(not noise, "one that adds no noise in training", noise[:1])
        options = {"quantize_activations": quantize_activations}
        shared = getattr(block, shared_name) if shared_name else None
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self._names = (router_name, shared_name or "shared_experts")
        self.add_module(router_name, TopkRouter.from_module(getattr(block, router_name), block))
        self.experts = Experts.from_module(experts, **options)
        self.add_module(self._names[1], None if shared is None else GatedMlp.from_module(shared, **options))
        self.shared_expert_gate = getattr(block, "shared_expert_gate", None)
        self._spread(None)
        _expect(_is_same_sum(self, block), "the sum of experts and shared experts", "something else")
        if ep_group is not None:
            buffer = buffer_of(ep_group, NAME)
            num_experts, wanted = self.experts.num_experts, f"as many as the EpBuffer's {buffer.num_experts}"
            _check.expect(num_experts == buffer.num_experts, NAME, "experts", wanted, num_experts)
            self.experts = self.experts.part(expert_range(num_experts, buffer.num_ranks, buffer.rank))
            self._spread(ep_group)
        return self.train(block.training)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., H] -> [..., H]."""
        router, shared = (getattr(self, name) for name in self._names)
        _, topk_weights, topk_ids = router(hidden)
        x = hidden.reshape(-1, hidden.size(-1))  # [T, H]
        out = self._routed(x, topk_weights, topk_ids).view(hidden.shape)
        if shared is None:
            return out
        y = shared(hidden)
        if self.shared_expert_gate is not None:
            y = torch.sigmoid(self.shared_expert_gate(hidden)) * y
        return out + y

    def _routed(self, x: Tensor, topk_weights: Tensor, topk_ids: Tensor) -> Tensor:
        """[T, H] -> [T, H]."""
        group = self.ep_group
        if group is None:
            return self.experts(x, topk_ids, topk_weights)
        # Sizes are worth a wait where memory is kept for backward; compiled experts want to know them.
        is_exact = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        dispatch = ep_dispatch_dynamic if is_exact else ep_dispatch
        came = dispatch(x.contiguous(), topk_ids.contiguous(), topk_weights.float().contiguous(), group=group)
        # A rank without experts is part of every exchange too, also of those of backward.
        y = self.experts(came.x, came.topk_ids, came.topk_weights) if self._has_experts else came.x * 0
        return ep_combine(y.contiguous(), came.handle, group=group)


def _is_same_sum(mine: MoE, block: nn.Module) -> bool:
    """Whether both combine alike: routers with the same random tensors, and stand-ins for the rest."""
    router_name, shared_name = mine._names
    g = torch.Generator().manual_seed(0)
    E, H = getattr(mine, router_name).weight.shape
    weight = torch.randn(E, H, generator=g) * H**-0.5
    bias = torch.rand(E, generator=g) * 0.5
    x = torch.randn(1, 32, H, generator=g)

    def tensor(name: str, t: Tensor) -> Tensor:
        if t.numel() == E:
            return bias.view(t.shape)
        return weight[: t.size(0)] if t.dim() == 2 else torch.zeros(t.shape)

    def experts(hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        return hidden * (weights * (ids + 1)).sum(-1, keepdim=True) / E

    def child(name: str) -> nn.Module | None:
        return {"experts": Stub(experts), shared_name: Stub(lambda hidden: hidden * 0.25)}.get(name)

    wanted, got = (tried_out(lambda m=m: twin_of(m, tensor, child)(x)) for m in (block, mine))
    if not all(isinstance(t, Tensor) and t.shape == x.shape for t in (wanted, got)):
        return False
    # Multiples of x by positive sums: nothing cancels, each of some 100 roundings counts once.
    return bool(((wanted - got).abs() <= 2.0**-14 * wanted.abs()).all())


def _expect(ok: bool, expected: str, got: Any) -> None:
    _check.expect(ok, NAME, "block", expected, got)
