// Tensor maps that a kernel edits. See cuda/hopper/ptx/tensor_map.h.
#pragma once

#include "cuda/hopper/types.h"
#include "emu/runtime.h"

namespace moela::cuda::sm90 {

using emu::TensorMap;
using emu::Where;

inline void tensor_map_set_address(SmemAddr map, const void* base, Where where = Where::current()) {
  emu::edit_shared_tensor_map(map, emu::MapField::kAddress, 0, reinterpret_cast<uint64_t>(base), where);
}
inline void tensor_map_set_address(TensorMap* map, const void* base, Where where = Where::current()) {
  emu::edit_global_tensor_map(map, emu::MapField::kAddress, 0, reinterpret_cast<uint64_t>(base), where);
}

template <int kDim>
void tensor_map_set_size(SmemAddr map, uint32_t elements, Where where = Where::current()) {
  static_assert(kDim >= 0 && kDim < 5, "a tensor has at most five dimensions");
  emu::edit_shared_tensor_map(map, emu::MapField::kSize, kDim, elements, where);
}
template <int kDim>
void tensor_map_set_size(TensorMap* map, uint32_t elements, Where where = Where::current()) {
  static_assert(kDim >= 0 && kDim < 5, "a tensor has at most five dimensions");
  emu::edit_global_tensor_map(map, emu::MapField::kSize, kDim, elements, where);
}

template <int kDim>
void tensor_map_set_stride(SmemAddr map, uint64_t bytes, Where where = Where::current()) {
  static_assert(kDim >= 1 && kDim < 5, "the first of at most five dimensions is contiguous");
  emu::edit_shared_tensor_map(map, emu::MapField::kStride, kDim, bytes, where);
}
template <int kDim>
void tensor_map_set_stride(TensorMap* map, uint64_t bytes, Where where = Where::current()) {
  static_assert(kDim >= 1 && kDim < 5, "the first of at most five dimensions is contiguous");
  emu::edit_global_tensor_map(map, emu::MapField::kStride, kDim, bytes, where);
}

inline void tensor_map_publish(TensorMap* to, SmemAddr from, Where where = Where::current()) {
  emu::publish_tensor_map(to, from, where);
}
inline void fence_tensor_map_release() { emu::fence_tensor_map_release(); }
inline void fence_tensor_map_acquire(const TensorMap* map, Where where = Where::current()) {
  emu::fence_tensor_map_acquire(map, where);
}

}  // namespace moela::cuda::sm90
