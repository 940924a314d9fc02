// The translation unit of grouped_fp8_gemm for nvcc. tests/emu/grouped_fp8_gemm.cpp is the one for the host.
#include "cuda/grouped_fp8_gemm/grouped_fp8_gemm_launch.h"
