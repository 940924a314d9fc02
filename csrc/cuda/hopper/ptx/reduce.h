// Copies from shared to global memory that add to what is there, each element atomically; they join the open
// group of the thread as stores do. PTX ISA "cp.reduce.async.bulk", "cp.reduce.async.bulk.tensor".
#pragma once

#include <cuda.h>

#include "cuda/hopper/types.h"

namespace moela::cuda::sm90 {

using TensorMap = CUtensorMap;

// PTX ISA "cp.reduce.async.bulk.tensor". Elements of the type of the map: 4 bytes, float16 or bfloat16.
MOELA_DEVICE void tma_reduce_add_2d(const TensorMap* map, int c0, int c1, SmemAddr smem) {
  asm volatile(
      "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(
          map),
      "r"(smem), "r"(c0), "r"(c1)
      : "memory");
}

MOELA_DEVICE void tma_reduce_add_3d(const TensorMap* map, int c0, int c1, int c2, SmemAddr smem) {
  asm volatile(
      "cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(
          map),
      "r"(smem), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}

MOELA_DEVICE void tma_reduce_add_4d(const TensorMap* map, int c0, int c1, int c2, int c3, SmemAddr smem) {
  asm volatile(
      "cp.reduce.async.bulk.tensor.4d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::
          "l"(map),
      "r"(smem), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}

MOELA_DEVICE void tma_reduce_add_5d(const TensorMap* map, int c0, int c1, int c2, int c3, int c4,
                                    SmemAddr smem) {
  asm volatile(
      "cp.reduce.async.bulk.tensor.5d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3, %4, %5, %6}], "
      "[%1];" ::"l"(map),
      "r"(smem), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
      : "memory");
}

// PTX ISA "cp.reduce.async.bulk".
MOELA_DEVICE void bulk_reduce_add_f32(void* global, SmemAddr smem, uint32_t bytes) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(global),
               "r"(smem), "r"(bytes)
               : "memory");
}

// PTX ISA "cp.reduce.async.bulk". Rounds to nearest, keeps subnormal numbers.
MOELA_DEVICE void bulk_reduce_add_bf16(void* global, SmemAddr smem, uint32_t bytes) {
  asm volatile(
      "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.noftz.bf16 [%0], [%1], %2;" ::"l"(global),
      "r"(smem), "r"(bytes)
      : "memory");
}

}  // namespace moela::cuda::sm90
