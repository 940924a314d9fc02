// What the host sides of mla_decode and mla_sparse say of their tensors: dimensions, for TMA and for loads of
// 16 bytes.
#pragma once

#include <initializer_list>

#include "cuda/hopper/tensor_spec.h"
#include "cuda/mla_decode/mla_decode.h"

namespace moela::cuda {

// A dimension and its stride, in elements. That of one element has no meaningful one, but TMA wants one.
struct MlaExtent {
  int64_t size, stride;
  constexpr uint64_t bytes(int64_t dense) const {
    return static_cast<uint64_t>(size > 1 ? stride : dense) * 2;  // of 16-bit floats
  }
};

// Whether all rows begin at multiples of 16 bytes, which are so many elements.
inline bool has_aligned_rows(const void* base, int64_t elements, std::initializer_list<MlaExtent> extents) {
  bool is_aligned = reinterpret_cast<uintptr_t>(base) % 16 == 0;
  for (const MlaExtent& extent : extents)
    is_aligned = is_aligned && (extent.size <= 1 || extent.stride % elements == 0);
  return is_aligned;
}

inline ElementType element_type(MlaFloat dtype) {
  return dtype == MlaFloat::kBFloat16 ? ElementType::kBFloat16 : ElementType::kFloat16;
}

}  // namespace moela::cuda
