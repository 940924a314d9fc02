"""Finds tests/emu/native.py, which builds the programs of both folders."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "emu"))  # pytest's importlib mode adds no folder itself
sys.path.insert(0, str(Path(__file__).parent))
