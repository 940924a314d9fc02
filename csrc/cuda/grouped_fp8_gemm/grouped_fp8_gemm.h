// Interface of the CUDA grouped_fp8_gemm and grouped_fp8_gemm_masked, which differ in how their rows are
// grouped. Definitions: python/moela/reference.
#pragma once

#include <string>

#include "cuda/block/gemm.h"
#include "cuda/hopper/launch.h"
#include "plan/grouped_fp8_gemm_sm90.h"

namespace moela::cuda {

// "" or why TMA cannot read these operands; Triton takes those calls.
std::string why_not_grouped_fp8_gemm(const GemmArgs& args);

// What the plan has to know of the rows.
plan::GroupedRows grouped_rows(const GemmArgs& args);

// Writes the rows of d that belong to a group, and no other. "" or why it could not be launched. groups is
// kOffsets or kCounts; num_experts, M, N and K are positive, and K has as many steps as splits.
std::string launch_grouped_fp8_gemm(const GemmArgs& args, const plan::GroupedFp8GemmSm90Plan& plan,
                                    Stream stream);

}  // namespace moela::cuda
