// Torch side of the CUDA grouped_fp8_gemm: plan, launch. Python has checked the arguments (ops/_spec.py)
// and keeps what the kernel does not take.
#include "common/grouped_gemm_cuda.h"

namespace moela {
namespace {

void grouped_fp8_gemm_out(const Tensor& a, const std::optional<Tensor>& sf_a, const Tensor& b,
                          const Tensor& sf_b, const Tensor& expert_offsets, Tensor d) {
  run_grouped_fp8_gemm("grouped_fp8_gemm", cuda::GroupKind::kOffsets, a, sf_a, b, sf_b, expert_offsets, d);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela_cuda, CUDA, m) {
  m.impl("grouped_fp8_gemm_out", TORCH_BOX(&grouped_fp8_gemm_out));
}

}  // namespace moela
