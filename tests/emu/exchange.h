// A ring in a cluster: every block writes a tile, reads its neighbour's through distributed shared memory,
// and gets one more from rank 0 by multicast. An observer warp follows a barrier that others use.
#pragma once

#include "bugs.h"
#include "cuda/hopper/hopper.h"

struct ExchangeConfig {
  static constexpr int kThreads = 64, kCluster = 4, kRounds = 3;
  static constexpr uint32_t kOwn = 0, kTile = kThreads * 4, kShared = kTile, kSharedBytes = 256,
                            kArrived = kShared + kSharedBytes, kTurn = kArrived + 8, kSmemBytes = kTurn + 8;
};

struct ExchangeParams {
  const uint32_t* source;  // [64]
  uint32_t* out;           // [blocks, 3, kThreads]
  Bug bug;
};

namespace exchange {

using namespace moela::cuda::sm90;
using C = ExchangeConfig;

// kArrived: 1 arrival (thread 0 of the own block, with the bytes of the multicast). All threads wait.
// kTurn: one arrival per round by warp 0's lane 0; both warps wait, and warp 1 reports back through
// barrier 1.
MOELA_DEVICE void init_barriers() {
  if (tid() == 0) {
    mbarrier_init(smem_base() + C::kArrived, 1);
    mbarrier_init(smem_base() + C::kTurn, 1);
    fence_mbarrier_init();
  }
  cluster_sync();
}

MOELA_DEVICE uint32_t read_neighbour(Bug bug) {
  const uint32_t slot = C::kOwn + static_cast<uint32_t>(tid()) * 4;
  sts<uint32_t>(smem_base() + (bug == Bug::kTwoWritersOfShared ? slot / 8 * 8 : slot),
                static_cast<uint32_t>(1000 * cluster_rank() + tid()));
  if (bug != Bug::kNoSyncBeforeRemoteRead) cluster_sync();
  const int neighbour =
      bug == Bug::kRemoteRankOutside ? cluster_rank() + 1 : (cluster_rank() + 1) % C::kCluster;
  const auto value = lds_cluster<uint32_t>(mapa(smem_base() + slot, neighbour));
  if (bug != Bug::kExitWhileRead) cluster_sync();  // a block must not exit while its neighbour reads
  return value;
}

MOELA_DEVICE uint32_t receive_multicast(const ExchangeParams& p) {
  const SmemAddr arrived = smem_base() + C::kArrived, tile = smem_base() + C::kShared;
  if (tid() == 0) mbarrier_arrive_expect_tx(arrived, C::kSharedBytes);
  if (cluster_rank() == 0 && tid() == 0)
    bulk_load_multicast(tile, p.source, C::kSharedBytes, arrived, (1 << C::kCluster) - 1);
  if (p.bug == Bug::kMulticastIntoExited && cluster_rank() == 3) return 0;  // and exits
  mbarrier_wait(arrived, 0);
  return lds<uint32_t>(tile + static_cast<uint32_t>(tid()) * 4);
}

// Warp 0 starts a round after warp 1 has seen the last: with nothing but parities, a warp 1 that is two
// rounds late could not tell.
MOELA_DEVICE uint32_t follow_turns(Bug bug) {
  uint32_t seen = 0;
  for (uint32_t round = 0; round < C::kRounds; ++round) {
    if (tid() == 0) mbarrier_arrive(smem_base() + C::kTurn);
    mbarrier_wait(smem_base() + C::kTurn, round & 1);
    ++seen;
    if (bug != Bug::kLappedParity) sync_block();
  }
  return seen;
}

}  // namespace exchange

MOELA_KERNEL(ExchangeConfig::kThreads) exchange_kernel(MOELA_PARAM ExchangeParams p) {
  using namespace exchange;
  init_barriers();
  uint32_t* out = p.out + block() * 3 * C::kThreads + tid();
  stg(out, read_neighbour(p.bug));
  stg(out + C::kThreads, receive_multicast(p));
  stg(out + 2 * C::kThreads, follow_turns(p.bug));
}
