"""What chooses the backend of a call and a CPU instruction set, and what it says if it fails."""

import ctypes
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import moela
import pytest
import torch
from moela import backends, testing
from moela.ops import SPECS, _spec

# The picked instruction set, and what each op gives in every case of its spec and at the ends of float32. A
# NaN has no bits to compare.
PICKED_AND_HASHES = """
import ctypes, hashlib, json, torch
from moela import backends
from moela.ops import SPECS, _spec
isas = backends.library("cpu").handle.moela_cpu_isas
isas.restype = ctypes.c_char_p
picked = [line.split()[0] for line in isas().decode().splitlines() if line.split()[1] == "picked"]
hashes = {}
def record(name, result):
    for i, t in enumerate(result if isinstance(result, tuple) else (result,)):
        data = t.contiguous().view(torch.uint8).numpy().copy()
        nan = t.float().isnan()
        data.reshape(-1)[nan.flatten().repeat_interleave(t.element_size()).numpy()] = 0
        hashes[f"{name} output {i}"] = hashlib.sha256(data.tobytes()).hexdigest()
for op, spec in SPECS.items():
    for case in spec.cases:
        inputs = spec.make_inputs(**case)
        result = spec.op(**inputs)
        if spec.in_place:
            result = tuple(inputs[name] for name in spec.outputs)
        record(f"{op} {case}", result)
for M in (1, 2, 3, 5, 9, 33, 65):
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        x = SPECS["fp8_gemm"].make_inputs(M=M, N=45, K=1500, a_dtype=dtype, out_dtype=torch.float32)
        record(f"fp8_gemm {M} {dtype}", SPECS["fp8_gemm"].op(**x))
        for size in (1e30, 1e-30, 1e-38, 1e-43, float("inf")):
            x["a"][M // 2, ::3] = size
            record(f"fp8_gemm {M} {dtype} {size}", SPECS["fp8_gemm"].op(**x))
            record(f"token cast {M} {dtype} {size}", SPECS["per_token_group_quant_fp8"].op(x["a"]))
            record(f"block cast {M} {dtype} {size}", SPECS["per_block_quant_fp8"].op(x["a"]))
for M in (3, 8, 33, 70):
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        x = SPECS["grouped_gemm"].make_inputs(M=M, N=45, K=1100, a_dtype=dtype)
        x["b"][:, ::3] *= 2.0**-15  # of float16 the smallest, subnormal ones too
        x["b"][0, 1, 7] = float("inf")
        for layout, b in (("K", x["b"]), ("N", x["b"].mT.contiguous().mT)):
            record(f"grouped_gemm {M} {dtype} {layout}", SPECS["grouped_gemm"].op(**x | {"b": b}))
        x = SPECS["grouped_gemm_wgrad"].make_inputs(M=50 * M, N=45, K=75, a_dtype=dtype)
        record(f"wgrad {M} {dtype}", SPECS["grouped_gemm_wgrad"].op(**x))
        for w_dtype in (dtype, torch.float8_e4m3fn):
            dims = {"T": M, "H": 1100, "I": 200, "x_dtype": dtype, "w_dtype": w_dtype}
            x = SPECS["fused_experts"].make_inputs(**dims, bias=True)
            record(f"fused_experts {M} {dtype} {w_dtype}", SPECS["fused_experts"].op(**x))
codes = torch.arange(256, dtype=torch.uint8).view(2, 128).view(torch.float8_e4m3fn)
for sf in (2.0**-149, 2.0**-120, 1e-3, 1e30, 3e38):
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        result = SPECS["per_block_dequant_fp8"].op(codes, torch.full((1, 1), sf), dtype)
        record(f"dequant {sf} {dtype}", result)
print(json.dumps([picked, hashes]))
"""
ONE_CALL = """
import torch, moela
a, b = torch.ones(1, 4), torch.ones(1, 4).to(torch.float8_e4m3fn)
print(moela.fp8_gemm(a, None, b, torch.ones(1, 1)).item())
"""
EXPLAINED_AND_PICKED = """
import torch, moela
lines = moela.explain("fp8_gemm", "cpu").splitlines()
print(*[line.split()[3] for line in lines if line.endswith(" picked")])
print(moela.backends.pick("fp8_gemm", torch.device("cpu")))
"""


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter: environment variables are read once."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MOELA_")}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=clean | env, capture_output=True, text=True, check=False)


