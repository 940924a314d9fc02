"""`moela bench ep`: what it prints and writes."""

import json

import pytest
from moela.bench import cli
from moela.ep.transports import TRANSPORTS

NAMES = [name for name in ("shm", "collective") if TRANSPORTS[name].why_not() is None]


def test_exchanges_are_measured_and_written_for_the_planner(tmp_path, capsys):
    path = tmp_path / "ep.json"
    sizes = ["--tokens", "1,2", "--hidden", "24", "--topk", "2", "--experts", "5", "--rounds", "1"]
    assert cli.main(["bench", "ep", *sizes, "--transport", ",".join(NAMES), "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "2 ranks, 24 bfloat16, top-2 of 5 experts" in printed
    for word in ("all_to_all", "memcpy", "rows", "dispatch", "combine_out", *NAMES):
        assert word in printed
    data = json.loads(path.read_text())
    assert data["format"] == 1
    phases = [(m["phase"], m["tokens"]) for m in data["measurements"]]
    assert phases == [("dispatch", 1), ("combine", 1), ("dispatch", 2), ("combine", 2)]
    wanted = {"path": "hierarchical", "nodes": 1, "gpus": 2, "hidden": 24, "experts": 5, "topk": 2}
    for m in data["measurements"]:
        assert wanted | {"payload": "bf16", "transport": NAMES[0]} == {
            k: m[k] for k in (*wanted, "payload", "transport")
        }
        assert 0 < m["p10_us"] <= m["time_us"] <= m["p90_us"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--topk", "9", "--experts", "8"], "--topk: expected at most 8 experts, got 9"),
        (["--transport", "local"], "--transport: expected one of shm, collective on cpu, got 'local'"),
        (["--ranks", "0"], "--ranks: expected a number from 1 to 64, got '0'"),
    ],
    ids=str,
)  # fmt: skip
def test_what_makes_no_sense_is_refused_in_one_line(capsys, args, message):
    try:
        code = cli.main(["bench", "ep", *args])
    except SystemExit as end:
        code = end.code
    assert (code, capsys.readouterr().err) == (2, f"moela: {message}\n")
