// The kernels for one instruction set. CMakeLists.txt has the compiler options that belong to it.
// avx512, and what multiplies pairs of bfloat16 (docs/adr/0011).
#define MOELA_SIMD_AVX512
#define MOELA_SIMD_BF16
#include "cpu/isa_kernels.h"

constinit const moela::cpu::Kernels moela::cpu::kAvx512Bf16 = kernels_of("avx512_bf16");
