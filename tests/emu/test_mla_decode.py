"""The CUDA mla_decode, run on the host: within the bound of the op on every schedule, without a race.

The plan chooses the path: that of few rows up to 16, the plain loop from there to 127.
"""

from dataclasses import replace

import mla
import native
import pytest
import torch
from mla import FEW, PLAIN, Run, assert_same_bits, check
from moela import testing
from moela.ops import SPECS
from moela.ops.mla_decode import make_inputs

NAN, INF = float("nan"), float("inf")
BF16, F16 = torch.bfloat16, torch.float16


@pytest.mark.parametrize("schedule", native.SCHEDULES)
def test_is_right_under_every_schedule_of_threads(tmp_path, schedule):
    """Two tiles of rows, of which the second is not full; requests that are split and that are not."""
    check(Run(tmp_path, parts=4, schedule=schedule), make_inputs(B=3, H=33, S=200, s_q=2))


@pytest.mark.parametrize("seed", range(6))
def test_is_right_wherever_parts_end(tmp_path, seed):
    x = make_inputs(B=6, H=3, S=300, s_q=2, page_size=16, seed=seed)
    check(Run(tmp_path, parts=1 + 3 * seed, seed=seed, schedule=str(seed)), x)


@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("num_parts", [1, 7, 40])
def test_is_right_with_the_schedule_of_the_op(tmp_path, num_parts, batch_invariant):
    dims = {"B": 4, "H": 4, "S": 1000, "num_parts": num_parts, "batch_invariant": batch_invariant}
    check(Run(tmp_path), make_inputs(**dims))


@pytest.mark.parametrize("page_size", [1, 3, 16, 61, 64, 128, 576, None])
def test_pages_of_any_size_give_the_bits_of_a_dense_cache(tmp_path, page_size):
    dims = {"B": 3, "H": 5, "S": 150}
    run = Run(tmp_path)
    expected = run(make_inputs(**dims, page_size=None))
    assert_same_bits(run(make_inputs(**dims, page_size=page_size)), expected)


@pytest.mark.parametrize(("H", "s_q"), [(1, 1), (64, 1), (65, 1), (128, 1), (5, 14), (1, 9)])
def test_any_number_of_rows(tmp_path, H, s_q):
    check(Run(tmp_path), make_inputs(B=1, H=H, S=70, s_q=s_q))


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize(("L", "R"), [(512, 64), (512, 0), (256, 64)])
def test_any_dimensions_and_dtype(tmp_path, L, R, dtype):
    check(Run(tmp_path), make_inputs(B=2, H=16, S=100, s_q=2, L=L, R=R, x_dtype=dtype, cache_dtype=dtype))


def test_other_dimensions_are_refused(tmp_path):
    with pytest.raises(AssertionError, match=r"512 \+ 64, 512 \+ 0 and, without codes, 256 \+ 64"):
        Run(tmp_path)(make_inputs(B=1, H=1, S=4, L=128))


def test_without_causal_all_queries_see_everything(tmp_path):
    check(Run(tmp_path), make_inputs(B=2, H=5, S=130, s_q=3, causal=False))


def test_queries_that_are_not_evenly_spaced(tmp_path):
    """Heads of a query are, queries are further apart; boxes of 2 rows."""
    x = make_inputs(B=2, H=6, S=70, s_q=3)
    around = torch.full((2, 4, 8, 584), NAN, dtype=BF16)
    around[:, :3, 1:7, :576] = x["q"]
    run = Run(tmp_path)
    expected = run(x)
    assert_same_bits(run(x | {"q": around[:, :3, :6, :576].copy_(x["q"])}), expected)
    assert "boxes of 64 keys and 2 queries" in run.plan


def test_slots_and_pages_that_are_further_apart(tmp_path):
    x = make_inputs(B=2, H=2, S=70, page_size=16)
    P, page_size, D = x["cache"].shape
    around = torch.full((page_size, P, D + 8), NAN, dtype=BF16)
    cache = around.transpose(0, 1)[..., :D].copy_(x["cache"])
    run = Run(tmp_path)
    assert_same_bits(run(x | {"cache": cache}), run(x))


@pytest.mark.parametrize("page_size", [16, None])
def test_no_tokens_at_all(tmp_path, page_size):
    out, lse = Run(tmp_path)(make_inputs(B=2, H=3, S=0, page_size=page_size))
    assert not out.any()
    assert (lse == -INF).all()


