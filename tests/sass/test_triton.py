"""What Triton makes of every kernel on every target, compiled here without a GPU by aot.py."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import machine_code
import pytest
from moela.ops import SPECS

HERE = Path(__file__).parent
# Triton keys its cache by source, options and its own version, so an old entry is never taken for a new one.
CACHE = HERE.parent.parent / "build" / "triton-aot"
Variants = dict[str, dict[str, Any]]

pytestmark = pytest.mark.aot


@dataclass(frozen=True)
class Target:
    """shared: bytes of shared memory that one block may use. dots: what multiplies, by the type of `a`.

    sample: it gets the first variant of each op of these types: those that it multiplies in its own way. What
    else variants differ in (strides, layouts, options) another target tells, and `-m thorough`.
    """

    shared: int
    dots: dict[str, str]
    has_fp8: bool = True
    has_tma: bool = False
    sample: tuple[str, ...] = ()


HMMA = {"bf16": r"HMMA\.16816\.F32\.BF16", "f16": r"HMMA\.16816\.F32"}
QMMA = HMMA | {"e4m3": r"QMMA\.16832\.F32\.E4M3\.E4M3"}
DECODED = HMMA | {"e4m3": HMMA["f16"]}
WGMMA = {
    "e4m3": r"QGMMA\.64x\d+x32\.F32\.E4M3\.E4M3",
    "bf16": r"HGMMA\.64x\d+x16\.F32\.BF16",
    "f16": r"HGMMA\.64x\d+x16\.F32",
}
TCGEN05 = {"e4m3": "UTCQMMA", "bf16": "UTCHMMA", "f16": "UTCHMMA"}
MFMA = {"bf16": r"v_mfma_f32_\w+_bf16", "f16": r"v_mfma_f32_\w+_f16", "f32": r"v_mfma_f32_\w+_f32"}

TARGETS = {
    "sm_80": Target(163 << 10, DECODED, has_fp8=False, sample=("bf16", "f16", "f32", "e4m3")),
    "sm_86": Target(99 << 10, DECODED, has_fp8=False, sample=("bf16", "e4m3")),
    "sm_89": Target(99 << 10, QMMA, sample=("bf16", "e4m3")),
    "sm_90": Target(227 << 10, WGMMA, has_tma=True),
    "sm_100": Target(227 << 10, TCGEN05, has_tma=True, sample=("bf16", "f32", "e4m3")),
    "sm_120": Target(99 << 10, QMMA, has_tma=True, sample=("bf16", "f32", "e4m3")),
    # gfx942 has e4m3fnuz, another number format.
    "gfx942": Target(64 << 10, MFMA | {"e4m3": MFMA["f16"]}, has_fp8=False),
    "gfx950": Target(160 << 10, MFMA | {"e4m3": r"v_mfma_f32_\w+_f8f6f4"}, sample=("bf16", "e4m3")),
}
PARAMS = [
    pytest.param((name, ["sample", *t.sample] if t.sample else []), id=name) for name, t in TARGETS.items()
]
PARAMS += [
    pytest.param((name, []), id=f"{name}-all", marks=pytest.mark.thorough)
    for name, t in TARGETS.items()
    if t.sample
]
NVIDIA = [param for param in PARAMS if param.id.startswith("sm_")]

PRODUCTS = ("fp8_gemm", "grouped_fp8_gemm", "grouped_fp8_gemm_masked", "grouped_gemm", "grouped_gemm_wgrad")
# Products whose sums over heads follow at once.
LOGITS = ("indexer_logits", "indexer_logits_paged")

# Rows that begin at any byte are loaded byte by byte; the addresses of those loads alone fill the registers.
# K0 never runs a step.
BYTEWISE = ("-odd", "-K0")
BYTEWISE_STACK = 256
# ptxas takes 80 registers so that three blocks fit a multiprocessor, and pays with six on the stack; or 128
# for two, with ten.
STACK = {
    ("sm_120", "per_block_dequant_fp8-f32-e8m0"): 24,
    ("sm_90", "mla_prefill_backward-bf16-dq"): 40,
    ("sm_100", "mla_prefill_backward-bf16-dq"): 40,
}
# Kernels that exchange rows with other ranks.
EXCHANGES = ("ep_dispatch", "ep_combine")
# What a kernel keeps for after its walk over K, over keys, or over rows, may wait on the stack.
WALKS = (*PRODUCTS, "mla_decode", "mla_prefill", "mla_prefill_backward", "mla_sparse", *EXCHANGES)
STACK_BESIDE_LOOPS = 24


def why_not(target: str) -> str | None:
    backend = "nvidia" if target.startswith("sm_") else "amd"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if importlib.util.find_spec(f"triton.backends.{backend}") is None:
        return f"this triton has no {backend} backend"
    if backend == "nvidia" and not (machine_code.bundled("nvdisasm") and machine_code.bundled("cuobjdump")):
        return "this triton brings no nvdisasm or cuobjdump"
    return None


def compile_all(target: str, *which: str) -> Variants:
    # Line numbers take a seventh of the time and change no instruction.
    env = os.environ | {"TRITON_CACHE_DIR": str(CACHE), "TRITON_DISABLE_LINE_INFO": "1"}
    env.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "ignore", HERE / "aot.py", target, *which]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"aot.py {target}: {done.stderr}")
    return json.loads(done.stdout)


@pytest.fixture(scope="session")
def compilation(once) -> Callable[..., Variants]:
    """compile_all, which takes a minute."""
    return cache(lambda *args: once("-".join(["aot", *args]), lambda: compile_all(*args)))


@pytest.fixture(params=PARAMS)
def target(request: pytest.FixtureRequest) -> str:
    name, _ = request.param
    reason = why_not(name)
    if reason and "triton" in os.environ.get("MOELA_TEST_REQUIRE", "").split(","):
        pytest.fail(f"MOELA_TEST_REQUIRE asks for triton, but {reason}", pytrace=False)
    if reason:
        pytest.skip(reason)
    return name


@pytest.fixture
def variants(request: pytest.FixtureRequest, target: str, compilation: Callable[..., Variants]) -> Variants:
    return compilation(target, *request.node.callspec.params["target"][1])


@pytest.fixture
def compiled(variants: Variants) -> Variants:
    """The facts of what compiled."""
    return {variant: f for variant, f in variants.items() if "error" not in f}


def opcodes(facts: dict[str, Any]) -> dict[str, int]:
    """Of the machine code."""
    return facts["sass"] if "sass" in facts else facts["amdgcn"]


def of_op(variants: Variants, op: str) -> Variants:
    found = {variant: facts for variant, facts in variants.items() if variant.split("-")[0] == op}
    assert found, f"no variant of {op} compiled"
    return found


def dot_type(variant: str) -> str:
    """fp8_gemm-bf16-pointers -> bf16: the type of `a`."""
    return variant.split("-")[1]


def products(variants: Variants) -> Variants:
    """Of the ops that multiply matrices."""
    return {variant: facts for op in PRODUCTS for variant, facts in of_op(variants, op).items()}


def test_every_variant_of_every_op_compiles(variants):
    assert {v: f["error"] for v, f in variants.items() if "error" in f} == {}
    assert {v.split("-")[0] for v in variants} == {*SPECS, "clear_rest", *EXCHANGES}


def test_products_multiply_with_the_tensor_core_of_their_type(target, compiled):
    """And with no other: float32 with none at all on NVIDIA, where that would be TF32."""
    for variant, facts in products(compiled).items():
        found = machine_code.tensor_core_opcodes(opcodes(facts))
        wanted = TARGETS[target].dots.get(dot_type(variant))
        if wanted is None:
            assert found == set(), variant
            assert opcodes(facts)["FFMA"] > 0, variant
        else:
            assert found, variant
            assert {o for o in found if not re.fullmatch(wanted, o)} == set(), variant


def test_float32_is_never_rounded_to_tf32(compiled):
    for variant, facts in compiled.items():
        every = [*opcodes(facts), *facts.get("ptx", ())]
        assert [o for o in every if re.search(r"[tx]f32", o, re.I)] == [], variant


def test_fp8_instructions_are_used_exactly_where_the_target_has_them(target, compiled):
    """Elsewhere e4m3 is decoded and encoded in registers."""
    for variant, facts in compiled.items():
        multiplies_fp8 = variant.split("-")[0] in (*PRODUCTS, *LOGITS) and dot_type(variant) == "e4m3"
        has_any = machine_code.fp8_opcodes(opcodes(facts)) != set()
        casts = "_quant_" in variant or variant.endswith("-to_e4m3")
        assert has_any == (TARGETS[target].has_fp8 and (multiplies_fp8 or casts)), variant


def test_products_load_by_tma_where_the_rows_are_aligned(target, compiled):
    """Less the sum over rows, whose last load has to leave out those of the next group."""
    for variant, facts in products(compiled).items():
        aligned = not variant.endswith(("-pointers", *BYTEWISE)) and "_wgrad-" not in variant
        has_any = any(o.startswith("UTMALDG") for o in opcodes(facts))
        assert has_any == (TARGETS[target].has_tma and aligned), variant
        assert facts["uses_descriptors"] == has_any, variant


@pytest.mark.parametrize("target", NVIDIA, indirect=True)
def test_products_by_pointers_load_while_they_multiply(target, compiled):
    """Rows of 8-byte pieces still come by asynchronous copies; without TMA all products are by pointers."""
    by_tma = TARGETS[target].has_tma
    by_pointers = [
        v for v in products(compiled) if v.endswith("-pointers") or (not by_tma and not v.endswith(BYTEWISE))
    ]
    for variant in [*by_pointers, "grouped_gemm_wgrad-bf16"]:
        assert any(o.startswith("LDGSTS") for o in opcodes(compiled[variant])), variant


def test_casts_divide_exactly(compiled):
    """The definition's bits need the IEEE quotient."""
    casts = ("per_token_group_quant_fp8", "per_block_quant_fp8", "silu_and_mul_quant_fp8")
    for op in (*casts, "mla_norm_rope_cache_write"):
        for variant, facts in of_op(compiled, op).items():
            if "ptx" in facts:
                assert {o for o in facts["ptx"] if re.match(r"div\..*f32", o)} == {"div.rn.f32"}, variant
            else:
                assert opcodes(facts)["v_div_fixup_f32"] > 0, variant


