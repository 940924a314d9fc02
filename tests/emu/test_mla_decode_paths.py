"""The other paths of the CUDA mla_decode: the seesaw, ragged batches, caches of bytes, few rows."""

from dataclasses import replace

import native
import pytest
import torch
from mla import BYTES, FEW, PLAIN, SEESAW, Run, assert_same_bits, check
from moela import testing
from moela.ops import SPECS
from moela.ops.mla_decode import make_inputs
from moela.reference._mla_cache import decode

NAN, INF = float("nan"), float("inf")
BF16, F16 = torch.bfloat16, torch.float16

# --- both warpgroups with scores of their own ------------------------------------------------------------


@pytest.mark.parametrize("schedule", native.SCHEDULES)
def test_the_seesaw_has_the_bits_of_the_plain_loop(tmp_path, schedule):
    """Pieces of any number of blocks that begin on either stage; keys that some rows do not see."""
    x = make_inputs(B=4, H=43, S=300, s_q=3, page_size=16)
    run = Run(tmp_path, parts=3, schedule=schedule)
    assert_same_bits(run(x), replace(run, path=PLAIN)(x))
    assert run.plan.startswith("seesaw")
    if schedule == "lazy":
        check(run, x)


@pytest.mark.parametrize(("L", "dtype"), [(512, F16), (256, BF16)], ids=str)
def test_the_seesaw_for_other_dimensions_and_a_ragged_batch(tmp_path, L, dtype):
    x = make_inputs(B=4, H=9, S=200, s_q=8, L=L, ragged=True, x_dtype=dtype, cache_dtype=dtype)
    run = Run(tmp_path, parts=2)
    assert_same_bits(replace(run, path=SEESAW)(x), replace(run, path=PLAIN)(x))


