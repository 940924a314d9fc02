// From torch tensors to the arguments of the CUDA GEMMs.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "common/cuda.h"
#include "common/tensor.h"
#include "cuda/block/gemm.h"
#include "plan/gemm_sm90.h"

namespace moela {

inline cuda::GemmFloat gemm_float(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return cuda::GemmFloat::kFloat32;
    case ScalarType::BFloat16: return cuda::GemmFloat::kBFloat16;
    case ScalarType::Half: return cuda::GemmFloat::kFloat16;
    default: return cuda::GemmFloat::kE8m0;
  }
}

inline plan::GemmSm90Machine machine_of(const char* op, int32_t device) {
  plan::GemmSm90Machine m;
  m.num_sms = num_multiprocessors(op, device);
  return m;
}

// Of operands with rows and columns in their last two dimensions and, before them, experts or nothing.
inline cuda::GemmArgs gemm_args(const char* op, const Tensor& a, const std::optional<Tensor>& sf_a,
                                const Tensor& b, const Tensor& sf_b, const Tensor& d) {
  if (!sf_a) fail(op, "sf_a", "a tensor (the CUDA kernel multiplies e4m3 activations)", "None");
  const auto stride_e = [](const Tensor& t) { return t.dim() == 3 ? t.stride(0) : 0; };
  return {
      .a = static_cast<const uint8_t*>(a.const_data_ptr()),
      .lda = a.stride(-2),
      .a_stride_e = stride_e(a),
      .sf_a = static_cast<const float*>(sf_a->const_data_ptr()),
      .sf_a_stride_m = sf_a->stride(-2),
      .sf_a_stride_k = sf_a->stride(-1),
      .sf_a_stride_e = stride_e(*sf_a),
      .b = static_cast<const uint8_t*>(b.const_data_ptr()),
      .ldb = b.stride(-2),
      .b_stride_e = stride_e(b),
      .sf_b = sf_b.const_data_ptr(),
      .sf_b_dtype = gemm_float(sf_b.scalar_type()),
      .sf_b_stride_n = sf_b.stride(-2),
      .sf_b_stride_k = sf_b.stride(-1),
      .sf_b_stride_e = stride_e(sf_b),
      .d = d.mutable_data_ptr(),
      .d_dtype = gemm_float(d.scalar_type()),
      .ldd = d.stride(-2),
      .d_stride_e = stride_e(d),
      .M = static_cast<int>(a.size(-2)),
      .N = static_cast<int>(b.size(-2)),
      .K = static_cast<int>(a.size(-1)),
  };
}

}  // namespace moela
