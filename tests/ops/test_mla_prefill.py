"""mla_prefill: the formula, which keys a query sees, what bits depend on, its gradient."""

from typing import Any

import moela
import pytest
import torch
from moela import testing
from moela.ops import SPECS
from moela.ops._mla_prefill_bound import prefill_bound
from moela.reference.mla_prefill import mla_prefill as reference
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

NAN, INF = float("nan"), float("inf")
SMALL = {"H": 2, "D": 24, "Dv": 16, "x_dtype": torch.float32}


def lens_tensor(lens: list[int], device: str) -> Tensor:
    return torch.tensor([0, *lens], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)


def assert_same(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for one, other in zip(got, expected, strict=True):
        assert testing.same_bits(one, other)


def test_is_the_formula_of_the_docstring(run):
    """One query, two keys, of which the second has e times the weight."""
    k = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    v = torch.tensor([[[1.0, 10.0]], [[2.0, 20.0]]])
    args = {"q": torch.tensor([[[0.0, 2.0]]]), "k": k, "v": v}
    args = {name: t.to(run.device) for name, t in args.items()}
    offsets = {"cu_seqlens_q": lens_tensor([1], run.device), "cu_seqlens_k": lens_tensor([2], run.device)}
    out, lse = (t.cpu() for t in run(args | offsets | {"sm_scale": 0.5}))
    e = torch.tensor(1.0).exp()
    value = (1 + 2 * e) / (1 + e)
    torch.testing.assert_close(out.flatten(), torch.stack([value, 10 * value]), rtol=1e-6, atol=0)
    torch.testing.assert_close(lse.flatten(), (1 + e).log()[None], rtol=1e-6, atol=0)


@pytest.mark.parametrize(("s_q", "s_k"), [(3, 3), (3, 20), (20, 7)])
def test_queries_see_up_to_themselves_and_all_without_causal(run, s_q, s_k):
    """Query j of a causal sequence is the only one of a sequence with fewer keys that is not causal."""
    x = run.inputs(T=s_q, lens=[(s_q, s_k)], **SMALL)
    out, lse = run(x)
    for j in range(s_q):
        seen = max(s_k - (s_q - 1 - j), 0)
        offsets = {
            "cu_seqlens_q": lens_tensor([1], run.device),
            "cu_seqlens_k": lens_tensor([seen], run.device),
        }
        alone = {"q": x["q"][j : j + 1], "k": x["k"][:seen], "v": x["v"][:seen], "causal": False}
        assert_same(run(x | offsets | alone), (out[j : j + 1], lse[j : j + 1]))


def test_a_query_without_keys_is_zero_and_minus_infinity(run):
    """Of a sequence without keys, and the first ones of a sequence with more queries than keys."""
    x = run.inputs(T=6, lens=[(2, 0), (4, 3)], **SMALL)
    out, lse = run(x)
    assert not out[:3].any()
    assert (lse[:3] == -INF).all()
    assert lse[3:].isfinite().all()
    everything = run(x | {"causal": False})
    assert (everything[1][:2] == -INF).all()
    assert everything[1][2:].isfinite().all()


def test_a_sequence_does_not_depend_on_its_batch(run):
    """Bitwise, in another order and alone, and whatever the others hold."""
    lens = (
        [(7, 9), (0, 4), (20, 20), (5, 0), (33, 40)]
        if run.is_slow
        else [(70, 90), (0, 4), (200, 200), (3, 0), (130, 400)]
    )
    T = sum(s_q for s_q, _ in lens)
    x = run.inputs(T=T, lens=lens, **SMALL)
    full = run(x)
    starts = [(int(x["cu_seqlens_q"][b]), int(x["cu_seqlens_k"][b])) for b in range(len(lens))]
    for order in ([3, 1, 0, 4, 2], [2], [4, 4]):
        rows = torch.cat([torch.arange(starts[b][0], starts[b][0] + lens[b][0]) for b in order])
        keys = torch.cat([torch.arange(starts[b][1], starts[b][1] + lens[b][1]) for b in order])
        part = {"q": x["q"][rows], "k": x["k"][keys], "v": x["v"][keys]}
        part["cu_seqlens_q"] = lens_tensor([lens[b][0] for b in order], run.device)
        part["cu_seqlens_k"] = lens_tensor([lens[b][1] for b in order], run.device)
        assert_same(run(x | part), tuple(t[rows] for t in full))
    spoiled = x | {name: x[name].clone() for name in "qkv"}
    first_q, first_k = lens[0]
    spoiled["q"][first_q:], spoiled["k"][first_k:], spoiled["v"][first_k:] = NAN, NAN, INF
    assert_same(tuple(t[:first_q] for t in run(spoiled)), tuple(t[:first_q] for t in full))


def test_heads_do_not_depend_on_each_other(run):
    x = run.inputs(T=30, **SMALL | {"H": 5})
    full = run(x)
    for head in (0, 2, 4):
        alone = run(x | {name: x[name][:, head : head + 1] for name in "qkv"})
        assert_same(alone, tuple(t[:, head : head + 1] for t in full))


@pytest.mark.parametrize(("value", "dtype"), [(INF, torch.float32), (NAN, torch.bfloat16)], ids=str)
@pytest.mark.parametrize("name", ["k", "v"])
def test_a_key_that_a_query_does_not_see_may_be_nan(run, name, value, dtype):
    """0 * NaN too, and 0 * Inf; who sees an infinite value has it, and other columns of it are right."""
    x = run.inputs(T=40, **SMALL | {"H": 1, "x_dtype": dtype}, lens=[(40, 70)])
    expected = run(x)
    (exact, error), (exact_lse, error_lse) = run.spec.bound(x, run.accum(x))
    x[name][40, :, : 7 if name == "v" else None] = value  # the key of query 10
    out, lse = run(x)
    assert_same((out[:10], lse[:10]), (expected[0][:10], expected[1][:10]))
    if name == "k":
        assert out[10:].isnan().all()
        assert lse[10:].isnan().all()
        return
    testing.assert_within(out[:, :, 7:], exact[:, :, 7:], error[:, :, 7:])
    testing.assert_within(lse, exact_lse, error_lse)
    assert torch.equal(
        out[10:, :, :7].nan_to_num(0.25), torch.full_like(out[10:, :, :7], value).nan_to_num(0.25)
    )


def test_a_score_of_infinity_makes_its_row_nan(run):
    """For another head it is -Inf, which weighs nothing."""
    x = run.inputs(T=2, lens=[(2, 130)], causal=False, **SMALL)
    x["q"][:, 0, -1], x["q"][:, 1, -1] = 1, -1
    x["k"][120, :, -1] = INF
    for t in run(x):
        assert t[:, 0].isnan().all()
        assert t[:, 1].isfinite().all()


def test_a_score_beyond_float32_is_infinite(run):
    """Of one head +Inf, of the other -Inf in every key."""
    x = run.inputs(T=2, lens=[(2, 9)], causal=False, **SMALL)
    x["q"][:, 0, -1], x["q"][:, 1, -1] = 2.0**100, -(2.0**100)
    x["k"][..., -1] = 2.0**100
    out, lse = run(x)
    assert out[:, 0].isnan().all()
    assert lse[:, 0].isnan().all()
    assert not out[:, 1].any()
    assert (lse[:, 1] == -INF).all()


def test_huge_scores_choose_one_key(run):
    x = run.inputs(T=2, lens=[(2, 30)], causal=False, **SMALL)
    out, lse = run(x | {"sm_scale": 1e12})
    for head in range(2):
        scores = (x["q"][:, head].double() @ x["k"][:, head].double().T).cpu()
        assert torch.equal(out[:, head].cpu(), x["v"][:, head].cpu()[scores.argmax(-1)])
        torch.testing.assert_close(lse[:, head].cpu().double(), scores.amax(-1) * 1e12, rtol=1e-6, atol=0)


def test_a_negative_scale_and_zero(run):
    x = run.inputs(T=20, **SMALL)
    for sm_scale in (-0.3, 0.0):
        inputs = x | {"sm_scale": sm_scale}
        for got, (exact, error) in zip(run(inputs), run.spec.bound(inputs, run.accum(inputs)), strict=True):
            testing.assert_within(got, exact, error)


def test_q_k_and_v_may_have_any_strides(run):
    """k of one memory for all heads; k and v interleaved, as an up-projection of latents leaves them."""
    x = run.inputs(T=20, **SMALL)
    one_head = x | {"k": x["k"][:, :1].expand(-1, 2, -1)}
    assert_same(run(one_head), run(x | {"k": one_head["k"].contiguous()}))
    k, v = torch.cat([x["k"], x["v"]], -1).split([24, 16], -1)
    heads_first = x["q"].transpose(0, 1).contiguous().transpose(0, 1)
    assert_same(run(x | {"q": heads_first, "k": k, "v": v}), run(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_chunks_of_keys_are_merged_to_the_attention_over_all(make_runner, run, dtype):
    """A prefix in pieces, none of them causal, then the new tokens."""
    merge = make_runner("merge_states", f"{run.backend}-{run.device}")
    x = run.inputs(T=12, lens=[(12, 60)], **SMALL | {"x_dtype": dtype}, hostile=False)
    pieces = [slice(0, 20), slice(20, 20), slice(20, 48), slice(48, 60)]
    total = None
    for keys in pieces:
        piece = {"k": x["k"][keys], "v": x["v"][keys], "causal": keys.stop == 60}
        piece["cu_seqlens_k"] = lens_tensor([keys.stop - keys.start], run.device)
        out, lse = run(x | piece)
        parts = {"out_b": out, "lse_b": lse}
        total = (out, lse) if total is None else merge({"out_a": total[0], "lse_a": total[1], **parts})
    # Values up to 4 are rounded to bfloat16 seven times, or to float32, where sums may lose 2^-20.
    tolerance = 2.0**-18 if dtype == torch.float32 else 2.0**-5
    for got, expected in zip(total, run(x), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


# --- the CPU kernel --------------------------------------------------------------------------------------

LONG = [(200, 200), (97, 300), (1, 250), (300, 96)]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("D", "Dv"), [(192, 128), (256, 256), (70, 33)])
def test_the_cpu_has_many_tiles_within_the_bound(make_runner, D, Dv, causal):
    """float32 also, where a rounding to bfloat16 would hide it."""
    run = make_runner("mla_prefill", "cpu-cpu")
    for dtype in (torch.float32, torch.bfloat16):
        x = run.inputs(T=598, H=2, D=D, Dv=Dv, lens=LONG, causal=causal, x_dtype=dtype)
        for got, (exact, error) in zip(run(x), run.spec.bound(x, testing.FLOAT32_SUM), strict=True):
            testing.assert_within(got, exact, error)


def rms(got: Tensor, exact: Tensor) -> float:
    return (got.double() - exact).square().mean().sqrt().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("T", [300, 2000])
def test_the_error_is_at_most_twice_that_of_torch(make_runner, T, dtype):
    """The root of the mean square, over all elements; the same formula in the same precision."""
    run = make_runner("mla_prefill", "cpu-cpu")
    x = run.inputs(T=T, H=1, causal=False, x_dtype=dtype, hostile=False)
    q, k, v = (x[name].transpose(0, 1) for name in "qkv")  # [H, T, D]
    scores = (q @ k.mT * x["sm_scale"]).float()
    theirs = scores.softmax(-1).to(dtype) @ v
    (exact, _), (exact_lse, _) = prefill_bound(x, 0.0, None)
    out, lse = run(x)
    assert rms(out, exact) <= 2 * rms(theirs.transpose(0, 1), exact)
    assert rms(lse, exact_lse) <= 2 * rms(scores.logsumexp(-1).T, exact_lse)


# --- Triton ----------------------------------------------------------------------------------------------


def test_in_triton_queries_beyond_the_last_offset_see_no_key(run):
    """As padding of a batch of fixed size has them; no check reads offsets on a GPU."""
    if run.backend != "triton":
        pytest.skip("offsets are checked")
    from moela.kernels import mla_prefill as kernel

    x = run.inputs(T=30, lens=[(9, 9), (21, 21)], **SMALL)
    full = run(x)
    x["cu_seqlens_q"][-1], x["cu_seqlens_k"][-1] = 25, 25
    out = tuple(torch.full_like(t, NAN) for t in full)
    kernel.launch(**x, out=out)
    assert_same(tuple(t[:25] for t in out), tuple(t[:25] for t in full))
    assert not out[0][25:].any()
    assert (out[1][25:] == -INF).all()


# --- the gradient ----------------------------------------------------------------------------------------


def gradients(run: Any, x: dict[str, Any], dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor, ...]:
    leaves = {name: x[name].detach().clone().requires_grad_() for name in "qkv"}
    with moela.use_backend(run.backend):
        results = moela.mla_prefill(**x | leaves)
        pairs = [(r, g) for r, g in zip(results, (dout, dlse), strict=True) if g is not None]
        return torch.autograd.grad([r for r, _ in pairs], [*leaves.values()], [g for _, g in pairs])


@pytest.mark.parametrize("causal", [True, False])
def test_the_definitions_gradient_is_that_of_its_formula(causal):
    """In float64, against autograd of the definition."""
    x = SPECS["mla_prefill"].make_inputs(T=19, causal=causal, **SMALL)
    leaves = {name: x[name].double().requires_grad_() for name in "qkv"}
    g = torch.Generator().manual_seed(1)
    dout, dlse = torch.randn(19, 2, 16, generator=g, dtype=torch.float64), torch.randn(19, 2, generator=g)
    out, lse = reference(**x | leaves)
    wide_lse = torch.full((19, 2), -INF, dtype=torch.float64)
    for (rows, keys), seen in of_sequences(x, causal):
        s = torch.einsum("qhd,khd->qhk", leaves["q"][rows], leaves["k"][keys]) * x["sm_scale"]
        wide_lse[rows] = s.masked_fill(~seen[:, None], -INF).logsumexp(-1).detach()
    lse_sum = torch.where(lse == -INF, 0.0, lse * dlse).sum()
    exact = torch.autograd.grad((out * dout).sum() + lse_sum, [*leaves.values()])
    offsets = (x["cu_seqlens_q"], x["cu_seqlens_k"])
    args = [t.detach() for t in leaves.values()]
    got = moela.reference.mla_prefill_backward(
        dout, dlse, *args, out.detach(), wide_lse, *offsets, sm_scale=x["sm_scale"], causal=causal
    )
    for one, other in zip(got, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)  # lse is float32 in the definition


def of_sequences(x: dict[str, Any], causal: bool):
    from moela.reference.mla_prefill import sees, sequences

    for rows, keys in sequences(x["cu_seqlens_q"], x["cu_seqlens_k"]):
        yield (rows, keys), sees(rows.stop - rows.start, keys.stop - keys.start, causal, x["q"].device)


@pytest.mark.parametrize("wanted", ["out", "lse", "both"])
def test_autograd_calls_the_op_of_the_gradient(run, wanted):
    x = run.inputs(T=19, **SMALL)
    out, lse = run(x)
    g = torch.Generator().manual_seed(1)
    dout = torch.randn(out.shape, generator=g).to(run.device) if wanted != "lse" else None
    dlse = torch.randn(lse.shape, generator=g).to(run.device) if wanted != "out" else None
    got = gradients(run, x, dout, dlse)
    dout = torch.zeros_like(out) if dout is None else dout
    with moela.use_backend(run.backend):
        assert_same(got, moela.mla_prefill_backward(dout=dout, dlse=dlse, fwd_out=out, lse=lse, **x))


def test_the_gradient_of_one_key_for_all_heads_is_the_sum_over_heads(run):
    x = run.inputs(T=19, **SMALL)
    out, _ = run(x)
    leaf = x["k"][:, :1].detach().clone().requires_grad_()
    with moela.use_backend(run.backend):
        moela.mla_prefill(**x | {"k": leaf.expand(-1, 2, -1)})[0].sum().backward()
    _, per_head, _ = gradients(run, x | {"k": leaf.detach().expand(-1, 2, -1)}, torch.ones_like(out), None)
    torch.testing.assert_close(leaf.grad, per_head.sum(1, keepdim=True))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_with_its_derivative_as_one_graph(backend):
    x = SPECS["mla_prefill"].make_inputs(T=19, **SMALL)
    counter = CompileCounterWithBackend(backend)
    torch._dynamo.reset()
    results = []
    for f in (torch.compile(moela.mla_prefill, fullgraph=True, backend=counter), moela.mla_prefill):
        leaves = {name: x[name].detach().clone().requires_grad_() for name in "qkv"}
        out, lse = f(**x | leaves)
        ((out * 3).sum() + torch.where(lse == -INF, 0.0, lse).sum()).backward()
        results.append((out.detach(), lse.detach(), *(t.grad for t in leaves.values())))
    assert_same(*results)
    assert counter.frame_count == 1


def test_passes_the_checks_of_torch_with_gradients():
    x = SPECS["mla_prefill"].make_inputs(T=19, **SMALL)
    torch.library.opcheck(SPECS["mla_prefill"].op, (), x | {n: x[n].requires_grad_() for n in "qkv"})
