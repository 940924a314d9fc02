// The kernels for one instruction set. CMakeLists.txt has the compiler options that belong to it.
#define MOELA_SIMD_AVX2
#include "cpu/isa_kernels.h"

constinit const moela::cpu::Kernels moela::cpu::kAvx2 = kernels_of("avx2");
