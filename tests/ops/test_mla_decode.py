"""mla_decode: the formula, which keys a query sees, what is never read, and what bits depend on."""

from typing import Any

import moela
import pytest
import torch
from moela import testing
from moela.ops import SPECS
from moela.ops._mla_bound import decode_bound
from torch import Tensor

NAN, INF = float("nan"), float("inf")
SMALL = {"L": 32, "R": 8, "x_dtype": torch.float32}
BF16 = {"L": 32, "R": 8}
BYTES = {"L": 128, "R": 8, "cache_dtype": torch.uint8}
PAIR = "triton-cuda" if torch.cuda.is_available() else "triton-cpu"


def dense(run: Any, q: Tensor, rows: Tensor, seqlens: list[int], **kwargs: Any) -> tuple[Tensor, Tensor]:
    args = {"q": q, "cache": rows, "seqlens": torch.tensor(seqlens, dtype=torch.int32)}
    args = {k: v.to(run.device) for k, v in args.items()} | {"block_table": None, "sm_scale": 1.0}
    return tuple(t.cpu() for t in run(args | kwargs))


def test_is_the_formula_of_the_docstring(run):
    """Two keys, of which the second has e times the weight; the last column is no value."""
    rows = torch.tensor([[[1.0, 10.0, 0.0], [2.0, 20.0, 1.0]]])
    q = torch.tensor([[[[0.0, 0.0, 2.0]]]])
    out, lse = dense(run, q, rows, [2], sm_scale=0.5, v_dim=2)
    e = torch.tensor(1.0).exp()
    value = (1 + 2 * e) / (1 + e)
    torch.testing.assert_close(out.flatten(), torch.stack([value, 10 * value]), rtol=1e-6, atol=0)
    torch.testing.assert_close(lse.flatten(), (1 + e).log()[None], rtol=1e-6, atol=0)


@pytest.mark.parametrize("page_size", [1, 3, 16, 61, 576])
def test_pages_of_any_size_give_the_bits_of_a_dense_cache(run, page_size):
    dims = {"B": 3, "H": 3, "S": 50, **SMALL}
    paged, plain = run.inputs(**dims, page_size=page_size), run.inputs(**dims, page_size=None)
    for got, expected in zip(run(paged), run(plain), strict=True):
        assert testing.same_bits(got, expected)


