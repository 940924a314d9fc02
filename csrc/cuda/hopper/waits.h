// Loops around one instruction. Kernels wait only through these: under the emulator a loop of their own would
// never let another thread run.
#pragma once

#include "cuda/hopper/types.h"

namespace moela::cuda::sm90 {

#ifndef MOELA_EMULATE

// Until the phase with this parity has completed: parity 0 is the first phase, parity 1 passes on a fresh
// barrier.
MOELA_DEVICE void mbarrier_wait(SmemAddr barrier, uint32_t parity) {
  while (!mbarrier_try_wait(barrier, parity)) {
  }
}

// The same for a barrier at which other blocks of the cluster arrive.
MOELA_DEVICE void mbarrier_wait_cluster(SmemAddr barrier, uint32_t parity) {
  while (!mbarrier_try_wait_cluster(barrier, parity)) {
  }
}

// Until a flag that others raise with st_release or red_add_release has reached `value`.
template <Scope kScope, class T>
MOELA_DEVICE void wait_flag_at_least(const T* flag, T value) {
  while (ld_acquire<kScope>(flag) < value) {
  }
}

#endif

// The same, but for no longer than this; whether the flag has reached `value`. For flags of another rank,
// which may have died.
template <Scope kScope, class T>
MOELA_DEVICE bool wait_flag_until(const T* flag, T value, uint64_t nanoseconds) {
  constexpr uint32_t kPause = 64;  // what a poll costs anyhow
  const uint64_t start = globaltimer();
  while (ld_acquire<kScope>(flag) < value) {
    if (globaltimer() - start >= nanoseconds) return false;
    nanosleep(kPause);
  }
  return true;
}

MOELA_DEVICE void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

}  // namespace moela::cuda::sm90
