// mbarrier objects: 8 bytes of shared memory. PTX ISA "Parallel synchronization: mbarrier".
#pragma once

#include "cuda/hopper/types.h"

namespace moela::cuda::sm90 {

// PTX ISA "mbarrier.init". A phase takes `count` arrivals.
MOELA_DEVICE void mbarrier_init(SmemAddr barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

// PTX ISA "mbarrier.inval". The bytes may then be used for something else.
MOELA_DEVICE void mbarrier_inval(SmemAddr barrier) {
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// PTX ISA "fence.mbarrier_init". After the inits of this thread, before the barrier that publishes them:
// without it TMA and other blocks of the cluster may find no initialised barrier.
MOELA_DEVICE void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// PTX ISA "mbarrier.arrive".
MOELA_DEVICE void mbarrier_arrive(SmemAddr barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// PTX ISA "mbarrier.arrive", at a barrier of another block: `barrier` comes from mapa().
MOELA_DEVICE void mbarrier_arrive_remote(SmemAddr barrier) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// PTX ISA "mbarrier.arrive.expect_tx". Raises the bytes that the current phase waits for, then arrives once.
MOELA_DEVICE void mbarrier_arrive_expect_tx(SmemAddr barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// PTX ISA "mbarrier.expect_tx". Raises the bytes, does not arrive.
MOELA_DEVICE void mbarrier_expect_tx(SmemAddr barrier, uint32_t bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// PTX ISA "mbarrier.test_wait". Whether the phase with this parity has completed; never blocks.
MOELA_DEVICE bool mbarrier_test_wait(SmemAddr barrier, uint32_t parity) {
  uint32_t is_over;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(is_over)
      : "r"(barrier), "r"(parity)
      : "memory");
  return is_over != 0;
}

// PTX ISA "mbarrier.try_wait". The same, but may sleep for a while first.
MOELA_DEVICE bool mbarrier_try_wait(SmemAddr barrier, uint32_t parity) {
  uint32_t is_over;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(is_over)
      : "r"(barrier), "r"(parity)
      : "memory");
  return is_over != 0;
}

// PTX ISA "mbarrier.try_wait", acquiring from arrivals of the whole cluster.
MOELA_DEVICE bool mbarrier_try_wait_cluster(SmemAddr barrier, uint32_t parity) {
  uint32_t is_over;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(is_over)
      : "r"(barrier), "r"(parity)
      : "memory");
  return is_over != 0;
}

}  // namespace moela::cuda::sm90
