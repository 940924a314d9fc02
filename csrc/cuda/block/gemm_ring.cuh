// The ring of stages between the thread that loads and the warps that multiply.
#pragma once

#include "cuda/block/gemm_config.cuh"

namespace moela::cuda::sm90 {

// A stage of the ring and how often it has been used, as a parity.
template <class C>
struct Position {
  int stage = 0;
  uint32_t parity = 0;
  MOELA_DEVICE void advance() {
    if (++stage == C::kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
  MOELA_DEVICE int stage_before(int steps) const {
    return stage >= steps ? stage - steps : stage - steps + C::kStages;
  }
};

// full[s]: one arrival, of the loading thread, with the bytes of all copies into the stage. Math warps wait.
template <class C>
MOELA_DEVICE SmemAddr full(int stage) {
  return smem_base() + C::kFull + static_cast<uint32_t>(stage) * 8;
}
// empty[s]: one arrival per math warp of the blocks of a multicast. The loading thread waits: its copies go
// to all of them.
template <class C>
MOELA_DEVICE SmemAddr empty(int stage) {
  return smem_base() + C::kEmpty + static_cast<uint32_t>(stage) * 8;
}

template <class C>
MOELA_DEVICE void init_ring() {
  for (int s = 0; s < C::kStages; ++s) {
    mbarrier_init(full<C>(s), 1);
    mbarrier_init(empty<C>(s), C::kCluster * C::kMathWarps);
  }
}

template <class C>
MOELA_DEVICE void wait_empty(const Position<C>& at) {
  if constexpr (C::kCluster > 1) {
    mbarrier_wait_cluster(empty<C>(at.stage), at.parity ^ 1);
  } else {
    mbarrier_wait(empty<C>(at.stage), at.parity ^ 1);
  }
}

// All lanes of a warp that has read the stage.
template <class C>
MOELA_DEVICE void give_back(int stage) {
  sync_warp();  // the tensor core is done for all lanes before one of them gives the stage back
  if constexpr (C::kCluster > 1) {
    if (lane() < C::kCluster) mbarrier_arrive_remote(mapa(empty<C>(stage), lane()));
  } else {
    if (lane() == 0) mbarrier_arrive(empty<C>(stage));
  }
}

// The other blocks' warps arrive here to the end, so this block must not exit before them.
template <class C>
MOELA_DEVICE void drain(Position<C> at) {
  if constexpr (C::kCluster > 1)
    for (int s = 0; s < C::kStages; ++s, at.advance()) wait_empty(at);
}

}  // namespace moela::cuda::sm90
