"""What the compiled libraries need of the machine they are loaded on (docs/adr/0002)."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from moela import backends

FROM_TORCH = {"libtorch_cpu.so"}
FROM_THE_SYSTEM = r"(libstdc\+\+|libgcc_s|libm|libc|libdl|libpthread|librt|ld-linux[\w-]*)\.so\.\d+"
# The C shim that the stable ABI consists of, versioned symbols of the C and C++ runtimes, and what a compiler
# puts into every library.
STABLE = re.compile(
    r"(aoti_torch|torch)_\w+|[\w$.]+@(GLIBC|GLIBCXX|CXXABI|GCC)_[\w.]+|_ITM_\w+TMCloneTable|__gmon_start__"
)


def readelf(flag: str, path: Path) -> str:
    if shutil.which("readelf") is None:
        pytest.skip("there is no readelf")
    return subprocess.run(["readelf", "-W", flag, path], capture_output=True, text=True, check=True).stdout


def needed(dynamic: str) -> set[str]:
    return set(re.findall(r"\(NEEDED\)\s+Shared library: \[(.+)\]", dynamic))


def search_paths(dynamic: str) -> list[str]:
    return re.findall(r"\((?:RPATH|RUNPATH)\).*\[(.*)\]", dynamic)


def undefined(symbols: str) -> set[str]:
    """Names of `readelf --dyn-syms`, with their version."""
    return set(re.findall(r"\sUND[ \t]+(\S+)", symbols))


def unstable(names: set[str]) -> set[str]:
    return {name for name in names if not STABLE.fullmatch(name)}


@pytest.fixture(params=["cpu", "cuda"])
def library(request: pytest.FixtureRequest) -> Path:
    found = backends.library(request.param)
    if found.path.exists():
        return found.path
    if request.param in os.environ.get("MOELA_TEST_REQUIRE", "").split(","):
        pytest.fail(f"MOELA_TEST_REQUIRE asks for {request.param}, but {found.error}", pytrace=False)
    return pytest.skip(found.error)


def test_a_library_needs_libtorch_cpu_and_the_system_only(library):
    found = needed(readelf("--dynamic", library))
    assert found >= FROM_TORCH
    assert {name for name in found - FROM_TORCH if not re.fullmatch(FROM_THE_SYSTEM, name)} == set()


def test_a_library_carries_no_path_of_the_machine_that_built_it(library):
    assert search_paths(readelf("--dynamic", library)) == []


def test_a_library_calls_torch_through_its_stable_interface_only(library):
    names = undefined(readelf("--dyn-syms", library))
    assert "torch_library_impl" in names
    assert unstable(names) == set()


def test_the_plan_module_links_no_python():
    [path] = backends.library("cpu").path.parent.glob("_plan.*.so")
    found = needed(readelf("--dynamic", path))
    assert {name for name in found if not re.fullmatch(FROM_THE_SYSTEM, name)} == set()


# --- the readers find what they are for ------------------------------------------------------------------

DYNAMIC = """
 0x0000000000000001 (NEEDED)             Shared library: [libtorch_cpu.so]
 0x0000000000000001 (NEEDED)             Shared library: [libcudart.so.13]
 0x000000000000001d (RUNPATH)            Library runpath: [/opt/torch/lib]
 0x000000000000000f (RPATH)              Library rpath: [$ORIGIN/../torch/lib]
"""
SYMBOLS = """
     0: 0000000000000000     0 NOTYPE  LOCAL  DEFAULT  UND
     1: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND memcpy@GLIBC_2.14 (2)
     2: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND _ZNK2at10TensorBase4dataEv
     3: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND _ZN3c106detail14torchCheckFailEPKcS2_jS2_
     4: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND torch_library_impl
     5: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND cudaLaunchKernel
     6: 0000000000000000     0 NOTYPE  WEAK   DEFAULT  UND __gmon_start__
     7: 0000000000001234     8 FUNC    GLOBAL DEFAULT   12 moela_cpu_isas
"""


def test_foreign_libraries_and_search_paths_are_found():
    assert needed(DYNAMIC) == {"libtorch_cpu.so", "libcudart.so.13"}
    assert search_paths(DYNAMIC) == ["/opt/torch/lib", "$ORIGIN/../torch/lib"]
    for name in (
        "libcudart.so.13",
        "libtorch_python.so",
        "libtorch_cuda.so",
        "libpython3.11.so.1.0",
        "libc10.so",
    ):
        assert not re.fullmatch(FROM_THE_SYSTEM, name)


def test_symbols_of_torch_beside_its_stable_interface_are_found():
    assert unstable(undefined(SYMBOLS)) == {
        "_ZNK2at10TensorBase4dataEv",
        "_ZN3c106detail14torchCheckFailEPKcS2_jS2_",
        "cudaLaunchKernel",
    }
