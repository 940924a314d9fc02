// The operands that the FP8 products share: their checks, in the words of python/moela/ops/fp8_gemm.py, and
// the product that they make.
#pragma once

#include "common/tensor.h"
#include "cpu/gemm.h"

namespace moela {

// a and b are matrices, or one per expert.
inline void check_operands(const char* op, const Tensor& a, const std::optional<Tensor>& sf_a,
                           const Tensor& b, const Tensor& sf_b, int64_t a_dim, int64_t b_dim) {
  using enum ScalarType;
  check_dim(op, "a", a, a_dim);
  check_dtype(op, "a", a.scalar_type(), {Float8_e4m3fn, BFloat16, Half, Float});
  check_last_dim_contiguous(op, "a", a);
  check_dim(op, "b", b, b_dim);
  check_dtype(op, "b", b.scalar_type(), {Float8_e4m3fn});
  if (a_dim == 3) check_same(op, "b", "E", b.size(0), a.size(0), "a");
  check_same(op, "b", "K", b.size(b_dim - 1), a.size(a_dim - 1), "a");
  check_last_dim_contiguous(op, "b", b);
  check_cpu(op, "b", b, "a");
  if (a.scalar_type() == Float8_e4m3fn) {
    if (!sf_a) fail(op, "sf_a", "a tensor because a is float8_e4m3fn", "None");
    check_dtype(op, "sf_a", sf_a->scalar_type(), {Float});
    std::vector<int64_t> grid = sizes_of(a);
    grid.back() = (grid.back() + 127) / 128;
    check_shape(op, "sf_a", *sf_a, grid);
    check_cpu(op, "sf_a", *sf_a, "a");
  } else if (sf_a) {
    fail(op, "sf_a", std::string("None because a is ") + dtype_name(a.scalar_type()), "a tensor");
  }
  check_dtype(op, "sf_b", sf_b.scalar_type(), {Float, BFloat16, Float8_e8m0fnu});
  check_shape(op, "sf_b", sf_b, block_grid(b));
  check_cpu(op, "sf_b", sf_b, "a");
}

// The product of a and b, matrices or those of the first expert. What it lacks is sf_b.
inline cpu::GemmProblem problem_of(const Tensor& a, const std::optional<Tensor>& sf_a, const Tensor& b,
                                   Tensor& d) {
  const int64_t row_a = a.dim() - 2, row_b = b.dim() - 2, row_d = d.dim() - 2;
  return {
      .a = a.const_data_ptr(),
      .a_dtype = cpu_dtype(a.scalar_type()),
      .lda = a.stride(row_a),
      .a_rows = nullptr,
      .sf_a = sf_a ? static_cast<const float*>(sf_a->const_data_ptr()) : nullptr,
      .sf_a_stride_m = sf_a ? sf_a->stride(row_a) : 0,
      .sf_a_stride_k = sf_a ? sf_a->stride(row_a + 1) : 0,
      .a_cast = cpu::ActivationCast::kNone,
      .b = b.const_data_ptr(),
      .b_dtype = cpu_dtype(b.scalar_type()),
      .stride_bn = b.stride(row_b),
      .stride_bk = 1,
      .sf_b = nullptr,
      .has_large_sf = false,
      .bias = nullptr,
      .d = d.mutable_data_ptr(),
      .d_dtype = cpu_dtype(d.scalar_type()),
      .ldd = d.stride(row_d),
      .M = a.size(row_a),
      .N = b.size(row_b),
      .K = b.size(row_b + 1),
  };
}

// The scale factors, or biases, of some experts as contiguous float32.
class ExpertFloats {
 public:
  explicit ExpertFloats(const Tensor& all) : all_(all) {}
  const float* of(int64_t expert) {
    views_.emplace_back(all_, expert);
    return views_.back().data();
  }

 private:
  const Tensor& all_;
  std::vector<Float32View> views_;  // each keeps its values where they are when it moves
};

}  // namespace moela
