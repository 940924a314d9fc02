// Torch side of the CUDA silu_and_mul_quant_fp8: launch. Python has checked the arguments (ops/_spec.py).
#include <torch/csrc/stable/accelerator.h>

#include "common/cuda.h"
#include "common/swiglu.h"
#include "common/tensor.h"
#include "cuda/silu_and_mul_quant_fp8/silu_and_mul_quant_fp8.h"

namespace moela {
namespace {

cuda::QuantInput input_type(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return cuda::QuantInput::kFloat32;
    case ScalarType::BFloat16: return cuda::QuantInput::kBFloat16;
    default: return cuda::QuantInput::kFloat16;
  }
}

void silu_and_mul_quant_fp8_out(const Tensor& x, std::optional<double> limit, std::optional<double> alpha,
                                int64_t group_size, bool ue8m0, Tensor q, Tensor sf) {
  const FlatRows rows(x, 1);
  const int64_t K = x.size(x.dim() - 1) / 2;
  const cpu::Swiglu activation = swiglu_of(limit, alpha);
  const cuda::SiluAndMulQuantFp8Params p = {
      .x = rows.tensor.const_data_ptr(),
      .x_dtype = input_type(x.scalar_type()),
      .ldx = rows.stride,
      .q = static_cast<uint8_t*>(q.mutable_data_ptr()),
      .sf = static_cast<float*>(sf.mutable_data_ptr()),
      .M = rows.count,
      .K = K,
      .limit = activation.limit,
      .alpha = activation.alpha,
      .shift = activation.shift,
      // A longer group is the whole row; 128 stays what it is, for the kernel for aligned rows.
      .group_size = group_size < K || group_size == 128 ? group_size : K,
      .ue8m0 = ue8m0,
  };
  if (p.M == 0 || p.K == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  check_launch("silu_and_mul_quant_fp8",
               cuda::launch_silu_and_mul_quant_fp8(p, current_stream(x.get_device_index())));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela_cuda, CUDA, m) {
  m.impl("silu_and_mul_quant_fp8_out", TORCH_BOX(&silu_and_mul_quant_fp8_out));
}

}  // namespace moela
