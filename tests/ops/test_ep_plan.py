"""ep_plan: the order of the rows, and that a rank gets a token once."""

from typing import Any

import pytest
import torch

I32, I64 = torch.int32, torch.int64


def plan(run: Any, ids: Any, num_experts: int, num_ranks: int) -> list[list]:
    args = {
        "topk_ids": torch.as_tensor(ids).to(run.device),
        "num_experts": num_experts,
        "num_ranks": num_ranks,
    }
    return [t.cpu().tolist() for t in run(args)]


def brute_force(ids: list[list[int]], num_experts: int, num_ranks: int) -> list[list]:
    """By a sort of tuples; the owners are what torch.tensor_split says."""
    parts = torch.arange(num_experts).tensor_split(num_ranks)
    owner = {e: rank for rank, part in enumerate(parts) for e in part.tolist()}
    rows = sorted({(owner[e], t) for t, row in enumerate(ids) for e in row if e in owner})
    slots = [[rows.index((owner[e], t)) if e in owner else -1 for e in row] for t, row in enumerate(ids)]
    size = len(ids) * min(len(ids[0]), num_ranks)
    counts = [sum(rank == r for rank, _ in rows) for r in range(num_ranks)]
    return [[t for _, t in rows] + [-1] * (size - len(rows)), counts, slots]


def test_the_example_of_the_documentation(run):
    ids = [[0, 3, 1], [2, 9, 3], [4, 4, -1]]  # rank 0 has experts 0, 1 and 2, rank 1 has 3 and 4
    assert plan(run, torch.tensor(ids), 5, 2) == [
        [0, 1, 0, 1, 2, -1],
        [2, 3],
        [[0, 2, 0], [1, -1, 3], [4, 4, -1]],
    ]


@pytest.mark.parametrize("ids_dtype", [I32, I64], ids=str)
@pytest.mark.parametrize(
    ("T", "topk", "num_experts", "num_ranks"),
    [(1, 1, 1, 1), (40, 8, 256, 8), (130, 3, 7, 3), (20, 5, 3, 8), (300, 2, 600, 70)],
)
def test_rows_are_sorted_by_rank_then_token(run, T, topk, num_experts, num_ranks, ids_dtype):
    ids = run.inputs(T=T, topk=topk, num_experts=num_experts, num_ranks=num_ranks, ids_dtype=ids_dtype)[
        "topk_ids"
    ]
    assert plan(run, ids, num_experts, num_ranks) == brute_force(ids.tolist(), num_experts, num_ranks)


def test_all_tokens_may_go_to_one_rank_or_nowhere(run):
    for expert in (0, 5, 6, -1):
        ids = torch.full((30, 9), expert, dtype=I32)
        assert plan(run, ids, 6, 4) == brute_force(ids.tolist(), 6, 4)
