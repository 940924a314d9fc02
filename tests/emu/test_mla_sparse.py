"""The CUDA mla_sparse, run on the host: within the bound of the op on every schedule, without a race."""

from dataclasses import replace
from typing import Any

import native
import pytest
import torch
from moela import testing
from moela.ops import SPECS
from moela.ops._mla_bound import sparse_bound
from moela.ops.mla_sparse import make_inputs
from moela.reference._mla_cache import decode
from sparse import Run
from torch import Tensor

NAN, INF, ACCUM = float("nan"), float("inf"), testing.FLOAT32_SUM
BF16, F16, BYTES = torch.bfloat16, torch.float16, torch.uint8
# Two tiles of heads, the second not full; entries that end within a block; all that is optional.
ALL = {"T": 3, "H": 70, "topk": 200, "S": 150, "has_sink": True, "has_length": True}


def with_rows_as_bfloat16(x: dict[str, Any]) -> dict[str, Any]:
    """What the kernel makes of a cache of bytes: each value, a float32 product, rounded once."""
    return x | {"cache": decode(x["cache"], x["v_dim"]).bfloat16()} if x["cache"].dtype == BYTES else x


def check(run: Run, x: dict[str, Any]) -> None:
    bound = sparse_bound(with_rows_as_bfloat16(x), ACCUM, x["q"].dtype)
    for name, got, (exact, error) in zip(("out", "lse"), run(x), bound, strict=True):
        testing.assert_within(got, exact, error, name)


def assert_same_bits(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for one, other in zip(got, expected, strict=True):
        assert testing.same_bits(one, other)


@pytest.mark.parametrize("cache_dtype", [BF16, BYTES], ids=str)
@pytest.mark.parametrize("schedule", native.SCHEDULES)
def test_is_right_under_every_schedule_of_threads(tmp_path, schedule, cache_dtype):
    check(Run(tmp_path, pieces=2, schedule=schedule), make_inputs(**ALL, cache_dtype=cache_dtype))


def test_is_within_the_bound_of_the_op(tmp_path):
    """Which allows for rows that are rounded; the other tests hold it to the rounded rows."""
    x = make_inputs(**ALL, cache_dtype=BYTES)
    for got, (exact, error) in zip(Run(tmp_path)(x), SPECS["mla_sparse"].bound(x, ACCUM), strict=True):
        testing.assert_within(got, exact, error)


@pytest.mark.parametrize("pieces", [1, 3, 4])
@pytest.mark.parametrize("num_sms", [1, 100])
def test_any_number_of_pieces_and_blocks(tmp_path, pieces, num_sms):
    x = make_inputs(**ALL, cache_dtype=BYTES, seed=pieces)
    check(Run(tmp_path, pieces=pieces, num_sms=num_sms, schedule=str(num_sms)), x)


@pytest.mark.parametrize("page_size", [1, 2, 53, 61, 576])
def test_pages_of_any_size_give_the_bits_of_a_cache_without_pages(tmp_path, page_size):
    x = make_inputs(T=2, H=3, topk=70, S=3 * page_size, page_size=page_size, cache_dtype=BYTES)
    run = Run(tmp_path)
    assert_same_bits(run(x), run(x | {"cache": x["cache"].flatten(0, 1)[None]}))


@pytest.mark.parametrize("H", [1, 16, 64, 65, 128])
def test_any_number_of_heads(tmp_path, H):
    check(Run(tmp_path), make_inputs(T=2, H=H, topk=70, S=90, has_sink=True, cache_dtype=BYTES))


@pytest.mark.parametrize("topk", [0, 1, 63, 64, 65, 129])
def test_any_number_of_entries(tmp_path, topk):
    check(Run(tmp_path, pieces=0), make_inputs(T=4, H=3, topk=topk, S=90, has_length=True, cache_dtype=BYTES))


@pytest.mark.parametrize(
    ("L", "R", "x_dtype", "cache_dtype"),
    [
        *((L, R, dtype, dtype) for L, R in ((512, 64), (512, 0), (256, 64)) for dtype in (BF16, F16)),
        (512, 64, BF16, BYTES),
        (512, 0, BF16, BYTES),
    ],
)
def test_any_dimensions_and_dtypes(tmp_path, L, R, x_dtype, cache_dtype):
    dims = {"L": L, "R": R, "x_dtype": x_dtype, "cache_dtype": cache_dtype}
    check(Run(tmp_path, pieces=2), make_inputs(T=2, H=5, topk=100, S=70, has_sink=True, **dims))


def test_other_arguments_are_refused(tmp_path):
    run, x = Run(tmp_path), make_inputs(T=1, H=1, topk=4, S=8, cache_dtype=BYTES)
    with pytest.raises(AssertionError, match=r"512 \+ 64, 512 \+ 0 and, without codes, 256 \+ 64 columns"):
        run(make_inputs(T=1, H=1, topk=4, S=8, L=256, cache_dtype=BYTES))
    with pytest.raises(AssertionError, match="multiplied as bfloat16"):
        run(x | {"q": x["q"].half()})
    odd = torch.zeros(1, 64, 664, dtype=BYTES)[..., :656]
    with pytest.raises(AssertionError, match="rows of the cache are read from multiples of 16 bytes"):
        run(x | {"cache": odd})


# --- rows of bytes ---------------------------------------------------------------------------------------


def every_code(factors: Tensor) -> Tensor:
    """A cache of one page: 64 rows of random codes, each but NaN among them, with the factors [64, 4]."""
    g = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 256, (64, 512), generator=g)
    codes.flatten()[:256] = torch.arange(256)
    codes[codes & 0x7F == 0x7F] = 0
    rope = torch.randn(64, 64, generator=g).bfloat16()
    parts = (codes.byte(), factors.view(torch.uint8), rope.view(torch.uint8))
    return torch.cat(parts, 1)[None]


