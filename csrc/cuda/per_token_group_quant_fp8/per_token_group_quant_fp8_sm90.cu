// The translation unit of per_token_group_quant_fp8 for nvcc. tests/emu/quant.cpp is the one for the host.
#include "cuda/per_token_group_quant_fp8/per_token_group_quant_fp8_sm90.cuh"