@pytest.mark.parametrize("target", NVIDIA, indirect=True)
def test_what_is_defined_bit_by_bit_rounds_every_operation(target, compiled):
    """A fused multiply-add, an approximation or a flushed subnormal could choose another expert or code."""
    for op in ("ep_combine", "moe_topk", "moe_unpermute", "mla_norm_rope_cache_write"):
        for variant, facts in of_op(compiled, op).items():
            wrong = [o for o in facts["ptx"] if re.match(r"fma\.|.*\.(approx|ftz|full)\b", o)]
            assert wrong == [], variant


def test_exchanges_order_what_all_devices_of_a_node_see(target, compiled):
    """Acquire what peers have stored, release what was stored there; wait by a clock."""
    nvidia = {"atom.global.sys.acquire.add.u64", "mov.u64"}
    amd = {"buffer_inv", "s_memrealtime"}
    for op in EXCHANGES:
        for variant, facts in of_op(compiled, op).items():
            tells = "-place" not in variant
            if "ptx" in facts:
                wanted = nvidia | ({"atom.global.sys.release.exch.b64"} if tells else set())
                assert set(facts["ptx"]) >= wanted, variant
                assert tells == any(o.startswith("atom.global.gpu.acq_rel") for o in facts["ptx"]), variant
            else:
                assert set(opcodes(facts)) >= amd | ({"buffer_wbl2"} if tells else set()), variant