@pytest.mark.parametrize("least", [-130, -20, 0])
def test_codes_become_the_rounded_products_of_the_definition(tmp_path, least):
    """Factors of any size, subnormal ones too: the bits of a cache of bfloat16 that holds these products."""
    g = torch.Generator().manual_seed(least)
    exponents = torch.randint(least, least + 20, (64, 4), generator=g).float()
    factors = torch.exp2(exponents) * (1 + torch.rand(64, 4, generator=g))
    x = make_inputs(T=1, H=3, topk=64, S=64, cache_dtype=BYTES, hostile=False)
    x |= {"cache": every_code(factors), "sm_scale": 2.0 ** (-least - 24)}
    rounded = with_rows_as_bfloat16(x)
    assert not torch.equal(rounded["cache"].float(), decode(x["cache"], 512))
    run = Run(tmp_path)
    assert_same_bits(run(x), run(rounded))
    check(run, x)


def test_nothing_is_lost_where_factors_are_powers_of_two(tmp_path):
    factors = torch.exp2(torch.randint(-12, 3, (64, 4), generator=torch.Generator().manual_seed(1)).float())
    x = make_inputs(T=1, H=3, topk=64, S=64, cache_dtype=BYTES, hostile=False) | {
        "cache": every_code(factors)
    }
    exact = decode(x["cache"], 512)
    assert torch.equal(exact.bfloat16().float(), exact)
    check(Run(tmp_path), x | {"sm_scale": 2.0**-12})


@pytest.mark.parametrize("column", [0, 200, 511])
def test_the_code_of_nan_is_nan_to_the_tokens_that_name_it(tmp_path, column):
    x = make_inputs(T=2, H=3, topk=70, S=80, cache_dtype=BYTES, hostile=False)
    x["indices"][:] = torch.arange(70, dtype=torch.int32)
    x["indices"][0, 33] = 75  # the second token does not name it
    run = Run(tmp_path)
    expected = run(x)
    for code in (0x7F, 0xFF):
        x["cache"].flatten(0, 1)[75, column] = code
        out, lse = run(x)
        assert out[0].isnan().all()
        assert lse[0].isnan().all()
        assert_same_bits((out[1], lse[1]), (expected[0][1], expected[1][1]))


