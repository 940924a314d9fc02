"""One wheel for every torch and Python (docs/adr/0002), and the other ways to install."""

import json
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.install

# Of every case of every op: what goes in, what comes out. A NaN has no bits to compare.
HASHES = """
import hashlib, json, torch
from moela.ops import SPECS

def bits(value):
    if not isinstance(value, torch.Tensor):
        return repr(value)
    if value.numel() == 0:
        return f"empty {tuple(value.shape)} {value.dtype}"
    codes = value.contiguous().view(torch.uint8).reshape(*value.shape, -1)
    codes = codes.masked_fill(value.float().isnan().unsqueeze(-1), 0)
    return hashlib.sha256(bytes(codes.flatten().tolist())).hexdigest()

inputs, outputs = {}, {}
for op, spec in SPECS.items():
    for case in spec.cases:
        args = spec.make_inputs(**case)
        inputs[f"{op} {case}"] = [bits(a) for a in args.values()]
        result = spec.public(**args)
        outputs[f"{op} {case}"] = [bits(r) for r in (result if isinstance(result, tuple) else (result,))]
print(json.dumps([inputs, outputs]))
"""
COMPILED = """
import torch, moela
from moela.ops import SPECS

args = SPECS["fp8_gemm"].make_inputs(M=3, N=256, K=384)

def layer(x):
    return torch.relu(moela.fp8_gemm(**x).float())

assert torch.equal(torch.compile(layer, fullgraph=True)(args), layer(args))
print("equal")
"""
WRONG_ARGUMENT = """
import torch, moela
try:
    moela.fp8_gemm(torch.ones(2, 128), None, torch.ones(4, 128), torch.ones(1, 1))
except ValueError as error:
    print(error)
"""
WHERE = "import moela; print(moela.__file__); print(moela.explain('fp8_gemm', 'cpu'))"


@pytest.fixture(scope="module")
def installed(beside_another_torch, wheel):
    beside_another_torch.pip("install", "-q", "--no-deps", "--force-reinstall", wheel)
    return beside_another_torch


# --- the wheel -------------------------------------------------------------------------------------------


def test_the_wheel_is_for_every_python_3_on_this_platform(wheel, unpacked):
    assert re.fullmatch(r"moela-[\d.]+-py3-none-linux_\w+\.whl", wheel.name)
    [text] = [data.decode() for name, data in unpacked(wheel).items() if name.endswith(".dist-info/WHEEL")]
    assert re.findall(r"^Tag: (.+)$", text, re.M) == [wheel.stem.split("-", 2)[2]]


def test_the_wheel_holds_every_package_and_library_and_its_licence(wheel, unpacked, checkout):
    names = set(unpacked(wheel))
    folders = {"python/moela": "moela", "kernels": "moela/kernels", "bench": "moela/bench"}
    wanted = {
        f"{package}/{path.relative_to(checkout / folder)}"
        for folder, package in folders.items()
        for path in (checkout / folder).rglob("*.py")
    }
    assert wanted - names == set()
    assert {
        "moela/py.typed",
        "moela/libmoela_cpu.so",
        "moela/libmoela_ep.so",
        "moela/ep/planner/topologies/defaults.json",
    } <= names
    assert any(re.fullmatch(r"moela-[\d.]+\.dist-info/licenses/LICENSE", name) for name in names)


def test_the_wheel_holds_no_sources_of_c_and_no_tests(wheel, unpacked):
    allowed = re.compile(
        r"moela/([\w/]+\.py|py\.typed|ep/planner/topologies/[\w-]+\.json|libmoela_(cpu|cuda|ep)\.so|_plan\.[\w-]+\.so)"
        r"|moela-[\d.]+\.dist-info/(METADATA|WHEEL|RECORD|top_level\.txt|entry_points\.txt|licenses/LICENSE)"
    )
    assert {name for name in unpacked(wheel) if not allowed.fullmatch(name)} == set()
    assert {name for name in unpacked(wheel) if re.search(r"\btest_\w+\.py$", name)} == set()


def test_the_wheel_does_not_tell_where_it_was_built(wheel, unpacked, checkout, like_this):
    places = [str(p).encode() for p in (checkout, like_this.path, sys.prefix)]
    found = {name for name, data in unpacked(wheel).items() for place in places if place in data}
    assert found == set()


# --- the wheel beside another torch ----------------------------------------------------------------------


def test_beside_another_torch_the_library_runs_every_op_with_the_same_bits(installed):
    here = subprocess.run([sys.executable, "-c", HASHES], capture_output=True, text=True, check=True)
    inputs, outputs = json.loads(here.stdout)
    their_inputs, their_outputs = json.loads(installed.python("-c", HASHES, MOELA_BACKEND="cpu"))
    assert their_inputs == inputs
    assert their_outputs == outputs
    assert len(outputs) > 20


def test_beside_another_torch_it_is_the_wheel_that_runs(installed):
    lines = installed.python("-c", WHERE).splitlines()
    assert lines[0].startswith(str(installed.path))
    assert "fp8_gemm on cpu: cpu       picked" in lines


def test_beside_another_torch_an_op_compiles_into_one_graph(installed):
    assert installed.python("-c", COMPILED) == "equal\n"


def test_beside_another_torch_a_wrong_argument_is_named(installed):
    assert installed.python("-c", WRONG_ARGUMENT) == "fp8_gemm: b: expected float8_e4m3fn, got float32\n"


def test_beside_another_torch_the_command_line_tells_what_is_there(installed):
    done = subprocess.run([installed.path / "bin/moela", "info"], capture_output=True, text=True, check=True)
    assert re.search(r"^\s*torch\s+2\.14\.1", done.stdout, re.M)
    assert "libmoela_cpu.so" in done.stdout


# --- from sources ----------------------------------------------------------------------------------------


def test_pip_install_of_a_checkout_works(checkout, like_this):
    like_this.pip("install", "-q", "--no-build-isolation", "--no-deps", checkout, MOELA_CUDA="OFF")
    lines = like_this.python("-c", WHERE).splitlines()
    assert lines[0].startswith(str(like_this.path))
    assert "fp8_gemm on cpu: cpu       picked" in lines
    like_this.pip("uninstall", "-q", "-y", "moela")


def test_pip_install_of_an_sdist_works_in_an_isolated_build(sdist, like_this):
    """Which holds no torch: it is found in the environment that is installed into."""
    like_this.pip("install", "-q", "--no-deps", sdist, MOELA_CUDA="OFF")
    assert "fp8_gemm on cpu: cpu       picked" in like_this.python("-c", WHERE).splitlines()
    like_this.pip("uninstall", "-q", "-y", "moela")


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({}, "moela: no torch to build against. Install torch 2.11 or later first, then: pip install"),
        ({"MOELA_CUDA": "maybe"}, "moela: MOELA_CUDA: expected AUTO, ON or OFF, got 'MAYBE'"),
    ],
    ids=["no torch", "wrong MOELA_CUDA"],
)
def test_pip_install_that_cannot_build_says_why(checkout, bare, env, message):
    done = bare.run("-m", "pip", "install", "--no-deps", checkout, **env)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
