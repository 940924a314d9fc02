// What the CUDA grouped_fp8_gemm and grouped_fp8_gemm_masked do with their tensors.
#pragma once

#include "common/gemm_cuda.h"
#include "cuda/grouped_fp8_gemm/grouped_fp8_gemm.h"

namespace moela {

// table: expert_offsets or expert_counts, contiguous int32; the grid depends on shapes only, so nothing waits
// for its values.
inline void run_grouped_fp8_gemm(const char* op, cuda::GroupKind kind, const Tensor& a,
                                 const std::optional<Tensor>& sf_a, const Tensor& b, const Tensor& sf_b,
                                 const Tensor& table, const Tensor& d) {
  cuda::GemmArgs args = gemm_args(op, a, sf_a, b, sf_b, d);
  args.groups = kind;
  args.table = static_cast<const int32_t*>(table.const_data_ptr());
  args.num_experts = static_cast<int>(b.size(0));
  if (args.M == 0 || args.N == 0 || args.num_experts == 0) return;
  std::string error = cuda::why_not_grouped_fp8_gemm(args);
  if (!error.empty()) throw std::invalid_argument(std::string(op) + ": " + error);
  const int32_t device = a.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const plan::GroupedFp8GemmSm90Plan plan =
      plan::plan_grouped_fp8_gemm_sm90(cuda::grouped_rows(args), args.N, args.K, machine_of(op, device));
  error = cuda::launch_grouped_fp8_gemm(args, plan, current_stream(device));
  if (!error.empty()) throw std::runtime_error(std::string(op) + ": " + error);
}

}  // namespace moela
