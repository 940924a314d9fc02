"""The guide: each page's snippets run, top to bottom, and its commands exist."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from moela.bench import cli

GUIDE = Path(__file__).parents[1] / "docs/guide"
PAGES = sorted(GUIDE.glob("*.md"))


def blocks(page: Path, language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder with tiny models under the names of the pages."""
    transformers = pytest.importorskip("transformers")
    sys.path.insert(0, str(Path(__file__).parent / "transformers"))
    import fp8_checkpoints

    folder = tmp_path_factory.mktemp("checkpoints")
    small = {"vocab_size": 64, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    small |= {"num_key_value_heads": 4, "moe_intermediate_size": 128, "intermediate_size": 128}
    qwen = transformers.Qwen3MoeConfig(**small, num_experts=8, num_experts_per_tok=2, head_dim=32)
    transformers.AutoModelForCausalLM.from_config(qwen).bfloat16().save_pretrained(folder / "Qwen3-30B-A3B")
    fp8_checkpoints.write(folder / "DeepSeek-V3")
    return folder


COMMANDS = [line for page in PAGES for block in blocks(page, "") for line in block.splitlines() if line]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.stem)
def test_the_snippets_of_a_page_run(page, monkeypatch, checkpoints):
    monkeypatch.chdir(checkpoints)
    names: dict = {}
    for number, snippet in enumerate(blocks(page, "python"), 1):
        exec(compile(snippet, f"{page.name}, snippet {number}", "exec"), names)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_guide_is_one(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, *argv = shlex.split(command)
    assert name == "moela"
    cli._parser(argv).parse_args(argv)


def test_the_index_names_every_page():
    index = (GUIDE / "README.md").read_text()
    assert set(re.findall(r"\]\((\w[\w-]*\.md)\)", index)) == {p.name for p in PAGES} - {"README.md"}


def test_a_link_of_the_guide_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
