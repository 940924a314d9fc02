"""`moela plan-ep` as a person meets it."""

import json
import subprocess
import sys

import pytest
from moela.bench import cli

SMALL = ["plan-ep", "--model", "qwen3-30b-a3b", "--nodes", "2"]


@pytest.fixture
def moela(capsys):
    """(arguments) -> (exit code, stdout, stderr) in this process."""

    def run(*argv):
        try:
            code = cli.main([str(a) for a in argv])
        except SystemExit as end:  # argparse: help and refusals
            code = end.code
        return code, *capsys.readouterr()

    return run


def test_a_plan_says_what_limits_it_and_what_would_help(moela):
    code, out, err = moela(
        *SMALL, "--nodes", "8", "--tokens", "128,4096", "--dtype", "bf16", "--overlap", "50"
    )
    assert (code, err) == (0, "")
    for said in (
        "qwen3-30b-a3b: 128 experts, top 8, hidden 2048; routing uniform; layout compact, worst case",
        "NVLink 4: 405 GB/s a rank and direction (assumed), of which 0.9 is reached (assumed)",
        "8 x 8 ranks, 4096 tokens, bf16: limited by InfiniBand.",
        "fp8 rows in dispatch, ",
        "Beside 50 us of other work ",
        "of 132 SMs (",
    ):
        assert said in out
    assert out.count("hierarchical") >= 2
    assert all(len(line) <= 130 for line in out.splitlines())


def test_thousands_of_ranks_are_said_to_be_limited_by_buffers(moela):
    code, out, _ = moela("plan-ep", "--nodes", "256", "--experts", "2048", "--tokens", "8192")
    assert code == 0
    assert "limited by buffer memory, not by time." in out
    assert "compact, worst case: 118 GiB, of a budget of 7.45 GiB, a tenth of a GPU; " in out
    assert "It fits with 512 tokens at a time: " in out
    assert "Or with a capacity factor: 1.0" in out


def test_a_capacity_that_is_too_small_and_one_rank_are_said(moela):
    _, out, _ = moela(*SMALL, "--routing", "zipf:1", "--capacity", "1.1", "--nodes", "1", "--gpus", "1,8")
    assert "1 x 1 ranks, 4096 tokens, fp8: one rank, nothing is sent." in out
    assert "Capacity 1.1 drops rows in more than one batch of a hundred; " in out


def test_json_has_every_combination_with_sources(moela, tmp_path):
    path = tmp_path / "plan.json"
    argv = ["--topology", "dgx-h100,p5en", "--tokens", "128,256", "--layout", "masked", "--json", path]
    assert moela(*SMALL, *argv)[0] == 0
    data = json.loads(path.read_text())
    assert data["format"] == 1
    assert [(p["topology"]["name"], p["tokens"]) for p in data["plans"]] == [
        ("dgx-h100", 128), ("dgx-h100", 256), ("p5en", 128), ("p5en", 256),
    ]  # fmt: skip
    first = data["plans"][0]
    assert first["topology"]["figures"]["b_ib"]["source"].startswith("NVIDIA ConnectX-7")
    assert first["exchanges"]["direct"]["combine"]["time_us"] > 0
    assert first["limit"] in ("InfiniBand", "NVLink 4", "fixed cost")


def test_measured_constants_take_the_place_of_assumed_ones(moela, tmp_path):
    path = tmp_path / "m.json"
    row = {"path": "direct", "phase": "dispatch", "nodes": 1, "gpus": 8, "hidden": 7168, "experts": 256}
    rows = [row | {"topk": 8, "payload": "fp8", "tokens": T, "time_us": 25 + T / 4} for T in (16, 128, 512)]
    path.write_text(json.dumps({"format": 1, "measurements": rows}))
    code, out, _ = moela(*SMALL, "--calibrate", path)
    assert code == 0
    assert "is reached (measured)" in out


REFUSED = {
    "a topology": (["--topology", "dgx-h10"], "--topology: expected one of cpu-shm, "),
    "ranks": (["--nodes", "32"], "plan-ep: ranks: expected at most the 128 experts, got 256; give --experts"),
    "tokens": (["--tokens", "0"], "--tokens: expected a number from 1 to 1048576, got '0'"),
    "gpus": (["--gpus", "16"], "plan-ep: gpus: expected at most 8 a node of dgx-h100, got 16"),
    "a routing": (["--routing", "gauss"], "--routing: expected uniform, zipf:<exponent>, or a file"),
    "a file": (["--routing", "no.npy"], "--routing: expected a file that exists, got 'no.npy'"),
    "groups": (["--group-limit", "4"], "--group-limit: expected model, none, or two numbers"),
    "groups of": (["--group-limit", "4/7"], "plan-ep: groups: expected a number that divides 128, got 7"),
    "a layout": (["--layout", "mask"], "did you mean masked?"),
    "a dtype": (["--dtype", "fp4"], "--dtype: expected one of fp8, bf16, got 'fp4'"),
    "a capacity": (["--capacity", "-1"], "--capacity: expected a number above 0, got '-1'"),
    "measurements": (["--calibrate", "no.json"], "no.json: expected a readable file, got No such file"),
    "too many": (
        ["--tokens", ",".join(map(str, range(1, 400)))],
        "expected at most 200 combinations, got 399",
    ),
}


@pytest.mark.parametrize(("argv", "message"), REFUSED.values(), ids=REFUSED)
def test_what_makes_no_sense_is_refused_in_one_line_with_exit_code_2(moela, argv, message):
    code, out, err = moela(*SMALL, *argv)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("moela: ")
    assert err.count("\n") == 1


def test_it_needs_nothing_but_torch():
    hidden = "import sys; sys.modules.update(dict.fromkeys(('rich', 'matplotlib', 'numpy', 'safetensors')))"
    code = f"{hidden}; from moela.bench.cli import main; sys.exit(main({SMALL}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, "limited by" in done.stdout) == (0, True), done.stderr
