"""The README's snippets run as they stand, one after the other, as a reader would."""

import re
from pathlib import Path

import moela
import pytest
import torch

README = Path(__file__).parents[1] / "README.md"
save_file = pytest.importorskip("safetensors.torch").save_file


def test_the_snippets_run_and_agree(tmp_path, monkeypatch):
    name = "model.layers.3.mlp.experts.0.up_proj.weight"
    q, sf = moela.per_block_quant_fp8(torch.randn(2048, 7168, generator=torch.Generator().manual_seed(0)))
    save_file({name: q, f"{name}_scale_inv": sf}, tmp_path / "model-00001-of-000163.safetensors")
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(snippets) == 3
    names: dict = {}
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), names)
    expected = names["x"].float() @ moela.per_block_dequant_fp8(names["q"], names["sf"], torch.float32).T
    torch.testing.assert_close(names["y"].float(), expected, rtol=2**-8, atol=1e-3)


def test_every_operator_is_in_the_table():
    table = README.read_text().partition("## Operators")[2]
    for op in moela.ops.SPECS:
        assert f"| `{op}(" in table