@pytest.mark.parametrize("target", NVIDIA, indirect=True)
def test_six_ranks_that_exchange_rows_fit_a_device(compiled):
    """A block of each on every multiprocessor: they wait for each other."""
    for op in EXCHANGES:
        for variant, facts in of_op(compiled, op).items():
            blocks = 2 if "-place" in variant else 6  # what places has fewer blocks
            assert blocks * facts["num_warps"] * 32 * -(-facts["registers"] // 8) * 8 <= 65536, variant


def test_nothing_is_computed_in_float64(compiled):
    assert {
        v: found for v, f in compiled.items() if (found := machine_code.float64_opcodes(opcodes(f)))
    } == {}


def test_nothing_is_spilled(target, compiled):
    """Registers on the stack go to memory at every step."""
    for variant, facts in compiled.items():
        beside_loops = STACK_BESIDE_LOOPS if variant.split("-")[0] in WALKS else 0
        limit = STACK.get((target, variant), beside_loops)
        if variant.endswith(BYTEWISE):
            limit = BYTEWISE_STACK
        elif "in_loops" in facts:
            assert machine_code.stack_opcodes(facts["in_loops"]) == set(), variant
        assert facts["stack"] <= limit, variant


def test_a_block_fits_a_multiprocessor(target, compiled):
    """Else the launch fails, on a GPU only."""
    for variant, facts in compiled.items():
        assert facts["shared"] <= TARGETS[target].shared, variant
        if target.startswith("sm_"):
            assert facts["registers"] * facts["num_warps"] * 32 <= 65536, variant
        else:  # four SIMDs, each with 512 registers per lane for all its waves
            assert facts["registers"] * -(-facts["num_warps"] // 4) <= 512, variant