def output(code: str, **env: str) -> str:
    result = python(code, **env)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def usable_isas() -> list[str]:
    handle = backends.library("cpu").handle
    handle.moela_cpu_isas.restype = ctypes.c_char_p
    lines = [line.split() for line in handle.moela_cpu_isas().decode().splitlines()]
    return [name for name, state, _ in lines if state in ("picked", "usable")]


@pytest.fixture
def cpu(make_runner):
    """A runner per op on the compiled CPU backend, or a skip that says why there is none."""
    return {op: make_runner(op, "cpu-cpu") for op in SPECS}


@pytest.fixture
def gemm():
    return SPECS["fp8_gemm"].make_inputs(M=2, N=3, K=130)


def test_without_a_choice_cpu_tensors_take_the_compiled_kernel_where_there_is_one():
    for op in SPECS:
        compiled = backends.why_not("cpu", op, "cpu") is None
        assert backends.available(op, "cpu")[0] == ("cpu" if compiled else "reference")
        assert backends.available(op, "meta")[0] == "reference"


def test_the_reference_runs_everywhere():
    for op in SPECS:
        for device in ("cpu", "meta", "cuda"):
            assert backends.why_not("reference", op, device) is None


def test_explain_has_one_line_per_backend_and_one_pick():
    for op in SPECS:
        lines = moela.explain(op, "cpu").splitlines()
        assert [line.split()[3] for line in lines] == list(backends.BACKENDS)
        assert all(line.startswith(f"{op} on cpu: ") for line in lines)
        picked = [line.split()[3] for line in lines if line.endswith(" picked")]
        assert picked == [backends.pick(op, torch.device("cpu"))]
        for line in lines:
            reason = backends.why_not(line.split()[3], op, "cpu")
            assert line.endswith(reason) if reason else line.split()[-1] in ("picked", "usable")


@pytest.fixture
def on_hopper(monkeypatch):
    """As if there were a Hopper GPU and everything were built."""
    monkeypatch.setattr(backends, "why_not", lambda name, op, device: None)
    monkeypatch.delenv("MOELA_BACKEND", raising=False)


def test_a_cuda_kernel_that_no_gpu_has_run_is_usable_by_name_and_never_picked(on_hopper):
    for op in backends.UNVERIFIED_CUDA:
        assert backends.available(op, "cuda:0") == ["triton", "reference", "cuda", "cpu"]
        assert "cuda      usable by name: no GPU has run it yet" in moela.explain(op, "cuda:0")
    assert backends.available("another", "cuda:0")[0] == "cuda"


def test_what_the_cuda_kernel_does_not_take_goes_to_the_next_backend(on_hopper, monkeypatch):
    monkeypatch.setattr(backends, "pick", lambda op, device: "cuda")
    monkeypatch.setattr(backends, "available", lambda op, device: ["cuda", "triton", "reference"])
    spec = SPECS["fp8_gemm"]
    good = spec.make_inputs(M=4, N=64, K=256)
    calls = {
        "cuda": good,
        "weight-only": spec.make_inputs(M=4, N=64, K=256, a_dtype=torch.bfloat16),
        "no K": spec.make_inputs(M=4, N=64, K=0),
        "odd rows": spec.make_inputs(M=4, N=64, K=200),
        "odd start": good | {"b": torch.zeros(64 * 256 + 1).to(torch.float8_e4m3fn)[1:].view(64, 256)},
    }
    for name, inputs in calls.items():
        args = tuple(inputs.pop(k) for k in ("a", "sf_a", "b", "sf_b"))
        assert _spec.pick_for(spec, args, inputs) == ("cuda" if name == "cuda" else "triton"), name


