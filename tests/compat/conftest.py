"""The shims, and other projects' tests where they are: README.md."""

import importlib.util
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import moela
import pytest

HERE = Path(__file__).parent
PEERS = HERE.parents[1] / "peers"


def load(path: Path) -> types.ModuleType:
    """By path, so that the project itself may be installed too."""
    spec = importlib.util.spec_from_file_location(f"compat_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def peer_file(name: str) -> Path:
    """A file below peers/, or a skip."""
    if not (PEERS / name).exists():
        pytest.skip(f"there is no peers/{name}: tests/compat/README.md")
    return PEERS / name


@pytest.fixture
def flash_mla() -> types.ModuleType:
    return load(HERE / "shims" / "flash_mla.py")


@pytest.fixture
def flashinfer() -> types.ModuleType:
    return load(HERE / "shims" / "flashinfer.py")


@pytest.fixture
def vllm() -> types.ModuleType:
    return load(HERE / "shims" / "vllm.py")


@pytest.fixture
def load_peer() -> Callable[[str], types.ModuleType]:
    return lambda name: load(peer_file(name))


@pytest.fixture
def run_peer() -> Callable[[str, str, str], None]:
    """(shim, file below peers/, which tests, as for -k): they pass where the shim stands for the project."""

    def run(shim: str, name: str, selected: str) -> None:
        path = peer_file(name)
        package = Path(moela.__file__).parents[1]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (HERE, HERE / "shims", package)))}
        plugins = ["-p", "on_the_cpu", "-p", shim, "-p", "no:cacheprovider"]
        isolated = ["--noconftest", "-c", os.devnull, "--rootdir", PEERS]
        command = [sys.executable, "-m", "pytest", "-q", *plugins, *isolated, path, "-k", selected]
        done = subprocess.run(command, cwd=HERE, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
        assert re.search(r"\d+ passed", done.stdout), done.stdout

    return run
