"""What setup.py says when something that it needs is not there."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def setup(monkeypatch, tmp_path):
    """setup.py as a module, on a machine without torch, nvcc and cmake."""
    spec = importlib.util.spec_from_file_location("moela_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("CUDA_HOME", "CUDA_PATH", "MOELA_CUDA", "CUDACXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setitem(module.sys.modules, "cmake", None)  # importing it fails
    monkeypatch.setattr(module, "USUAL_CUDA", tmp_path / "usual")
    monkeypatch.setattr(module, "site_packages", lambda: [tmp_path / "site"])
    return module


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def message(function, *args) -> str:
    with pytest.raises(SystemExit) as stopped:
        function(*args)
    assert "\n" not in stopped.value.code
    return stopped.value.code


@pytest.mark.parametrize("mode", ["AUTO", "ON", "OFF", "auto", "on", "off"])
def test_moela_cuda_is_auto_on_or_off(setup, monkeypatch, mode):
    monkeypatch.setenv("MOELA_CUDA", mode)
    assert setup.cuda_mode() == mode.upper()


def test_moela_cuda_is_auto_by_default(setup):
    assert setup.cuda_mode() == "AUTO"


def test_another_moela_cuda_is_an_error(setup, monkeypatch):
    monkeypatch.setenv("MOELA_CUDA", "maybe")
    assert message(setup.cuda_mode) == "moela: MOELA_CUDA: expected AUTO, ON or OFF, got 'MAYBE'"


def test_demanding_cuda_without_nvcc_is_an_error_that_says_what_to_install(setup):
    assert message(setup.cuda_environment, "ON") == (
        "moela: MOELA_CUDA=ON, but there is no nvcc in CUDA_HOME, on PATH or in the environment. "
        "Install the toolkit, or: pip install 'cuda-toolkit[nvcc,cccl]==13.0.*'"
    )


@pytest.mark.parametrize("mode", ["AUTO", "OFF"])
def test_without_nvcc_nothing_of_cuda_is_built(setup, monkeypatch, mode):
    monkeypatch.setenv("CUDACXX", "left over from another build")
    assert "CUDACXX" not in setup.cuda_environment(mode)


def test_nvcc_is_not_used_when_cuda_is_off(setup, tmp_path):
    program(tmp_path / "usual/bin/nvcc")
    assert "CUDACXX" not in setup.cuda_environment("OFF")


def test_nvcc_is_found_in_the_order_that_the_docs_say(setup, monkeypatch, tmp_path):
    """Each place wins over those that were there before it."""
    assert setup.find_nvcc() is None
    places = ["usual", "site/nvidia/cu12", "site/nvidia/cu13", "", "path", "home"]
    for place in places:
        nvcc = program(tmp_path / place / "bin/nvcc")
        if place == "path":
            monkeypatch.setenv("CUDA_PATH", str(tmp_path / place))
        if place == "home":
            monkeypatch.setenv("CUDA_HOME", str(tmp_path / place))
        assert setup.find_nvcc() == nvcc


def test_the_static_runtime_of_the_toolkit_wheels_is_found_by_the_linker(setup, tmp_path):
    nvcc = program(tmp_path / "site/nvidia/cu13/bin/nvcc")
    env = setup.cuda_environment("AUTO")
    assert env["CUDACXX"] == str(nvcc)
    assert env["LIBRARY_PATH"].split(":")[0] == str(tmp_path / "site/nvidia/cu13/lib")


def test_without_torch_the_message_says_how_to_install(setup):
    assert message(setup.find_torch) == (
        "moela: no torch to build against. Install torch 2.11 or later first, then: "
        "pip install --no-build-isolation . (or run `make setup`, which does both)"
    )


def test_a_torch_without_the_stable_interface_is_not_taken(setup, tmp_path):
    (tmp_path / "site/torch/include/torch/csrc").mkdir(parents=True)
    assert message(setup.find_torch).startswith("moela: no torch to build against.")
    header = tmp_path / "site/torch/include/torch/csrc/stable/library.h"
    header.parent.mkdir()
    header.touch()
    assert setup.find_torch() == tmp_path / "site/torch"


def test_without_cmake_the_message_says_what_to_install(setup):
    assert (
        message(setup.find_cmake) == "moela: there is no cmake. Install it first: pip install 'cmake>=3.24'"
    )
