"""Which rank has which expert: contiguous ranges, as torch.tensor_split cuts them."""


def expert_range(num_experts: int, num_ranks: int, rank: int) -> range:
    """The experts of a rank: the first num_experts % num_ranks ranks have one more than the others."""
    size, rest = divmod(num_experts, num_ranks)
    first = rank * size + min(rank, rest)
    return range(first, first + size + (rank < rest))
