// Blocks that hand data on through global memory: block i adds one to what block i-1 has written, half of it
// read by generic loads and half by a bulk copy. A flag says when.
#pragma once

#include "bugs.h"
#include "cuda/hopper/hopper.h"

struct FlagsConfig {
  static constexpr int kThreads = 64;
  static constexpr uint32_t kTile = 0, kTileBytes = kThreads * 4, kArrived = kTileBytes,
                            kSmemBytes = kArrived + 8;
};

struct FlagsParams {
  uint32_t* data;   // [blocks + 1, kThreads]; row 0 is given
  uint32_t* flags;  // [blocks + 1]; zero, flags[0] is one
  uint32_t* count;  // [1]; how many blocks are done
  int first;        // the row that this grid starts with
  Bug bug;
};

namespace flags {

using namespace moela::cuda::sm90;
using C = FlagsConfig;

MOELA_DEVICE uint32_t read_row(const FlagsParams& p, const uint32_t* row) {
  if (p.bug == Bug::kReadOnlyLoadOfWritten) return ldg_nc(row + tid());
  if (p.bug == Bug::kGlobalUninitialised) return ldg(row + C::kThreads + tid());
  if (tid() < C::kThreads / 2) return ldg(row + tid());
  // The upper half by the async proxy. The thread that issues has seen the writes; its fence publishes them.
  const SmemAddr arrived = smem_base() + C::kArrived, tile = smem_base() + C::kTile;
  if (tid() == C::kThreads / 2) {
    mbarrier_init(arrived, 1);
    if (p.bug == Bug::kNoGlobalProxyFence) {
      fence_proxy_async_shared();
    } else {
      fence_proxy_async();
    }
    mbarrier_arrive_expect_tx(arrived, C::kTileBytes);
    bulk_load(tile, row, C::kTileBytes, arrived);
  }
  sync_warp();
  mbarrier_wait(arrived, 0);
  return lds<uint32_t>(tile + static_cast<uint32_t>(tid()) * 4);
}

MOELA_DEVICE void raise_flag(const FlagsParams& p, uint32_t* flag) {
  if (p.bug != Bug::kFlagWithoutSyncBlock) sync_block();  // the stores of all threads come before the flag
  if (tid() != 0) return;
  if (p.bug == Bug::kFlagRelaxed) {
    st_relaxed<Scope::kSys>(flag, 1u);
  } else if (p.bug == Bug::kFlagPlainStore) {
    stg(flag, 1u);
  } else if (p.bug == Bug::kFlagOfDeviceOnly) {
    st_release<Scope::kGpu>(flag, 1u);
  } else {
    st_release<Scope::kSys>(flag, 1u);
  }
}

}  // namespace flags

MOELA_KERNEL(FlagsConfig::kThreads) flags_kernel(MOELA_PARAM FlagsParams p) {
  using namespace flags;
  if (p.bug != Bug::kNoGriddepWait) griddep_wait();
  const int row = p.first + block();
  const uint32_t* from = p.data + row * C::kThreads;
  uint32_t* to = p.data + (row + 1) * C::kThreads;
  if (p.bug == Bug::kTwoBlocksWriteOneAddress && tid() == 0) stg(p.count + 1, 1u);
  if (p.bug != Bug::kFlagNotWaitedFor) wait_flag_at_least<Scope::kSys>(p.flags + row, 1u);
  stg(to + tid() + (p.bug == Bug::kGlobalOutOfBounds ? 1 << 20 : 0), read_row(p, from) + 1);
  raise_flag(p, p.flags + row + 1);
  if (tid() == 0) red_add_release<Scope::kSys>(p.count, 1u);
  griddep_launch();
}
