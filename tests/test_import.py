"""What `import moela` does, and what it does not need."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import moela
import pytest

PACKAGE = Path(moela.__file__).parent
# The finder of an editable install would add what the copy lacks.
CALL_EVERY_OP = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if not f.__module__.startswith("__editable__")]
sys.path.insert(0, sys.argv[1])
import moela
from moela.ops import SPECS
assert moela.__file__.startswith(sys.argv[1]), moela.__file__
for spec in SPECS.values():
    spec.public(**spec.make_inputs(**spec.cases[2]))
print(moela.explain("fp8_gemm", "cpu"))
"""


def python(*args: str, **env: str) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MOELA_", "TRITON_"))}
    command = [sys.executable, *args]
    result = subprocess.run(command, env=clean | env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


@pytest.fixture
def copy_of_the_package(tmp_path):
    """The Python files alone: nothing compiled. In an editable install kernels and bench lie elsewhere."""
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "kernels", "bench")
    shutil.copytree(PACKAGE, tmp_path / "moela", ignore=ignore)
    for part in ("kernels", "bench"):
        [folder] = importlib.util.find_spec(f"moela.{part}").submodule_search_locations
        shutil.copytree(folder, tmp_path / "moela" / part, ignore=ignore)
    return tmp_path


def test_import_does_not_import_triton_and_does_not_start_cuda():
    code = """
import sys, moela, torch
optional = ("triton", "transformers", "hypothesis", "rich", "matplotlib")
print([m for m in sys.modules if m.split(".")[0] in optional])
print([m for m in sys.modules if m.startswith(("moela.kernels", "moela.bench", "moela.testing"))])
print(torch.cuda.is_initialized())
"""
    assert python("-c", code).split("\n")[:3] == ["[]", "[]", "False"]


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference", "triton"])
def test_import_prints_and_warns_of_nothing(backend):
    assert python("-c", "import moela", MOELA_BACKEND=backend) == ""


def test_works_without_a_compiled_library(copy_of_the_package):
    lines = python("-c", CALL_EVERY_OP, str(copy_of_the_package)).splitlines()
    assert lines[2] == "fp8_gemm on cpu: cpu       libmoela_cpu.so was not built; pip install ."
    assert lines[3] == "fp8_gemm on cpu: reference picked"


def test_works_with_a_library_that_does_not_load_and_says_why(copy_of_the_package):
    (copy_of_the_package / "moela/libmoela_cpu.so").write_bytes(b"not a library")
    lines = python("-c", CALL_EVERY_OP, str(copy_of_the_package)).splitlines()
    assert lines[2].startswith("fp8_gemm on cpu: cpu       libmoela_cpu.so does not load: ")
    assert lines[2].endswith("; pip install .")
    assert lines[3] == "fp8_gemm on cpu: reference picked"


def test_works_without_kernels_and_bench(copy_of_the_package):
    """Triton and the bench are optional: an install may lack either."""
    shutil.rmtree(copy_of_the_package / "moela/kernels")
    shutil.rmtree(copy_of_the_package / "moela/bench")
    lines = python("-c", CALL_EVERY_OP, str(copy_of_the_package)).splitlines()
    assert lines[1].startswith("fp8_gemm on cpu: triton    ")
    assert "picked" not in lines[1]


def test_every_public_name_exists_and_has_a_docstring():
    assert moela.__all__ == sorted(moela.__all__)
    for name in moela.__all__:
        assert getattr(moela, name).__doc__, name
