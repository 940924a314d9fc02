"""The benches of attention: batches, and long prompts that are checked in parts."""

import pytest
import torch
from moela.bench import bench_mla_decode, bench_mla_prefill
from moela.bench.selection import Lineup
from moela.bench.suite import Entry, check
from moela.ops import SPECS

CPU = torch.device("cpu")


@pytest.mark.parametrize("layer", ["mla", "mla_two"])
def test_all_contestants_agree_on_a_batch(layer):
    bench = bench_mla_decode.BENCH
    [case] = bench.cases("deepseek-v2-lite", [layer], [70], ["bf16"], batches=[3])
    assert str(case) == f"mla_decode deepseek-v2-lite.{layer} bf16 B=3 M=70"
    inputs = bench.inputs(case, CPU)
    entries = Lineup(bench, CPU, ["all"], ["all"]).entries(inputs, inputs)
    verdicts = check(bench, inputs, entries)
    assert {"torch-sdpa", "torch-fp32"} < verdicts.keys()
    assert all(isinstance(v, float) for v in verdicts.values()), verdicts


@pytest.mark.parametrize("T", [50, 100, 150])
def test_a_long_prompt_is_right_in_its_parts(T, monkeypatch):
    """Of more than 120 tokens the first and the last are checked; a wrong one there is found."""
    bench = bench_mla_prefill.BENCH
    monkeypatch.setattr(bench_mla_prefill, "rows_at_once", lambda T: 64)
    monkeypatch.setattr(bench_mla_prefill, "MANY_TOKENS", 120)
    inputs = SPECS["mla_prefill"].make_inputs(T=T, H=1, D=16, Dv=8, hostile=False)
    out, lse = SPECS["mla_prefill"].op(**inputs)
    assert isinstance(check(bench, inputs, [Entry("cpu", lambda: (out, lse))])["cpu"], float)
    for row in (0, T - 1):
        wrong = out.clone()
        wrong[row] += 1
        assert isinstance(check(bench, inputs, [Entry("cpu", lambda w=wrong: (w, lse))])["cpu"], str)
    torch.testing.assert_close(bench_mla_prefill.lse_of(inputs), lse, rtol=1e-4, atol=1e-4)
