"""The `moela` command as a person meets it: what it prints, and how it refuses."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from moela.bench import cli, commands, report
from moela.bench.report import Case, Result

TINY = ["--layers", "kv_a", "--tokens", "1", "--rounds", "2", "--threads", "1"]
CASE = Case("fp8_gemm", "deepseek-v3", "kv_a", "bf16", 1, flops=8_000, bytes=4_000)


@pytest.fixture(autouse=True)
def _keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


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


def process(code, **env):
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | env, capture_output=True, text=True, check=False
    )


def write_report(path, *results, **machine):
    where = {"cpu": "made up", "isa": "avx2", "gpu": None, "threads": 1} | machine
    found = replace(report.report(where, list(results), []), versions={"torch": "2.11"})
    report.write(found, path)
    return path


def result(contestant="cpu", median=10.0, p10=9.0, p90=11.0, case=CASE):
    return Result(case, contestant, False, median, p10, p90, 0.001, 0.8, 8.0)


# --- what is refused -------------------------------------------------------------------------------------

REFUSED = {
    "no command": ([], "the following arguments are required: command"),
    "a command": (
        ["benhc"],
        "command: expected one of info, demo, bench, plan-ep, got 'benhc'; did you mean bench?",
    ),
    "an op": (["bench", "fp8_gem"], "op: expected one of ep_plan, fp8_gemm, "),
    "a close op": (["bench", "fp8_gem"], "got 'fp8_gem'; did you mean fp8_gemm?"),
    "a model": (["bench", "all", "--model", "deepseek-v33"], "--model: expected one of deepseek-v2-lite, "),
    "a model without such layers": (
        ["bench", "indexer_topk", "--model", "deepseek-v2-lite"],
        "--model: expected one with a layer for indexer_topk (deepseek-v3.2, glm-5), got 'deepseek-v2-lite'",
    ),
    "a layer": (
        ["bench", "all", "--layers", "kv_a,kvb"],
        "--layers of deepseek-v3: expected one of router, expert_gate, ",
    ),
    "a backend": (
        ["bench", "all", "--backends", "gpu"],
        "--backends: expected one of all, cuda, triton, cpu, reference, got 'gpu'",
    ),
    "a baseline": (["bench", "fp8_gemm", "--baselines", "torch-fp16"], "did you mean torch-fp32?"),
    "activations": (["bench", "all", "--activations", "fp8"], "--activations: expected one of bf16, e4m3"),
    "activations of a cast": (
        ["bench", "per_block_quant_fp8", "--activations", "e4m3"],
        "expected one of bf16",
    ),
    "a batch of what has none": (
        ["bench", "fp8_gemm", "--batch", "1,16"],
        "--batch: expected 1 for fp8_gemm, got 16",
    ),
    "a routing": (
        ["bench", "all", "--routing", "zipf,on"],
        "--routing: expected one of balanced, zipf, one, got 'on'",
    ),
    "tokens that are no number": (
        ["bench", "all", "--tokens", "1,x"],
        "--tokens: expected a number from 1 to",
    ),
    "no tokens": (["bench", "all", "--tokens", "0"], "--tokens: expected a number from 1 to 131072, got '0'"),
    "tokens without end": (["bench", "all", "--tokens", "9" * 5000], "--tokens: expected a number from 1 to"),
    "threads": (["bench", "all", "--threads", "-1"], "--threads: expected a number from 1 to"),
    "rounds": (["bench", "all", "--rounds", "1.5"], "--rounds: expected a number from 1 to 10000, got '1.5'"),
    "a file name": (["bench", "all", "--plot", "x.gif"], "--plot: expected a file that ends in .png"),
    "a folder that is not there": (
        ["bench", "all", "--json", "/no/x.json"],
        "--json: expected a file that can",
    ),
    "an option": (["bench", "all", "--fast"], "unrecognized arguments: --fast"),
    "a shortened option": (["bench", "all", "--round", "3"], "unrecognized arguments: --round 3"),
    "triton on the CPU": (
        ["bench", "fp8_gemm", "--backends", "triton", "--device", "cpu"],
        "fp8_gemm: triton cannot take part: runs on CPU tensors in its interpreter, which is never timed",
    ),
    "an absent baseline": (
        ["bench", "fp8_gemm", "--baselines", "deepgemm", "--device", "cpu"],
        "fp8_gemm: deepgemm cannot take part: runs on cuda tensors only",
    ),
}


@pytest.mark.parametrize(("argv", "message"), REFUSED.values(), ids=REFUSED)
def test_what_makes_no_sense_is_refused_in_one_line_with_exit_code_2(moela, argv, message):
    code, out, err = moela(*argv)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("moela: ")
    assert err.count("\n") == 1


BROKEN = {
    "not there": None,
    "no JSON": "{",
    "not text": b"\xff\xfe",
    "another JSON": "[1]",
    "another format": '{"format": 99}',
    "no fields": '{"format": 1}',
    "a result without times": '{"format": 1, "machine": {}, "versions": {}, "commit": "", "command": "",'
    ' "date": "", "results": [{}], "wrong": []}',
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_file_that_is_no_report_is_refused_by_name(moela, tmp_path, content):
    good, bad = write_report(tmp_path / "good.json", result()), tmp_path / "bad.json"
    if content is not None:
        bad.write_bytes(content if isinstance(content, bytes) else content.encode())
    code, out, err = moela("bench", "compare", good, bad)
    assert (code, out) == (2, "")
    assert err.startswith(f"moela: {bad}: expected ")
    assert err.count("\n") == 1


def test_a_time_that_is_none_is_refused(moela, tmp_path):
    path = write_report(tmp_path / "a.json", result())
    data = json.loads(path.read_text())
    data["results"][0]["median_us"] = 0
    path.write_text(json.dumps(data))
    assert moela("bench", "compare", path, path)[0] == 2


@pytest.mark.parametrize(("name", "value"), [("MOELA_BACKEND", "fast"), ("MOELA_CPU_ISA", "avx9000")])
def test_a_wrong_environment_variable_is_refused_before_measuring(moela, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    code, out, err = moela("bench", "fp8_gemm", *TINY)
    assert (code, out) == (2, "")
    assert err.startswith(f"moela: {name}: expected one")
    assert err.endswith(f"got '{value}'\n")


def test_what_is_not_installed_is_named_with_the_command_that_installs_it():
    done = process("import sys; sys.modules['rich'] = None; from moela.bench.cli import main; "
                   "sys.exit(main(['bench', 'list']))")  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "moela: rich is not installed; pip install 'moela[bench]'\n"


def test_a_reader_that_leaves_gets_no_traceback():
    read, write = os.pipe()
    os.close(read)
    code = "import sys; from moela.bench.cli import main; sys.exit(main(['bench', 'list']))"
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_an_interrupt_gets_no_traceback(moela, monkeypatch):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "run", interrupted)
    assert moela("bench", "all") == (130, "", "moela: interrupted\n")


# --- what is shown ---------------------------------------------------------------------------------------


def test_list_names_every_op_model_layer_and_baseline_with_what_is_missing(moela):
    code, out, err = moela("bench", "list")
    assert (code, err) == (0, "")
    for name in ("fp8_gemm", "per_block_quant_fp8", "glm-4.5-air", "kv_a 576x7168", "torch-dequant"):
        assert name in out
    assert "no: runs on CPU tensors in its interpreter, which is never timed" in out


def test_a_run_shows_a_table_and_writes_json_and_a_picture(moela, tmp_path):
    files = ["--json", tmp_path / "a.json", "--plot", tmp_path / "a.png"]
    code, out, err = moela("bench", "fp8_gemm", *TINY, "--baselines", "torch", *files, "--device", "cpu")
    assert (code, err) == (0, "")
    assert "fp8_gemm  deepseek-v3.kv_a  576 x 7168  bf16" in out
    assert "load average" in out
    assert "1 thread" in out
    found = report.read(tmp_path / "a.json")
    assert [r.contestant for r in found.results][-1] == "torch"
    assert found.machine["threads"] == 1
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "cast",
    [
        "per_token_group_quant_fp8",
        "per_block_quant_fp8",
        "per_block_dequant_fp8",
        "silu_and_mul",
        "silu_and_mul_quant_fp8",
    ],
)
def test_every_cast_runs(moela, cast):
    code, out, _ = moela("bench", cast, *TINY, "--baselines", "torch", "--device", "cpu")
    assert code == 0
    assert f"{cast}  deepseek-v3.kv_a" in out


def test_experts_run_with_their_routing_and_say_their_memory(moela, tmp_path):
    argv = ["--model", "glm-4.7-flash", "--experts", "4", "--routing", "zipf", "--rounds", "1"]
    argv += ["--tokens", "2", "--threads", "1", "--baselines", "torch-loop", "--json", tmp_path / "a.json"]
    code, out, _ = moela("bench", "fused_experts", *argv, "--device", "cpu")
    assert code == 0
    assert "glm-4.7-flash.experts  2048 x 1536  fp8  4 of 64 experts, top 4, zipf" in out
    found = report.read(tmp_path / "a.json")
    assert [(r.case.routing, r.contestant) for r in found.results][-1] == ("zipf", "torch-loop")
    assert "extra MB" in out
    assert all(r.extra_bytes is not None for r in found.results) == sys.platform.startswith("linux")


def test_a_wrong_contestant_is_reported_not_timed_and_fails_the_run(moela, monkeypatch, tmp_path):
    bench = commands.bench_of("fp8_gemm")
    planted = replace(bench.baselines[0], prepare=lambda inputs: lambda: torch.zeros(1, 576))
    monkeypatch.setattr(
        commands, "bench_of", lambda op: replace(bench, baselines=(planted, *bench.baselines[1:]))
    )
    argv = ["--baselines", "torch,torch-fp32", "--json", tmp_path / "a.json", "--device", "cpu"]
    code, out, _ = moela("bench", "fp8_gemm", *TINY, *argv)
    assert code == 1
    assert "Wrong: torch on fp8_gemm deepseek-v3.kv_a bf16 M=1: relative error of the result 1" in out
    found = report.read(tmp_path / "a.json")
    assert "torch" not in [r.contestant for r in found.results]
    assert [w.contestant for w in found.wrong] == ["torch"]


def test_a_progress_bar_is_drawn_on_a_terminal_only(monkeypatch):
    for is_terminal in (True, False):
        stream = io.StringIO()
        stream.isatty = lambda answer=is_terminal: answer
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("TERM", "xterm")
        with commands._progress(2) as advance:
            advance("a case", 1)
        assert ("a case" in stream.getvalue()) == is_terminal


# --- compare ---------------------------------------------------------------------------------------------


def test_compare_shows_a_ratio_where_the_intervals_are_apart_and_none_where_they_overlap(moela, tmp_path):
    a = write_report(tmp_path / "a.json", result(median=20, p10=19, p90=21), result("torch"))
    b = write_report(tmp_path / "b.json", result(), result("torch", median=12, p10=10, p90=13))
    code, out, err = moela("bench", "compare", a, b)
    assert (code, err) == (0, "")
    rows = {line.split()[-4]: line.split()[-1] for line in out.splitlines() if line.startswith("fp8_gemm")}
    assert rows == {"cpu": "2.00x", "torch": "~"}
    assert "Not the same conditions" not in out


def test_compare_says_in_one_line_what_was_different(moela, tmp_path):
    a = write_report(tmp_path / "a.json", result())
    b = write_report(tmp_path / "b.json", result(), threads=8)
    _, out, _ = moela("bench", "compare", a, b)
    assert "Not the same conditions: threads 1 / 8" in out.splitlines()


def test_compare_lists_what_only_one_file_has(moela, tmp_path):
    a = write_report(tmp_path / "a.json", result(), result("torch"))
    b = write_report(tmp_path / "b.json", result(), result(case=replace(CASE, tokens=16)))
    _, out, _ = moela("bench", "compare", a, b)
    assert "Only in A: torch on fp8_gemm deepseek-v3.kv_a bf16 M=1" in out.splitlines()
    assert "Only in B: cpu on fp8_gemm deepseek-v3.kv_a bf16 M=16" in out.splitlines()
