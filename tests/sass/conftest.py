"""pytest's importlib mode adds no folder of its own; and what test_triton.py compiles beside other tests."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def compiled_items(session: pytest.Session) -> list[pytest.Item]:
    return [item for item in session.items if "compilation" in vars(getattr(item, "module", pytest))]


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.config.option.collectonly:
        return
    for item in compiled_items(session):
        target = item.callspec.params["target"]
        if item.module.why_not(target) is None:
            item.module.compilation(target)


def pytest_sessionfinish(session: pytest.Session) -> None:
    for item in compiled_items(session):
        item.module.POOL.shutdown(wait=False, cancel_futures=True)
