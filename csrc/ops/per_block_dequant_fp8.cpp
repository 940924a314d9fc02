// Torch side of the CPU per_block_dequant_fp8: check, launch.
#include "common/check.h"
#include "common/tensor.h"
#include "cpu/isa.h"

namespace moela {
namespace {

constexpr const char* kOp = "per_block_dequant_fp8";

void check(const Tensor& q, const Tensor& sf, ScalarType dtype) {
  using enum ScalarType;
  check_min_dim(kOp, "q", q, 2);
  check_dtype(kOp, "q", q.scalar_type(), {Float8_e4m3fn});
  check_last_dim_contiguous(kOp, "q", q);
  check_dtype(kOp, "sf", sf.scalar_type(), {Float, BFloat16, Float8_e8m0fnu});
  check_shape(kOp, "sf", sf, block_grid(q));
  check_cpu(kOp, "sf", sf, "q");
  check_dtype(kOp, "dtype", dtype, {BFloat16, Half, Float});
}

void launch(const Tensor& q, const Tensor& sf, Tensor& w) {
  const FlatRows matrices(q, 2);
  const Float32View sf_values(sf);
  const int64_t dim = q.dim();
  const cpu::PerBlockDequantFp8Params p = {
      .q = static_cast<const uint8_t*>(matrices.tensor.const_data_ptr()),
      .stride_e = matrices.stride,
      .ldq = matrices.tensor.stride(dim - 2),
      .sf = sf_values.data(),
      .w = w.mutable_data_ptr(),
      .w_dtype = cpu_dtype(w.scalar_type()),
      .E = matrices.count,
      .N = q.size(dim - 2),
      .K = q.size(dim - 1),
  };
  if (p.E == 0 || p.N == 0 || p.K == 0) return;
  parallel(p.E * p.N, 0.2 * static_cast<double>(p.K),
           [&](int64_t begin, int64_t end) { cpu::kernels().per_block_dequant_fp8(p, begin, end); });
}

Tensor per_block_dequant_fp8(const Tensor& q, const Tensor& sf, ScalarType dtype) {
  check(q, sf, dtype);
  Tensor w = empty_cpu(sizes_of(q), dtype);
  launch(q, sf, w);
  return w;
}

void per_block_dequant_fp8_out(const Tensor& q, const Tensor& sf, Tensor w) {
  check(q, sf, w.scalar_type());
  check_out("per_block_dequant_fp8_out", "w", w, w.scalar_type(), sizes_of(q));
  launch(q, sf, w);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela, CPU, m) {
  m.impl("per_block_dequant_fp8", TORCH_BOX(&per_block_dequant_fp8));
  m.impl("per_block_dequant_fp8_out", TORCH_BOX(&per_block_dequant_fp8_out));
}

}  // namespace moela