# --- entries ---------------------------------------------------------------------------------------------


def test_entries_that_name_nothing_in_the_middle_a_whole_block_of_them_and_some_twice(tmp_path):
    x = make_inputs(T=2, H=3, topk=250, S=400, cache_dtype=BYTES, hostile=False)
    x["indices"][0, 64:128] = -1
    x["indices"][0, [0, 5, 70, 249]] = torch.tensor([-1, -(2**31), -7, -1], dtype=torch.int32)
    x["indices"][1, 100:180] = x["indices"][1, 0]
    for pieces in (1, 2, 4):
        check(Run(tmp_path, pieces=pieces), x)


def test_slots_beyond_the_cache_name_nothing(tmp_path):
    x = make_inputs(T=1, H=2, topk=80, S=64, hostile=False)
    x["indices"][0, [0, 7, 70]] = torch.tensor([-1, -1, -1], dtype=torch.int32)
    run = Run(tmp_path)
    expected = run(x)
    x["indices"][0, [0, 7, 70]] = torch.tensor([64, 2**31 - 1, 65], dtype=torch.int32)
    assert_same_bits(run(x), expected)


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("sinks", [None, [0.0, INF, -INF, NAN]])
def test_tokens_that_name_nothing_are_zero_and_minus_infinity(tmp_path, sinks, pieces):
    x = make_inputs(T=4, H=4, topk=130, S=70, has_length=True, hostile=False)
    x["attn_sink"] = None if sinks is None else torch.tensor(sinks)
    x["topk_length"] = torch.tensor([130, 0, 64, 130], dtype=torch.int32)
    x["indices"][0], x["indices"][2, :64] = -1, -5
    x["indices"][3] = torch.arange(130, dtype=torch.int32) % 70
    out, lse = Run(tmp_path, pieces=pieces)(x)
    assert not out[:3].any()
    assert (lse[:3] == -INF).all()
    assert lse[3].isfinite().all()


def test_a_cache_without_a_slot(tmp_path):
    out, lse = Run(tmp_path)(make_inputs(T=2, H=3, topk=5, S=0))
    assert not out.any()
    assert (lse == -INF).all()


# --- sinks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [1, 2])
def test_sinks_of_any_size(tmp_path, pieces):
    x = make_inputs(T=2, H=8, topk=130, S=200, cache_dtype=BYTES, hostile=False)
    run = Run(tmp_path, pieces=pieces)
    plain = run(x)
    x["attn_sink"] = torch.tensor([INF, -INF, 1.5, -1e30, -300.0, 300.0, 3e38, NAN])
    out, lse = run(x)
    assert testing.same_bits(lse, plain[1])
    assert not out[:, [0, 6]].any()
    assert testing.same_bits(out[:, [1, 3]], plain[0][:, [1, 3]])
    assert out[:, 7].isnan().all()
    finite = x | {"q": x["q"][:, 1:7].clone(), "attn_sink": x["attn_sink"][1:7].clone()}
    check(run, finite)


# --- addresses, and what bits depend on ------------------------------------------------------------------


def test_any_strides(tmp_path):
    x = make_inputs(T=3, H=6, topk=70, S=80, page_size=16, has_sink=True, has_length=True, cache_dtype=BYTES)
    run = Run(tmp_path)
    expected = run(x)
    q = torch.full((7, 4, 584), NAN, dtype=BF16)[:6, :3, :576]
    cache = torch.full((16, 5, 672), 0xFF, dtype=BYTES)[..., :656]
    strided = {
        "q": q.transpose(0, 1).copy_(x["q"]),
        "cache": cache.transpose(0, 1).copy_(x["cache"]),
        "indices": torch.full((3, 75), 2147480000, dtype=torch.int32)[:, :70].copy_(x["indices"]),
        "topk_length": torch.full((6,), -9, dtype=torch.int32)[::2].copy_(x["topk_length"]),
        "attn_sink": torch.full((12,), NAN)[::2].copy_(x["attn_sink"]),
    }
    assert_same_bits(run(x | strided), expected)


