"""The readers of machine code find what is there, and only that: listings with planted opcodes."""

import machine_code
import pytest

SASS = """
        .headerflags    @"EF_CUDA_TEXMODE_UNIFIED EF_CUDA_64BIT_ADDRESS EF_CUDA_SM90"
.text._kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/             @!UP0 UTMALDG.2D [UR8], [UR6] ;
        /*0030*/               @P1 UTMALDG.2D [UR8], [UR6] ;
        /*0040*/                   QGMMA.64x128x32.F32.E4M3.E4M3 R24, gdesc[UR4], !UPT ;
        /*0050*/                   HFMA2.MMA R5, -RZ, RZ, 0, 0 ;
.L_x_1:
        /*0060*/                   BRA `(.L_x_1);
"""
PTX = """
	.param .u64 _kernel_param_0
	@%p1 bra 	$L__BB0_2;
	div.rn.f32 	%r4, %r2, %r3;
	@!%p2 cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10;
	wgmma.mma_async.sync.aligned.m64n128k8.f32.tf32.tf32 {%r1}, %rd1, %rd2, p, 1, 1;
"""
AMDGCN = """
	v_mfma_f32_32x32x64_f8f6f4 v[0:15], v[16:23], v[24:31], 0
	v_add_f64 v[0:1], v[2:3], v[4:5]  ; not v_mul_f64
amdhsa.kernels:
    .private_segment_fixed_size: 212
    .sgpr_spill_count: 7
    .vgpr_count:     256
    .vgpr_spill_count: 53
"""
USAGE = """
Resource usage:
 Common:
  GLOBAL:0
 Function _kernel:
  REG:157 STACK:24 SHARED:0 LOCAL:0 CONSTANT[0]:600 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


def test_opcodes_of_sass_are_counted_with_and_without_a_predicate():
    assert machine_code.opcodes_of_sass(SASS) == {
        "LDC": 1,
        "LDG.E.128": 1,
        "UTMALDG.2D": 2,
        "QGMMA.64x128x32.F32.E4M3.E4M3": 1,
        "HFMA2.MMA": 1,
        "BRA": 1,
    }


def test_opcodes_of_ptx_are_counted_with_and_without_a_predicate():
    opcodes = machine_code.opcodes_of_assembly(PTX)
    assert opcodes["bra"] == opcodes["div.rn.f32"] == opcodes["cp.async.cg.shared.global"] == 1
    assert [o for o in opcodes if "tf32" in o] == ["wgmma.mma_async.sync.aligned.m64n128k8.f32.tf32.tf32"]


def test_opcodes_and_usage_of_amdgcn_are_found():
    facts = machine_code.of_amdgcn(AMDGCN)
    assert facts["amdgcn"]["v_mfma_f32_32x32x64_f8f6f4"] == facts["amdgcn"]["v_add_f64"] == 1
    assert "v_mul_f64" not in facts["amdgcn"]
    assert (facts["registers"], facts["stack"]) == (256, 212)


def test_registers_and_stack_of_a_cubin_are_found():
    assert machine_code.resource_usage(USAGE) == {"registers": 157, "stack": 24}


LOOPS = """
        /*0000*/                   STL [R1], R0 ;
        /*0010*/                   LDL R5, [R1] ;
        /*0020*/                   HMMA.16816.F32 R4, R8, R12, R4 ;
        /*0030*/               @P0 BRA 0x50 ;
        /*0040*/               @P1 BRA !P3, 0x20;
        /*0050*/                   STG.E [R2], R4 ;
        /*0060*/               @P2 BRA 0x10 ;
        /*0070*/                   EXIT ;
"""


def test_the_loop_inside_a_loop_is_found_without_what_is_around_it():
    [loop] = machine_code.innermost_loops(LOOPS)
    assert machine_code.opcodes_of_sass(loop) == {"HMMA.16816.F32": 1, "BRA": 2}
    assert machine_code.innermost_loops(LOOPS.replace("BRA !P3, 0x20", "BRA !P3, 0x60")) != [loop]


def test_a_jump_ahead_is_no_loop():
    assert machine_code.innermost_loops("  /*0000*/ BRA 0x10 ;\n  /*0010*/ EXIT ;\n") == []


def test_pieces_of_code_are_disassembled_in_one_run():
    """EXIT, and twice NOP, of sm_80."""
    pytest.importorskip("triton")
    if machine_code.bundled("nvdisasm") is None:
        pytest.skip("this triton brings no nvdisasm")
    stop, nothing = (
        bytes.fromhex(h) for h in ("4d790000000000000000800300ea0f00", "18790000000000000000000000c00f00")
    )
    listings = machine_code.disassembled([stop, 2 * nothing], "sm_80")
    assert [machine_code.opcodes_of_sass(listing) for listing in listings] == [{"EXIT": 1}, {"NOP": 2}]


TENSOR_CORE = ["HMMA.16816.F32.BF16", "QMMA.16832.F32.E4M3.E4M3", "QGMMA.64x128x32.F32.E4M3.E4M3", "UTCQMMA"]
TENSOR_CORE += ["HGMMA.64x64x16.F32", "UTCHMMA", "DMMA.884", "v_mfma_f32_32x32x8_f16"]
FLOAT64 = ["DADD", "DFMA.RP", "DMMA.884", "F2F.F64.F32", "I2F.F64.S64", "v_fma_f64", "v_cvt_f64_f32"]
FP8 = ["QMMA.16832.F32.E4M3.E4M3", "F2FP.SATFINITE.E4M3.F32.PACK_AB_MERGE_C", "UTCQMMA"]
FP8 += ["v_cvt_scalef32_pk_fp8_f32", "v_cvt_pk_bf8_f32", "v_mfma_f32_32x32x64_f8f6f4"]
STACK = ["LDL", "STL.64", "LDL.LU.128", "scratch_load_dword"]
OTHER = [
    "HFMA2.MMA",
    "LDS.128",
    "STG.E",
    "FFMA",
    "DEPBAR.LE",
    "I2F.U64.RP",
    "LDG.E.64",
    "v_fma_f32",
    "v_cmp_gt_i64_e64",
]


@pytest.mark.parametrize(
    ("select", "planted"),
    [
        (machine_code.tensor_core_opcodes, TENSOR_CORE),
        (machine_code.float64_opcodes, FLOAT64),
        (machine_code.fp8_opcodes, FP8),
        (machine_code.stack_opcodes, STACK),
    ],
    ids=["tensor core", "float64", "fp8", "stack"],
)
def test_a_kind_of_opcode_is_found_among_others(select, planted):
    assert select([*planted, *OTHER]) == set(planted)
