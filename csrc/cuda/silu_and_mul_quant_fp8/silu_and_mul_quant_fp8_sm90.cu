// The translation unit of silu_and_mul_quant_fp8 for nvcc. tests/emu/silu_quant.cpp is the one for the host.
#include "cuda/silu_and_mul_quant_fp8/silu_and_mul_quant_fp8_sm90.cuh"
