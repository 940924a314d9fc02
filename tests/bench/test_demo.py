"""`moela demo` as a person runs it, on a model of a few kilobytes."""

import re

import moela
import pytest
import torch
from moela.bench import cli, demo, demo_race, memory, roofline
from moela.reference import fp8_gemm as fp8_gemm_ref
from moela.shapes import MODELS, ModelShape
from safetensors.torch import load_file, save_file

TINY = ModelShape("tiny", 384, 256, 6, 2, 0, None, 4, 1, None, "made up")
SHARD = "tiny.layer1.experts5.safetensors"


@pytest.fixture
def moela_demo(monkeypatch, tmp_path, capsys):
    """Runs the command in tmp_path on the tiny model -> (exit code, stdout, stderr)."""
    monkeypatch.setitem(MODELS, "tiny", TINY)
    monkeypatch.setattr(demo_race, "ROUNDS", 2)
    monkeypatch.setattr(
        roofline, "last_level_cache_bytes", lambda: 1 << 20
    )  # evicting is most of a tiny race
    monkeypatch.chdir(tmp_path)

    def call(*args):
        try:
            code = cli.main(["demo", "--model", "tiny", "--experts", "5", "--dir", "kept", *args])
        except SystemExit as stop:  # argparse
            code = stop.code
        return code, *capsys.readouterr()

    return call


def one_line(err):
    """The only line of stderr, without its start."""
    assert err.startswith("moela: ")
    assert err.count("\n") == 1
    return err.removeprefix("moela: ").rstrip()


def test_it_writes_maps_checks_and_shows_every_number_of_tokens(moela_demo, tmp_path):
    code, out, err = moela_demo("--tokens", "1,3,17")
    assert (code, err) == (0, "")
    assert "tiny, layer 1: 5 of its 6 routed experts, hidden 384, intermediate 256" in out
    assert re.search(rf"file +kept/{SHARD}, \d+ MB, written", out)
    assert "all within their bounds" in out
    assert re.findall(r"^ +(\d+) +moela, FP8 as mapped", out, re.M) == ["1", "3", "17"]
    for name in demo_race.BASELINES:
        assert out.count(name) == 3
    assert (tmp_path / "out/demo/roofline.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in (tmp_path / "kept").iterdir()] == [SHARD]


def test_the_numbers_checked_are_all_that_were_computed(moela_demo):
    _, out, _ = moela_demo("--tokens", "1,3")
    # g, u, h and y of moela: 1 + 3 tokens with three experts, 1 with the other two; y of each baseline.
    mine, baselines = (3 * (1 + 3) + 2) * (3 * 256 + 384), len(demo_race.BASELINES) * 3 * (1 + 3) * 384
    assert f"checked  {mine + baselines:,} numbers" in out


def test_a_shard_that_is_there_is_used_again(moela_demo, tmp_path):
    moela_demo("--tokens", "1")
    before = (tmp_path / "kept" / SHARD).stat().st_mtime_ns
    code, out, _ = moela_demo("--tokens", "1", "--plot", "other.png")
    assert code == 0
    assert "was there" in out
    assert (tmp_path / "kept" / SHARD).stat().st_mtime_ns == before
    assert (tmp_path / "other.png").exists()


def test_a_shard_that_was_cut_off_is_refused_in_one_line(moela_demo, tmp_path):
    moela_demo("--tokens", "1")
    path = tmp_path / "kept" / SHARD
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 1000)
    code, _, err = moela_demo("--tokens", "1")
    assert code == 2
    assert one_line(err) == (
        f"kept/{SHARD}: expected {size} bytes, got {size - 1000}: cut off; delete it to have it written anew"
    )


def test_weights_that_are_nan_are_refused_in_one_line(moela_demo, tmp_path):
    moela_demo("--tokens", "1")
    path = tmp_path / "kept" / SHARD
    tensors = load_file(path)
    tensors["model.layers.1.mlp.experts.4.up_proj.weight"].view(torch.uint8)[0, 0] = 0x7F
    save_file(tensors, path)
    code, _, err = moela_demo("--tokens", "1")
    assert code == 2
    assert one_line(err) == f"kept/{SHARD}: expert 4: expected finite weights, got NaN"


def test_a_wrong_result_is_said_with_its_expert_and_never_timed(moela_demo, monkeypatch):
    def off(a, sf_a, b, sf_b):
        d = fp8_gemm_ref(a, sf_a, b, sf_b)
        d[0, 0] += 0.1
        return d

    monkeypatch.setattr(moela, "fp8_gemm", off)
    code, out, err = moela_demo("--tokens", "1")
    assert code == 1
    assert one_line(err).startswith("wrong result: expert 0: gate_proj: 1 of 256 elements out of bounds")
    assert "GFLOP/s" not in out


def test_a_baseline_without_memory_is_left_out_and_said(moela_demo, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 2_000_000)
    code, out, _ = moela_demo("--tokens", "2")
    assert code == 0
    assert "Not timed: torch, fp32 ahead: needs 0.0 GB, 0.0 GB are free." in out
    assert out.count("torch, bf16 ahead") == out.count("torch, dequantize each call") == 1


def test_a_backend_that_is_no_kernel_is_said(moela_demo, monkeypatch):
    monkeypatch.setenv("MOELA_BACKEND", "reference")
    code, out, _ = moela_demo("--tokens", "1")
    assert code == 0
    assert "moela ran its slow reference, not its kernel for the CPU: switched off by MOELA_BACKEND" in out


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--model", "tinny"], "--model: expected one of "),
        (
            ["--model", "gpt-oss-20b"],
            "--model: expected experts that are down(silu(gate) * up) in FP8 blocks",
        ),
        (["--experts", "7"], "--experts: expected at most 6, those of tiny, got 7"),
        (["--experts", "0"], "--experts: expected a number from 1 to 1024, got '0'"),
        (["--tokens", "1,x"], "--tokens: expected a number from 1 to 8192, got 'x'"),
        (["--threads", "0"], "--threads: expected a number from 1 to "),
        (["--plot", "plot.svg"], "--plot: expected a file that ends in .png"),
    ],
    ids=lambda v: "-".join(v).strip("-") if isinstance(v, list) else "",
)
def test_what_makes_no_sense_is_refused_in_one_line(moela_demo, tmp_path, args, says):
    code, out, err = moela_demo(*args)
    assert (code, out) == (2, "")
    assert one_line(err).startswith(says)
    assert not (tmp_path / "kept").exists()


def test_the_number_of_threads_is_that_of_before(moela_demo):
    before = torch.get_num_threads()
    code, out, _ = moela_demo("--tokens", "1", "--threads", "1")
    assert code == 0
    assert "1 thread, CPU time" in out
    assert torch.get_num_threads() == before


def test_no_two_experts_are_alike_and_every_code_is_used():
    model = ModelShape("small", 1024, 768, 2, 1, 0, None, 1, 0, None, "made up")
    one, other = (demo.random_expert(model, index) for index in range(2))
    weights = [weight.q.view(torch.uint8) for expert in (one, other) for weight in expert]
    assert len(torch.cat([q.flatten() for q in weights]).unique()) == 254  # all but the two NaN
    for i, q in enumerate(weights):
        assert not any(q.shape == p.shape and torch.equal(q, p) for p in weights[:i])


def test_the_default_shard_of_deepseek_v3_has_sixteen_experts():
    args = type("Args", (), {"model": "deepseek-v3", "experts": None})
    assert demo._num_experts(args) == 16