def test_a_token_has_the_same_bits_whatever_the_blocks_and_the_other_tokens(tmp_path):
    """For the same pieces, of which a plan may have more where there are few tokens."""
    x = make_inputs(**ALL, cache_dtype=BYTES)
    run = Run(tmp_path, pieces=2)
    expected = run(x)
    assert_same_bits(replace(run, num_sms=1, schedule="5")(x), expected)
    part = x | {n: x[n][1:2].clone() for n in ("q", "indices", "topk_length")}
    assert_same_bits(replace(run, num_sms=9)(part), tuple(t[1:2] for t in expected))


def test_where_entries_are_cut_shows_in_the_bits(tmp_path):
    """Or the test above would show nothing."""
    x = make_inputs(T=1, H=30, topk=300, S=300, hostile=False)
    one, two = (Run(tmp_path, pieces=pieces)(x)[1] for pieces in (1, 2))
    assert not torch.equal(one, two)


def test_huge_scores_choose_one_key(tmp_path):
    x = make_inputs(T=1, H=2, topk=150, S=150, page_size=150, hostile=False)
    out, _ = Run(tmp_path)(x | {"sm_scale": 1e12})
    best = (x["q"][0].double() @ x["cache"][0].double().T).argmax(-1)
    assert torch.equal(out[0], x["cache"][0, best][:, :512])


# --- planted faults --------------------------------------------------------------------------------------

GATHER, LOOPS, ROWS = (f"cuda/mla_decode/mla_{name}.cuh" for name in ("gather", "loops", "rows"))
LOAD, WORK = (f"cuda/mla_sparse/mla_sparse_{name}.cuh" for name in ("load", "work"))
# What is left out: the header that has it, the text, and what finds it.
FAULTS = {
    "rows are stored before their stage is free": (
        GATHER,
        "    mbarrier_wait(kv_empty<C>(at.stage), at.parity ^ 1);\n",
        "(race|parity):",
    ),
    "rows are not fenced": (GATHER, "    fence_proxy_async_shared();\n", "proxy:"),
    "queries are loaded while those before are read": (
        GATHER,
        "    mbarrier_wait(q_empty<C>(), q_parity ^ 1);\n",
        "(race|parity):",
    ),
    "weights are overwritten while they are read": (
        LOOPS,
        "      mbarrier_wait(p_empty<C>(), p_parity ^ 1);\n",
        "(race|parity):",
    ),
    "a slot beyond the cache is read": (LOAD, " || slot >= a.num_pages * a.page_size", "bounds:"),
    "the code of NaN is a number": (ROWS, "has_nan(c) ? kNan : ", "out of bounds"),
    "entries that name nothing count": (WORK, "    named >>= 2 * (lane() % 4);\n", "out of bounds"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(tmp_path, fault):
    """Several units a thread block, several blocks of entries a unit, and all kinds of entries."""
    header, text, report = FAULTS[fault]
    statements = [(header, text) for header, text, _ in FAULTS.values() if text.endswith(";\n")]
    source = "tests/emu/mla_sparse.cpp"
    if (header, text) in statements:
        program = native.program_without_one_of(statements, statements.index((header, text)), source)
    else:
        program = native.program_without(text, header, source)
    x = make_inputs(**ALL, cache_dtype=BYTES)
    x["indices"][0, 3] = 10**6
    x["cache"].flatten(0, 1)[x["indices"][0, 70:90].clamp(0).long(), 100] = 0x7F
    with pytest.raises(AssertionError, match=report):
        check(Run(tmp_path, num_sms=1, schedule="eager", program=program), x)
