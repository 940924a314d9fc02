"""Expert parallelism inside FSDP2: four processes, two copies of the experts, each spread over two of them.

    torchrun --nproc-per-node 4 examples/expert_parallel_fsdp.py

The mesh has two dimensions. Along "experts" a process has a part of the experts, and tokens travel. Along
"data" are those with the same part, which FSDP shards among them. What every process has, gate and shared
experts, it shards among all. Where there are GPUs, each process has one, and NCCL.
"""

import torch
import torch.distributed as dist
from moela import nn
from moela.ep import EpBuffer
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

HIDDEN, INTERMEDIATE, NUM_EXPERTS, TOPK, TOKENS = 64, 32, 8, 2, 16


def shard(block: nn.MoE, mesh: DeviceMesh) -> None:
    fully_shard(block.experts, mesh=mesh["data"])
    # Each copy has the gradients of all the tokens that came to it: of the mean over all processes they are
    # the sum over the copies, divided by the processes. Gloo sums first and divides then.
    block.experts.set_gradient_divide_factor(mesh.size())
    block.experts.set_force_sum_reduction_for_comms(True)
    fully_shard(block, mesh=mesh["data", "experts"]._flatten())


def train(steps: int, device: str = "cpu") -> dict[str, torch.Tensor]:
    """-> the parameters, whole but for those of other processes' experts."""
    mesh = init_device_mesh(device, (dist.get_world_size() // 2, 2), mesh_dim_names=("data", "experts"))
    settings = {"num_experts": NUM_EXPERTS, "hidden": HIDDEN, "topk": TOPK, "max_tokens": TOKENS}
    with EpBuffer(mesh.get_group("experts"), **settings) as buffer:
        whole = new_block()
        mine = range(buffer.first_expert, buffer.first_expert + buffer.num_local_experts)
        block = nn.MoE(whole.gate, whole.experts.part(mine), whole.shared_experts, ep_group=buffer.name)
        block.to(device)
        shard(block, mesh)
        optimizer = torch.optim.SGD(block.parameters(), lr=1.0)
        x, wanted = tokens(dist.get_rank()).to(device)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(block(x), wanted)
            loss.backward()
            optimizer.step()
        print(f"rank {dist.get_rank()}: {buffer}: loss {loss:.3f}")
        return {name: p.full_tensor() for name, p in block.named_parameters()}


def new_block() -> nn.MoE:
    torch.manual_seed(0)  # the same on all
    gate = nn.TopkRouter(HIDDEN, NUM_EXPERTS, TOPK, scoring="softmax", renormalize=True)
    return nn.MoE(gate, nn.Experts(HIDDEN, INTERMEDIATE, NUM_EXPERTS), nn.GatedMlp(HIDDEN, INTERMEDIATE))


def tokens(rank: int) -> torch.Tensor:
    """[2, TOKENS, HIDDEN]: those of a process, and what the block is to make of them."""
    return torch.randn(2, TOKENS, HIDDEN, generator=torch.Generator().manual_seed(rank))


if __name__ == "__main__":
    device = "cpu"
    if torch.cuda.is_available():
        torch.cuda.set_device(dist.get_node_local_rank())
        device = "cuda"
    dist.init_process_group("gloo" if device == "cpu" else "nccl")
    train(steps=50, device=device)
    dist.destroy_process_group()
