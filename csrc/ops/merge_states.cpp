// Torch side of the CPU merge_states: check, launch.
#include <tuple>

#include "common/tensor.h"
#include "cpu/isa.h"

namespace moela {
namespace {

constexpr const char* kOp = "merge_states";

std::vector<int64_t> rows_of(const Tensor& out_a) {
  std::vector<int64_t> sizes = sizes_of(out_a);
  sizes.pop_back();
  return sizes;
}

void check_lse(const char* arg, const Tensor& lse, const Tensor& out_a) {
  check_dtype(kOp, arg, lse.scalar_type(), {ScalarType::Float});
  check_shape(kOp, arg, lse, rows_of(out_a));
  check_cpu(kOp, arg, lse, "out_a");
}

void check(const Tensor& out_a, const Tensor& lse_a, const Tensor& out_b, const Tensor& lse_b) {
  using enum ScalarType;
  check_min_dim(kOp, "out_a", out_a, 1);
  check_dtype(kOp, "out_a", out_a.scalar_type(), {BFloat16, Half, Float});
  check_last_dim_contiguous(kOp, "out_a", out_a);
  check_lse("lse_a", lse_a, out_a);
  check_same_dtype(kOp, "out_b", out_b.scalar_type(), out_a.scalar_type(), "out_a");
  check_shape(kOp, "out_b", out_b, sizes_of(out_a));
  check_last_dim_contiguous(kOp, "out_b", out_b);
  check_cpu(kOp, "out_b", out_b, "out_a");
  check_lse("lse_b", lse_b, out_a);
}

void launch(const Tensor& out_a, const Tensor& lse_a, const Tensor& out_b, const Tensor& lse_b, Tensor& out,
            Tensor& lse) {
  const FlatRows a(out_a, 1), b(out_b, 1), of_a(lse_a, 0), of_b(lse_b, 0);
  const cpu::MergeStatesParams p = {
      .out_a = a.tensor.const_data_ptr(),
      .out_b = b.tensor.const_data_ptr(),
      .dtype = cpu_dtype(out_a.scalar_type()),
      .ld_a = a.stride,
      .ld_b = b.stride,
      .lse_a = static_cast<const float*>(of_a.tensor.const_data_ptr()),
      .lse_b = static_cast<const float*>(of_b.tensor.const_data_ptr()),
      .stride_a = of_a.stride,
      .stride_b = of_b.stride,
      .out = out.mutable_data_ptr(),
      .lse = static_cast<float*>(lse.mutable_data_ptr()),
      .D = out_a.size(out_a.dim() - 1),
  };
  parallel(a.count, 10 + 0.3 * static_cast<double>(p.D),
           [&](int64_t begin, int64_t end) { cpu::kernels().merge_states(p, begin, end); });
}

std::tuple<Tensor, Tensor> merge_states(const Tensor& out_a, const Tensor& lse_a, const Tensor& out_b,
                                        const Tensor& lse_b) {
  check(out_a, lse_a, out_b, lse_b);
  Tensor out = empty_cpu(sizes_of(out_a), out_a.scalar_type());
  Tensor lse = empty_cpu(rows_of(out_a), ScalarType::Float);
  launch(out_a, lse_a, out_b, lse_b, out, lse);
  return {out, lse};
}

void merge_states_out(const Tensor& out_a, const Tensor& lse_a, const Tensor& out_b, const Tensor& lse_b,
                      Tensor out, Tensor lse) {
  check(out_a, lse_a, out_b, lse_b);
  check_out("merge_states_out", "out", out, out_a.scalar_type(), sizes_of(out_a));
  check_out("merge_states_out", "lse", lse, ScalarType::Float, rows_of(out_a));
  launch(out_a, lse_a, out_b, lse_b, out, lse);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela, CPU, m) {
  m.impl("merge_states", TORCH_BOX(&merge_states));
  m.impl("merge_states_out", TORCH_BOX(&merge_states_out));
}

}  // namespace moela