@pytest.mark.parametrize("H", [1, 15, 16, 17, 64, 65, 128])
def test_heads_do_not_depend_on_each_other(run, H):
    dims = {"B": 1, "S": 40 if run.is_slow else 100, **SMALL}
    x = run.inputs(**dims, H=H)
    out, lse = run(x)
    for head in {0, H // 2, H - 1}:
        alone = run(x | {"q": x["q"][:, :, head : head + 1]})
        assert testing.same_bits(alone[0], out[:, :, head : head + 1])
        assert testing.same_bits(alone[1], lse[:, :, head : head + 1])


def test_queries_see_up_to_themselves_and_all_without_causal(run):
    """Query j of a causal batch is the last one of a shorter request."""
    x = run.inputs(B=2, H=2, S=20, s_q=3, **SMALL, hostile=False)
    out, lse = run(x)
    for j in range(3):
        shorter = x | {"q": x["q"][:, j : j + 1], "seqlens": x["seqlens"] - (2 - j)}
        for got, expected in zip(run(shorter), (out, lse), strict=True):
            assert testing.same_bits(got, expected[:, j : j + 1])
    everything = run(x | {"causal": False})
    last = run(x | {"q": x["q"][:, :1], "causal": False})
    assert testing.same_bits(everything[0][:, :1], last[0])
    assert not torch.equal(everything[0][:, 0], out[:, 0])


def test_a_query_without_keys_is_zero_and_minus_infinity(run):
    """A request of length 0, and queries of one that is shorter than they are many."""
    x = run.inputs(B=2, H=3, S=4, s_q=3, **SMALL, hostile=False)
    seqlens = torch.tensor([0, 1], dtype=torch.int32, device=run.device)
    out, lse = run(x | {"seqlens": seqlens})
    assert not out[0].any()
    assert not out[1, :2].any()
    assert (lse[0] == -INF).all()
    assert (lse[1, :2] == -INF).all()
    assert lse[1, 2].isfinite().all()
    assert out[1, 2].any()


@pytest.mark.parametrize("dims", [SMALL, BF16, BYTES], ids=["f32", "bf16", "bytes"])
def test_a_key_that_a_query_does_not_see_may_be_nan(run, dims):
    """It is a later query's own: infinite weights of it would be NaN, and 0 * NaN too."""
    x = run.inputs(B=1, H=2, S=9, s_q=3, page_size=None, **dims, hostile=False)
    expected = run(x)
    for name, row in {"the last": 8, "the one before": 7}.items():
        spoiled = x["cache"].clone()
        spoiled.view(torch.uint8)[0, row] = 0xFF  # NaN of every type
        out, lse = run(x | {"cache": spoiled})
        sees_it = 2 if row == 8 else 1
        assert testing.same_bits(out[:, :sees_it], expected[0][:, :sees_it]), name
        assert testing.same_bits(lse[:, :sees_it], expected[1][:, :sees_it]), name
        assert out[:, sees_it:].isnan().all(), name
        assert lse[:, sees_it:].isnan().all(), name


@pytest.mark.parametrize("dims", [SMALL, BF16], ids=["f32", "bf16"])
def test_an_infinite_value_of_a_score_of_minus_infinity_spoils_its_column(run, dims):
    """0 * Inf is NaN, for the query that sees it."""
    x = run.inputs(B=1, H=2, S=9, s_q=2, page_size=None, **dims, hostile=False)
    x["q"][..., 5] = -1
    x["cache"][0, 8, 5] = INF
    out, lse = run(x)
    assert out[:, 0].isfinite().all()
    assert lse.isfinite().all()
    spoiled = torch.zeros(2, 32, dtype=torch.bool, device=run.device)
    spoiled[:, 5] = True
    assert torch.equal(~out[0, 1].isfinite(), spoiled)


def test_scores_of_minus_infinity_only_are_as_no_key(run):
    """The rotated part of every key is infinite, and no value: the exact sum of the weights is 0."""
    x = run.inputs(B=1, H=2, S=9, page_size=None, **SMALL, hostile=False)
    x["q"][0, 0, 0, -1], x["q"][0, 0, 1, -1] = -1, 0.5
    x["cache"][..., -1] = INF
    out, lse = run(x)
    assert not out[0, 0, 0].any()
    assert lse[0, 0, 0] == -INF
    assert out[0, 0, 1].isnan().all()


def test_a_score_of_infinity_makes_its_row_nan(run):
    """In the second of two pieces; for another head it is -Inf, which weighs nothing."""
    x = run.inputs(B=1, H=2, S=2100, page_size=None, **SMALL | {"L": 16}, batch_invariant=True, hostile=False)
    x["q"][0, 0, 0, -1], x["q"][0, 0, 1, -1] = 1, -1
    x["cache"][0, 2060, -1] = INF  # of the rotated part, so no value
    out, lse = run(x)
    assert out[0, 0, 0].isnan().all()
    assert lse[0, 0, 0].isnan()
    assert out[0, 0, 1].isfinite().all()
    assert lse[0, 0, 1].isfinite()


def test_a_score_beyond_float32_is_infinite(run):
    """Of one head +Inf, of the other -Inf in every key."""
    x = run.inputs(B=1, H=2, S=9, page_size=None, **SMALL, hostile=False)
    x["q"][0, 0, 0, -1], x["q"][0, 0, 1, -1] = 2.0**100, -(2.0**100)
    x["cache"][..., -1] = 2.0**100
    out, lse = run(x)
    assert out[0, 0, 0].isnan().all()
    assert lse[0, 0, 0].isnan()
    assert not out[0, 0, 1].any()
    assert lse[0, 0, 1] == -INF


def test_huge_scores_choose_one_key(run):
    x = run.inputs(B=1, H=2, S=30, page_size=None, **SMALL, hostile=False)
    out, lse = run(x | {"sm_scale": 1e12})
    scores = (x["q"][0, 0].double() @ x["cache"][0].double().T).cpu()
    best = scores.argmax(-1)
    assert torch.equal(out[0, 0].cpu(), x["cache"][0].cpu()[best][:, :32])
    torch.testing.assert_close(lse[0, 0].cpu().double(), scores.amax(-1) * 1e12, rtol=1e-6, atol=0)


def test_q_and_cache_may_have_any_strides(run):
    x = run.inputs(B=2, H=3, S=20, s_q=2, page_size=4, **SMALL)
    P, page_size, row = x["cache"].shape
    around = torch.full((page_size, P, row + 3), NAN, device=run.device)
    around[..., 1:-2] = x["cache"].transpose(0, 1)
    heads_first = x["q"].permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3)
    strided = x | {"q": heads_first, "cache": around.transpose(0, 1)[..., 1:-2]}
    for got, expected in zip(run(strided), run(x), strict=True):
        assert testing.same_bits(got, expected)