def test_what_the_cuda_kernel_does_not_take_is_an_error_where_cuda_was_asked_for(on_hopper):
    weight_only = SPECS["fp8_gemm"].make_inputs(M=4, N=64, K=256, a_dtype=torch.bfloat16)
    wanted = (
        r"^fp8_gemm: backend 'cuda' cannot run these arguments: "
        r"it multiplies float8_e4m3fn activations, a is bfloat16$"
    )
    with moela.use_backend("cuda"), pytest.raises(ValueError, match=wanted):
        moela.fp8_gemm(**weight_only)
    d = torch.empty(4, 64, dtype=torch.bfloat16)
    args = [weight_only[k] for k in ("a", "sf_a", "b", "sf_b")]
    with moela.use_backend("cuda"), pytest.raises(ValueError, match=wanted):
        moela.fp8_gemm_out(*args, d=d)


def test_why_not_gives_the_reason():
    assert backends.why_not("cpu", "fp8_gemm", "meta") == "runs on cpu tensors only"
    assert backends.why_not("cuda", "fp8_gemm", "cpu") == "runs on cuda tensors only"
    assert "no_such_op" in backends.why_not("triton", "no_such_op", "cpu")
    assert backends.why_not("reference", "fp8_gemm", "cpu") is None


def test_triton_on_cpu_tensors_is_its_interpreter_and_asks_for_it(monkeypatch):
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(backends, "_triton_error", lambda: None)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert backends.why_not("triton", "fp8_gemm", "cpu").endswith("set TRITON_INTERPRET=1")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backends.why_not("triton", "fp8_gemm", "cpu") is None


def test_an_unknown_backend_is_named_with_the_choices():
    choices = "expected one of cuda, triton, cpu, reference, got 'gpu'"
    with pytest.raises(ValueError, match=f"^use_backend: {choices}$"):
        moela.use_backend("gpu")
    with pytest.raises(ValueError, match=f"^backend: {choices}$"):
        backends.why_not("gpu", "fp8_gemm", "cpu")


def test_use_backend_raises_where_the_backend_cannot_run(gemm):
    wanted = r"^fp8_gemm: backend 'cuda' cannot run on cpu: runs on cuda tensors only$"
    with moela.use_backend("cuda"), pytest.raises(ValueError, match=wanted):
        moela.fp8_gemm(**gemm)


def test_use_backend_chooses_for_the_functional_and_the_out_variant(gemm, monkeypatch):
    chosen = []
    monkeypatch.setattr(backends, "_require", lambda name, op, device: chosen.append((name, op)))
    d = torch.empty(2, 3)
    with moela.use_backend("reference"):
        moela.fp8_gemm(**gemm)
        moela.fp8_gemm_out(gemm["a"], gemm["sf_a"], gemm["b"], gemm["sf_b"], d=d)
        torch.ones(3).sum()  # not an op of ours
    assert chosen == [("reference", "fp8_gemm")] * 2


def test_use_backend_nests_and_the_inner_one_wins(gemm):
    before = moela.fp8_gemm(**gemm)
    with moela.use_backend("cuda"):
        with moela.use_backend("reference"):
            inner = moela.fp8_gemm(**gemm)
        with pytest.raises(ValueError, match="backend 'cuda' cannot run"):
            moela.fp8_gemm(**gemm)
    assert testing.same_bits(inner, SPECS["fp8_gemm"].reference(**gemm))
    assert testing.same_bits(moela.fp8_gemm(**gemm), before)


