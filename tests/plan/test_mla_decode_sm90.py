"""The plan of mla_decode on Hopper: rows are covered, multiprocessors busy, and any schedule has memory."""

import pytest
import torch
from moela.reference import mla_schedule

_plan = pytest.importorskip("moela._plan", reason="moela._plan was not built for this Python")
plan, pieces = _plan.plan_mla_decode_sm90, _plan.mla_decode_sm90_pieces


@pytest.mark.parametrize(("s_q", "H"), [(1, 1), (1, 16), (1, 64), (1, 65), (1, 128), (2, 128), (70, 3)])
@pytest.mark.parametrize("num_sms", [1, 78, 132])
def test_rows_are_covered_and_the_machine_is_filled(s_q, H, num_sms):
    p = plan(s_q, H, num_sms=num_sms)
    assert p.tile_rows == (16 if s_q * H <= 16 else 64)
    assert p.tiles * p.tile_rows >= s_q * H > (p.tiles - 1) * p.tile_rows
    assert p.num_parts >= 1
    assert p.tiles * p.num_parts <= max(num_sms, p.tiles) < p.tiles * (p.num_parts + 1)


@pytest.mark.parametrize(
    ("dims", "path"),
    [
        ({"s_q": 1, "H": 16}, "few"),
        ({"s_q": 2, "H": 8, "has_bytes": True}, "few"),
        ({"s_q": 1, "H": 17}, "plain"),
        ({"s_q": 3, "H": 6, "has_bytes": True}, "bytes"),
        ({"s_q": 1, "H": 127}, "plain"),
        ({"s_q": 1, "H": 128}, "seesaw"),
        ({"s_q": 2, "H": 64}, "seesaw"),
        ({"s_q": 2, "H": 128, "has_rope": False}, "plain"),
        ({"s_q": 300, "H": 64, "is_ragged": True}, "plain"),
        ({"s_q": 300, "H": 16, "B": 300, "is_ragged": True}, "few"),
        ({"s_q": 301, "H": 16, "B": 300, "is_ragged": True}, "plain"),
        ({"s_q": 300, "H": 128, "is_ragged": True}, "seesaw"),
        ({"s_q": 2, "H": 128, "has_bytes": True}, "bytes"),
    ],
    ids=str,
)
def test_few_and_many_rows_have_paths_of_their_own_and_bytes_are_gathered(dims, path):
    assert repr(plan(**dims)).startswith(f"<{path}: ")


def test_batch_invariant_bits_do_not_depend_on_the_number_of_tokens():
    """Of a request, and of all: sums of the path of few rows have another order."""
    for dims in ({"s_q": 1, "H": 16}, {"s_q": 4, "H": 1, "B": 4, "is_ragged": True}):
        assert not repr(plan(**dims, batch_invariant=True)).startswith("<few")


@pytest.mark.parametrize(("page_size", "box"), [(1, 1), (3, 1), (16, 16), (48, 16), (64, 64), (576, 64)])
def test_a_box_never_reaches_from_one_page_into_another(page_size, box):
    assert plan(1, 16, page_size=page_size).key_box == box
    assert plan(1, 16, page_size=page_size, is_paged=False).key_box == 64


@pytest.mark.parametrize(("H", "box"), [(1, 1), (3, 1), (16, 16), (96, 32), (128, 64)])
def test_a_box_never_reaches_from_one_query_into_another_unless_they_are_evenly_spaced(H, box):
    assert plan(24, H, has_packed_rows=False).query_box == box
    assert plan(24, H).query_box == 64
    assert plan(1, H, has_packed_rows=False).query_box == box


@pytest.mark.parametrize("H", [1, 9, 64, 128])
@pytest.mark.parametrize("tokens", [[1], [0, 0, 300], [7, 0, 1, 64, 65], [1] * 90])
def test_a_ragged_batch_has_items_for_all_tiles(tokens, H):
    p = plan(sum(tokens), H, B=len(tokens), is_ragged=True)
    assert p.item_rows == p.tile_rows == (16 if sum(tokens) * H <= 16 * len(tokens) else 64)
    assert (p.tiles, p.num_parts) == (1, 132)
    needed = sum(-(-n * H // p.tile_rows) for n in tokens)
    assert needed <= p.items <= needed + len(tokens)
    assert (plan(2, H, B=5).items, plan(2, H, B=5).item_rows) == (5, 2 * H)


@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_there_is_memory_for_every_piece(seed, batch_invariant):
    g = torch.Generator().manual_seed(seed)
    B, capacity, num_parts = (int(torch.randint(1, most, (1,), generator=g)) for most in (40, 9000, 140))
    seqlens = torch.randint(0, capacity + 1, (B,), generator=g).int()
    seqlens[-1] = capacity
    schedule = mla_schedule(seqlens, rows=16, num_parts=num_parts, batch_invariant=batch_invariant)
    assert schedule[-1, 0] <= pieces(B, capacity, num_parts, batch_invariant)


def test_prints_what_will_run():
    text = "<seesaw: 1 x 128 rows, 2 tiles of 64 x 66 parts of keys, boxes of 16 keys and 64 queries>"
    assert repr(plan(1, 128, page_size=16)) == text
