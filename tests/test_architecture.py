"""The rules of the layout, each with a planted violation that it must find.

A rule takes the root of a checkout and returns one line per violation.
"""

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import moela
import pytest
from moela.ops import DISTRIBUTED, SPECS

ROOT = Path(__file__).parent.parent
SOURCES = (".py", ".cpp", ".h", ".cu", ".cuh", ".c")
MAX_LINES = 500
RUN_TIME = {"MOELA_BACKEND", "MOELA_CPU_ISA", "MOELA_DEBUG"}
ENVIRONMENT = RUN_TIME | {"MOELA_CUDA", "MOELA_CUDA_ARCHS", "MOELA_TEST_REQUIRE"}
# Not ours: Triton's switch, and what tells a build, a test or a subprocess where things are and how to wait.
FOREIGN_ENVIRONMENT = {"TRITON_INTERPRET"}
BUILD_ENVIRONMENT = {"CUDA_HOME", "CUDA_PATH", "CUDACXX", "LIBRARY_PATH", "OMP_WAIT_POLICY", "PATH"}
BUILD_ENVIRONMENT |= {"OPENBLAS_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"}


def files(root: Path, *folders: str) -> Iterator[Path]:
    """What git tracks or would track below the folders (all without one); in a tmp_path, every file."""
    listed = subprocess.run(
        ["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0 and (root / ".git").exists():
        paths = [root / name for name in listed.stdout.split("\0") if name]
    else:
        paths = sorted(root.rglob("*"))
    for path in paths:
        if path.is_file() and not any(p.is_symlink() for p in (path, *path.parents) if p != root):
            relative = path.relative_to(root).as_posix()
            if not folders or relative.startswith(tuple(f + "/" for f in folders)):
                yield path


def sources(root: Path, *folders: str) -> Iterator[tuple[str, str]]:
    """(path, text) of the source files."""
    for path in files(root, *folders):
        if path.suffix in SOURCES:
            yield path.relative_to(root).as_posix(), path.read_text()


def lines(text: str) -> Iterator[tuple[int, str]]:
    return enumerate(text.splitlines(), 1)


def is_below(path: str, *folders: str) -> bool:
    return path.startswith(tuple(f + "/" for f in folders))


# --- the rules -------------------------------------------------------------------------------------------


def torch_headers_only_on_the_torch_side(root: Path) -> list[str]:
    include = re.compile(r'\s*#\s*include\s*[<"](torch|ATen|c10)/')
    return [
        f"{path}:{n}: includes a header of torch"
        for path, text in sources(root, "csrc")
        if not is_below(path, "csrc/ops", "csrc/common") and not re.fullmatch(r"csrc/cuda/\w+/ops\.cpp", path)
        for n, line in lines(text)
        if include.match(line)
    ]


def asm_only_where_it_belongs(root: Path) -> list[str]:
    """PTX in the CUDA half of hopper.h, register pins on the CPU, and the emulator's switch of stacks (10 ns,
    where every portable way takes 300 or more)."""
    return [
        f"{path}:{n}: has asm"
        for path, text in sources(root, "csrc")
        if not is_below(path, "csrc/cuda/hopper/ptx", "csrc/cpu")
        and not re.fullmatch(r"csrc/emu/fiber_\w+\.cpp", path)
        for n, line in lines(text)
        if re.search(r"\b(asm|__asm__|__asm)\b", line.split("//")[0])
    ]


def kernels_use_hopper_only(root: Path) -> list[str]:
    """A kernel is one program for nvcc and for the emulator: everything of the device comes from hopper.h."""
    device = re.compile(
        r"\b(threadIdx|blockIdx|blockDim|gridDim|__(?!has_include)\w+_sync|__sync\w+|__ldg|__shared__|__device__"
        r"|__global__|__CUDA_ARCH__|__CUDACC__|__float_as_\w+|__\w+_as_float)\b|<<<|#\s*include\s*<cuda"
    )
    return [
        f"{path}:{n}: {line.strip()}"
        for path, text in sources(root, "csrc/cuda")
        if not is_below(path, "csrc/cuda/hopper")
        for n, line in lines(text)
        if device.search(line.split("//")[0])
    ]


def imports(text: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")


def reference_imports_torch_only(root: Path) -> list[str]:
    allowed = re.compile(r"(torch|moela\.reference)(\.|$)")
    return [
        f"{path}:{n}: imports {module}"
        for path, text in sources(root, "python/moela/reference")
        for n, module in imports(text)
        if not allowed.match(module)
    ]


def nn_imports_torch_and_moela_only(root: Path) -> list[str]:
    """Its layers work without the libraries whose names they bear."""
    ours = re.compile(r"(torch|moela(?!\.integrations|\.bench))(\.|$)")
    return [
        f"{path}:{n}: imports {module}"
        for path, text in sources(root, "python/moela/nn")
        for n, module in imports(text)
        if not ours.match(module) and module.partition(".")[0] not in sys.stdlib_module_names
    ]


def every_op_has_a_file_in_every_layer(root: Path) -> list[str]:
    layers = (
        "python/moela/ops/{}.py",
        "python/moela/reference/{}.py",
        "kernels/{}.py",
        "csrc/ops/{}.cpp",
        "csrc/cpu/{}.h",
        "tests/ops/test_{}.py",
        "bench/bench_{}.py",
    )
    wanted = [layer.format(op) for op in SPECS for layer in layers]
    return [f"{path}: is missing" for path in wanted if not (root / path).is_file()]


def every_op_file_belongs_to_an_op(root: Path) -> list[str]:
    """One name finds an op in every layer: there are no synonyms."""
    names = {
        "python/moela/ops": [*SPECS, *DISTRIBUTED],
        "python/moela/reference": [*SPECS, *DISTRIBUTED],
        "csrc/ops": [name for op in SPECS for name in (op, f"{op}_cuda")],
        "bench": [f"bench_{op}" for op in SPECS],
    }
    found = []
    for path, _ in sources(root, *names):
        folder, stem = path.rpartition("/")[0], Path(path).stem
        is_op_file = stem.startswith("bench_") if folder == "bench" else not stem.startswith("_")
        if folder in names and is_op_file and stem not in names[folder]:
            found.append(f"{path}: is named after no op")
    return found


def no_file_is_long(root: Path) -> list[str]:
    counts = [(path, len(text.splitlines())) for path, text in sources(root)]
    return [f"{path}: has {count} lines" for path, count in counts if count > MAX_LINES]


def only_the_agreed_environment_variables(root: Path) -> list[str]:
    read = re.compile(r"""(?:getenv|environ(?:\.get|\.setdefault|\.pop)?)\s*[(\[]\s*["'](\w+)["']""")
    named = re.compile(r"""["'$][({]?(MOELA_[A-Z0-9_]+)\b""")
    cmake = re.compile(r"\$ENV\{(\w+)\}")
    found = []
    for path in files(root):
        name = path.relative_to(root).as_posix()
        is_text = path.suffix in (*SOURCES, ".toml", ".yml", ".yaml", ".txt", ".sh", ".cmake")
        if name == "tests/test_architecture.py" or not (is_text or path.name == "Makefile"):
            continue
        is_package = is_below(name, "python", "kernels", "csrc")
        allowed = ENVIRONMENT | FOREIGN_ENVIRONMENT | (set() if is_package else BUILD_ENVIRONMENT)
        for n, line in lines(path.read_text()):
            # setup.py also names the variables that it gives to CMake.
            is_cmake = path.suffix in (".txt", ".cmake")
            patterns = [cmake] if is_cmake else [read] if name == "setup.py" else [read, named]
            used = {variable for pattern in patterns for variable in pattern.findall(line)}
            for variable in sorted(used - allowed):
                found.append(f"{name}:{n}: uses {variable}")
    return found


def no_print_in_the_package(root: Path) -> list[str]:
    found = []
    reports = "python/moela/integrations/transformers/patch.py"  # what moela.patch did, as it promises
    for path, text in sources(root, "python/moela", "kernels"):
        for node in [] if path == reports else ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                found.append(f"{path}:{node.lineno}: prints")
    cpp = re.compile(r"\bprintf\(|\bstd::c(out|err)\b")
    for path, text in sources(root, "csrc"):
        found += [f"{path}:{n}: prints" for n, line in lines(text) if cpp.search(line)]
    return found


def no_note_to_self_without_an_issue(root: Path) -> list[str]:
    note = re.compile(r"\b(TO[D]O|FIX[M]E|XX[X])\b(?!\(#\d+\))")
    found = ((path, n, line) for path, text in sources(root) for n, line in lines(text) if note.search(line))
    return [f"{path}:{n}: {line.strip()}" for path, n, line in found]


RULES: list[Callable[[Path], list[str]]] = [
    torch_headers_only_on_the_torch_side,
    asm_only_where_it_belongs,
    kernels_use_hopper_only,
    reference_imports_torch_only,
    nn_imports_torch_and_moela_only,
    every_op_has_a_file_in_every_layer,
    every_op_file_belongs_to_an_op,
    no_file_is_long,
    only_the_agreed_environment_variables,
    no_print_in_the_package,
    no_note_to_self_without_an_issue,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_project_keeps_the_rule(rule):
    assert rule(ROOT) == []


# --- each rule finds what it is for ----------------------------------------------------------------------

NOTE = "TO" + "DO"
VIOLATIONS = [
    (torch_headers_only_on_the_torch_side, "csrc/cpu/a.h", "#include <torch/csrc/stable/tensor.h>"),
    (torch_headers_only_on_the_torch_side, "csrc/plan/a.h", '  #  include "c10/util/Half.h"'),
    (torch_headers_only_on_the_torch_side, "csrc/cuda/fp8_gemm/a.cuh", "#include <ATen/ATen.h>"),
    (asm_only_where_it_belongs, "csrc/cuda/fp8_gemm/a.cuh", '  asm volatile("fence;");'),
    (asm_only_where_it_belongs, "csrc/ops/a.cpp", '  __asm__("nop");'),
    (asm_only_where_it_belongs, "csrc/cuda/hopper/hopper.h", '  asm volatile("fence;");'),
    (asm_only_where_it_belongs, "csrc/emu/copy.cpp", '  asm("nop");'),
    (kernels_use_hopper_only, "csrc/cuda/fp8_gemm/a.cuh", "const int lane = threadIdx.x % 32;"),
    (kernels_use_hopper_only, "csrc/cuda/fp8_gemm/a.cuh", "kernel<<<blocks, 128>>>(p);"),
    (kernels_use_hopper_only, "csrc/cuda/fp8_gemm/a.cu", "__shared__ float x[4];"),
    (kernels_use_hopper_only, "csrc/cuda/block/a.cuh", "x = __shfl_sync(~0u, x, 0);"),
    (kernels_use_hopper_only, "csrc/cuda/block/a.cuh", "#ifdef __CUDA_ARCH__"),
    (kernels_use_hopper_only, "csrc/cuda/block/a.cuh", "#include <cuda_bf16.h>"),
    (reference_imports_torch_only, "python/moela/reference/a.py", "from moela.ops import SPECS"),
    (reference_imports_torch_only, "python/moela/reference/a.py", "import numpy as np"),
    (reference_imports_torch_only, "python/moela/reference/a.py", "from ..ops import SPECS"),
    (reference_imports_torch_only, "python/moela/reference/a.py", "def f():\n    import triton"),
    (nn_imports_torch_and_moela_only, "python/moela/nn/a.py", "from transformers import PreTrainedModel"),
    (
        nn_imports_torch_and_moela_only,
        "python/moela/nn/a.py",
        "def f():\n    import transformers.activations",
    ),
    (nn_imports_torch_and_moela_only, "python/moela/nn/a.py", "from moela.integrations import transformers"),
    (every_op_file_belongs_to_an_op, "csrc/ops/gemm_fp8.cpp", ""),
    (every_op_file_belongs_to_an_op, "python/moela/ops/helpers.py", ""),
    (every_op_file_belongs_to_an_op, "bench/bench_gemm.py", ""),
    (no_file_is_long, "csrc/cpu/a.h", "\n" * (MAX_LINES + 1)),
    (no_file_is_long, "tests/test_a.py", "\n" * (MAX_LINES + 1)),
    (only_the_agreed_environment_variables, "python/moela/a.py", 'os.environ.get("MOELA_FAST", "")'),
    (only_the_agreed_environment_variables, "python/moela/a.py", 'os.environ["OMP_NUM_THREADS"]'),
    (only_the_agreed_environment_variables, "python/moela/a.py", 'os.getenv("CUDA_HOME")'),
    (only_the_agreed_environment_variables, "csrc/cpu/a.cpp", 'std::getenv("MOELA_THREADS")'),
    (only_the_agreed_environment_variables, "Makefile", "\tcmake -B $(MOELA_BUILD)"),
    (only_the_agreed_environment_variables, "tools/a.sh", "cmake -B ${MOELA_BUILD}"),
    (only_the_agreed_environment_variables, "setup.py", 'os.environ.get("MOELA_BUILD")'),
    (only_the_agreed_environment_variables, "CMakeLists.txt", "set(A $ENV{MOELA_BUILD})"),
    (no_print_in_the_package, "python/moela/a.py", "def f():\n    print(1)"),
    (no_print_in_the_package, "kernels/a.py", "print()"),
    (no_print_in_the_package, "csrc/cpu/a.h", '  printf("%d", 1);'),
    (no_note_to_self_without_an_issue, "csrc/cpu/a.h", f"// {NOTE}: later"),
    (no_note_to_self_without_an_issue, "python/moela/a.py", f"# {NOTE}(me): later"),
]


@pytest.mark.parametrize(("rule", "path", "text"), VIOLATIONS, ids=lambda v: getattr(v, "__name__", None))
def test_the_rule_finds_a_violation(tmp_path, rule, path, text):
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(text)
    [found] = rule(tmp_path)
    assert found.startswith(path + ":")


INNOCENT = {
    "csrc/ops/fp8_gemm.cpp": "#include <torch/csrc/stable/tensor.h>",
    "csrc/common/a.h": "#include <torch/csrc/stable/tensor.h>",
    "csrc/cuda/fp8_gemm/ops.cpp": "#include <torch/csrc/stable/library.h>",
    "csrc/cuda/hopper/ptx/a.h": 'asm volatile("fence;"); // threadIdx',
    "csrc/cuda/fp8_gemm/a.cuh": '#include "cuda/hopper/hopper.h"  // no __shared__\nconst int t = tid();',
    "csrc/emu/fiber_x86_64.cpp": 'asm("ret");',
    "csrc/cpu/a.h": '// no asm here\nasm("" : "+w"(x)); const char* v = std::getenv("MOELA_CPU_ISA");',
    "python/moela/reference/fp8_gemm.py": "import torch\nfrom torch import Tensor\nimport moela.reference.b",
    "python/moela/nn/a.py": "import math\nfrom moela.ops import moe_topk\nfrom torch import nn",
    "python/moela/ops/_spec.py": f"# {NOTE}(#12): later",
    "python/moela/a.py": 'os.environ.get("MOELA_BACKEND")\nos.environ.get("TRITON_INTERPRET", "0")',
    "CMakeLists.txt": "set(B ${MOELA_OUT})",
    "csrc/ops/fp8_gemm_cuda.cpp": "",
    "setup.py": 'os.environ.get("CUDA_HOME")\noptions = {"MOELA_OUT": out}',
    "bench/a.py": "print(1)",
    "bench/bench_fp8_gemm.py": "\n" * MAX_LINES,
}


@pytest.mark.parametrize("rule", [r for r in RULES if r != every_op_has_a_file_in_every_layer])
def test_the_rule_allows_what_it_should(tmp_path, rule):
    for path, text in INNOCENT.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert rule(tmp_path) == []


def test_a_missing_layer_is_found(tmp_path):
    assert len(every_op_has_a_file_in_every_layer(tmp_path)) == 7 * len(SPECS)


# --- public names ----------------------------------------------------------------------------------------


def docstring_faults(function: Callable) -> list[str]:
    """What the docstring of an op lacks: a section, or one of its arguments."""
    doc = inspect.getdoc(function) or ""
    sections = ("Args:", "Returns:", "Numerics:", "Source:")
    faults = [section for section in sections if f"\n{section}" not in doc]
    return faults + [arg for arg in inspect.signature(function).parameters if f"\n    {arg}: " not in doc]


def test_every_op_is_public_with_its_out_variant_and_documented(op):
    assert op in moela.__all__
    assert getattr(moela, op) is SPECS[op].public
    assert docstring_faults(SPECS[op].public) == []
    assert (f"{op}_out" in moela.__all__) == (not SPECS[op].in_place)
    assert SPECS[op].in_place or f"`{op}` into " in inspect.getdoc(getattr(moela, f"{op}_out"))


def test_the_check_of_docstrings_finds_what_is_missing():
    def op(a, sf_a):
        """Compute.

        Args:
            a: something.

        Numerics: exact.
        """

    assert docstring_faults(op) == ["Returns:", "Source:", "sf_a"]
