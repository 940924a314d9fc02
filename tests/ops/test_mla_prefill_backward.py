"""mla_prefill_backward: what its gradients depend on, and queries and keys that have none."""

import pytest
import torch
from moela import testing

NAN, INF = float("nan"), float("inf")
SMALL = {"H": 2, "D": 24, "Dv": 16, "x_dtype": torch.float32}


def test_an_lse_without_a_gradient_is_one_with_zeros(run):
    x = run.inputs(T=19, **SMALL, hostile=False)
    zeros = x | {"dlse": torch.zeros_like(x["dlse"])}
    for one, other in zip(run(x | {"dlse": None}), run(zeros), strict=True):
        assert testing.same_bits(one, other)


def test_a_query_without_keys_has_no_gradient_and_gives_none(run):
    """Whatever its own gradients hold, and those of its result."""
    x = run.inputs(T=6, lens=[(2, 0), (4, 3)], **SMALL)
    dq, dk, dv = run(x)
    assert not dq[:3].any()
    for t in (dq, dk, dv):
        assert t.isfinite().all()
    dq, dk, dv = run(x | {"causal": False, "dlse": None, "dout": x["dout"].nan_to_num(0.5)})
    assert not dq[:2].any()


def test_a_query_without_keys_has_no_gradient_beside_keys_that_are_nan(run):
    x = run.inputs(T=12, lens=[(12, 4)], **SMALL)
    x["k"][:] = NAN
    dq, _, _ = run(x)
    assert not dq[:8].any()
    assert dq[8:].isnan().all()


@pytest.mark.parametrize(("value", "dtype"), [(INF, torch.float32), (NAN, torch.bfloat16)], ids=str)
@pytest.mark.parametrize("name", ["q", "dout", "k", "v", "fwd_out", "lse"])
def test_what_is_not_finite_reaches_only_who_sees_it(run, name, value, dtype):
    """Key 40 is that of query 10. out and lse are given, so that no query or key has it from another one.

    Gradients are small, as they often are, and so that they may be scaled.
    """
    x = run.inputs(T=40, **SMALL | {"H": 1, "x_dtype": dtype}, lens=[(40, 70)])
    x["dout"], x["dlse"] = x["dout"] * 2.0**-60, x["dlse"] * 2.0**-60
    expected = run(x)
    is_key = name in "kv"
    x[name][40 if is_key else 10] = value
    everything, keys, queries = torch.arange(70), torch.arange(70) == 40, torch.arange(40)
    reached = {
        "dq": queries >= 10 if is_key else queries == 10,
        "dk": keys if is_key else everything <= 40,
        "dv": keys & (name == "k") if is_key else (everything <= 40) & (name != "fwd_out"),
    }
    for (output, is_reached), got, want in zip(reached.items(), run(x), expected, strict=True):
        is_reached = is_reached.to(run.device)
        assert testing.same_bits(got[~is_reached], want[~is_reached]), output
        if value != INF:
            assert got[is_reached].isnan().all(), output


def test_a_key_that_no_query_sees_has_no_gradient(run):
    x = run.inputs(T=3, lens=[(0, 4), (3, 5), (0, 2)], **SMALL)
    _, dk, dv = run(x)
    for t in (dk, dv):
        assert not t[:4].any()
        assert not t[9:].any()
        assert t[4:9].any(-1).all()


def test_a_sequence_does_not_depend_on_its_batch(run):
    lens = [(7, 9), (20, 20), (5, 0)] if run.is_slow else [(70, 90), (200, 200), (3, 0), (130, 400)]
    x = run.inputs(T=sum(s_q for s_q, _ in lens), lens=lens, **SMALL)
    full = run(x)
    for b in range(len(lens)):
        rows, keys = (slice(*x[f"cu_seqlens_{n}"][b : b + 2].tolist()) for n in "qk")
        alone = x | {name: x[name][rows] for name in ("dout", "dlse", "q", "fwd_out", "lse")}
        alone |= {name: x[name][keys] for name in "kv"}
        alone["cu_seqlens_q"] = torch.tensor([0, lens[b][0]], dtype=torch.int32, device=run.device)
        alone["cu_seqlens_k"] = torch.tensor([0, lens[b][1]], dtype=torch.int32, device=run.device)
        for got, expected, part in zip(run(alone), full, (rows, keys, keys), strict=True):
            assert testing.same_bits(got, expected[part])


def test_arguments_may_have_any_strides(run):
    x = run.inputs(T=20, **SMALL)
    expected = run(x)
    turned = {name: x[name].transpose(0, 1).contiguous().transpose(0, 1) for name in ("dlse", "lse", "dout")}
    k, v = torch.cat([x["k"], x["v"]], -1).split([24, 16], -1)
    for got, want in zip(run(x | turned | {"k": k, "v": v}), expected, strict=True):
        assert testing.same_bits(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_small_gradients_are_the_same_bits_times_a_power_of_two(run, dtype):
    x = run.inputs(T=40, **SMALL | {"x_dtype": dtype})
    tiny = 2.0**-70
    for one, other in zip(run(x | {n: x[n] * tiny for n in ("dout", "dlse")}), run(x), strict=True):
        assert testing.same_bits(one, other * tiny)


# --- the CPU kernel --------------------------------------------------------------------------------------


def within_the_bound(run, x):
    got = run(x)
    for name, one, (exact, error) in zip(
        run.spec.outputs, got, run.spec.bound(x, testing.FLOAT32_SUM), strict=True
    ):
        testing.assert_within(one, exact, error, name)
    return got


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("D", "Dv"), [(192, 128), (256, 256), (70, 33)])
def test_the_cpu_has_many_tiles_within_the_bound(make_runner, D, Dv, causal):
    run = make_runner("mla_prefill_backward", "cpu-cpu")
    lens = [(200, 200), (97, 300), (1, 250), (300, 96), (31, 33), (193, 192)]
    for dtype in (torch.float32, torch.bfloat16):
        x = run.inputs(T=822, H=2, D=D, Dv=Dv, lens=lens, causal=causal, x_dtype=dtype)
        within_the_bound(run, x)


@pytest.mark.parametrize(
    ("name", "power"), [("q", -60), ("k", -60), ("v", -60), ("v", 60), ("dout", -60), ("dout", 60)]
)
def test_the_cpu_takes_a_row_of_any_size_within_the_bound(make_runner, name, power):
    """Of one head; the other one keeps its bits."""
    run = make_runner("mla_prefill_backward", "cpu-cpu")
    x = run.inputs(T=230, H=2, D=40, Dv=16, lens=[(230, 230)])
    expected = run(x)
    x[name][100, 0] *= 2.0**power
    for got, want in zip(within_the_bound(run, x), expected, strict=True):
        assert testing.same_bits(got[:, 1], want[:, 1])


@pytest.mark.parametrize(
    ("powers", "under"),
    [({"dout": 45, "v": 45, "fwd_out": 45}, 0), ({"dout": -110}, 0), ({"q": -40}, 62)],
    ids=["huge", "tiny", "light"],
)
def test_the_cpu_keeps_what_neither_overflows_nor_is_lost_in_the_results(make_runner, powers, under):
    """Tiles multiply weights times 2^50, with which the first overflows; without, the third were zeros."""
    run = make_runner("mla_prefill_backward", "cpu-cpu")
    x = run.inputs(T=40, H=1, D=24, Dv=16, has_dlse=False)
    scaled = {name: x[name] * 2.0**power for name, power in powers.items()}
    within_the_bound(run, x | scaled | {"lse": x["lse"] + under})
