"""Builds the C++ with CMake and Ninja. What varies is decided in CMakeLists.txt or found here by path."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools < 70.1
    from wheel.bdist_wheel import bdist_wheel

HERE = Path(__file__).resolve().parent
USUAL_CUDA = Path("/usr/local/cuda")


def site_packages() -> list[Path]:
    """Where the target environment keeps its packages. In pip's isolated build, purelib is still that one."""
    return [Path(p or ".") for p in [*sys.path, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]]


def find_torch() -> Path:
    for site in site_packages():
        if (site / "torch/include/torch/csrc/stable/library.h").exists():
            return site / "torch"
    sys.exit(
        "moela: no torch to build against. Install torch 2.11 or later first, then: "
        "pip install --no-build-isolation . (or run `make setup`, which does both)"
    )


def find_nvcc() -> Path | None:
    """CUDA_HOME, then PATH, then the toolkit wheels of PyPI, then the usual folder."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    found = shutil.which("nvcc")
    candidates = [Path(h) / "bin/nvcc" for h in homes if h]
    candidates += [Path(found)] if found else []
    candidates += [site / f"nvidia/cu{major}/bin/nvcc" for site in site_packages() for major in (13, 12)]
    candidates += [USUAL_CUDA / "bin/nvcc"]
    return next((c for c in candidates if c.exists()), None)


def find_cmake() -> str:
    """The cmake package's, which is new enough for a new nvcc, then PATH."""
    try:
        from cmake import CMAKE_BIN_DIR
    except ImportError:
        CMAKE_BIN_DIR = ""
    found = shutil.which("cmake", path=f"{CMAKE_BIN_DIR}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        sys.exit("moela: there is no cmake. Install it first: pip install 'cmake>=3.24'")
    return found


def cuda_mode() -> str:
    mode = os.environ.get("MOELA_CUDA", "AUTO").upper()
    if mode not in ("AUTO", "ON", "OFF"):
        sys.exit(f"moela: MOELA_CUDA: expected AUTO, ON or OFF, got {mode!r}")
    return mode


def cuda_environment(mode: str) -> dict[str, str]:
    """The environment of CMake; CUDACXX is set where the CUDA library is to be built."""
    env = {k: v for k, v in os.environ.items() if k != "CUDACXX"}
    nvcc = find_nvcc() if mode != "OFF" else None
    if mode == "ON" and nvcc is None:
        sys.exit(
            "moela: MOELA_CUDA=ON, but there is no nvcc in CUDA_HOME, on PATH or in the environment. "
            "Install the toolkit, or: pip install 'cuda-toolkit[nvcc,cccl]==13.0.*'"
        )
    if nvcc:
        env["CUDACXX"] = str(nvcc)
        # The wheels put the static runtime in lib, where nvcc's profile does not look (it expects lib64).
        env["LIBRARY_PATH"] = os.pathsep.join(
            filter(None, [str(nvcc.parent.parent / "lib"), env.get("LIBRARY_PATH")])
        )
    return env


def ninja_program() -> str | Path:
    """That of the ninja package, which the build requires; without isolation, one on PATH does."""
    try:
        import ninja
    except ModuleNotFoundError:
        return shutil.which("ninja") or sys.exit("moela: ninja is not installed; pip install ninja")
    return Path(ninja.BIN_DIR) / "ninja"


class CMakeBuild(build_ext):
    def run(self) -> None:
        env, torch, cmake = cuda_environment(cuda_mode()), find_torch(), find_cmake()
        import pybind11

        out = (
            HERE / "python/moela"
            if self.inplace or self.editable_mode
            else Path(self.build_lib).resolve() / "moela"
        )
        build = HERE / "build" / f"cmake-{sys.implementation.cache_tag}"
        options = {
            "TORCH_DIR": torch,
            "MOELA_OUT": out,
            "MOELA_CUDA": "ON" if "CUDACXX" in env else "OFF",
            "MOELA_CUDA_ARCHS": os.environ.get("MOELA_CUDA_ARCHS", "90a"),
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "Python_EXECUTABLE": sys.executable,
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_MAKE_PROGRAM": ninja_program(),
        }
        defines = [f"-D{key}={value}" for key, value in options.items()]
        subprocess.check_call([cmake, "-G", "Ninja", "-S", str(HERE), "-B", str(build), *defines], env=env)
        subprocess.check_call([cmake, "--build", str(build)], env=env)

    def get_outputs(self) -> list[str]:
        return []

    def get_source_files(self) -> list[str]:
        return []


class AbiStableWheel(bdist_wheel):
    """One wheel per platform, for every Python and torch from 2.11 on: the op libraries have neither ABI.

    _plan, which only tests and the curious need, is there for the Python that built the wheel
    (docs/adr/0002).
    """

    def run(self) -> None:
        # What an older state of the tree left there would be packed too.
        shutil.rmtree(self.get_finalized_command("build").build_lib, ignore_errors=True)
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("moela._cmake", sources=[])],
        cmdclass={"build_ext": CMakeBuild, "bdist_wheel": AbiStableWheel},
    )
