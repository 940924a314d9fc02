"""The conformance program compiles for a GPU, without warnings and spills; running it needs one."""

import shutil

import native
import pytest


def test_the_program_compiles_for_sm_90a():
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    ptxas = ["-Xptxas", "-warn-spills,-Werror"]
    target = ["-O3", "-gencode", "arch=compute_90a,code=sm_90a", *ptxas, "-Werror", "all-warnings"]
    command = ["nvcc", "-std=c++20", *target, "-I", "csrc", "-x", "cu", "tests/conform/conform.cpp"]
    assert native.compile_once("conform-gpu", command).exists()
