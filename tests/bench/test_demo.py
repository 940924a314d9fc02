"""`moela demo` as a person runs it, on a model of two megabytes."""

import json
import math
import re
import sys
from dataclasses import replace

import pytest
import torch
from moela.bench import checkpoint, cli, demo, demo_loading, demo_race, demo_stage, memory, roofline
from moela.bench.demo_model import DemoModel
from moela.integrations.safetensors_header import read_header
from moela.shapes import MlaShape, ModelShape

pytest.importorskip("transformers")

# 576 rows of kv_a as in the published model, 96 of q_b; a block of 128 x 128 is much of a matrix.
MLA = MlaShape(2, 64, 512, 32, 64, 32)
TINY = ModelShape("tiny", 256, 128, 256, 2, 128, 384, 61, 3, MLA, "made up")
MODEL = DemoModel(replace(TINY, num_layers=2, num_dense_layers=1, num_experts=8), 64)
FOLDER = "kept/tiny.layers2.experts8"
SHARD = f"{FOLDER}/model-00002-of-00002.safetensors"
STOCK_SAYS = "transformers alone: cannot"


@pytest.fixture
def moela_demo(monkeypatch, tmp_path, capsys):
    """Runs the command in tmp_path on the tiny model -> (exit code, stdout, stderr)."""
    monkeypatch.setattr(demo, "SHAPE", TINY)
    monkeypatch.setattr(demo, "VOCAB", 64)
    monkeypatch.setattr(demo_race, "ROUNDS", 2)
    monkeypatch.setattr(demo_loading, "why_stock_does_not_load", lambda model: STOCK_SAYS)
    monkeypatch.setattr(roofline, "last_level_cache_bytes", lambda: 1 << 20)
    monkeypatch.chdir(tmp_path)

    def call(*args):
        wanted = ["--dir", "kept", "--experts", "8", "--prompt-tokens", "24", "--new-tokens", "3"]
        wanted += ["--threads", "1", *args]  # more would wait for each other where others are computing
        try:
            code = cli.main(["demo", *wanted])
        except SystemExit as stop:  # argparse
            code = stop.code
        return code, *capsys.readouterr()

    return call


def written(tmp_path):
    """The checkpoint, without the demo."""
    checkpoint.write(tmp_path / FOLDER, MODEL.config, MODEL.shards, MODEL.tensor, lambda: None)


def one_line(err):
    """The only line of stderr, without its start."""
    assert err.startswith("moela: ")
    assert err.count("\n") == 1
    return err.removeprefix("moela: ").rstrip()


def test_it_writes_loads_checks_races_and_shows_where_the_time_goes(moela_demo, tmp_path):
    code, out, err = moela_demo()
    assert (code, err) == (0, "")
    assert re.search(rf"^file +{FOLDER}, \d\.\d\d GB, written$", out, re.M)
    assert f"stock    {STOCK_SAYS}" in out
    assert "1 MoelaFP8Experts by fused_experts" in out
    assert len(re.search(r"^tokens +(.+)$", out, re.M)[1].split()) == 3
    assert re.search(r"^checked +float32 activations: logits of 24 tokens within \d\.\de-0[67] ", out, re.M)
    for name in ("moela FP8", "stock fp32", "stock bf16"):
        assert re.search(rf"^{name} +\d", out, re.M)
    for part in ("routed experts", "router", "dense MLP", "shared expert", "lm_head"):
        assert len(re.findall(rf"^{part} +\d", out, re.M)) == 2
    for part in ("attention itself", "kv_b_proj", "attention itself, kv_b_proj absorbed"):
        assert len(re.findall(rf"^{part} +\d", out, re.M)) == 1
    assert max(map(len, out.splitlines())) <= 120
    assert (tmp_path / "kept/speed.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [
        "speed.png",
        "tiny.layers2.experts8",
    ]


def test_a_checkpoint_that_is_there_is_used_again(moela_demo, tmp_path):
    written(tmp_path)
    before = (tmp_path / SHARD).stat().st_mtime_ns
    code, out, _ = moela_demo("--prompt-tokens", "4")
    assert code == 0
    assert re.search(rf"^file +{FOLDER}, .*, was there$", out, re.M)
    assert (tmp_path / SHARD).stat().st_mtime_ns == before


# --- wrong results ---------------------------------------------------------------------------------------


def edit(path, name, change):
    """Change the values of one tensor in a file."""
    entry = read_header(path)[name]
    data = bytearray(path.read_bytes())
    assert entry.dtype == "F32"
    change(torch.frombuffer(data, dtype=torch.float32, offset=entry.begin, count=math.prod(entry.shape)))
    path.write_bytes(data)