def test_a_request_does_not_depend_on_its_batch(run):
    """Bitwise, in any order and alone, for several pieces of keys."""
    x = run.inputs(B=4, H=3, S=2500, page_size=16, **SMALL, batch_invariant=True)
    full = run(x)
    for order in ([3, 1, 0, 2], [2], [1, 1]):
        part = run(x | {n: x[n][order] for n in ("q", "block_table", "seqlens")})
        for got, expected in zip(part, full, strict=True):
            assert testing.same_bits(got, expected[order])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dims", [SMALL, BF16, BYTES], ids=["f32", "bf16", "bytes"])
def test_a_ragged_batch_is_its_requests_one_by_one(run, dims, causal):
    """Bitwise, requests without new tokens and without keys among them."""
    counts, lengths = [9, 0, 1, 7, 2], [100, 30, 64, 3, 0]
    x = run.inputs(B=5, H=3, S=100, s_q=9, page_size=16, **dims, causal=causal, hostile=False)
    x["batch_invariant"] = True
    x["seqlens"] = torch.tensor(lengths, dtype=torch.int32, device=run.device)
    tokens = torch.cat([x["q"][b, :n] for b, n in enumerate(counts)])
    bounds = torch.tensor([0, *counts], device=run.device).cumsum(0).int()
    out, lse = run(x | {"q": tokens, "cu_seqlens_q": bounds})
    for b, n in enumerate(counts):
        if n == 0:
            continue
        mine = {name: x[name][b : b + 1] for name in ("block_table", "seqlens")}
        alone = run(x | mine | {"q": tokens[None, bounds[b] : bounds[b + 1]]})
        assert testing.same_bits(alone[0][0], out[bounds[b] : bounds[b + 1]])
        assert testing.same_bits(alone[1][0], lse[bounds[b] : bounds[b + 1]])


def test_a_ragged_batch_may_have_no_tokens(run):
    x = run.inputs(B=2, H=3, S=20, **SMALL)
    bounds = torch.zeros(3, dtype=torch.int32, device=run.device)
    out, lse = run(x | {"q": x["q"][:0, 0], "cu_seqlens_q": bounds})
    assert (out.shape, lse.shape) == ((0, 3, 32), (0, 3))


@pytest.mark.parametrize("num_parts", [1, 2, 7, 40])
@pytest.mark.parametrize("invariant", [False, True])
def test_a_split_changes_no_more_than_the_bound_allows(run, num_parts, invariant):
    """Three queries, of which the first ends before the last piece does."""
    dims = {"B": 2, "H": 2, "S": 2100 if invariant else 700, "s_q": 3, **SMALL}
    x = run.inputs(**dims, num_parts=num_parts, batch_invariant=invariant)
    for got, (exact, error) in zip(run(x), run.spec.bound(x, run.accum(x)), strict=True):
        testing.assert_within(got, exact, error)


