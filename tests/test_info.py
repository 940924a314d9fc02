"""`moela info`: everything is said, and nothing raises."""

import os
import subprocess
import sys
from pathlib import Path

import moela
import pytest
import torch
from moela import backends, info
from moela.bench import cli
from moela.ops import SPECS


def without_libraries(name):
    path = Path(f"libmoela_{name}.so")
    return backends.Library(name, path, None, f"{path} was not built")


def lines_of(section):
    """The lines of one section of the report."""
    [found] = [s for s in info.report().split("\n\n") if s.startswith(section + "\n")]
    return [line.strip() for line in found.splitlines()[1:]]


def test_versions_are_named():
    text = " ".join(lines_of("moela"))
    assert moela.__version__ in text
    assert torch.__version__ in text


def test_every_op_has_a_line_per_backend_on_every_device():
    for device in info.devices():
        lines = lines_of(f"ops on {device}")
        assert [line for line in lines if line in SPECS] == list(SPECS)
        assert len(lines) == len(SPECS) * (1 + len(backends.BACKENDS))


def test_one_backend_per_op_is_picked():
    states = [line.split(maxsplit=1)[1] for line in lines_of("ops on cpu") if " " in line]
    assert states.count("picked") == len(SPECS)


def test_instruction_sets_say_whether_they_are_picked_and_verified(monkeypatch):
    isas = [("avx512", "unusable", True), ("avx2", "picked", True), ("neon", "not-compiled", False)]
    monkeypatch.setattr(info, "cpu_isas", lambda: isas)
    assert lines_of("CPU instruction sets") == [
        "avx512      this machine does not have it",
        "avx2        picked",
        "neon        not compiled into this library; unverified: the test-suite has not run on it yet",
    ]


def test_the_library_lists_its_instruction_sets():
    if backends.library("cpu").error:
        pytest.skip(backends.library("cpu").error)
    names = [name for name, _, _ in info.cpu_isas()]
    assert names == ["amx_bf16", "avx512_bf16", "avx512", "avx2", "neon", "scalar"]


def test_a_library_that_is_not_built_says_how_to_build_it(monkeypatch):
    monkeypatch.setattr(backends, "library", without_libraries)
    assert lines_of("libraries") == [
        "cpu      libmoela_cpu.so was not built; to build it: pip install .",
        "cuda     libmoela_cuda.so was not built; to build it: MOELA_CUDA=ON pip install .",
        "ep       libmoela_ep.so was not built; to build it, on Linux: pip install .",
    ]
    assert lines_of("CPU instruction sets") == [
        "none: the CPU library is not loaded, so ops run on the reference"
    ]


def test_the_transports_of_expert_parallelism_are_listed():
    assert [line.split() for line in lines_of("transports of expert parallelism")][-1] == [
        "collective",
        "usable",
    ]


def test_variables_that_are_set_are_shown(monkeypatch):
    for name in info.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MOELA_BACKEND", "reference")
    assert lines_of("environment") == ["MOELA_BACKEND=reference"]
    assert info.environment_faults() == []


def run(*argv, **env):
    """`moela <argv>` in a fresh process, because variables are read once."""
    code = f"import sys; from moela.bench.cli import main; sys.exit(main({list(argv)}))"
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | env, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("name", "value"), [("MOELA_BACKEND", "fast"), ("MOELA_CPU_ISA", "avx9000")])
def test_a_wrong_variable_is_part_of_the_report(name, value):
    if name == "MOELA_CPU_ISA" and backends.library("cpu").error:
        pytest.skip(backends.library("cpu").error)
    done = run("info", **{name: value})
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{name}={value}  <- expected one" in done.stdout


def test_info_needs_nothing_that_is_optional(capsys):
    code = "import sys; sys.modules.update(dict.fromkeys(['rich', 'matplotlib', 'triton', 'numpy']))\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "from moela.bench.cli import main; sys.exit(main(['info']))"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "ops on cpu" in done.stdout


def test_the_command_prints_the_report(capsys):
    assert cli.main(["info"]) == 0
    assert capsys.readouterr().out == info.report() + "\n"
