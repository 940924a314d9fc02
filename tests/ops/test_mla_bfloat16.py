"""Attention of bfloat16 on the CPU: numbers at the ends of its range, and what bits depend on.

Where the CPU multiplies tiles of bfloat16 (docs/adr/0011) they take subnormal numbers for zeros.
"""

from itertools import pairwise
from typing import Any

import moela
import pytest
import torch
from moela import testing
from torch import Tensor

NAN = float("nan")
BF16 = torch.bfloat16
# Columns times these: subnormal, tiny, at and beside the ends of what tiles take, huge.
SIZES = (2.0**-130, 2.0**-100, 2.0**-51, 2.0**-50, 2.0**49, 2.0**51, 2.0**100)


@pytest.fixture
def decode(make_runner):
    return make_runner("mla_decode", "cpu-cpu")


@pytest.fixture
def prefill(make_runner):
    return make_runner("mla_prefill", "cpu-cpu")


def assert_within_bound(run: Any, x: dict[str, Any]) -> None:
    for got, (exact, error) in zip(run(x), run.spec.bound(x, testing.FLOAT32_SUM), strict=True):
        testing.assert_within(got, exact, error)


def assert_same(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for one, other in zip(got, expected, strict=True):
        assert testing.same_bits(one, other)


@pytest.mark.parametrize("size", SIZES)
def test_columns_of_any_size_are_within_the_bound(decode, prefill, size):
    """Scores stay what they are: q is as small as keys are large."""
    x = decode.inputs(B=2, H=3, S=210, L=64, R=16, page_size=None, hostile=False)
    x["cache"][0, 1::2, 5:9] *= size  # of one request
    x["q"][:, :, :, 5:9] /= size
    assert_within_bound(decode, x)
    x = prefill.inputs(T=120, H=1, D=64, Dv=40, lens=[(120, 130)], x_dtype=BF16)
    x["k"][70, :, 5:9] *= size
    x["q"][100:, :, 5:9] /= size
    x["v"][90:, :, 7] *= size
    assert_within_bound(prefill, x)


@pytest.mark.parametrize("first", [1200, 1201])
@pytest.mark.parametrize("size", SIZES)
def test_values_of_any_size_are_within_the_bound(decode, size, first):
    """Of every other key of the second part, in a column that no score sees: q is as tiles take it."""
    x = decode.inputs(B=1, H=3, S=1300, L=64, R=16, page_size=None, hostile=False)
    x["q"][..., 5], x["cache"][0, :, 5], x["cache"][0, first::2, 5] = 0, 0, size
    assert_within_bound(decode, x)


def test_a_prompt_of_float32_over_several_tiles_of_keys_is_within_the_bound(prefill):
    """Maxima grow from tile to tile; the contract's cases of several tiles are bfloat16."""
    x = prefill.inputs(T=70, H=2, D=24, Dv=16, lens=[(70, 400)], x_dtype=torch.float32)
    x["k"] *= torch.linspace(0.1, 2, 400)[:, None, None]
    assert_within_bound(prefill, x)


def test_weights_that_nearly_vanish_keep_small_values(decode):
    """A column in which only keys of weights down to 2^-126 have values."""
    x = decode.inputs(B=1, H=1, S=100, L=32, R=0, page_size=None, hostile=False)
    x["q"][...], x["cache"][...] = 0, 0
    x["q"][..., 0] = -1
    x["cache"][0, :, 0] = torch.arange(100) * 0.875
    x["cache"][0, 1:, 3] = torch.rand(99, generator=torch.Generator().manual_seed(0)).to(BF16) * 2.0**-40
    assert_within_bound(decode, x | {"sm_scale": 1.0})


@pytest.mark.parametrize("size", [0.0, 2.0**-140, 2.0**-60, 2.0**-42, 2.0**-41, 2.0**41, 2.0**42, 2.0**100])
def test_scale_factors_of_any_size_are_within_the_bound(decode, size):
    """Of some keys of the second part, times what is no power of two, in columns that no score sees."""
    x = decode.inputs(B=1, H=3, S=1300, L=256, R=16, page_size=None, cache_dtype=torch.uint8, hostile=False)
    x["q"][..., 128:256] = 0
    scale_factors = x["cache"][0, :, 256:264].view(torch.float32)  # a view is not contiguous: made anew
    scale_factors = scale_factors.clone()
    scale_factors[1200:, 1] *= size
    x["cache"][0, :, 256:264] = scale_factors.view(torch.uint8)
    assert_within_bound(decode, x)


def test_a_row_of_zeros_has_the_bits_of_any_scale_factor(decode):
    """mla_cache_write gives it the least one that is normal; as a number of its own tiles do not take it."""
    x = decode.inputs(B=1, H=3, S=70, L=128, R=16, page_size=None, cache_dtype=torch.uint8, hostile=False)
    zeros = torch.zeros(1, 128, dtype=BF16), torch.zeros(1, 16, dtype=BF16)
    moela.mla_cache_write(*zeros, x["cache"], torch.tensor([5]))
    assert x["cache"][0, 5, 128:132].view(torch.float32) == 2.0**-126
    written = decode(x)
    x["cache"][0, 5, 128:132] = torch.ones(1).view(torch.uint8)
    assert_same(decode(x), written)


def test_rows_of_bytes_that_are_tiny_lose_no_small_code(make_runner):
    """Products with their scale factors are subnormal."""
    run = make_runner("mla_sparse", "cpu-cpu")
    x = run.inputs(T=1, H=2, topk=40, S=64, L=128, R=16, cache_dtype=torch.uint8, hostile=False)
    x["cache"][..., 128:132] = torch.tensor([2.0**-122]).view(torch.uint8)
    x["cache"][..., :128] %= 16
    assert_within_bound(run, x)


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_a_code_that_is_nan_reaches_those_that_see_it(decode, code):
    x = decode.inputs(
        B=1, H=3, S=70, s_q=2, L=128, R=16, page_size=None, cache_dtype=torch.uint8, hostile=False
    )
    x["cache"][0, 69, 100] = code
    out, lse = decode(x)
    assert out[0, 0].isfinite().all()
    assert out[0, 1].isnan().all()
    assert lse[0, 1].isnan().all()


@pytest.mark.parametrize(("threads", "is_token_odd"), [(1, False), (64, False), (1, True), (64, True)])
@pytest.mark.parametrize("cache_dtype", [torch.float32, BF16, torch.uint8], ids=str)
@pytest.mark.parametrize(("H", "s_q"), [(16, 9), (5, 3), (40, 4), (130, 2)])
def test_tokens_of_a_request_have_the_bits_of_each_alone(decode, H, s_q, cache_dtype, threads, is_token_odd):
    """Also where they read its keys together, which with many threads they do not, and where numbers are not
    as tiles take them: of a later token's own key, at the end of the second part, or of the first token."""
    dtypes = {"x_dtype": torch.float32 if cache_dtype == torch.float32 else BF16, "cache_dtype": cache_dtype}
    x = decode.inputs(B=1, H=H, S=1300, s_q=s_q, L=128, R=16, page_size=None, **dtypes, hostile=False)
    pe = x["cache"][0, 1299].view(torch.uint8)[-4:]
    pe.copy_(torch.tensor([0x80, 0x01, 0x80, 0x01], dtype=torch.uint8))  # tiny of every type
    if is_token_odd:
        x["q"][0, 0, 0, 3] = 2.0**-130
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        out, lse = decode(x)
    finally:
        torch.set_num_threads(before)
    for j in {0, s_q // 2, s_q - 1}:
        alone = {"q": x["q"][:, j : j + 1], "seqlens": x["seqlens"] - (s_q - 1 - j)}
        assert_same(decode(x | alone), (out[:, j : j + 1], lse[:, j : j + 1]))


@pytest.mark.parametrize("H", [1, 3, 16, 17, 130])
def test_heads_and_tokens_do_not_depend_on_each_other(decode, H):
    x = decode.inputs(B=1, H=H, S=230, s_q=3, L=64, R=16, hostile=False)
    out, lse = decode(x)
    for head in {0, H // 2, H - 1}:
        alone = decode(x | {"q": x["q"][:, 1:, head : head + 1]})
        assert_same(alone, (out[:, 1:, head : head + 1], lse[:, 1:, head : head + 1]))


def test_a_request_of_any_length_does_not_depend_on_its_batch(decode):
    """NaN after its last token; one has a part of its keys that tiles do not take."""
    lengths = [*range(1, 18), 31, 32, 33, 191, 192, 193, 1152, 1153, 1400]
    x = decode.inputs(B=len(lengths), H=3, S=1400, L=32, R=8, page_size=None, hostile=False)
    x["seqlens"] = torch.tensor(lengths, dtype=torch.int32)
    x["cache"][-1, 1300, 4] = 2.0**-130
    for b, length in enumerate(lengths):
        x["cache"][b, length:] = NAN
    full = decode(x)
    assert full[0].isfinite().all()
    assert_same(decode(x), full)
    for b in (0, 15, 16, 20, len(lengths) - 1):
        mine = {name: x[name][b : b + 1] for name in ("q", "cache", "seqlens")}
        assert_same(decode(x | mine), tuple(t[b : b + 1] for t in full))
    assert_within_bound(decode, {n: t[15:] if isinstance(t, Tensor) else t for n, t in x.items()})


@pytest.mark.parametrize("value", [NAN, 2.0**-130, 2.0**90], ids=["nan", "subnormal", "huge"])
@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_queries_that_do_not_see_a_number_keep_their_bits(prefill, name, value):
    x = prefill.inputs(T=210, H=2, D=40, Dv=24, lens=[(210, 240)], x_dtype=BF16)
    expected = prefill(x)
    x[name][100, 1, 3] = value
    out, lse = prefill(x)
    before = 100 if name == "q" else 70  # query 70 sees the keys up to 100
    assert_same((out[:before], lse[:before]), tuple(t[:before] for t in expected))
    assert_same((out[:, 0], lse[:, 0]), tuple(t[:, 0] for t in expected))
    if name == "q":
        assert_same((out[101:], lse[101:]), tuple(t[101:] for t in expected))
    if value == value:
        assert_within_bound(prefill, x)
    else:
        assert not out[100 if name == "q" else slice(before, None), 1].isfinite().all(-1).any()


@pytest.mark.parametrize("causal", [True, False])
def test_a_query_of_a_prompt_is_one_of_its_own(prefill, causal):
    x = prefill.inputs(T=230, H=1, D=70, Dv=33, lens=[(230, 250)], causal=causal, x_dtype=BF16)
    out, lse = prefill(x)
    for j in (0, 31, 96, 229):
        seen = 21 + j if causal else 250
        offsets = {
            "cu_seqlens_q": torch.tensor([0, 1], dtype=torch.int32),
            "cu_seqlens_k": torch.tensor([0, seen], dtype=torch.int32),
        }
        alone = {"q": x["q"][j : j + 1], "k": x["k"][:seen], "v": x["v"][:seen], "causal": False}
        assert_same(prefill(x | offsets | alone), (out[j : j + 1], lse[j : j + 1]))


def tile_by_tile(x: dict[str, Any]) -> dict[str, Any]:
    """The same prompts, causal, each 192 queries with what they see as a sequence of their own."""
    parts, offsets = {"q": [], "k": [], "v": []}, {"cu_seqlens_q": [0], "cu_seqlens_k": [0]}
    of_q, of_k = (x[name].tolist() for name in offsets)
    for (q, q_end), (k, k_end) in zip(pairwise(of_q), pairwise(of_k), strict=True):
        for first in range(q, q_end, 192):
            end = min(first + 192, q_end)
            seen = max(k_end - (q_end - end), k)
            parts["q"].append(x["q"][first:end])
            parts["k"].append(x["k"][k:seen])
            parts["v"].append(x["v"][k:seen])
            offsets["cu_seqlens_q"].append(offsets["cu_seqlens_q"][-1] + end - first)
            offsets["cu_seqlens_k"].append(offsets["cu_seqlens_k"][-1] + seen - k)
    together = {name: torch.cat(rows) for name, rows in parts.items()}
    return x | together | {name: torch.tensor(o, dtype=torch.int32) for name, o in offsets.items()}


@pytest.mark.parametrize("threads", [1, 2])
def test_tiles_that_share_keys_are_those_that_do_not(prefill, threads):
    """Several waves of heads; keys that tiles do not take, of which one is NaN, in one block or the next."""
    lens = [(1500, 1700), (193, 193), (5, 0), (600, 580), (40, 300), (200, 700)]
    x = prefill.inputs(T=2538, H=3, D=40, Dv=24, lens=lens, x_dtype=BF16)
    keys = x["cu_seqlens_k"].tolist()
    x["k"][keys[0] + 430, 1, 3] = 2.0**-130
    x["v"][keys[3] + 192, 0, 5] = NAN
    x["k"][keys[3] + 31, 2, 0] = 2.0**90
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert_same(prefill(x), prefill(tile_by_tile(x)))
    finally:
        torch.set_num_threads(before)


def test_two_tiles_of_many_keys_share_them_with_one_thread_only(prefill):
    """Two threads would wait for each other, and a wave of such heads take more than 64 MB."""
    x = prefill.inputs(T=193, H=1, D=256, Dv=256, lens=[(193, 16000)], x_dtype=BF16, hostile=False)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(prefill(x))
    finally:
        torch.set_num_threads(before)
    assert_same(*results)
