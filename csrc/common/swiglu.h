// The arguments of the gated activation, which some ops share, in the words of
// python/moela/ops/silu_and_mul.py.
#pragma once

#include <limits>
#include <optional>

#include "common/check.h"
#include "cpu/swiglu.h"

namespace moela {

inline void check_limits(const char* op, const std::optional<double>& limit,
                         const std::optional<double>& alpha) {
  if (limit && !(*limit > 0)) fail(op, "limit", "a positive number", *limit);
  if (alpha && !limit) fail(op, "alpha", "None because limit is None", *alpha);
  if (alpha && !(*alpha > 0)) fail(op, "alpha", "a positive number", *alpha);
}

inline void check_swiglu(const char* op, const Tensor& x, const std::optional<double>& limit,
                         const std::optional<double>& alpha) {
  using enum ScalarType;
  check_min_dim(op, "x", x, 1);
  check_dtype(op, "x", x.scalar_type(), {BFloat16, Half, Float});
  check_last_dim_contiguous(op, "x", x);
  const int64_t columns = x.size(x.dim() - 1);
  if (columns % 2 != 0) fail(op, "x", "an even last dimension", columns);
  check_limits(op, limit, alpha);
}

inline cpu::Swiglu swiglu_of(const std::optional<double>& limit, const std::optional<double>& alpha) {
  return {.limit = limit ? static_cast<float>(*limit) : std::numeric_limits<float>::infinity(),
          .alpha = alpha ? static_cast<float>(*alpha) : 1.f,
          .shift = alpha ? 1.f : 0.f};
}

// [..., 2 * K] -> [..., K].
inline std::vector<int64_t> half_of_last(std::vector<int64_t> shape) {
  shape.back() /= 2;
  return shape;
}

}  // namespace moela
