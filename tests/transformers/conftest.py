"""What every test of this folder needs: its modules on the path, and one thread."""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed")
sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode adds no folder itself


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Matrices of these sizes are done before a second thread has woken up."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
