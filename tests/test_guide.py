"""The guide: each page's snippets run, top to bottom, and its commands exist."""

import re
import shlex
from pathlib import Path

import pytest
from moela.bench import cli

GUIDE = Path(__file__).parents[1] / "docs/guide"
PAGES = sorted(GUIDE.glob("*.md"))


def blocks(page: Path, language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


COMMANDS = [line for page in PAGES for block in blocks(page, "") for line in block.splitlines() if line]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.stem)
def test_the_snippets_of_a_page_run(page, tiny_checkpoints):
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
