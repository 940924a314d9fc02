// Tensor maps that a kernel edits: 128 bytes in shared memory, published to global memory, where TMA reads
// them through a proxy of its own. PTX ISA "tensormap.replace", "fence.proxy.tensormap".
//
// The order of one edit: all copies that use the old map have been seen to end; replace in shared memory;
// sync_warp(); tensor_map_publish(); fence_tensor_map_acquire() by the thread that then issues the copies.
#pragma once

#include <cuda.h>

#include "cuda/hopper/types.h"

namespace moela::cuda::sm90 {

using TensorMap = CUtensorMap;

// PTX ISA "tensormap.replace". The address of the tensor, a multiple of 16.
MOELA_DEVICE void tensor_map_set_address(SmemAddr map, const void* base) {
  asm volatile("tensormap.replace.tile.global_address.shared::cta.b1024.b64 [%0], %1;" ::"r"(map), "l"(base)
               : "memory");
}
MOELA_DEVICE void tensor_map_set_address(TensorMap* map, const void* base) {
  asm volatile("tensormap.replace.tile.global_address.global.b1024.b64 [%0], %1;" ::"l"(map), "l"(base)
               : "memory");
}

// PTX ISA "tensormap.replace". The size of a dimension in elements, at least 1.
template <int kDim>
MOELA_DEVICE void tensor_map_set_size(SmemAddr map, uint32_t elements) {
  static_assert(kDim >= 0 && kDim < 5, "a tensor has at most five dimensions");
  asm volatile("tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%0], %1, %2;" ::"r"(map), "n"(kDim),
               "r"(elements)
               : "memory");
}
template <int kDim>
MOELA_DEVICE void tensor_map_set_size(TensorMap* map, uint32_t elements) {
  static_assert(kDim >= 0 && kDim < 5, "a tensor has at most five dimensions");
  asm volatile("tensormap.replace.tile.global_dim.global.b1024.b32 [%0], %1, %2;" ::"l"(map), "n"(kDim),
               "r"(elements)
               : "memory");
}

// PTX ISA "tensormap.replace". From one element of a dimension, not of the first, to the next: a multiple of
// 16.
template <int kDim>
MOELA_DEVICE void tensor_map_set_stride(SmemAddr map, uint64_t bytes) {
  static_assert(kDim >= 1 && kDim < 5, "the first of at most five dimensions is contiguous");
  asm volatile("tensormap.replace.tile.global_stride.shared::cta.b1024.b64 [%0], %1, %2;" ::"r"(map),
               "n"(kDim - 1), "l"(bytes)
               : "memory");
}
template <int kDim>
MOELA_DEVICE void tensor_map_set_stride(TensorMap* map, uint64_t bytes) {
  static_assert(kDim >= 1 && kDim < 5, "the first of at most five dimensions is contiguous");
  asm volatile("tensormap.replace.tile.global_stride.global.b1024.b64 [%0], %1, %2;" ::"l"(map),
               "n"(kDim - 1), "l"(bytes)
               : "memory");
}

// PTX ISA "tensormap.cp_fenceproxy". By a whole warp, after a sync_warp(): copies a map (both at multiples of
// 128) and releases it.
MOELA_DEVICE void tensor_map_publish(TensorMap* to, SmemAddr from) {
  asm volatile(
      "tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned "
      "[%0], [%1], 128;" ::"l"(to),
      "r"(from)
      : "memory");
}

// PTX ISA "fence.proxy.tensormap". What this thread has written to maps, or seen written, may be acquired.
MOELA_DEVICE void fence_tensor_map_release() {
  asm volatile("fence.proxy.tensormap::generic.release.gpu;" ::: "memory");
}

// PTX ISA "fence.proxy.tensormap". The copies that this thread issues next find the map as it was released.
MOELA_DEVICE void fence_tensor_map_acquire(const TensorMap* map) {
  asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(map) : "memory");
}

}  // namespace moela::cuda::sm90
