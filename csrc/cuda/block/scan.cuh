// Sums and minima over the threads of a block, of 64-bit numbers.
#pragma once

#include "cuda/hopper/hopper.h"

namespace moela::cuda::sm90 {

MOELA_DEVICE int64_t shfl64(int64_t x, int source_lane) {
  const auto bits = static_cast<uint64_t>(x);
  const uint32_t low = shfl(static_cast<uint32_t>(bits), source_lane);
  const uint32_t high = shfl(static_cast<uint32_t>(bits >> 32), source_lane);
  return static_cast<int64_t>(static_cast<uint64_t>(high) << 32 | low);
}

// Of the lanes up to this one.
MOELA_DEVICE int64_t warp_sum_up_to(int64_t x) {
  MOELA_UNROLL
  for (int distance = 1; distance < 32; distance *= 2) {
    const int64_t below = shfl64(x, lane() - distance);
    if (lane() >= distance) x += below;
  }
  return x;
}

MOELA_DEVICE int64_t warp_min(int64_t x) {
  MOELA_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) {
    const int64_t other = shfl64(x, lane() ^ mask);
    x = other < x ? other : x;
  }
  return x;
}

struct Sums {
  int64_t before, all;  // of the threads before this one, and of all
};

// All threads of a block of kWarps warps; scratch: kWarps * 8 bytes of shared memory.
template <int kWarps>
MOELA_DEVICE Sums block_sums(int64_t x, SmemAddr scratch) {
  static_assert(kWarps <= 32, "a lane has the sum of a warp");
  const int64_t up_to = warp_sum_up_to(x);
  const int this_warp = warp();  // a shuffle: not where lanes part
  if (lane() == 31) sts(scratch + static_cast<uint32_t>(this_warp) * 8, up_to);
  sync_block();
  const int64_t warps =
      warp_sum_up_to(lane() < kWarps ? lds<int64_t>(scratch + static_cast<uint32_t>(lane()) * 8) : 0);
  sync_block();  // who reuses the scratch waits until all have read it
  const int64_t lower = shfl64(warps, this_warp > 0 ? this_warp - 1 : 0);
  return {(this_warp > 0 ? lower : 0) + up_to - x, shfl64(warps, 31)};
}

template <int kWarps>
MOELA_DEVICE int64_t block_min(int64_t x, SmemAddr scratch) {
  static_assert(kWarps <= 32, "a lane has the minimum of a warp");
  const int64_t of_warp = warp_min(x);
  const int this_warp = warp();  // a shuffle: not where lanes part
  if (lane() == 0) sts(scratch + static_cast<uint32_t>(this_warp) * 8, of_warp);
  sync_block();
  const int64_t least =
      warp_min(lds<int64_t>(scratch + static_cast<uint32_t>(lane() < kWarps ? lane() : 0) * 8));
  sync_block();
  return least;
}

}  // namespace moela::cuda::sm90
