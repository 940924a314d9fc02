"""The README: its snippets run, its tables are those of the code and of the committed results."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import moela
import pytest
import torch
from moela import backends

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
save_file = pytest.importorskip("safetensors.torch").save_file


def test_the_snippets_run_and_agree(tiny_checkpoints):
    name = "model.layers.3.mlp.experts.0.up_proj.weight"
    q, sf = moela.per_block_quant_fp8(torch.randn(2048, 7168, generator=torch.Generator().manual_seed(0)))
    shard = tiny_checkpoints / "model-00001-of-000163.safetensors"
    save_file({name: q, f"{name}_scale_inv": sf}, shard)
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(snippets) == 5
    names: dict = {}
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), names)
    expected = names["x"].float() @ moela.per_block_dequant_fp8(names["q"], names["sf"], torch.float32).T
    torch.testing.assert_close(names["y"].float(), expected, rtol=2**-8, atol=1e-3)
    args = [names[n] for n in ("tokens", "w13", "w2", "weights", "ids")]
    exact = moela.ops.SPECS["fused_experts"].reference(*args, sf_w13=names["sf13"], sf_w2=names["sf2"])
    assert names["text"].shape == (1, 12)
    torch.testing.assert_close(names["out"], exact, rtol=2**-7, atol=0.02 * exact.abs().max().item())


def test_every_operator_is_in_the_table():
    table = README.read_text().partition("## Operators")[2]
    for op in moela.ops.SPECS:
        assert f"| `{op}(" in table


@pytest.fixture(scope="module")
def hardware_table():
    spec = importlib.util.spec_from_file_location("hardware_table", ROOT / "tools" / "hardware_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_hardware_table_is_that_of_the_committed_results(hardware_table):
    """If not: python tools/hardware_table.py."""
    readme = README.read_text()
    assert hardware_table.with_table(readme, hardware_table.table()) == readme


def test_a_cuda_kernel_without_a_result_from_hardware_is_one_that_is_used_by_name_only(hardware_table):
    runs = hardware_table.results()
    unmeasured = {op for op in hardware_table.cuda_ops() if not hardware_table.measured(runs, "cuda", op)}
    assert unmeasured == backends.UNVERIFIED_CUDA


def test_a_result_from_a_gpu_changes_the_row_of_its_op_and_backend_only(hardware_table, tmp_path):
    for folder in ("csrc/ops", "csrc/cpu", "csrc/cuda"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "bench/results").mkdir(parents=True)
    before = hardware_table.table(tmp_path).splitlines()
    result = {"contestant": "cuda", "case": {"op": "fp8_gemm"}}
    run = {
        "date": "2027-01-02T03:04:05",
        "machine": {"gpu": "NVIDIA H100", "isa": "avx512"},
        "results": [result],
    }
    (tmp_path / "bench/results/h100.json").write_text(json.dumps(run))
    after = hardware_table.table(tmp_path).splitlines()
    [changed] = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert changed[0].endswith("not yet run on hardware, so used by name only |")
    assert changed[1].startswith("| CUDA sm_90a: `fp8_gemm` |")
    assert changed[1].endswith("measured on NVIDIA H100, 2027-01-02 |")