def test_a_query_without_keys_is_zero_and_minus_infinity(tmp_path):
    """More queries than tokens: the first ones, a tile of them, see none."""
    x = make_inputs(B=3, H=13, S=2, s_q=6)
    out, lse = Run(tmp_path)(x)
    for b, n in enumerate(x["seqlens"].tolist()):
        assert not out[b, : 6 - n].any()
        assert (lse[b, : 6 - n] == -INF).all()
        assert lse[b, 6 - n :].isfinite().all()
    check(Run(tmp_path), x)


@pytest.mark.parametrize("path", [PLAIN, FEW])
@pytest.mark.parametrize("value", [NAN, INF])
def test_a_token_that_some_queries_do_not_see_may_be_nan(tmp_path, value, path):
    x = make_inputs(B=2, H=3, S=130, s_q=4, hostile=False)
    run = Run(tmp_path, path=path)
    expected = run(x)
    page, slot = x["block_table"][0, 128 // 64], 128 % 64  # the one but last: of queries 2 and 3
    x["cache"][page, slot] = value
    out, lse = run(x)
    for got, before in ((out, expected[0]), (lse, expected[1])):
        assert testing.same_bits(got[0, :2], before[0, :2])
        assert testing.same_bits(got[1], before[1])
        assert not got[0, 2:].isfinite().any()


def test_huge_scores_choose_one_key(tmp_path):
    x = make_inputs(B=1, H=2, S=150, page_size=None, hostile=False)
    out, _ = Run(tmp_path)(x | {"sm_scale": 1e12})
    best = (x["q"][0, 0].double() @ x["cache"][0].double().T).argmax(-1)
    assert torch.equal(out[0, 0], x["cache"][0, best][:, :512])


@pytest.mark.parametrize("sm_scale", [0.0, -0.5])
def test_a_scale_that_is_not_positive(tmp_path, sm_scale):
    check(Run(tmp_path), make_inputs(B=2, H=2, S=150) | {"sm_scale": sm_scale})


def test_a_stale_schedule_makes_nan_of_the_requests_that_it_was_not_made_for(tmp_path):
    x = make_inputs(B=4, H=2, S=200, hostile=False)
    lengths = [200, 130, 200, 200]  # of request 1 the schedule knows another length, and has several pieces
    run = Run(tmp_path)
    tables = [mla.cut(lengths, parts, rows=2, seed=None) for parts in (1, 5)]
    for table in tables:
        out, lse = run(x | {"schedule": table})
        assert out[1].isnan().all()
        assert lse[1].isnan().all()
        for b in (0, 2, 3):
            assert out[b].isfinite().all()
            assert lse[b].isfinite().all()
    assert [int(t[-1, 0]) > 4 for t in tables] == [False, True]


@pytest.mark.parametrize(
    "made_for", [{"rows": 3}, {"batch_invariant": True}, {"seqlens": [70]}, {"num_parts": 3}], ids=str
)
def test_a_schedule_for_another_batch_makes_nan_of_all(tmp_path, made_for):
    """Of the right shape: one request and part more or less make up for each other."""
    x = make_inputs(B=2, H=2, S=70, hostile=False)
    table = mla.cut(**({"seqlens": [70, 70], "num_parts": 4, "rows": 2, "seed": None} | made_for))
    table = torch.cat([table, torch.zeros(2 + 4 + 3 - len(table), 4, dtype=torch.int32)])
    out, lse = Run(tmp_path)(x | {"schedule": table})
    assert out.isnan().all()
    assert lse.isnan().all()


def test_a_schedule_of_more_pieces_than_there_is_memory_for_makes_nan_of_all(tmp_path):
    """One for a request longer than its pages hold, whose pieces push those of the next beyond the memory."""
    x = make_inputs(B=2, H=2, S=2200, hostile=False, batch_invariant=True)
    table = mla.cut([9000, 2200], 3, rows=2, seed=None, batch_invariant=True)
    out, lse = Run(tmp_path)(x | {"schedule": table})
    assert out.isnan().all()
    assert lse.isnan().all()


def test_a_batch_invariant_schedule_gives_bits_that_depend_on_the_request_only(tmp_path):
    """Cut at every 2048th key, whatever the parts and the other requests; not by the path of few rows."""
    x = make_inputs(B=3, H=2, S=2200, hostile=False, batch_invariant=True)
    x["seqlens"] = torch.tensor([2200, 64, 2049], dtype=torch.int32)
    run = Run(tmp_path)
    expected = run(x)
    for order, parts in (([2, 0, 1], 4), ([0], 2), ([2, 2], 3)):
        part = x | {n: x[n][order] for n in ("q", "block_table", "seqlens")}
        assert_same_bits(replace(run, parts=parts, seed=parts)(part), tuple(t[order] for t in expected))


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_the_same_launches_follow_the_lengths(tmp_path, batch_invariant):
    """As a CUDA graph replays them: what the host passes on depends on shapes only."""
    x = make_inputs(B=3, H=3, S=700, hostile=False, batch_invariant=batch_invariant)
    lengths = torch.tensor([[700, 1, 650], [0, 0, 0], [64, 700, 63], [5, 300, 700]], dtype=torch.int32)
    out, lse = Run(tmp_path, parts=5)(x | {"seqlens": lengths}, steps=4)
    for step in range(4):
        bound = SPECS["mla_decode"].bound(x | {"seqlens": lengths[step]}, testing.FLOAT32_SUM)
        for got, (exact, error) in zip((out[step], lse[step]), bound, strict=True):
            testing.assert_within(got, exact, error)


def test_where_a_request_is_cut_shows_in_the_bits(tmp_path):
    """Or the test above would show nothing."""
    x = make_inputs(B=1, H=2, S=500, hostile=False)
    one, two = (Run(tmp_path, parts=parts, seed=None, path=PLAIN)(x)[1] for parts in (1, 2))
    assert not torch.equal(one, two)


def test_a_request_may_have_more_pieces_than_a_warp_has_lanes(tmp_path):
    x = make_inputs(B=1, H=2, S=64 * 40, hostile=False)
    run = Run(tmp_path, parts=40, seed=None)
    check(run, x)
    assert mla.num_pieces(mla.cut([64 * 40], 40, rows=2, seed=None)) == 40


# --- planted faults --------------------------------------------------------------------------------------

# What is left out: the header that has it, the text, and what the emulator or the bound says of it.
FAULTS = {
    "keys are loaded when the last are read": (
        "mla_load",
        "    if (issues) mbarrier_wait(kv_empty<C>(at.stage), at.parity ^ 1);\n",
        "mbarrier: more arrivals",
    ),
    "queries are read when they have come": (
        "mla_loops",
        "      mbarrier_wait(q_full<C>(), q_parity);\n",
        "race: wgmma",
    ),
    "queries are given back": (
        "mla_loops",
        "      if (block + 1 == piece.end) arrive_warp(q_empty<C>());\n",
        "deadlock",
    ),
    "weights are written when the last are read": (
        "mla_loops",
        "      mbarrier_wait(p_empty<C>(), p_parity ^ 1);\n",
        "race: a shared store",
    ),
    "weights are published to the tensor core": (
        "mla_loops",
        "  fence_proxy_async_shared();\n",
        "proxy: wgmma",
    ),
    "all lanes are done when one says so": ("mla_params", "  sync_warp();\n", "(uninitialised|race)"),
    "sums follow the maximum": (
        "mla_loops",
        "      right.rescale(factor);\n",
        "out: .* out of bounds",
    ),
    "no row beyond the length is multiplied": (
        "mla_decode_work",
        "    clear_keys<C, C::kHalfPanels>(seen.all, half.values(stage));\n",
        "out: .* out of bounds, .* got nan",
    ),
    "keys are cleared when all have read them": (
        "mla_decode_work",
        "    half.sync();  // no warp overwrites keys that another still reads\n",
        "race: a shared store",
    ),
    "what comes before has ended": (
        "mla_decode_sm90",
        "  griddep_wait();  // the kernels before write q, the cache and the schedule\n",
        "griddepcontrol.wait",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_it_matters_that(tmp_path, fault):
    lines = [(f"cuda/mla_decode/{header}.cuh", text) for header, text, _ in FAULTS.values()]
    program = native.program_without_one_of(lines, list(FAULTS).index(fault), "tests/emu/mla_decode.cpp")
    with pytest.raises(AssertionError, match=FAULTS[fault][2]):
        check(Run(tmp_path, parts=2, program=program), make_inputs(B=3, H=33, S=300, s_q=2))
