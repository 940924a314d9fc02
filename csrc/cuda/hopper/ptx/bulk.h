// Copies of contiguous bytes (multiples of 16), their groups, and the fence between the proxies.
// PTX ISA "cp.async.bulk", "Memory consistency model: proxies".
#pragma once

#include "cuda/hopper/types.h"

namespace moela::cuda::sm90 {

// PTX ISA "cp.async.bulk". Completes `bytes` at the mbarrier.
MOELA_DEVICE void bulk_load(SmemAddr smem, const void* global, uint32_t bytes, SmemAddr barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(smem),
      "l"(global), "r"(bytes), "r"(barrier)
      : "memory");
}

// PTX ISA "cp.async.bulk", to every block of the cluster whose bit is set.
MOELA_DEVICE void bulk_load_multicast(SmemAddr smem, const void* global, uint32_t bytes, SmemAddr barrier,
                                      uint16_t mask) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1], %2, [%3], %4;" ::"r"(smem),
      "l"(global), "r"(bytes), "r"(barrier), "h"(mask)
      : "memory");
}

// PTX ISA "cp.async.bulk". To another block of the cluster: `to` and `barrier` come from mapa().
MOELA_DEVICE void bulk_copy_cluster(SmemAddr to, SmemAddr from, uint32_t bytes, SmemAddr barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          to),
      "r"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

// PTX ISA "cp.async.bulk". Joins the open group of this thread.
MOELA_DEVICE void bulk_store(void* global, SmemAddr smem, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global), "r"(smem),
               "r"(bytes)
               : "memory");
}

// PTX ISA "cp.async.bulk.commit_group". Closes the group of this thread's stores.
MOELA_DEVICE void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// PTX ISA "cp.async.bulk.wait_group.read". Until all but the kPending newest groups have read shared memory.
template <int kPending>
MOELA_DEVICE void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// PTX ISA "cp.async.bulk.wait_group". Until all but the kPending newest groups are written.
template <int kPending>
MOELA_DEVICE void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
}

// PTX ISA "fence.proxy.async". Publishes this thread's generic accesses to TMA and wgmma. Writers fence, then
// a barrier, then one thread issues.
MOELA_DEVICE void fence_proxy_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
MOELA_DEVICE void fence_proxy_async_global() { asm volatile("fence.proxy.async.global;" ::: "memory"); }
MOELA_DEVICE void fence_proxy_async() { asm volatile("fence.proxy.async;" ::: "memory"); }

}  // namespace moela::cuda::sm90