def doubled(values):
    values[0] *= 2


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.mlp.experts.3.up_proj.weight_scale_inv",
        "model.layers.1.mlp.experts.5.down_proj.weight_scale_inv",
        "model.layers.1.mlp.shared_experts.gate_proj.weight_scale_inv",
        "model.layers.1.self_attn.kv_b_proj.weight_scale_inv",
        "model.layers.1.self_attn.kv_a_proj_with_mqa.weight_scale_inv",
    ],
)
def test_one_wrong_scale_factor_makes_it_fail_in_one_line(moela_demo, tmp_path, name):
    written(tmp_path)
    edit(tmp_path / SHARD, name, doubled)
    code, out, err = moela_demo()
    assert (code, out) == (1, "")
    said = one_line(err)
    assert said.startswith("wrong result: ")
    assert said.endswith(f"delete {FOLDER} to have it written anew")


def test_a_scale_factor_that_is_no_number_makes_it_fail(moela_demo, tmp_path):
    written(tmp_path)
    name = "model.layers.1.self_attn.o_proj.weight_scale_inv"
    edit(tmp_path / SHARD, name, lambda values: values.fill_(float("nan")))
    code, out, err = moela_demo()
    assert code in (1, 2)  # refused by who loads it, or by its result
    assert out == ""
    one_line(err)


# --- damaged and missing things --------------------------------------------------------------------------


def test_a_shard_that_was_cut_off_is_refused_in_one_line(moela_demo, tmp_path):
    written(tmp_path)
    size = (tmp_path / SHARD).stat().st_size
    with (tmp_path / SHARD).open("r+b") as file:
        file.truncate(size - 1000)
    code, _, err = moela_demo()
    assert code == 2
    assert one_line(err) == (
        f"{SHARD}: expected {size} bytes, got {size - 1000}: cut off; delete {FOLDER} to have it written anew"
    )


def test_another_model_in_the_folder_is_refused_in_one_line(moela_demo, tmp_path):
    written(tmp_path)
    path = tmp_path / FOLDER / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"topk_group": 4}))
    code, _, err = moela_demo()
    assert code == 2
    assert one_line(err).startswith(f"{FOLDER}/config.json: expected the text that belongs to this model")


def test_transformers_that_is_not_installed_is_said_before_anything_is_written(
    moela_demo, monkeypatch, tmp_path
):
    monkeypatch.setitem(sys.modules, "transformers", None)
    code, out, err = moela_demo()
    assert (code, out) == (2, "")
    assert one_line(err).startswith("transformers is not installed: needs transformers 5.")
    assert not (tmp_path / "kept").exists()


def test_a_stock_model_without_memory_is_left_out_and_said(moela_demo, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: demo_stage.ROOM_BYTES + 3 * MODEL.num_weights)
    code, out, _ = moela_demo()
    assert code == 0
    assert "Not run: stock fp32: needs 0.7 GB of memory, 0.7 GB are free; fewer --experts need less." in out
    assert "checked  nothing, because stock fp32 did not run" in out
    assert "stock bf16 ran alone: there is not the memory for both." in out
    assert re.search(r"^stock bf16 +\d", out, re.M)


def test_a_backend_that_is_no_kernel_is_said(moela_demo, monkeypatch):
    monkeypatch.setenv("MOELA_BACKEND", "reference")
    code, out, _ = moela_demo("--prompt-tokens", "4")
    assert code == 0
    assert "moela ran its slow reference, not its kernel for the CPU: switched off by MOELA_BACKEND" in out


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (
            ["--experts", "9"],
            "--experts: expected a multiple of 4 from 4 on, as a token's 2 come from ",
        ),
        (["--experts", "0"], "--experts: expected a number from 1 to 256, got '0'"),
        (["--layers", "1"], "--layers: expected a number from 2 to 61, got '1'"),
        (["--prompt-tokens", "x"], "--prompt-tokens: expected a number from 1 to 4096, got 'x'"),
        (["--threads", "0"], "--threads: expected a number from 1 to "),
        (["--model", "kimi-k2"], "unrecognized arguments: --model kimi-k2"),
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
    torch.set_num_threads(2)
    try:
        code, out, _ = moela_demo("--threads", "1", "--prompt-tokens", "4")
        after = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    assert (code, after) == (0, 2)
    assert "1 thread, CPU time" in out


def test_stock_transformers_is_asked_and_its_reason_given():
    said = demo_loading.why_stock_does_not_load(MODEL)
    assert re.match(r"transformers 5\.\d+\.\d+ alone: (\w+Error: |loads it)", said)
    assert "\n" not in said
