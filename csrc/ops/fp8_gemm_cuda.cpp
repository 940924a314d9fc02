// Torch side of the CUDA fp8_gemm: plan, launch. Python has checked the arguments (ops/_spec.py) and keeps
// what the kernel does not take (ops/fp8_gemm.py, _cuda_limits).
#include <torch/csrc/stable/accelerator.h>

#include "common/cuda.h"
#include "common/tensor.h"
#include "cuda/fp8_gemm/fp8_gemm.h"

namespace moela {
namespace {

cuda::GemmFloat gemm_float(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return cuda::GemmFloat::kFloat32;
    case ScalarType::BFloat16: return cuda::GemmFloat::kBFloat16;
    case ScalarType::Half: return cuda::GemmFloat::kFloat16;
    default: return cuda::GemmFloat::kE8m0;
  }
}

plan::GemmSm90Machine machine(int32_t device) {
  plan::GemmSm90Machine m;
  check_launch("fp8_gemm", cudaDeviceGetAttribute(&m.num_sms, cudaDevAttrMultiProcessorCount, device));
  return m;
}

void fp8_gemm_out(const Tensor& a, const std::optional<Tensor>& sf_a, const Tensor& b, const Tensor& sf_b,
                  const std::optional<Tensor>& bias, Tensor d) {
  if (!sf_a) fail("fp8_gemm", "sf_a", "a tensor (the CUDA kernel multiplies e4m3 activations)", "None");
  const cuda::GemmArgs args = {
      .a = static_cast<const uint8_t*>(a.const_data_ptr()),
      .lda = a.stride(0),
      .sf_a = static_cast<const float*>(sf_a->const_data_ptr()),
      .sf_a_stride_m = sf_a->stride(0),
      .sf_a_stride_k = sf_a->stride(1),
      .b = static_cast<const uint8_t*>(b.const_data_ptr()),
      .ldb = b.stride(0),
      .sf_b = sf_b.const_data_ptr(),
      .sf_b_dtype = gemm_float(sf_b.scalar_type()),
      .sf_b_stride_n = sf_b.stride(0),
      .sf_b_stride_k = sf_b.stride(1),
      .bias = bias ? bias->const_data_ptr() : nullptr,
      .bias_dtype = bias ? gemm_float(bias->scalar_type()) : cuda::GemmFloat::kFloat32,
      .bias_stride = bias ? bias->stride(0) : 0,
      .d = d.mutable_data_ptr(),
      .d_dtype = gemm_float(d.scalar_type()),
      .ldd = d.stride(0),
      .M = static_cast<int>(a.size(0)),
      .N = static_cast<int>(b.size(0)),
      .K = static_cast<int>(a.size(1)),
  };
  if (args.M == 0 || args.N == 0) return;
  std::string error = cuda::why_not_fp8_gemm(args);
  if (!error.empty()) throw std::invalid_argument("fp8_gemm: " + error);
  const int32_t device = a.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const plan::Fp8GemmSm90Plan plan = plan::plan_fp8_gemm_sm90(args.M, args.N, args.K, machine(device));
  error = cuda::launch_fp8_gemm(args, plan, current_stream(device));
  if (!error.empty()) throw std::runtime_error("fp8_gemm: " + error);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela_cuda, CUDA, m) { m.impl("fp8_gemm_out", TORCH_BOX(&fp8_gemm_out)); }

}  // namespace moela
