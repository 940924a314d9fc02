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
    assert p.tiles * 64 >= s_q * H > (p.tiles - 1) * 64
    assert p.num_parts >= 1
    assert p.tiles * p.num_parts <= max(num_sms, p.tiles) < p.tiles * (p.num_parts + 1)


@pytest.mark.parametrize(
    ("dims", "path"),
    [
        ({"s_q": 1, "H": 127}, "plain"),
        ({"s_q": 1, "H": 128}, "seesaw"),
        ({"s_q": 2, "H": 64}, "seesaw"),
        ({"s_q": 2, "H": 128, "has_rope": False}, "plain"),
        ({"s_q": 300, "H": 64, "is_ragged": True}, "plain"),
        ({"s_q": 300, "H": 128, "is_ragged": True}, "seesaw"),
        ({"s_q": 2, "H": 128, "has_bytes": True}, "bytes"),
    ],
    ids=str,
)
def test_many_rows_take_the_seesaw_and_bytes_are_gathered(dims, path):
    assert repr(plan(**dims)).startswith(f"<{path}: ")


@pytest.mark.parametrize(("page_size", "box"), [(1, 1), (3, 1), (16, 16), (48, 16), (64, 64), (576, 64)])
def test_a_box_never_reaches_from_one_page_into_another(page_size, box):
    assert plan(1, 16, page_size=page_size).key_box == box
    assert plan(1, 16, page_size=page_size, is_paged=False).key_box == 64


@pytest.mark.parametrize(("H", "box"), [(1, 1), (3, 1), (16, 16), (96, 32), (128, 64)])
def test_a_box_never_reaches_from_one_query_into_another_unless_they_are_evenly_spaced(H, box):
    assert plan(3, H, has_packed_rows=False).query_box == box
    assert plan(3, H).query_box == 64


@pytest.mark.parametrize("H", [1, 9, 64, 128])
@pytest.mark.parametrize("tokens", [[1], [0, 0, 300], [7, 0, 1, 64, 65], [1] * 90])
def test_a_ragged_batch_has_items_for_all_tiles(tokens, H):
    p = plan(sum(tokens), H, B=len(tokens), is_ragged=True)
    assert (p.item_rows, p.tiles, p.num_parts) == (64, 1, 132)
    needed = sum(-(-n * H // 64) for n in tokens)
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
    text = "<seesaw: 1 x 128 rows, 2 tiles x 66 parts of keys, boxes of 16 keys and 64 queries>"
    assert repr(plan(1, 128, page_size=16)) == text
