// How long what is loaded stays in the caches: hints, which change no result. PTX ISA "createpolicy", "Cache
// eviction priority hints".
#pragma once

#include <cuda.h>

#include "cuda/hopper/types.h"

namespace moela::cuda::sm90 {

using TensorMap = CUtensorMap;

// For all that is loaded with it.
struct CachePolicy {
  uint64_t bits;
};

// PTX ISA "createpolicy.fractional". Read once: leaves the L2 cache first.
MOELA_DEVICE CachePolicy policy_evict_first() {
  CachePolicy policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy.bits));
  return policy;
}

// PTX ISA "createpolicy.fractional". Read again soon: leaves the L2 cache last.
MOELA_DEVICE CachePolicy policy_evict_last() {
  CachePolicy policy;
  asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy.bits));
  return policy;
}

// PTX ISA "ld.global.nc". 16 bytes that are read once: past L1, and L2 fetches the 256 bytes around them.
template <class T>
MOELA_DEVICE T ldg_nc_once(const T* from) {
  static_assert(sizeof(T) == 16, "the widest access");
  Vec4 value;
  asm("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
      : "l"(from));
  return bits_as<T>(value);
}

// PTX ISA "cp.async.bulk".
MOELA_DEVICE void bulk_load(SmemAddr smem, const void* global, uint32_t bytes, SmemAddr barrier,
                            CachePolicy policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1], %2, [%3], %4;" ::"r"(smem),
      "l"(global), "r"(bytes), "r"(barrier), "l"(policy.bits)
      : "memory");
}

// PTX ISA "cp.async.bulk.tensor": as in tma.h.
MOELA_DEVICE void tma_load_2d(SmemAddr smem, const TensorMap* map, int c0, int c1, SmemAddr barrier,
                              CachePolicy policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(smem),
      "l"(map), "r"(barrier), "r"(c0), "r"(c1), "l"(policy.bits)
      : "memory");
}

MOELA_DEVICE void tma_load_multicast_2d(SmemAddr smem, const TensorMap* map, int c0, int c1, SmemAddr barrier,
                                        uint16_t mask, CachePolicy policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::"
      "cache_hint "
      "[%0], [%1, {%4, %5}], [%2], %3, %6;" ::"r"(smem),
      "l"(map), "r"(barrier), "h"(mask), "r"(c0), "r"(c1), "l"(policy.bits)
      : "memory");
}

MOELA_DEVICE void tma_load_3d(SmemAddr smem, const TensorMap* map, int c0, int c1, int c2, SmemAddr barrier,
                              CachePolicy policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(smem),
      "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "l"(policy.bits)
      : "memory");
}

MOELA_DEVICE void tma_load_multicast_3d(SmemAddr smem, const TensorMap* map, int c0, int c1, int c2,
                                        SmemAddr barrier, uint16_t mask, CachePolicy policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::"
      "cache_hint "
      "[%0], [%1, {%4, %5, %6}], [%2], %3, %7;" ::"r"(smem),
      "l"(map), "r"(barrier), "h"(mask), "r"(c0), "r"(c1), "r"(c2), "l"(policy.bits)
      : "memory");
}

MOELA_DEVICE void tma_load_4d(SmemAddr smem, const TensorMap* map, int c0, int c1, int c2, int c3,
                              SmemAddr barrier, CachePolicy policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(smem),
      "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "l"(policy.bits)
      : "memory");
}

MOELA_DEVICE void tma_load_multicast_4d(SmemAddr smem, const TensorMap* map, int c0, int c1, int c2, int c3,
                                        SmemAddr barrier, uint16_t mask, CachePolicy policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::"
      "cache_hint "
      "[%0], [%1, {%4, %5, %6, %7}], [%2], %3, %8;" ::"r"(smem),
      "l"(map), "r"(barrier), "h"(mask), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "l"(policy.bits)
      : "memory");
}

MOELA_DEVICE void tma_load_5d(SmemAddr smem, const TensorMap* map, int c0, int c1, int c2, int c3, int c4,
                              SmemAddr barrier, CachePolicy policy) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4, %5, %6, %7}], [%2], %8;" ::"r"(smem),
      "l"(map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4), "l"(policy.bits)
      : "memory");
}

MOELA_DEVICE void tma_load_multicast_5d(SmemAddr smem, const TensorMap* map, int c0, int c1, int c2, int c3,
                                        int c4, SmemAddr barrier, uint16_t mask, CachePolicy policy) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::"
      "cache_hint "
      "[%0], [%1, {%4, %5, %6, %7, %8}], [%2], %3, %9;" ::"r"(smem),
      "l"(map), "r"(barrier), "h"(mask), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4), "l"(policy.bits)
      : "memory");
}

}  // namespace moela::cuda::sm90
