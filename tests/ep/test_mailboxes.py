"""The words in shared memory, under ThreadSanitizer: it finds what the order of memory leaves to chance."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("c++") or shutil.which("g++")
OPTIONS = ["-std=c++20", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=thread"]
# Where epochs start: in the middle of 32 and 64 bits, and so that they wrap.
FIRST = [1, 2**31 - 100, 2**32 - 100, 2**63 - 100, 2**64 - 100]
RELAXED = "store(epoch, std::memory_order_relaxed)"
# What the test has to find: (file, text, what it becomes).
BUGS = {
    "posts are not ordered": ("mailboxes.cpp", "posted.store(epoch)", f"posted.{RELAXED}"),
    "releases are not ordered": ("mailboxes.cpp", "released.store(epoch)", f"released.{RELAXED}"),
    "a header is overwritten": ("mailboxes.h", "kHeaders = 4", "kHeaders = 2"),
    "epochs are equal": ("mailboxes.cpp", "static_cast<int64_t>(word - epoch) >= 0", "word == epoch"),
    "nobody is woken": ("mailboxes.cpp", "if (!peer.is_asleep.load()) return;", "return;"),
}


def build(*arguments: str | Path) -> None:
    done = subprocess.run([COMPILER, *OPTIONS, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run(program: Path, *args: int) -> subprocess.CompletedProcess:
    command = [program, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def ranks_object(tmp_path_factory) -> Path:
    """The ranks, without the mailboxes."""
    folder = tmp_path_factory.mktemp("mailboxes")
    (folder / "empty.cpp").write_text("int main() {}")
    try:
        empty = [COMPILER or "c++", "-fsanitize=thread", folder / "empty.cpp", "-o", folder / "empty"]
        subprocess.run(empty, check=True, capture_output=True)
        subprocess.run([folder / "empty"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no program with ThreadSanitizer can be built and run here: {error}")
    build("-I", ROOT / "csrc", "-c", ROOT / "tests/ep/mailboxes.cpp", "-o", folder / "ranks.o")
    return folder / "ranks.o"


def program_of(csrc: Path, ranks_object: Path, folder: Path) -> Path:
    build("-I", csrc, csrc / "ep/mailboxes.cpp", ranks_object, "-o", folder / "mailboxes")
    return folder / "mailboxes"


@pytest.fixture(scope="module")
def program(ranks_object, tmp_path_factory) -> Path:
    return program_of(ROOT / "csrc", ranks_object, tmp_path_factory.mktemp("program"))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_row_arrives_and_no_two_ranks_race(program, ranks):
    for seed, first in enumerate(FIRST):
        done = run(program, ranks, 1000, first, 5, seed)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(ranks_object, tmp_path, bug):
    shutil.copytree(ROOT / "csrc/ep", tmp_path / "ep")
    name, text, wrong = BUGS[bug]
    source = (tmp_path / "ep" / name).read_text()
    assert source.count(text) == 1
    (tmp_path / "ep" / name).write_text(source.replace(text, wrong))
    assert run(program_of(tmp_path, ranks_object, tmp_path), 4, 300, 5, 1, 0).returncode != 0
