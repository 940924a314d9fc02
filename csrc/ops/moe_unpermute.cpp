// Torch side of the CPU moe_unpermute: check, launch.
#include <optional>

#include "common/tensor.h"
#include "cpu/isa.h"

namespace moela {
namespace {

constexpr const char* kOp = "moe_unpermute";

void check(const Tensor& y, const std::optional<Tensor>& topk_weights, const Tensor& inverse) {
  using enum ScalarType;
  check_dim(kOp, "y", y, 2);
  check_dtype(kOp, "y", y.scalar_type(), {BFloat16, Half, Float});
  check_last_dim_contiguous(kOp, "y", y);
  check_dim(kOp, "inverse", inverse, 2);
  check_dtype(kOp, "inverse", inverse.scalar_type(), {Int});
  check_last_dim_contiguous(kOp, "inverse", inverse);
  check_cpu(kOp, "inverse", inverse, "y");
  if (!topk_weights) return;
  check_dtype(kOp, "topk_weights", topk_weights->scalar_type(), {Float});
  check_shape(kOp, "topk_weights", *topk_weights, sizes_of(inverse));
  check_last_dim_contiguous(kOp, "topk_weights", *topk_weights);
  check_cpu(kOp, "topk_weights", *topk_weights, "y");
}

void launch(const Tensor& y, const std::optional<Tensor>& topk_weights, const Tensor& inverse, Tensor& out) {
  const cpu::MoeUnpermuteParams p = {
      .y = y.const_data_ptr(),
      .dtype = cpu_dtype(y.scalar_type()),
      .ldy = y.stride(0),
      .weights = topk_weights ? static_cast<const float*>(topk_weights->const_data_ptr()) : nullptr,
      .ldw = topk_weights ? topk_weights->stride(0) : 0,
      .inverse = static_cast<const int32_t*>(inverse.const_data_ptr()),
      .ldi = inverse.stride(0),
      .out = out.mutable_data_ptr(),
      .R = y.size(0),
      .H = y.size(1),
      .topk = inverse.size(1),
  };
  parallel(inverse.size(0), 0.2 * static_cast<double>(p.H * (p.topk + 1)),
           [&](int64_t begin, int64_t end) { cpu::kernels().moe_unpermute(p, begin, end); });
}

Tensor moe_unpermute(const Tensor& y, std::optional<Tensor> topk_weights, const Tensor& inverse) {
  check(y, topk_weights, inverse);
  Tensor out = empty_cpu({inverse.size(0), y.size(1)}, y.scalar_type());
  launch(y, topk_weights, inverse, out);
  return out;
}

void moe_unpermute_out(const Tensor& y, std::optional<Tensor> topk_weights, const Tensor& inverse,
                       Tensor out) {
  check(y, topk_weights, inverse);
  check_out("moe_unpermute_out", "out", out, y.scalar_type(), {inverse.size(0), y.size(1)});
  launch(y, topk_weights, inverse, out);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela, CPU, m) {
  m.impl("moe_unpermute", TORCH_BOX(&moe_unpermute));
  m.impl("moe_unpermute_out", TORCH_BOX(&moe_unpermute_out));
}

}  // namespace moela
