// TMA: copies of boxes of a tensor. PTX ISA "cp.async.bulk.tensor".
//
// A load writes the box to `smem` (a multiple of 128, and of the swizzle's repeat for the layouts of
// tests/golden) and completes box_bytes at the mbarrier, also for what lies outside the tensor and reads as
// zero. Coordinates are elements, innermost first, and may be negative. A multicast goes to the same offset
// in every block of the cluster whose bit is set, and completes at the barrier at the same offset there.
#pragma once

#include <cuda.h>

#include "cuda/hopper/types.h"

namespace moela::cuda::sm90 {

using TensorMap = CUtensorMap;

// PTX ISA "prefetch.tensormap".
MOELA_DEVICE void tma_prefetch_map(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

MOELA_DEVICE void tma_load_2d(SmemAddr smem, const TensorMap* map, int c0, int c1, SmemAddr barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];" ::"r"(smem),
      "l"(map), "r"(barrier), "r"(c0), "r"(c1)
      : "memory");
}

MOELA_DEVICE void tma_load_multicast_2d(SmemAddr smem, const TensorMap* map, int c0, int c1, SmemAddr barrier,
                                        uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%4, %5}], [%2], %3;" ::"r"(smem),
      "l"(map), "r"(barrier), "h"(mask), "r"(c0), "r"(c1)
      : "memory");
}

MOELA_DEVICE void tma_store_2d(const TensorMap* map, int c0, int c1, SmemAddr smem) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
               "r"(smem), "r"(c0), "r"(c1)
               : "memory");
}

MOELA_DEVICE void tma_load_3d(SmemAddr smem, const TensorMap* map, int c0, int c1, int c2, SmemAddr barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(smem),
      "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}

MOELA_DEVICE void tma_load_multicast_3d(SmemAddr smem, const TensorMap* map, int c0, int c1, int c2,
                                        SmemAddr barrier, uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%4, %5, %6}], [%2], %3;" ::"r"(smem),
      "l"(map), "r"(barrier), "h"(mask), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}

MOELA_DEVICE void tma_store_3d(const TensorMap* map, int c0, int c1, int c2, SmemAddr smem) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
               "r"(smem), "r"(c0), "r"(c1), "r"(c2)
               : "memory");
}

MOELA_DEVICE void tma_load_4d(SmemAddr smem, const TensorMap* map, int c0, int c1, int c2, int c3,
                              SmemAddr barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(smem),
      "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}

MOELA_DEVICE void tma_load_multicast_4d(SmemAddr smem, const TensorMap* map, int c0, int c1, int c2, int c3,
                                        SmemAddr barrier, uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%4, %5, %6, %7}], [%2], %3;" ::"r"(smem),
      "l"(map), "r"(barrier), "h"(mask), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}

MOELA_DEVICE void tma_store_4d(const TensorMap* map, int c0, int c1, int c2, int c3, SmemAddr smem) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(map),
      "r"(smem), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}

MOELA_DEVICE void tma_load_5d(SmemAddr smem, const TensorMap* map, int c0, int c1, int c2, int c3, int c4,
                              SmemAddr barrier) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(smem),
      "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
      : "memory");
}

MOELA_DEVICE void tma_load_multicast_5d(SmemAddr smem, const TensorMap* map, int c0, int c1, int c2, int c3,
                                        int c4, SmemAddr barrier, uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%4, %5, %6, %7, %8}], [%2], %3;" ::"r"(smem),
      "l"(map), "r"(barrier), "h"(mask), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
      : "memory");
}

MOELA_DEVICE void tma_store_5d(const TensorMap* map, int c0, int c1, int c2, int c3, int c4, SmemAddr smem) {
  asm volatile(
      "cp.async.bulk.tensor.5d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];" ::"l"(map),
      "r"(smem), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
      : "memory");
}

}  // namespace moela::cuda::sm90
