"""indexer_topk: which columns, in which order, and where their tokens lie."""

from typing import Any

import moela
import pytest
import torch
from moela import testing
from torch import Tensor

NAN, INF = float("nan"), float("inf")


def chosen(run: Any, rows: list[list[float]], topk: int, **options: Any) -> list[list[int]]:
    options = {name: t.to(run.device) if isinstance(t, Tensor) else t for name, t in options.items()}
    (indices,) = run({"logits": torch.tensor(rows, device=run.device), "topk": topk} | options)
    return indices.tolist()


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def test_gives_the_columns_of_the_largest_in_ascending_order(run):
    assert chosen(run, [[1.0, 5.0, -2.0, 7.0, 3.0]], 3) == [[1, 3, 4]]


def test_of_equal_ones_the_first_are_taken(run):
    assert chosen(run, [[2.0, 1.0, 2.0, 2.0, 3.0]], 3) == [[0, 2, 4]]
    assert chosen(run, [[0.0, -0.0, 0.0, -0.0]], 2) == [[0, 1]]
    assert chosen(run, [[-0.0, 0.0, -0.0, 1.0]], 2) == [[0, 3]]


def test_minus_infinity_is_never_chosen_and_the_rest_is_minus_one(run):
    assert chosen(run, [[-INF, 1.0, -INF, -3e38, 0.0]], 4) == [[1, 3, 4, -1]]
    assert chosen(run, [[-INF, -INF]], 1) == [[-1]]


def test_nan_is_larger_than_everything(run):
    """Of either sign: it is to be seen, not dropped."""
    negative = torch.tensor([-1], dtype=torch.int32).view(torch.float32).item()
    assert chosen(run, [[INF, NAN, 3.0, negative, 1e38]], 2) == [[1, 3]]
    assert chosen(run, [[INF, NAN, 3.0, NAN, 1e38]], 3) == [[0, 1, 3]]
    assert chosen(run, [[NAN, NAN, NAN, 1.0]], 2) == [[0, 1]]


def test_more_than_there_are_gives_all(run):
    assert chosen(run, [[4.0, 1.0, 2.0]], 5) == [[0, 1, 2, -1, -1]]


def test_chooses_from_ks_up_to_ke_and_reads_nothing_else(run):
    """NaN outside, which would win."""
    rows = [[NAN, 1.0, 2.0, NAN], [0.0, 1.0, 2.0, NAN], [NAN] * 4, [NAN] * 4]
    ranges = {"ks": int32(1, 0, 2, 3), "ke": int32(3, 3, 2, -1)}
    assert chosen(run, rows, 2, **ranges) == [[1, 2], [1, 2], [-1, -1], [-1, -1]]
    assert chosen(run, rows[:2], 1, ke=int32(0, 2)) == [[-1], [1]]
    assert chosen(run, rows[:1], 1, ks=int32(1), ke=int32(2)) == [[1]]


def test_a_page_may_be_as_large_as_a_number_is(run):
    table = torch.zeros(1, 4, dtype=torch.int32)
    assert chosen(run, [[3.0, 1.0, 2.0]], 2, block_table=table, page_size=2**62) == [[0, 2]]


def test_slots_are_those_of_the_tokens_of_the_row_s_request(run):
    """Token s - ks, in pages of two; the second row belongs to request 0 too, the last one to none."""
    table = torch.tensor([[7, 0], [5, 3]], dtype=torch.int32)
    rows = [[9.0, 1.0, 3.0, 2.0]] * 4
    options = {"block_table": table, "page_size": 2, "ke": int32(4, 4, 3, 4)}
    got = chosen(run, rows, 2, **options, ks=int32(0, 1, 1, 0), request_ids=int32(1, 0, 0, -1))
    assert got == [[10, 6], [15, 0], [14, 15], [-1, -1]]


def test_without_request_ids_a_row_belongs_to_its_first_index(run):
    table = torch.tensor([[7], [4]], dtype=torch.int32)
    logits = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]], device=run.device)
    (got,) = run({"logits": logits, "topk": 1, "block_table": table.to(run.device), "page_size": 2})
    assert got.flatten().tolist() == [14, 15, 9, 8]


def test_pages_beyond_what_is_chosen_may_be_garbage(run):
    table = torch.tensor([[3, 2147480000]], dtype=torch.int32)
    assert chosen(run, [[0.0, 1.0, -INF, -INF]], 4, block_table=table, page_size=2) == [[6, 7, -1, -1]]


def kinds_of_rows(S: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(S)
    x = torch.randn(S, generator=g)
    return {
        "random": x,
        "ascending": x.sort().values,
        "descending": x.sort(descending=True).values,
        "equal": torch.zeros(S),
        "few values": (x * 2).round(),
        "one exponent": 1 + x.abs() * 2**-20,
        "one run": torch.where((torch.arange(S) // 97) % 7 == 3, x.abs() + 10, x),
        "mostly unseen": torch.where(x > 1.5, x, -INF),
        "tiny": x * 1e-41,
        "any bits": torch.randint(-(2**31), 2**31, (S,), generator=g).int().view(torch.float32),
    }


@pytest.mark.parametrize(("S", "topk"), [(100, 7), (1000, 64), (1000, 999), (5000, 64), (20000, 300)])
def test_is_what_a_stable_sort_gives(run, S, topk):
    """Rows of every kind, among them those that a bound from maxima helps nothing with."""
    if run.is_slow and S > 1000:
        S, topk = 1500, 40
    for kind, row in kinds_of_rows(S).items():
        order = row.sort(descending=True, stable=True).indices[:topk]
        order = order[row[order] != -INF].sort().values
        (got,) = run({"logits": row[None].to(run.device), "topk": topk})
        got = got[0].cpu()
        assert torch.equal(got[: len(order)].long(), order), kind
        assert (got[len(order) :] == -1).all(), kind


def test_a_prefill_from_logits_to_slots(run):
    """Two requests behind each other, as in a chunk of prefill; both ops together."""
    spec = moela.ops.SPECS["indexer_logits"]
    x = spec.make_inputs(T=5, S=12, H=3, D=32, hostile=False, device=run.device)
    x |= {"ks": int32(0, 0, 5, 5, 5).to(run.device), "ke": int32(4, 5, 10, 11, 12).to(run.device)}
    table = torch.tensor([[8, 2], [6, 1]], dtype=torch.int32, device=run.device)
    with moela.use_backend(run.backend):
        logits = moela.indexer_logits(**x)
    options = {"block_table": table, "page_size": 4, "request_ids": int32(0, 0, 1, 1, 1).to(run.device)}
    (slots,) = run({"logits": logits, "topk": 6, "ks": x["ks"], "ke": x["ke"]} | options)
    assert slots[:2].tolist() == [[32, 33, 34, 35, -1, -1], [32, 33, 34, 35, 8, -1]]
    assert slots[2].tolist() == [24, 25, 26, 27, 4, -1]
    assert slots[3].tolist() == [24, 25, 26, 27, 4, 5]
    worst = logits[4, 5:].argmin().item()
    assert slots[4].tolist() == [s for i, s in enumerate([24, 25, 26, 27, 4, 5, 6]) if i != worst]


def test_the_result_is_aligned_and_dense_whatever_the_strides_of_logits(run):
    x = run.inputs(T=3, S=40, topk=5, s_q=2)
    wide = torch.full((2, 3, 55), NAN, device=run.device)
    wide[:, :, 7:47] = x["logits"].transpose(0, 1)
    assert testing.same_bits(run(x | {"logits": wide[:, :, 7:47].transpose(0, 1)})[0], run(x)[0])