def test_a_schedule_that_is_given_has_the_bits_of_one_that_is_not(run):
    """Where it is the one that the op makes; on the CPU for any."""
    num_parts = 5
    if run.backend == "triton":
        from moela.kernels import _fp8, mla_decode

        target = _fp8.target_of(torch.device(run.device))
        num_parts = mla_decode.num_parts_for(4, mla_decode.plan(2, torch.float32, False, target), target)
    x = run.inputs(B=3, H=2, S=700, s_q=2, **SMALL, num_parts=num_parts)
    for got, expected in zip(run(x), run(x | {"schedule": None}), strict=True):
        assert testing.same_bits(got, expected)


def test_a_stale_schedule_makes_its_requests_nan(make_runner):
    """Where nobody looks at lengths, as on a GPU; here the kernel is called without the op's checks."""
    run = make_runner("mla_decode", PAIR)
    from moela.kernels.mla_decode import launch

    x = run.inputs(B=3, H=2, S=700, **SMALL, num_parts=4, hostile=False)
    expected = run(x)
    x["schedule"][4 + 2 + 1, 1] -= 1  # what it says of the second request
    out, lse = run.spec.empty(**x)
    launch(**x, out=(out, lse))
    for got, want in zip((out, lse), expected, strict=True):
        assert got[1].isnan().all()
        assert testing.same_bits(got[::2], want[::2])
    for column, value in enumerate([4, 5, 3, 1]):
        other = x["schedule"].clone()
        other[0, column] = value
        launch(**x | {"schedule": other}, out=(out, lse))
        assert out.isnan().all()
        assert lse.isnan().all()


def test_a_stale_schedule_of_more_pieces_than_there_are_sums_makes_all_nan(make_runner):
    """One for a request longer than its pages hold, whose pieces push those of the next beyond memory."""
    run = make_runner("mla_decode", PAIR)
    from moela.kernels.mla_decode import launch

    x = run.inputs(B=2, H=2, S=2200, **SMALL, num_parts=4, batch_invariant=True, hostile=False)
    longer = torch.tensor([40000, 2200], dtype=torch.int32, device=run.device)
    x["schedule"] = moela.mla_schedule(longer, rows=2, num_parts=4, batch_invariant=True)
    out, lse = run.spec.empty(**x)
    launch(**x, out=(out, lse))
    assert out.isnan().all()
    assert lse.isnan().all()


@pytest.mark.parametrize("form", ["paged", "dense", "ragged"])
def test_in_triton_a_batch_of_fixed_pieces_is_attended_some_at_a_time(make_runner, monkeypatch, form):
    """With the bits of all at once: room for the pieces of three requests, or tiles, of five."""
    run = make_runner("mla_decode", PAIR)
    from moela.kernels import mla_decode as kernel

    is_ragged = form == "ragged"
    x = run.inputs(
        B=5, H=2, S=2200, s_q=2, **SMALL | {"L": 16}, page_size=None if form == "dense" else 64,
        ragged=is_ragged, batch_invariant=True, hostile=form != "dense", num_parts=None if is_ragged else 4,
    )  # fmt: skip
    expected = run(x)
    rows = kernel.plan(2, torch.float32, False, kernel._fp8.target_of(x["q"].device)).BLOCK_M
    of_one = 2 * (rows if is_ragged else 4) * 16 * 4
    monkeypatch.setattr(kernel, "SUMS_BYTES", 3 * of_one)
    assert kernel.items_at_once(5, 2, rows if is_ragged else 4, 16) == 3
    for got, want in zip(run(x), expected, strict=True):
        assert testing.same_bits(got, want)


def test_in_triton_the_memory_of_fixed_pieces_has_a_bound(make_runner):
    """DeepSeek-V3's heads, tables of 2^20 tokens; one request of any width is attended all the same."""
    make_runner("mla_decode", PAIR)
    from moela.kernels.mla_decode import PIECE_KEYS, SUMS_BYTES, items_at_once

    for B in (1, 7, 512):
        pieces = 2**20 // PIECE_KEYS
        at_once = items_at_once(B, pieces, 128, 512)
        assert 1 <= at_once <= B
        assert at_once * pieces * 128 * 512 * 4 <= SUMS_BYTES
    assert items_at_once(9, 2**20, 128, 512) == 1


