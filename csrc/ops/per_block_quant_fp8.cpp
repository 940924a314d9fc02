// Torch side of the CPU per_block_quant_fp8: check, launch.
#include "common/check.h"
#include "common/tensor.h"
#include "cpu/isa.h"

namespace moela {
namespace {

constexpr const char* kOp = "per_block_quant_fp8";
constexpr const char* kOutOp = "per_block_quant_fp8_out";

void check(const Tensor& w) {
  using enum ScalarType;
  check_min_dim(kOp, "w", w, 2);
  check_dtype(kOp, "w", w.scalar_type(), {BFloat16, Half, Float});
  check_last_dim_contiguous(kOp, "w", w);
}

void launch(const Tensor& w, bool ue8m0, Tensor& q, Tensor& sf) {
  const FlatRows matrices(w, 2);
  const int64_t dim = w.dim();
  const cpu::PerBlockQuantFp8Params p = {
      .w = matrices.tensor.const_data_ptr(),
      .w_dtype = cpu_dtype(w.scalar_type()),
      .stride_e = matrices.stride,
      .ldw = matrices.tensor.stride(dim - 2),
      .q = static_cast<uint8_t*>(q.mutable_data_ptr()),
      .sf = static_cast<float*>(sf.mutable_data_ptr()),
      .E = matrices.count,
      .N = w.size(dim - 2),
      .K = w.size(dim - 1),
      .ue8m0 = ue8m0,
  };
  if (p.E == 0 || p.N == 0 || p.K == 0) return;
  parallel(p.E * ((p.N + 127) / 128), 40.0 * static_cast<double>(p.K),
           [&](int64_t begin, int64_t end) { cpu::kernels().per_block_quant_fp8(p, begin, end); });
}

std::tuple<Tensor, Tensor> per_block_quant_fp8(const Tensor& w, bool ue8m0) {
  check(w);
  Tensor q = empty_cpu(sizes_of(w), ScalarType::Float8_e4m3fn);
  Tensor sf = empty_cpu(block_grid(w), ScalarType::Float);
  launch(w, ue8m0, q, sf);
  return {q, sf};
}

void per_block_quant_fp8_out(const Tensor& w, bool ue8m0, Tensor q, Tensor sf) {
  check(w);
  check_out(kOutOp, "q", q, ScalarType::Float8_e4m3fn, sizes_of(w));
  check_out(kOutOp, "sf", sf, ScalarType::Float, block_grid(w));
  launch(w, ue8m0, q, sf);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela, CPU, m) {
  m.impl("per_block_quant_fp8", TORCH_BOX(&per_block_quant_fp8));
  m.impl("per_block_quant_fp8_out", TORCH_BOX(&per_block_quant_fp8_out));
}

}  // namespace moela
