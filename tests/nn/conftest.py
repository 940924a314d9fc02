import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode adds no folder itself


@pytest.fixture(autouse=True)
def _own_recompilations(request: pytest.FixtureRequest) -> None:
    """torch compiles a function eight times at most, and that is per process, not per test."""
    if "compile" in request.node.name:
        torch._dynamo.reset()
