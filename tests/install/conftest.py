"""Environments to install into. Nothing here touches the environment of the tests."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
OTHER_TORCH = "2.14.1"
ROOM_FOR_TORCH = 9 << 30


@dataclass(frozen=True)
class Environment:
    """A virtual environment; `run` gives a finished process, `python` the output of one that must succeed."""

    path: Path

    def run(self, *args: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MOELA_", "TRITON_", "PYTHON"))}
        command = [self.path / "bin/python", *args]
        return subprocess.run(
            command, env=clean | env, cwd=self.path, capture_output=True, text=True, check=False
        )

    def python(self, *args: str | Path, **env: str) -> str:
        done = self.run(*args, **env)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def pip(self, *args: str | Path, **env: str) -> str:
        return self.python("-m", "pip", "--disable-pip-version-check", *args, **env)


def create(path: Path, *options: str) -> Environment:
    subprocess.run([sys.executable, "-m", "venv", *options, path], check=True)
    return Environment(path)


def unavailable(reason: str) -> None:
    if "install" in os.environ.get("MOELA_TEST_REQUIRE", "").split(","):
        pytest.fail(f"MOELA_TEST_REQUIRE asks for install, but {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory) -> Path:
    """What git tracks, or would, on its own: nothing built, nothing ignored."""
    copy = tmp_path_factory.mktemp("checkout")
    command = ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="session")
def like_this(tmp_path_factory) -> Environment:
    """An environment with the packages of this one (links, so nothing is downloaded) and without moela."""
    environment = create(tmp_path_factory.mktemp("like-this"), "--without-pip")
    here = Path(sysconfig.get_path("purelib"))
    there = Path(environment.python("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    for entry in here.iterdir():
        if not entry.name.startswith(("moela", "__editable__", "__pycache__")):
            (there / entry.name).symlink_to(entry)
    return environment


@pytest.fixture(scope="session")
def bare(tmp_path_factory) -> Environment:
    """An environment without torch."""
    return create(tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="session")
def beside_another_torch() -> Environment:
    """An environment with another torch release than this one. Kept in build/, because torch is large."""
    path = ROOT / "build" / f"venv-torch-{OTHER_TORCH}"
    environment = Environment(path)
    version = "import importlib.metadata; print(importlib.metadata.version('torch'))"
    if path.exists() and environment.run("-c", version).stdout.startswith(OTHER_TORCH):
        return environment
    shutil.rmtree(path, ignore_errors=True)
    free = shutil.disk_usage(ROOT).free
    if free < ROOM_FOR_TORCH:
        unavailable(
            f"torch {OTHER_TORCH} needs {ROOM_FOR_TORCH >> 30} GB of disk, and {free >> 30} GB are free"
        )
    create(path)
    done = environment.run("-m", "pip", "install", "-q", f"torch=={OTHER_TORCH}")
    if done.returncode != 0:
        unavailable(f"pip cannot install torch {OTHER_TORCH}: {done.stderr.strip().splitlines()[-1]}")
    return environment


@pytest.fixture(scope="session")
def wheel(checkout, like_this, tmp_path_factory) -> Path:
    """As `make wheel` builds it, of a fresh checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    like_this.pip("wheel", "-q", "--no-build-isolation", "--no-deps", "-w", folder, checkout)
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def beside_the_oldest_transformers(like_this, wheel, tmp_path_factory) -> Callable[..., str]:
    """Runs python in this environment with the wheel and the oldest transformers of pyproject.toml."""
    version = re.search(r'"transformers>=([\d.]+)"', (ROOT / "pyproject.toml").read_text()).group(1)
    folder = tmp_path_factory.mktemp("oldest-transformers")
    # Its own dependencies come along; numpy as the tests want it, and none of torch.
    wanted = (f"transformers=={version}.*", "numpy<2.4")
    done = like_this.run("-m", "pip", "install", "-q", "-t", folder, *wanted)
    if done.returncode != 0:
        unavailable(f"pip cannot install transformers {version}: {done.stderr.strip().splitlines()[-1]}")
    like_this.pip("install", "-q", "--no-deps", "-t", folder, wheel)

    def python(*args: str | Path) -> str:
        return like_this.python(*args, PYTHONPATH=str(folder))

    code = "import moela, transformers; print(transformers.__version__, moela.__file__)"
    found, where = python("-c", code).split()
    assert found.startswith(f"{version}.")
    assert where.startswith(str(folder))
    return python


@pytest.fixture(scope="session")
def sdist(checkout, like_this, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    code = "import os, sys, setuptools.build_meta as b; os.chdir(sys.argv[1]); b.build_sdist(sys.argv[2])"
    like_this.python("-c", code, checkout, folder)
    [path] = folder.glob("*.tar.gz")
    return path


@pytest.fixture(scope="session")
def unpacked() -> Callable[[Path], dict[str, bytes]]:
    """(wheel or sdist) -> its files by name, an sdist's without its top folder."""

    def read(path: Path) -> dict[str, bytes]:
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as archive:
                return {name: archive.read(name) for name in archive.namelist()}
        with tarfile.open(path) as archive:
            members = [m for m in archive.getmembers() if m.isfile()]
            return {m.name.partition("/")[2]: archive.extractfile(m).read() for m in members}

    return read