@pytest.mark.parametrize("name", ["reference", "", "auto"])
def test_moela_backend_chooses_for_the_process(name):
    wanted = "reference" if name == "reference" else backends.available("fp8_gemm", "cpu")[0]
    assert output(EXPLAINED_AND_PICKED + ONE_CALL, MOELA_BACKEND=name).split() == [wanted, wanted, "4.0"]


def test_explain_tells_what_moela_backend_picked(monkeypatch):
    """Also where the choice is none of the preferred ones, as Triton on CPU tensors."""
    monkeypatch.setenv("MOELA_BACKEND", "triton")
    usable = ("triton", "reference")
    monkeypatch.setattr(
        backends, "why_not", lambda name, op, device: None if name in usable else "is not here"
    )
    assert backends.pick("fp8_gemm", torch.device("cpu")) == "triton"
    lines = moela.explain("fp8_gemm", "cpu").splitlines()
    assert [line.split()[3] for line in lines if line.endswith(" picked")] == ["triton"]


def test_moela_backend_reference_switches_the_compiled_kernel_off(cpu):
    """Counts calls of the reference, so a compiled kernel that ran after all shows."""
    code = """
import torch, moela
from moela.ops import SPECS, _spec
ran = []
spec = SPECS["fp8_gemm"]
run = _spec.run_python
_spec.run_python = lambda spec, backend, args, kwargs: ran.append(backend) or run(spec, backend, args, kwargs)
moela.fp8_gemm(**spec.make_inputs(M=2, N=3, K=130))
print(ran)
"""
    assert output(code, MOELA_BACKEND="reference") == "['reference']"
    assert output(code) == "[]"


def test_moela_backend_with_an_unknown_name_is_an_error_that_lists_the_choices():
    result = python(ONE_CALL, MOELA_BACKEND="fast")
    assert result.returncode != 0
    wanted = "ValueError: MOELA_BACKEND: expected one of cuda, triton, cpu, reference, got 'fast'"
    assert result.stderr.splitlines()[-1] == wanted


def test_moela_backend_that_cannot_run_is_an_error_and_not_a_fallback():
    result = python(ONE_CALL, MOELA_BACKEND="cuda")
    assert result.returncode != 0
    wanted = "ValueError: fp8_gemm: backend 'cuda' cannot run on cpu: runs on cuda tensors only"
    assert result.stderr.splitlines()[-1] == wanted


GEMMS = ("fp8_gemm", "grouped_fp8_gemm", "grouped_fp8_gemm_masked", "grouped_gemm", "fused_experts")
LOGITS = ("indexer_logits", "indexer_logits_paged")
# The ops that sum products of bfloat16 and of e4m3 in an order of their own (docs/adr/0011).
ATTENTION = ("mla_decode", "mla_sparse", "mla_prefill", "mla_prefill_backward")
OWN_SUMS = {"amx_bf16": (*GEMMS, *LOGITS, *ATTENTION), "avx512_bf16": (*GEMMS, *LOGITS)}


def may_differ(isa: str, name: str) -> bool:
    return name.split()[0] in OWN_SUMS.get(isa, ()) and not re.match(r"\w+ \d+ torch.float(16|32)", name)


@pytest.fixture
def picked_and_hashes(cpu, once):
    """Instruction set -> what a process that asks for it says."""

    def run():
        return {isa: json.loads(output(PICKED_AND_HASHES, MOELA_CPU_ISA=isa)) for isa in usable_isas()}

    return once("picked_and_hashes", run)


def test_every_instruction_set_gives_the_same_bits(picked_and_hashes):
    results = {isa: hashes for isa, (_, hashes) in picked_and_hashes.items()}
    scalar = results["scalar"]
    assert len(scalar) > 200
    for isa, hashes in results.items():
        differ = [name for name in scalar if hashes[name] != scalar[name] and not may_differ(isa, name)]
        assert differ == [], f"{isa} differs from scalar"


def test_moela_cpu_isa_picks_the_instruction_set(picked_and_hashes):
    assert {isa: picked for isa, (picked, _) in picked_and_hashes.items()} == {
        isa: [isa] for isa in usable_isas()
    }


