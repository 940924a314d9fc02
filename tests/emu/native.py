"""Builds the emulator and the C++ programs of tests/emu and tests/conform, cached by content in build/emu."""

import fcntl
import hashlib
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "build" / "emu"
FOLDERS = ("csrc/emu", "csrc/cuda", "csrc/plan", "tests/emu", "tests/conform")
# -ffp-contract=off: a*b+c is one rounding only where a kernel says so.
OPTIONS = (
    "-std=c++20",
    "-g1",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
    "-DMOELA_EMULATE",
)
FAST = "-O2"
ONCE = "-O0"  # of a program that runs once: it compiles in half the time
INCLUDES = ("-I", "csrc", "-I", "tests/emu")
FAILED: set[Path] = set()
SCHEDULES = ("eager", "lazy", "1", "2", "3")


def compiler() -> str:
    found = shutil.which("g++") or shutil.which("c++")
    if found is None:
        pytest.skip("there is no C++ compiler")
    return found


@cache
def content() -> bytes:
    """What a build depends on: every source, whether it includes it or not. Sources stay during a run."""
    paths = [
        p
        for folder in FOLDERS
        for p in (ROOT / folder).rglob("*")
        if p.suffix in (".h", ".cpp", ".cuh", ".cu")
    ]
    return b"".join(p.as_posix().encode() + p.read_bytes() for p in sorted(paths))


@contextmanager
def alone(name: str) -> Iterator[None]:
    """One process of a test run at a time (pytest-xdist): the next finds what the first has made."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def compile_once(name: str, command: list[str | Path], suffix: str = "", text: str | None = None) -> Path:
    """Runs `command -o <output>` unless its output is there; `text` is piped to it as a source file."""
    key = hashlib.sha256(content() + repr(command).encode() + (text or "").encode()).hexdigest()[:16]
    output = CACHE / f"{name}-{key}{suffix}"
    if output in FAILED:  # the other tests that need it need not compile it again
        pytest.fail(f"{name} does not compile, see the first failure", pytrace=False)
    with alone(name):
        if output.exists():
            return output
        FAILED.add(output)
        for old in CACHE.glob(f"{name}-????????????????{suffix}"):
            old.unlink()
        partial = output.with_suffix(".partial")
        done = subprocess.run(
            [*command, "-o", partial], cwd=ROOT, input=text, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        # C75xx: what ptxas has to say about wgmma, such as a fence that it had to add.
        assert not re.search(r"warning|\(C75\d\d\)", done.stderr), done.stderr
        partial.rename(output)
        FAILED.remove(output)
    return output


def emulator(*defines: str) -> Path:
    """The emulator as one object file: one translation unit compiles in a third of the time of twelve."""
    sources = sorted((ROOT / "csrc" / "emu").glob("*.cpp"))
    text = "".join(f'#include "emu/{source.name}"\n' for source in sources)
    name = "-".join(["emulator", *(d.removeprefix("-D").lower() for d in defines)])
    return compile_once(
        name, [compiler(), *OPTIONS, FAST, *defines, *INCLUDES, "-x", "c++", "-c", "-"], ".o", text
    )


def program(source: str, *defines: str) -> Path:
    """An executable from one file of tests/ and the emulator."""
    name = "-".join([Path(source).stem, *(d.removeprefix("-D").lower() for d in defines)])
    return compile_once(name, [compiler(), *OPTIONS, FAST, *defines, *INCLUDES, source, emulator(*defines)])


def program_without(line: str, header: str, source: str, instead: str = "") -> Path:
    """The program with a line left out of one of its headers, or replaced: a planted fault."""
    text = (ROOT / "csrc" / header).read_text()
    assert text.count(line) == 1, f"{header} has the line {text.count(line)} times"
    return _program_of({header: text.replace(line, instead)}, source)


# A program "name.3" leaves out fault 3, "name" none.
CHOICE = """#pragma once
#include <cerrno>
#include <cstdlib>
#include <cstring>
inline bool keeps(int fault) {
  static const char* const chosen = std::strrchr(program_invocation_short_name, '.');
  return chosen == nullptr || std::atoi(chosen + 1) != fault;
}
"""


def program_without_one_of(faults: Sequence[tuple[str, str]], number: int, source: str) -> Path:
    """The program without the statements of a fault (header, text) of several: one compilation for all."""
    texts: dict[str, str] = {}
    for i, (header, line) in enumerate(faults):
        text = texts.get(header) or '#include "choice.h"\n' + (ROOT / "csrc" / header).read_text()
        assert text.count(line) == 1, f"{header} has the line {text.count(line)} times"
        assert line.split("//")[0].rstrip().endswith(";"), f"no statement: {line}"
        texts[header] = text.replace(line, f"if (keeps({i})) {{\n{line}}}\n")
    program = _program_of(texts | {"choice.h": CHOICE}, source)
    chosen = program.with_name(f"{program.name}.{number}")
    with alone(program.name):
        if not chosen.is_symlink():
            chosen.symlink_to(program.name)
    return chosen


def _program_of(headers: dict[str, str], source: str) -> Path:
    """The program with other texts in place of some headers of csrc."""
    folder = CACHE / f"without-{hashlib.sha256(repr(sorted(headers.items())).encode()).hexdigest()[:16]}"
    with alone(folder.name):
        for header, text in headers.items():
            if not (folder / header).exists():  # else another process may be reading it
                (folder / header).parent.mkdir(parents=True, exist_ok=True)
                (folder / header).write_text(text)
    return compile_once(
        f"{Path(source).stem}-{folder.name}",
        [compiler(), *OPTIONS, ONCE, "-I", folder, *INCLUDES, source, emulator()],
    )


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout.rstrip("\n")


def run_any(*command: str | Path) -> None:
    """Runs what may stop with a report."""
    subprocess.run(command, capture_output=True, check=False)
