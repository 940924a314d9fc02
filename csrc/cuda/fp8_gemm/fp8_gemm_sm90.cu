// The translation unit of fp8_gemm for nvcc. tests/emu/fp8_gemm.cpp is the one for the host.
#include "cuda/fp8_gemm/fp8_gemm_launch.h"
