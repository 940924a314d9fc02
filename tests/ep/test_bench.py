"""`moela bench ep --device cuda`, as far as it runs without a GPU."""

import pytest
import torch
from moela.bench import ep_gpu
from moela.bench.commands import text_console
from moela.bench.ep_ranks import Setting


@pytest.mark.usefixtures("kernels")
def test_exchanges_of_virtual_ranks_are_measured_beside_a_copy(monkeypatch, capsys):
    monkeypatch.setattr(ep_gpu.Race, "_synchronize", lambda _: None)
    monkeypatch.setattr(ep_gpu.Race, "_graph_of", lambda _, call: call)
    setting = Setting(ranks=2, transports=("local",), tokens=(1, 8), hidden=24, topk=2, experts=5, rounds=1)
    found = ep_gpu.measure(setting, torch.device("cpu"))
    assert [(m.tokens, m.what) for m in found] == [
        (T, what) for T in (1, 8) for what in ("dispatch_out", "combine_out")
    ]
    for m in found:
        # Of a token at least: read, written at a rank, read there, written.
        assert m.moved_bytes >= 2 * 4 * m.tokens * 48
        assert m.timing.median > 0
        assert m.copy.median > 0
    text_console().print(ep_gpu.table(setting, found))
    assert "2 virtual ranks on one GPU, 24 bfloat16, top-2 of 5 experts" in capsys.readouterr().out
    assert [row["gpus"] for row in ep_gpu.as_json(setting, found)] == [2] * 4
