// Torch side of the CPU mla_norm_rope_cache_write: check, launch.
#include <cmath>
#include <optional>

#include "common/mla_cache.h"
#include "cpu/isa.h"

namespace moela {
namespace {

constexpr const char* kOp = "mla_norm_rope_cache_write";
using MaybeTensor = std::optional<Tensor>;

// `cos`, and then `sin` beside it.
void check_angles(const char* arg, const MaybeTensor& t, const MaybeTensor& cos, int64_t T, int64_t R) {
  using enum ScalarType;
  if (R == 0) {
    if (t) fail(kOp, arg, "None because kv and weight have L columns both", "a tensor");
    return;
  }
  if (!t) fail(kOp, arg, "a tensor because R=" + std::to_string(R), "None");
  if (cos)
    check_same_dtype(kOp, arg, t->scalar_type(), cos->scalar_type(), "cos");
  else
    check_dtype(kOp, arg, t->scalar_type(), {BFloat16, Half, Float});
  check_shape(kOp, arg, *t, {T, R / 2});
  check_last_dim_contiguous(kOp, arg, *t);
  check_cpu(kOp, arg, *t, "kv");
}

void check(const Tensor& kv, const Tensor& weight, const MaybeTensor& cos, const MaybeTensor& sin,
           const Tensor& cache, const Tensor& slots, double eps, bool ue8m0) {
  using enum ScalarType;
  check_dim(kOp, "kv", kv, 2);
  check_dtype(kOp, "kv", kv.scalar_type(), {BFloat16, Half, Float});
  check_last_dim_contiguous(kOp, "kv", kv);
  check_dim(kOp, "weight", weight, 1);
  check_dtype(kOp, "weight", weight.scalar_type(), {BFloat16, Half, Float});
  const int64_t T = kv.size(0), D = kv.size(1), L = weight.size(0), R = D - L;
  if (L < 1 || L > D)
    fail(kOp, "weight", "L within [1, " + std::to_string(D) + "]", "L=" + std::to_string(L));
  check_last_dim_contiguous(kOp, "weight", weight);
  check_cpu(kOp, "weight", weight, "kv");
  if (R % 2 != 0)
    fail(kOp, "kv", "an even number of columns after the L=" + std::to_string(L) + " of weight", R);
  check_angles("cos", cos, std::nullopt, T, R);
  check_angles("sin", sin, cos, T, R);
  check_mla_destination(kOp, "weight", L, R, cache, slots, T, ue8m0, "kv");
  if (!(eps >= 0 && std::isfinite(eps))) fail(kOp, "eps", "a finite number that is not negative", eps);
}

void mla_norm_rope_cache_write(const Tensor& kv, const Tensor& weight, const MaybeTensor& cos,
                               const MaybeTensor& sin, Tensor cache, const Tensor& slots, double eps,
                               bool interleaved, bool ue8m0) {
  check(kv, weight, cos, sin, cache, slots, eps, ue8m0);
  const int64_t L = weight.size(0), R = kv.size(1) - L;
  const cpu::MlaNormRopeCacheWriteParams p = {
      .kv = kv.const_data_ptr(),
      .dtype = cpu_dtype(kv.scalar_type()),
      .ld = kv.stride(0),
      .weight = weight.const_data_ptr(),
      .weight_dtype = cpu_dtype(weight.scalar_type()),
      .cos = cos ? cos->const_data_ptr() : nullptr,
      .sin = sin ? sin->const_data_ptr() : nullptr,
      .angle_dtype = cos ? cpu_dtype(cos->scalar_type()) : cpu::Dtype::kFloat32,
      .ld_cos = cos ? cos->stride(0) : 0,
      .ld_sin = sin ? sin->stride(0) : 0,
      .cache = mla_cache_of(cache, L, R, cache.mutable_data_ptr()),
      .slots = slots_of(slots),
      .eps = static_cast<float>(eps),
      .interleaved = interleaved,
      .ue8m0 = ue8m0,
  };
  parallel(kv.size(0), 0.6 * static_cast<double>(L + R),
           [&](int64_t begin, int64_t end) { cpu::kernels().mla_norm_rope_cache_write(p, begin, end); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(moela, CPU, m) {
  m.impl("mla_norm_rope_cache_write", TORCH_BOX(&mla_norm_rope_cache_write));
}

}  // namespace moela
