"""moela.nn.MoE over ranks: the layer of one process, forward and backward."""

import copy

import pytest
import torch
from moela import nn, testing
from moela.ep import EpBuffer, run_local

H, I, TOPK = 16, 8, 3


def block(E: int, dtype: torch.dtype = torch.float32) -> nn.MoE:
    torch.manual_seed(0)
    gate = nn.TopkRouter(H, E, TOPK, scoring="sigmoid", renormalize=True, dtype=dtype)
    return nn.MoE(gate, nn.Experts(H, I, E, dtype=dtype), nn.GatedMlp(H, I, dtype=dtype))


def assert_close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    # Sums of some 50 float32 terms in another order, through three products: 2^9 units of the largest.
    error = torch.full_like(wanted, 2.0**-15, dtype=torch.float64) * wanted.abs().max().item()
    testing.assert_within(got.detach(), wanted.detach().double(), error)


def on_rank(group, whole: nn.MoE, E: int, T: list[int]):
    """-> out, gradients of x, gate, shared experts and this rank's experts."""
    settings = {"num_experts": E, "hidden": H, "topk": TOPK, "max_tokens": max(T), "deadline": 20.0}
    with EpBuffer(group, **settings) as buffer:
        mine = whole.experts.part(range(buffer.first_expert, buffer.first_expert + buffer.num_local_experts))
        layer = nn.MoE(
            copy.deepcopy(whole.gate), mine, copy.deepcopy(whole.shared_experts), ep_group=buffer.name
        )
        x = inputs(buffer.rank, T[buffer.rank])
        with torch.no_grad():
            inferred = layer(x)
        out = layer(x)
        (out * out.detach()).sum().backward()
        shared = torch.cat(
            [p.grad.flatten() for p in (*layer.gate.parameters(), *layer.shared_experts.parameters())]
        )
        experts = [p.grad for p in mine.parameters()]
        return inferred, out, x.grad, shared, experts


def inputs(rank: int, T: int) -> torch.Tensor:
    return torch.randn(T, H, generator=torch.Generator().manual_seed(rank + 1)).requires_grad_()


@pytest.mark.parametrize(("E", "T"), [(8, [5, 9]), (7, [4, 0, 6]), (3, [2, 3, 1, 5])])
def test_the_spread_block_is_the_block(E, T):
    whole = block(E)
    results = run_local(len(T), on_rank, whole, E, T)
    x = torch.cat([inputs(rank, n).detach() for rank, n in enumerate(T)]).requires_grad_()
    out = whole(x)
    (out * out.detach()).sum().backward()
    assert_close(torch.cat([r[0] for r in results]), out)
    assert_close(torch.cat([r[1] for r in results]), out)
    assert_close(torch.cat([r[2] for r in results]), x.grad)
    parameters = (*whole.gate.parameters(), *whole.shared_experts.parameters())
    assert_close(sum(r[3] for r in results), torch.cat([p.grad.flatten() for p in parameters]))
    for i, p in enumerate(whole.experts.parameters()):
        assert_close(torch.cat([r[4][i] for r in results if r[4][i] is not None]), p.grad)


def test_a_block_of_transformers_keeps_the_experts_of_its_rank():
    modeling = pytest.importorskip("transformers.models.qwen3_moe.modeling_qwen3_moe")
    sizes = {"hidden_size": H, "moe_intermediate_size": I, "num_experts": 8, "num_experts_per_tok": TOPK}
    torch.manual_seed(0)
    theirs = modeling.Qwen3MoeSparseMoeBlock(modeling.Qwen3MoeConfig(**sizes))
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.2)
    x = torch.randn(3, 4, H)

    def on_rank(group):
        with EpBuffer(group, num_experts=8, hidden=H, topk=TOPK, max_tokens=4) as buffer, torch.no_grad():
            ours = nn.MoE.from_module(theirs, ep_group=buffer.name)
            assert ours.experts.num_experts == buffer.num_local_experts
            return ours(x[buffer.rank])

    with torch.no_grad():
        assert_close(torch.stack(run_local(3, on_rank)), nn.MoE.from_module(theirs)(x))


def test_experts_of_another_number_than_the_ranks_are_refused():
    message = r"moela\.nn\.MoE: experts: expected the 4 of this rank, of 8, got 8"

    def on_rank(group):
        with EpBuffer(group, num_experts=8, hidden=H, topk=TOPK, max_tokens=4) as buffer:
            whole = block(8)
            with pytest.raises(ValueError, match=message):
                nn.MoE(whole.gate, whole.experts, ep_group=buffer.name)

    run_local(2, on_rank)
