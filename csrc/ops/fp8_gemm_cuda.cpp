// Torch side of the CUDA fp8_gemm: plan, launch. Python has checked the arguments (ops/_spec.py) and keeps
// what the kernel does not take (ops/fp8_gemm.py, cuda_limits).
#include "common/gemm_cuda.h"
#include "cuda/fp8_gemm/fp8_gemm.h"

namespace moela {
namespace {

constexpr const char* kOp = "fp8_gemm";

void fp8_gemm_out(const Tensor& a, const std::optional<Tensor>& sf_a, const Tensor& b, const Tensor& sf_b,
                  const std::optional<Tensor>& bias, Tensor d) {
  cuda::GemmArgs args = gemm_args(kOp, a, sf_a, b, sf_b, d);
  if (bias) {
    args.bias = bias->const_data_ptr();
    args.bias_dtype = gemm_float(bias->scalar_type());
    args.bias_stride = bias->stride(0);
  }
  if (args.M == 0 || args.N == 0) return;
  std::string error = cuda::why_not_fp8_gemm(args);
  if (!error.empty()) throw std::invalid_argument(std::string(kOp) + ": " + error);
  const int32_t device = a.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const plan::Fp8GemmSm90Plan plan =
      plan::plan_fp8_gemm_sm90(args.M, args.N, args.K, machine_of(kOp, device));
  error = cuda::launch_fp8_gemm(args, plan, current_stream(device));
  if (!error.empty()) throw std::runtime_error(std::string(kOp) + ": " + error);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela_cuda, CUDA, m) { m.impl("fp8_gemm_out", TORCH_BOX(&fp8_gemm_out)); }

}  // namespace moela