@pytest.mark.parametrize("S", [0, 1, 64, 65])
def test_the_seesaw_with_hardly_any_blocks(tmp_path, S):
    """One warpgroup may have none of its own."""
    x = make_inputs(B=3, H=70, S=S, hostile=False, page_size=None)
    check(Run(tmp_path, parts=1, path=SEESAW), x)


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_token_that_some_queries_do_not_see_may_be_nan_for_the_seesaw_too(tmp_path, value):
    x = make_inputs(B=2, H=3, S=130, s_q=4, hostile=False)
    run = Run(tmp_path, path=SEESAW)
    expected = run(x)
    page, slot = x["block_table"][0, 128 // 64], 128 % 64  # the one but last: of queries 2 and 3
    x["cache"][page, slot] = value
    for got, before in zip(run(x), expected, strict=True):
        assert testing.same_bits(got[0, :2], before[0, :2])
        assert testing.same_bits(got[1], before[1])
        assert not got[0, 2:].isfinite().any()


# --- ragged batches, and caches of bytes ------------------------------------------------------------------

OF_BYTES = {"cache_dtype": torch.uint8}


@pytest.mark.parametrize(("causal", "page_size"), [(True, 16), (False, None)])
@pytest.mark.parametrize("cache", [{}, OF_BYTES], ids=["floats", "bytes"])
def test_a_ragged_batch(tmp_path, cache, causal, page_size):
    """Requests of one tile, of several and of none, whose tiles are split and not."""
    x = make_inputs(B=5, H=9, S=150, s_q=9, ragged=True, causal=causal, page_size=page_size, **cache)
    check(Run(tmp_path, parts=4), x)


def test_a_ragged_batch_is_its_requests_one_by_one(tmp_path):
    """Bitwise; requests without new tokens and without keys, queries that are not evenly spaced."""
    counts, lengths = [9, 0, 1, 7, 2], [100, 30, 64, 3, 0]
    x = make_inputs(B=5, H=12, S=100, s_q=9, page_size=16, hostile=False, batch_invariant=True)
    x["seqlens"] = torch.tensor(lengths, dtype=torch.int32)
    tokens = torch.cat([x["q"][b, :n] for b, n in enumerate(counts)])
    bounds = torch.tensor([0, *counts]).cumsum(0).int()
    around = torch.full((len(tokens), 13, 576), NAN, dtype=BF16)
    run = Run(tmp_path)
    ragged = x | {"q": around[:, :12].copy_(tokens), "cu_seqlens_q": bounds}
    out, lse = run(ragged)
    assert "boxes of 16 keys and 4 queries" in run.plan
    for b, n in enumerate(counts):
        if n == 0:
            continue
        mine = {name: x[name][b : b + 1].clone() for name in ("block_table", "seqlens")}
        alone = run(x | mine | {"q": tokens[None, bounds[b] : bounds[b + 1]].clone()})
        assert_same_bits((alone[0][0], alone[1][0]), tuple(t[bounds[b] : bounds[b + 1]] for t in (out, lse)))


def test_the_same_launches_follow_the_tokens_of_a_ragged_batch(tmp_path):
    """What the host passes on depends on shapes only: tiles and their schedule are made on the device."""
    x = make_inputs(B=3, H=11, S=300, s_q=7, ragged=True, hostile=False)
    out, lse = Run(tmp_path, parts=5)(x | {"seqlens": torch.tensor([[300, 4, 299]]).int()}, steps=1)
    bound = SPECS["mla_decode"].bound(x | {"seqlens": torch.tensor([300, 4, 299])}, testing.FLOAT32_SUM)
    for got, (exact, error) in zip((out[0], lse[0]), bound, strict=True):
        testing.assert_within(got, exact, error)


@pytest.mark.parametrize("schedule", native.SCHEDULES)
def test_a_cache_of_bytes_has_the_bits_of_one_of_its_rows_in_bfloat16(tmp_path, schedule):
    """Two tiles of rows; a request that is split; keys that some rows do not see."""
    x = make_inputs(B=3, H=33, S=200, s_q=2, page_size=16, **OF_BYTES)
    run = Run(tmp_path, parts=4, schedule=schedule)
    rows = decode(x["cache"], x["v_dim"]).bfloat16()
    expected = run(x | {"cache": rows})
    assert_same_bits(run(x), expected)
    check(run, x)


def test_a_dense_cache_of_bytes_without_a_rope_and_with_rows_further_apart(tmp_path):
    x = make_inputs(B=2, H=3, S=130, R=0, page_size=None, **OF_BYTES)
    around = torch.full((2, 130, 544), 0xFF, dtype=torch.uint8)
    run = Run(tmp_path)
    expected = run(x)
    check(run, x)
    assert_same_bits(run(x | {"cache": around[..., :528].copy_(x["cache"])}), expected)


def test_no_tokens_at_all_in_a_cache_of_bytes(tmp_path):
    out, lse = Run(tmp_path)(make_inputs(B=2, H=3, S=0, page_size=16, **OF_BYTES))
    assert not out.any()
    assert (lse == -INF).all()


@pytest.mark.parametrize("path", [BYTES, FEW])
def test_a_token_of_bytes_that_some_queries_do_not_see_may_be_nan(tmp_path, path):
    x = make_inputs(B=2, H=3, S=130, s_q=4, hostile=False, **OF_BYTES)
    run = Run(tmp_path, path=path)
    expected = run(x)
    page, slot = x["block_table"][0, 128 // 64], 128 % 64  # the one but last: of queries 2 and 3
    x["cache"][page, slot, 7] = 0x7F
    for got, before in zip(run(x), expected, strict=True):
        assert testing.same_bits(got[0, :2], before[0, :2])
        assert testing.same_bits(got[1], before[1])
        assert not got[0, 2:].isfinite().any()


# --- few rows, as the right operand ----------------------------------------------------------------------


@pytest.mark.parametrize("schedule", native.SCHEDULES)
def test_few_rows_are_right_under_every_schedule_of_threads(tmp_path, schedule):
    """Of either cache, whose rows have the same bits; requests that are split; keys that some do not see."""
    x = make_inputs(B=4, H=5, S=300, s_q=3, page_size=16, **OF_BYTES)
    run = Run(tmp_path, parts=3, schedule=schedule)
    expected = run(x | {"cache": decode(x["cache"], x["v_dim"]).bfloat16()})
    assert run.plan.startswith("few: 4 x 15 rows")
    assert_same_bits(run(x), expected)
    check(run, x)


@pytest.mark.parametrize(("L", "R", "dtype"), [(512, 0, F16), (256, 64, BF16), (256, 64, F16)], ids=str)
def test_few_rows_of_other_dimensions(tmp_path, L, R, dtype):
    """More blocks than stages of keys, in pieces that end on any of them."""
    x = make_inputs(B=3, H=16, S=600, L=L, R=R, x_dtype=dtype, cache_dtype=dtype, seed=1)
    check(Run(tmp_path, parts=2), x)


@pytest.mark.parametrize("cache", [{}, OF_BYTES], ids=["floats", "bytes"])
@pytest.mark.parametrize(("s_q", "path"), [(1, -1), (9, FEW)])
def test_few_rows_of_a_ragged_batch(tmp_path, cache, s_q, path):
    """One token or none of each request; and more than the plan would have, whose tiles are cut anywhere."""
    x = make_inputs(B=5, H=9, S=150, s_q=s_q, ragged=True, page_size=16, **cache)
    run = Run(tmp_path, parts=4, path=path)
    check(run, x)
    assert "1 tiles of 16" in run.plan


def test_the_same_launches_follow_the_few_tokens_of_a_ragged_batch(tmp_path):
    x = make_inputs(B=3, H=11, S=300, s_q=7, ragged=True, hostile=False)
    lengths = torch.tensor([300, 4, 299])
    out, lse = Run(tmp_path, parts=5, path=FEW)(x | {"seqlens": lengths[None].int()}, steps=1)
    bound = SPECS["mla_decode"].bound(x | {"seqlens": lengths}, testing.FLOAT32_SUM)
    for got, (exact, error) in zip((out[0], lse[0]), bound, strict=True):
        testing.assert_within(got, exact, error)


# --- planted faults ---------------------------------------------------------------------------------------

# Of a ragged batch over a cache of bytes. What is left out: the header that has it, the text, and what the
# emulator or the bound says of it.
RAGGED_FAULTS = {
    "a tile has queries of its own request": (
        "mla_load",
        "rows.first_query * a.H + ",
        "out: .* out of bounds",
    ),
    "pages beyond the length are not looked up": (
        "mla_load_bytes",
        "    if (key >= of.seqlen) return -1;\n",
        "bounds:",
    ),
}


@pytest.mark.parametrize("fault", RAGGED_FAULTS)
def test_it_matters_in_a_ragged_batch_that(tmp_path, fault):
    header, text, report = RAGGED_FAULTS[fault]
    program = native.program_without(text, f"cuda/mla_decode/{header}.cuh", "tests/emu/mla_decode.cpp")
    x = make_inputs(B=3, H=33, S=200, s_q=5, page_size=16, ragged=True, **OF_BYTES)
    with pytest.raises(AssertionError, match=report):
        check(Run(tmp_path, parts=2, program=program), x)


# The same of the seesaw.
SEESAW_FAULTS = {
    "sums follow the other's maximum": (
        "mla_seesaw",
        "    mbarrier_wait(half_full<C>(kOther, kGroup), parity_of(block));\n    half_.rescale(rescale);\n",
        "out: .* out of bounds",
    ),
    "the other's weights are multiplied when they are there": (
        "mla_seesaw",
        "    mbarrier_wait(state_full<C>(kOther), parity_of(block));\n",
        "(uninitialised|race)",
    ),
    "a half is loaded when it has been multiplied": (
        "mla_seesaw",
        "      if (issues) mbarrier_wait(half_empty<C>(at.stage, half), at.parity ^ 1);\n",
        "mbarrier: more arrivals",
    ),
}


@pytest.mark.parametrize("fault", SEESAW_FAULTS)
def test_it_matters_in_the_seesaw_that(tmp_path, fault):
    lines = [(f"cuda/mla_decode/{header}.cuh", text) for header, text, _ in SEESAW_FAULTS.values()]
    number = list(SEESAW_FAULTS).index(fault)
    program = native.program_without_one_of(lines, number, "tests/emu/mla_decode.cpp")
    with pytest.raises(AssertionError, match=SEESAW_FAULTS[fault][2]):
        check(Run(tmp_path, parts=1, path=SEESAW, program=program), make_inputs(B=2, H=33, S=300, s_q=2))


# The same of few rows.
FEW_FAULTS = {
    "a maximum is read when all warps have said theirs": (
        "mla_few_attend",
        "  few_sync();\n",
        "(uninitialised|race)",
    ),
    "weights are published to the tensor core": (
        "mla_few",
        "    fence_proxy_async_shared();\n",
        "proxy: wgmma",
    ),
    "weights are multiplied when all warps have written them": (
        "mla_few",
        "    few_sync();\n    if (seen.all < C::kKeys) {\n",
        "race: .*wgmma",
        "    if (seen.all < C::kKeys) {\n",
    ),
    "sums follow the maximum": ("mla_few", "    sums_.rescale(rescale);\n", "out: .* out of bounds"),
    "no row beyond the length is multiplied": (
        "mla_few",
        "      clear_keys<C, C::kValuePanels>(seen.all, few_keys<C>(stage));\n",
        "out: .* out of bounds, .* got nan",
    ),
    "a piece begins when all warps have read what was exchanged in the last": (
        "mla_few",
        "      few_sync();  // what warps have exchanged has been read\n",
        "race: a shared store",
    ),
}


@pytest.mark.parametrize("fault", FEW_FAULTS)
def test_it_matters_with_few_rows_that(tmp_path, fault):
    header, text, report, *instead = FEW_FAULTS[fault]
    program = native.program_without(
        text, f"cuda/mla_decode/{header}.cuh", "tests/emu/mla_decode.cpp", *instead
    )
    with pytest.raises(AssertionError, match=report):
        # Of the middle one of three requests each part has a piece.
        check(
            Run(tmp_path, parts=2, seed=None, program=program),
            make_inputs(B=3, H=5, S=300, s_q=2, hostile=False),
        )
