// Torch side of the CUDA per_token_group_quant_fp8: launch. Python has checked the arguments (ops/_spec.py).
#include <torch/csrc/stable/accelerator.h>

#include "common/cuda.h"
#include "common/tensor.h"
#include "cuda/per_token_group_quant_fp8/per_token_group_quant_fp8.h"

namespace moela {
namespace {

cuda::QuantInput input_type(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return cuda::QuantInput::kFloat32;
    case ScalarType::BFloat16: return cuda::QuantInput::kBFloat16;
    default: return cuda::QuantInput::kFloat16;
  }
}

void per_token_group_quant_fp8_out(const Tensor& x, int64_t group_size, bool ue8m0, Tensor q, Tensor sf) {
  const FlatRows rows(x, 1);
  const cuda::PerTokenGroupQuantFp8Params p = {
      .x = rows.tensor.const_data_ptr(),
      .x_dtype = input_type(x.scalar_type()),
      .ldx = rows.stride,
      .q = static_cast<uint8_t*>(q.mutable_data_ptr()),
      .sf = static_cast<float*>(sf.mutable_data_ptr()),
      .M = rows.count,
      .K = x.size(x.dim() - 1),
      .group_size = group_size,
      .ue8m0 = ue8m0,
  };
  if (p.M == 0 || p.K == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  check_launch("per_token_group_quant_fp8",
               cuda::launch_per_token_group_quant_fp8(p, current_stream(x.get_device_index())));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela_cuda, CUDA, m) {
  m.impl("per_token_group_quant_fp8_out", TORCH_BOX(&per_token_group_quant_fp8_out));
}

}  // namespace moela
