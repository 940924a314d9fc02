"""indexer_logits: the formula, which keys a query sees, and what reaches a logit."""

from typing import Any

import pytest
import torch
from moela import testing
from torch import Tensor

NAN, INF = float("nan"), float("inf")
E4M3 = torch.float8_e4m3fn
PAIR = "triton-cuda" if torch.cuda.is_available() else "triton-cpu"


def small(run: Any, **changes: Any) -> dict[str, Any]:
    """Two heads of two columns, three keys, of which both queries see all."""
    tensors = {
        "q": torch.tensor([[[1.0, 2.0], [-1.0, 0.5]], [[0.0, 1.0], [4.0, 0.0]]]).to(E4M3),
        "k": torch.tensor([[1.0, 1.0], [2.0, -2.0], [-1.0, 4.0]]).to(E4M3),
        "sf_k": torch.tensor([1.0, 2.0, 0.5]),
        "weights": torch.tensor([[1.0, 10.0], [1.0, -1.0]]),
        "ks": torch.zeros(2, dtype=torch.int32),
        "ke": torch.full((2,), 3, dtype=torch.int32),
    }
    return {name: t.to(run.device) for name, t in (tensors | changes).items()}


def logits_of(run: Any, inputs: dict[str, Any]) -> Tensor:
    return run(inputs)[0].cpu()


def test_is_the_formula_of_the_docstring(run):
    """Small numbers, so exactly. Heads: 3, -0.5; -2, -3; 7, 3 and 1, 4; -2, 8; 4, -4."""
    expected = torch.tensor([[3.0, 0.0, 0.5 * (7 + 10 * 3)], [1.0 - 4.0, -2.0 * 8, 0.5 * 4]])
    assert torch.equal(logits_of(run, small(run)), expected)


@pytest.mark.parametrize(
    ("start", "end", "seen"),
    [(0, 3, [0, 1, 2]), (1, 3, [1, 2]), (1, 2, [1]), (2, 2, []), (3, 1, []), (9, 3, []), (0, -5, [])],
)
def test_a_query_sees_the_keys_from_ks_up_to_ke(run, start, end, seen):
    ranges = {"ks": torch.tensor([start, 0]).int(), "ke": torch.tensor([end, 3]).int()}
    everything, some = logits_of(run, small(run)), logits_of(run, small(run, **ranges))
    assert some[0].isfinite().nonzero().flatten().tolist() == seen
    assert torch.equal(some[0, seen], everything[0, seen])
    assert (some[0, [s for s in range(3) if s not in seen]] == -INF).all()
    assert torch.equal(some[1], everything[1])


def test_nan_reaches_what_it_is_part_of_and_nothing_else(run):
    """Of a key, of its scale factor, of a query, of a weight; relu does not hide it."""
    expected = logits_of(run, small(run))
    for name, index, wrong in (
        ("k", (1, 0), (slice(None), 1)),
        ("sf_k", (2,), (slice(None), 2)),
        ("q", (0, 1, 1), (0, slice(None))),
        ("weights", (1, 0), (1, slice(None))),
    ):
        x = small(run)
        spoiled = x[name].float()
        spoiled[index] = NAN
        got = logits_of(run, x | {name: spoiled.to(x[name].dtype)})
        is_wrong = torch.zeros(2, 3, dtype=torch.bool)
        is_wrong[wrong] = True
        assert got[is_wrong].isnan().all(), name
        assert torch.equal(got[~is_wrong], expected[~is_wrong]), name


@pytest.mark.parametrize("H", [1, 15, 16, 17, 31, 32, 48, 64, 65])
@pytest.mark.parametrize("D", [1, 2, 63, 128])
def test_any_heads_and_columns(run, H, D):
    x = run.inputs(T=2, S=31, H=H, D=D)
    (got,), [(exact, error)] = run(x), run.spec.bound(x, run.accum(x))
    testing.assert_within(got, exact, error)


def test_every_code_is_worth_what_it_is(run):
    """One column against 1: the logit is the code's value, if that is positive; times 2^-9 too."""
    codes = torch.arange(256, dtype=torch.uint8).view(E4M3)[:, None]
    ones = torch.full((1, 1, 1), 1.0)
    for size in (1.0, 2.0**-9, 448.0):
        x = {"q": (ones * size).to(E4M3), "k": codes, "sf_k": torch.ones(256), "weights": torch.ones(1, 1)}
        x |= {"ks": torch.zeros(1, dtype=torch.int32), "ke": torch.full((1,), 256, dtype=torch.int32)}
        (got,) = run({name: t.to(run.device) for name, t in x.items()})
        expected = (codes.float() * size).relu().flatten()
        assert torch.equal(got[0].cpu().nan_to_num(nan=-7.0), expected.nan_to_num(nan=-7.0))


@pytest.mark.parametrize("tile", [95, 96, 97, 191, 193])
def test_tiles_of_keys_do_not_show(run, tile):
    """A logit has the bits that it has by itself, wherever its key lies."""
    x = run.inputs(T=2, S=tile, H=33, hostile=False)
    (logits,) = run(x)
    for s in (0, tile // 2, tile - 1):
        alone = x | {"k": x["k"][s : s + 1], "sf_k": x["sf_k"][s : s + 1]}
        (got,) = run(alone | {"ke": torch.ones_like(x["ke"])})
        assert testing.same_bits(got, logits[:, s : s + 1])


def test_a_query_may_have_any_strides_and_rows_of_the_result_too(run):
    x = run.inputs(T=3, S=40, H=5, D=40)
    (expected,) = run(x)
    heads_first = x["q"].view(torch.uint8).permute(1, 0, 2).contiguous().permute(1, 0, 2).view(E4M3)
    out = torch.full((3, 57), NAN, device=run.device)
    run.out(x | {"q": heads_first}, {"logits": out[:, 4:44]})
    assert testing.same_bits(out[:, 4:44], expected)
    assert out[:, :4].isnan().all()
    assert out[:, 44:].isnan().all()


def test_in_triton_a_gpu_runs_any_number_of_queries_and_keys(make_runner, monkeypatch):
    """The second and third extent of a grid end at 65535; one program has a few queries only."""
    make_runner("indexer_logits", PAIR)
    from moela.kernels import _fp8, indexer_logits

    grids = []

    class Recorder:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            grids.append(grid)
            return lambda *args, **kwargs: None

    monkeypatch.setattr(indexer_logits, "_indexer_logits_kernel", Recorder())
    monkeypatch.setattr(_fp8, "target_of", lambda device: _fp8.cuda_target(90, 132))
    for T, S in ((2**20, 1), (1, 2**24)):
        q, k, sf_k = (torch.empty(n, *ones, dtype=E4M3) for n, *ones in ((T, 1, 1), (S, 1), (S,)))
        ranges, weights = torch.empty(T, dtype=torch.int32), torch.empty(T, 1)
        indexer_logits.launch(q, k, sf_k.float(), weights, ranges, ranges, out=(torch.empty(T, S),))
    p = indexer_logits.plan(1, 1, 2**20, interpreted=False)
    assert grids == [(2**20 // p.QUERIES,), (2**24 // p.BLOCK_N,)]
