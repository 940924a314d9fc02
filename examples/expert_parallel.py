"""Train a block whose experts are spread over processes, on a laptop or on a cluster:

    torchrun --nproc-per-node 2 examples/expert_parallel.py

Where there are GPUs, each process has one, and NCCL. Each process has its own tokens, the whole gate and
shared experts, and a part of the experts. Gradients of what all processes have are averaged; those of the
experts are complete where the experts are.
"""

import torch
import torch.distributed as dist
from moela import nn
from moela.ep import EpBuffer

HIDDEN, INTERMEDIATE, NUM_EXPERTS, TOPK, TOKENS = 64, 32, 8, 2, 16


def train(steps: int, device: str = "cpu") -> list[float]:
    """-> the loss before each step, averaged over the processes."""
    torch.manual_seed(0)  # the same gate and shared experts everywhere
    gate = nn.TopkRouter(HIDDEN, NUM_EXPERTS, TOPK, scoring="softmax", renormalize=True)
    shared = nn.GatedMlp(HIDDEN, INTERMEDIATE)
    losses = []
    with EpBuffer(num_experts=NUM_EXPERTS, hidden=HIDDEN, topk=TOPK, max_tokens=TOKENS) as buffer:
        torch.manual_seed(1 + buffer.rank)  # experts and tokens of its own
        experts = nn.Experts(HIDDEN, INTERMEDIATE, buffer.num_local_experts)
        block = nn.MoE(gate, experts, shared, ep_group=buffer.name).to(device)
        optimizer = torch.optim.Adam(block.parameters(), lr=1e-2)
        x, wanted = torch.randn(2, TOKENS, HIDDEN).to(device)
        for _ in range(steps):
            loss = torch.nn.functional.mse_loss(block(x), wanted)
            optimizer.zero_grad()
            loss.backward()
            for p in (*gate.parameters(), *shared.parameters()):
                dist.all_reduce(p.grad)
                p.grad /= buffer.num_ranks
            for p in experts.parameters():
                p.grad /= buffer.num_ranks  # of the mean over all tokens, as the others are
            optimizer.step()
            dist.all_reduce(total := loss.detach())
            losses.append(total.item() / buffer.num_ranks)
        if buffer.rank == 0:
            print(f"{buffer}: loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    device = "cpu"
    if torch.cuda.is_available():
        torch.cuda.set_device(dist.get_node_local_rank())
        device = "cuda"
    dist.init_process_group("gloo" if device == "cpu" else "nccl")
    train(steps=100, device=device)
    dist.destroy_process_group()
