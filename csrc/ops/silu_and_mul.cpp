// Torch side of the CPU silu_and_mul: check, launch.
#include "common/swiglu.h"
#include "common/tensor.h"
#include "cpu/isa.h"

namespace moela {
namespace {

using Number = std::optional<double>;

void launch(const Tensor& x, const Number& limit, const Number& alpha, Tensor& y) {
  const FlatRows rows(x, 1);
  const cpu::SiluAndMulParams p = {
      .x = rows.tensor.const_data_ptr(),
      .dtype = cpu_dtype(x.scalar_type()),
      .ldx = rows.stride,
      .y = y.mutable_data_ptr(),
      .M = rows.count,
      .K = x.size(x.dim() - 1) / 2,
      .activation = swiglu_of(limit, alpha),
  };
  if (p.M == 0 || p.K == 0) return;
  parallel(p.M, 0.7 * static_cast<double>(p.K),
           [&](int64_t begin, int64_t end) { cpu::kernels().silu_and_mul(p, begin, end); });
}

Tensor silu_and_mul(const Tensor& x, Number limit, Number alpha) {
  check_swiglu("silu_and_mul", x, limit, alpha);
  Tensor y = empty_cpu(half_of_last(sizes_of(x)), x.scalar_type());
  launch(x, limit, alpha, y);
  return y;
}

void silu_and_mul_out(const Tensor& x, Number limit, Number alpha, Tensor y) {
  check_swiglu("silu_and_mul", x, limit, alpha);
  check_out("silu_and_mul_out", "y", y, x.scalar_type(), half_of_last(sizes_of(x)));
  launch(x, limit, alpha, y);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela, CPU, m) {
  m.impl("silu_and_mul", TORCH_BOX(&silu_and_mul));
  m.impl("silu_and_mul_out", TORCH_BOX(&silu_and_mul_out));
}

}  // namespace moela