def test_every_instruction_set_is_within_the_bounds(cpu):
    """The contract tests run on one set. The others have the bits of the scalar one, or sums of their own."""
    code = """
from moela import testing
from moela.ops import SPECS
for op, spec in SPECS.items():
    for case in spec.cases:
        inputs = spec.make_inputs(**case)
        got = spec.op(**inputs)
        got = tuple(inputs[name] for name in spec.outputs) if spec.in_place else got
        bounds = spec.bound(inputs, testing.FLOAT32_SUM)
        for t, (exact, error) in zip(got if isinstance(got, tuple) else (got,), bounds, strict=True):
            testing.assert_within(t, exact, error, f"{op} {case}")
print("done")
"""
    for isa in usable_isas():
        if isa == "scalar" or isa in OWN_SUMS:
            assert output(code, MOELA_CPU_ISA=isa) == "done"


def test_an_unknown_moela_cpu_isa_is_an_error_that_lists_the_choices(cpu):
    result = python(ONE_CALL, MOELA_CPU_ISA="avx1024")
    assert result.returncode != 0
    choices = ", ".join(usable_isas())
    wanted = f"ValueError: MOELA_CPU_ISA: expected one that this machine runs ({choices}), got 'avx1024'"
    assert result.stderr.splitlines()[-1] == wanted


def test_flushing_subnormals_in_torch_does_not_change_the_cpu_kernels(cpu):
    """set_flush_denormal sets a bit in the control register that SIMD arithmetic obeys."""
    calls = []
    for M in (1, 2, 9, 65):
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            inputs = SPECS["fp8_gemm"].make_inputs(M=M, N=45, K=300, a_dtype=dtype, out_dtype=torch.float32)
            for size in (1e-38, 1e-42):
                tiny = (torch.rand(M, 300, generator=torch.Generator().manual_seed(M)) * size).to(dtype)
                calls.append(("fp8_gemm", inputs | {"a": tiny}))
                calls.append(("fp8_gemm", inputs | {"a": tiny, "sf_b": inputs["sf_b"] * 2.0**100}))
                calls.append(("per_token_group_quant_fp8", {"x": tiny}))
                calls.append(("per_block_quant_fp8", {"w": tiny}))
    codes = torch.arange(256, dtype=torch.uint8).view(2, 128).view(torch.float8_e4m3fn)
    for sf in (2.0**-149, 2.0**-126, 2.0**-120):
        for dtype in (torch.bfloat16, torch.float32):
            inputs = {"q": codes, "sf": torch.full((1, 1), sf), "dtype": dtype}
            calls.append(("per_block_dequant_fp8", inputs))
    expected = [cpu[op](inputs) for op, inputs in calls]
    assert torch.set_flush_denormal(True)
    try:
        got = [cpu[op](inputs) for op, inputs in calls]
    finally:
        torch.set_flush_denormal(False)
    for (op, _), results, wanted in zip(calls, got, expected, strict=True):
        assert all(testing.same_bits(x, y) for x, y in zip(results, wanted, strict=True)), op


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_a_required_backend_that_is_absent_fails_the_suite():
    """MOELA_TEST_REQUIRE turns the skips of tests/conftest.py into errors."""
    file = Path(__file__).parent / "ops/test_per_block_dequant_fp8.py"
    args = [str(file), "-q", "-k", "cuda and test_extents_may_be_empty", "-p", "no:cacheprovider"]
    code = f"import pytest, sys; sys.exit(pytest.main({args}))"
    assert "1 skipped" in python(code).stdout
    required = python(code, MOELA_TEST_REQUIRE="cpu,cuda")
    assert required.returncode == 1
    assert (
        "MOELA_TEST_REQUIRE asks for cuda, but per_block_dequant_fp8 on cuda: there is no" in required.stdout
    )
