"""mla_sparse: the formula, which slots count, what is never read, the sink, and what bits depend on."""

from typing import Any

import moela
import pytest
import torch
from moela import testing
from moela.ops._mla_bound import sparse_bound
from torch import Tensor

NAN, INF = float("nan"), float("inf")
SMALL = {"L": 32, "R": 8, "x_dtype": torch.float32}


def call(run: Any, q: Tensor, cache: Tensor, indices: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    args = {"q": q, "cache": cache, "indices": torch.as_tensor(indices, dtype=torch.int32)} | kwargs
    args = {k: v.to(run.device) if isinstance(v, Tensor) else v for k, v in args.items()}
    return tuple(t.cpu() for t in run({"sm_scale": 1.0} | args))


def same(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    return all(testing.same_bits(x, y) for x, y in zip(got, expected, strict=True))


def test_is_the_formula_of_the_docstring(run):
    """Two keys, of which the second has e times the weight, and a sink as heavy as both; the last column is
    no value."""
    cache = torch.tensor([[[1.0, 10.0, 0.0], [NAN, NAN, NAN]], [[NAN, NAN, NAN], [2.0, 20.0, 1.0]]])
    q = torch.tensor([[[0.0, 0.0, 2.0]]])
    lse = (1 + torch.tensor(1.0).exp()).log()
    out, got_lse = call(run, q, cache, [[3, 0]], sm_scale=0.5, v_dim=2, attn_sink=lse[None])
    e = torch.tensor(1.0).exp()
    value = (1 + 2 * e) / (1 + e) / 2
    torch.testing.assert_close(out.flatten(), torch.stack([value, 10 * value]), rtol=1e-6, atol=0)
    torch.testing.assert_close(got_lse.flatten(), lse[None], rtol=1e-6, atol=0)


@pytest.mark.parametrize("page_size", [1, 2, 53, 61, 69, 576])
def test_pages_of_any_size_give_the_bits_of_a_cache_without_pages(run, page_size):
    x = run.inputs(T=4, H=3, topk=40, S=page_size * 3, page_size=page_size, **SMALL)
    assert same(run(x | {"cache": x["cache"].flatten(0, 1)[None]}), run(x))


@pytest.mark.parametrize("lead", [(), (6,), (2, 3), (1, 3, 2), (2, 0)])
def test_rows_may_have_any_leading_dimensions(run, lead):
    x = run.inputs(T=6, H=3, topk=20, S=30, has_sink=True, has_length=True, **SMALL)
    expected = run(x)
    rows = torch.Size(lead).numel()
    names = ("q", "indices", "topk_length")
    shaped = {n: x[n][:rows].reshape((*lead, *x[n].shape[1:])) for n in names}
    out, lse = run(x | shaped)
    assert (out.shape, lse.shape) == ((*lead, 3, 32), (*lead, 3))
    assert same((out.reshape(rows, 3, 32), lse.reshape(rows, 3)), tuple(t[:rows] for t in expected))


def test_a_slot_that_stands_twice_counts_twice(run):
    x = run.inputs(T=2, H=3, topk=4, S=9, hostile=False, **SMALL)
    x["indices"][:] = torch.tensor([4, 4, 7, 4], device=run.device)
    rows = x["cache"].flatten(0, 1)[[4, 7]].float()
    scores = x["q"].float() @ rows.T * x["sm_scale"] + torch.tensor([3.0, 1.0], device=run.device).log()
    out, lse = run(x)
    torch.testing.assert_close(lse, scores.logsumexp(-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out, scores.softmax(-1) @ rows[:, :32], rtol=1e-4, atol=1e-5)


def test_rows_that_name_nothing_are_zero_and_minus_infinity(run):
    """Whatever the sink: all entries negative, a length of 0, no entries."""
    x = run.inputs(T=3, H=4, topk=7, S=9, **SMALL, hostile=False)
    sinks = torch.tensor([0.0, INF, -INF, NAN], device=run.device)
    lengths = torch.tensor([7, 0, 7], dtype=torch.int32, device=run.device)
    x["indices"][0] = torch.tensor([-1, -2, -(2**31), -1, -5, -1, -1], device=run.device)
    for sink in (None, sinks):
        out, lse = run(x | {"topk_length": lengths, "attn_sink": sink})
        assert not out[:2].any()
        assert (lse[:2] == -INF).all()
        assert lse[2].isfinite().all()
        out, lse = run(x | {"indices": x["indices"][:, :0], "attn_sink": sink})
        assert not out.any()
        assert (lse == -INF).all()


def test_more_entries_than_slots(run):
    x = run.inputs(T=2, H=2, topk=90, S=5, page_size=5, **SMALL)
    for got, (exact, error) in zip(run(x), run.spec.bound(x, run.accum(x)), strict=True):
        testing.assert_within(got, exact, error)


def test_what_no_row_names_may_be_nan_and_what_one_names_reaches_no_other(run):
    x = run.inputs(T=2, H=2, topk=3, S=9, **SMALL, hostile=False)
    x["indices"][:] = torch.tensor([[1, -1, 2], [3, 2, -1]], device=run.device)
    expected = run(x)
    x["cache"].flatten(0, 1)[[0, 3, 4, 5, 6, 7, 8]] = NAN
    out, lse = run(x)
    assert same((out[:1], lse[:1]), tuple(t[:1] for t in expected))
    assert out[1].isnan().all()
    assert lse[1].isnan().all()


def test_an_infinite_sink_takes_all_or_nothing(run):
    """Beside a finite one, whose share is that of a key of value 0."""
    x = run.inputs(T=2, H=3, topk=30, S=40, **SMALL, hostile=False)
    plain = run(x)
    out, lse = run(x | {"attn_sink": torch.tensor([INF, -INF, 1.5], device=run.device)})
    assert testing.same_bits(lse, plain[1])
    assert not out[:, 0].any()
    assert testing.same_bits(out[:, 1], plain[0][:, 1])
    share = torch.sigmoid(plain[1][:, 2:] - 1.5)
    torch.testing.assert_close(out[:, 2], plain[0][:, 2] * share, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sink", [-1e30, -300.0, 300.0, 3e38])
def test_a_sink_far_from_the_scores_is_all_or_nothing(run, sink):
    x = run.inputs(T=1, H=2, topk=30, S=40, **SMALL, hostile=False)
    x["attn_sink"] = torch.tensor([sink, 0.0], device=run.device)
    for got, (exact, error) in zip(run(x), run.spec.bound(x, run.accum(x)), strict=True):
        testing.assert_within(got, exact, error)


def test_a_sink_that_is_nan_stays_with_its_head(run):
    x = run.inputs(T=2, H=3, topk=30, S=40, **SMALL, hostile=False)
    plain = run(x)
    out, lse = run(x | {"attn_sink": torch.tensor([-INF, NAN, -INF], device=run.device)})
    assert testing.same_bits(lse, plain[1])
    assert out[:, 1].isnan().all()
    assert testing.same_bits(out[:, ::2], plain[0][:, ::2])


@pytest.mark.parametrize("sink", [None, 0.0, -INF, NAN])
def test_scores_of_minus_infinity_only_are_as_no_slot(run, sink):
    x = run.inputs(T=1, H=2, topk=9, S=9, **SMALL, hostile=False)
    x["q"][..., -1] = -1
    x["cache"][..., -1] = INF
    if sink is not None:
        x["attn_sink"] = torch.full((2,), sink, device=run.device)
    out, lse = run(x)
    assert not out.any()
    assert (lse == -INF).all()


@pytest.mark.parametrize("sink", [None, 0.0, -INF, INF])
def test_a_score_of_infinity_makes_its_row_nan(run, sink):
    """For another head it is -Inf, which weighs nothing."""
    x = run.inputs(T=1, H=2, topk=99, S=99, **SMALL, hostile=False)
    x["q"][0, 0, -1], x["q"][0, 1, -1] = 1, -1
    x["cache"][0, 60, -1] = INF  # of the rotated part, so no value
    if sink is not None:
        x["attn_sink"] = torch.full((2,), sink, device=run.device)
    for t in run(x):
        assert t[0, 0].isnan().all()
        assert t[0, 1].isfinite().all()


def test_a_page_may_be_larger_than_any_slot(run):
    """One of 2^32 rows, all of them the same memory."""
    x = run.inputs(T=1, H=2, topk=3, S=1, **SMALL, hostile=False)
    row = x["cache"][:, :1]
    x["indices"] = torch.tensor([[0, 5, 2**31 - 1]], dtype=torch.int32, device=run.device)
    got = run(x | {"cache": row.expand(1, 2**32, row.size(2))})
    assert same(got, run(x | {"cache": row, "indices": torch.zeros_like(x["indices"])}))


def test_huge_scores_choose_one_key(run):
    x = run.inputs(T=1, H=2, topk=30, S=30, page_size=30, **SMALL, hostile=False)
    out, lse = run(x | {"sm_scale": 1e12, "attn_sink": torch.tensor([100.0, -1e13], device=run.device)})
    scores = (x["q"][0].double() @ x["cache"][0].double().T).cpu()
    best = scores.argmax(-1)
    assert torch.equal(out[0].cpu(), x["cache"][0].cpu()[best][:, :32])
    torch.testing.assert_close(lse[0].cpu().double(), scores.amax(-1) * 1e12, rtol=1e-6, atol=0)


@pytest.mark.parametrize("H", [1, 15, 16, 17, 64, 65, 128])
def test_heads_do_not_depend_on_each_other(run, H):
    dims = {"T": 1, "topk": 40 if run.is_slow else 100, "S": 130, **SMALL}
    x = run.inputs(**dims, H=H, has_sink=True)
    out, lse = run(x)
    for head in {0, H // 2, H - 1}:
        one = {"q": x["q"][:, head : head + 1], "attn_sink": x["attn_sink"][head : head + 1]}
        assert same(run(x | one), (out[:, head : head + 1], lse[:, head : head + 1]))


def test_all_but_the_cache_s_rows_may_have_any_strides(run):
    x = run.inputs(T=6, H=3, topk=20, S=20, page_size=4, has_sink=True, has_length=True, **SMALL)
    P, page_size, row = x["cache"].shape
    around = torch.full((page_size, P, row + 3), NAN, device=run.device)
    around[..., 1:-2] = x["cache"].transpose(0, 1)
    for name, shape in (("q", (3, 40)), ("indices", (20,)), ("topk_length", ())):
        x[name] = x[name].view(2, 3, *shape)

    def transposed(t: Tensor) -> Tensor:
        return t.transpose(0, 1).contiguous().transpose(0, 1)

    strided = {
        "q": transposed(x["q"].transpose(2, 3).contiguous().transpose(2, 3).contiguous()),
        "cache": around.transpose(0, 1)[..., 1:-2],
        "indices": transposed(x["indices"]),
        "topk_length": transposed(x["topk_length"]),
        "attn_sink": x["attn_sink"].repeat_interleave(2)[::2],
    }
    assert same(run(x | strided), run(x))
    heads_first = x["q"].permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)
    assert same(run(x | {"q": heads_first}), run(x))


def test_a_row_does_not_depend_on_entries_that_name_nothing(make_runner):
    """Of the CPU: not on where they stand, nor on how many there are."""
    run = make_runner("mla_sparse", "cpu-cpu")
    x = run.inputs(T=3, H=20, topk=1500, S=1300, **SMALL)
    named = [row[row >= 0] for row in x["indices"]]
    for row, slots in enumerate(named):
        alone = x | {"q": x["q"][row : row + 1], "indices": slots[None]}
        assert same(run(alone), tuple(t[row : row + 1] for t in run(x)))


@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize("H", [5, 70])
def test_on_the_cpu_it_has_the_bits_of_mla_decode_over_the_same_keys(make_runner, cache_dtype, H):
    run, decode = make_runner("mla_sparse", "cpu-cpu"), make_runner("mla_decode", "cpu-cpu")
    x = decode.inputs(B=3, H=H, S=1300, s_q=1, page_size=61, cache_dtype=cache_dtype)
    token = torch.arange(1300)
    pages = x["block_table"][:, token // 61].clamp(0, x["cache"].size(0) - 1)
    x |= {"indices": (pages * 61 + token % 61)[:, None].int(), "topk_length": x["seqlens"][:, None]}
    arguments = ("q", "cache", "indices", "sm_scale", "v_dim", "topk_length")
    expected = decode({k: v for k, v in x.items() if k not in ("indices", "topk_length")})
    assert same(run({k: x[k] for k in arguments}), expected)


@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
def test_on_the_cpu_weights_are_not_rounded(make_runner, cache_dtype):
    """Where bfloat16 results would hide it: within the bound of float32, for several parts of keys."""
    run = make_runner("mla_sparse", "cpu-cpu")
    dims = {"T": 2, "H": 20, "topk": 1300, "S": 1500, "x_dtype": torch.float32, "cache_dtype": cache_dtype}
    x = run.inputs(**dims, has_sink=True)
    for got, (exact, error) in zip(run(x), sparse_bound(x, testing.FLOAT32_SUM, None), strict=True):
        testing.assert_within(got, exact, error)


def test_two_halves_of_the_keys_merge_to_the_whole(run):
    x = run.inputs(T=3, H=4, topk=40, S=50, **SMALL)
    a, b = (run(x | {"indices": x["indices"][:, half].contiguous()}) for half in (slice(25), slice(25, 40)))
    with moela.use_backend("reference"):
        out, lse = moela.merge_states(*a, *b)
    expected = run(x)
    torch.testing.assert_close(out, expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lse, expected[1], rtol=1e-5, atol=1e-5)


def test_on_the_cpu_rows_may_have_more_entries_than_are_held_at_a_time(make_runner):
    run = make_runner("mla_sparse", "cpu-cpu")
    x = run.inputs(T=3, H=2, topk=5, S=20, L=32, R=8, hostile=False)
    nothing = torch.full((3, 2**19 + 1), -1, dtype=torch.int32)
    longer = x | {"indices": torch.cat([nothing, x["indices"]], 1)}
    for got, expected in zip(run(longer), run(x), strict=True):
        assert testing.same_bits(got, expected)
