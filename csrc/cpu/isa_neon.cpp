// The kernels for one instruction set. CMakeLists.txt has the compiler options that belong to it.
#define MOELA_SIMD_NEON
#include "cpu/isa_kernels.h"

constinit const moela::cpu::Kernels moela::cpu::kNeon = kernels_of("neon");