def test_scheduled_once_for_many_layers_it_compiles_as_one_graph():
    x = SPECS["mla_decode"].make_inputs(B=3, H=2, S=200, **SMALL)

    def step(x: dict[str, Any]) -> tuple[Tensor, Tensor]:
        schedule = moela.mla_schedule(x["seqlens"], rows=2, num_parts=4)
        return moela.mla_decode(**x | {"schedule": schedule})

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(x), step(x), strict=True):
        assert testing.same_bits(got, expected)


def test_offsets_into_a_cache_may_exceed_32_bits(run):
    """The last pages of 4 GB that are not there, but for these."""
    x = run.inputs(B=2, H=2, S=20, page_size=16, L=32, R=8, hostile=False)
    small = x["cache"]
    page = small[0].numel()
    huge = torch.empty(2**31 // page + 1 + len(small), *small.shape[1:], dtype=small.dtype, device=run.device)
    huge[-len(small) :] = small
    moved = {"cache": huge, "block_table": x["block_table"] + (len(huge) - len(small))}
    for got, expected in zip(run(x | moved), run(x), strict=True):
        assert testing.same_bits(got, expected)


def test_rows_of_bytes_are_what_they_decode_to(run):
    """The codes of power-of-two scale factors are exact in float32, so bits are those of a float32 cache."""
    x = run.inputs(B=2, H=3, S=40, L=128, R=16, x_dtype=torch.float32, page_size=None, hostile=False)
    kv_c, k_pe = x["cache"].float().flatten(0, 1).split([128, 16], 1)
    slots = torch.arange(80, device=run.device)
    codes = torch.empty(2, 40, 128 + 4 + 32, dtype=torch.uint8, device=run.device)
    with moela.use_backend(run.backend):
        moela.mla_cache_write(kv_c.contiguous(), k_pe.contiguous(), codes, slots, ue8m0=True)
    decoded = moela.reference._mla_cache.decode(codes, 128)
    got, expected = run(x | {"cache": codes}), run(x | {"cache": decoded})
    for one, other in zip(got, expected, strict=True):
        assert testing.same_bits(one, other)


@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
def test_on_the_cpu_weights_are_not_rounded(make_runner, cache_dtype):
    """Where bfloat16 results would hide it: within the bound of float32, for several parts of keys."""
    run = make_runner("mla_decode", "cpu-cpu")
    x = run.inputs(B=2, H=20, S=1300, x_dtype=torch.float32, cache_dtype=cache_dtype)
    for got, (exact, error) in zip(run(x), decode_bound(x, testing.FLOAT32_SUM, None), strict=True):
        testing.assert_within(got, exact, error)


@pytest.mark.parametrize(("H", "S"), [(16, 700), (128, 300), (16, 3000)])
def test_the_error_is_at_most_twice_that_of_torch_in_float32(make_runner, H, S):
    """The root of the mean square, over all elements."""
    run = make_runner("mla_decode", "cpu-cpu")
    x = run.inputs(B=1, H=H, S=S, page_size=None, x_dtype=torch.float32, hostile=False)
    q, rows = x["q"][0, 0], x["cache"][0].float()
    theirs = (q @ rows.T * x["sm_scale"]).softmax(-1) @ rows[:, :512]
    (exact, _), (exact_lse, _) = decode_bound(x, 0.0, None)
    out, lse = run(x)

    def rms(got: Tensor, exact: Tensor) -> float:
        return (got.double() - exact).square().mean().sqrt().item()

    assert rms(out[0, 0], exact[0, 0]) <= 2 * rms(theirs, exact[0, 0])
    theirs_lse = (q @ rows.T * x["sm_scale"]).logsumexp(-1)
    assert rms(lse[0, 0], exact_lse[0, 0]) <= 2 * rms(theirs_lse, exact_lse[0, 0])
