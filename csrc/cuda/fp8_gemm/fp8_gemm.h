// Interface of the CUDA fp8_gemm. Definition: python/moela/reference/fp8_gemm.py.
#pragma once

#include <string>

#include "cuda/block/gemm.h"
#include "cuda/hopper/launch.h"
#include "plan/fp8_gemm_sm90.h"

namespace moela::cuda {

// "" or why TMA cannot read these operands; Triton takes those calls.
std::string why_not_fp8_gemm(const GemmArgs& args);

// Writes d. "" or why it could not be launched. M, N and K are positive, and K has as many steps as splits.
std::string launch_fp8_gemm(const GemmArgs& args, const plan::Fp8GemmSm90Plan& plan, Stream stream);

}  // namespace moela::cuda
