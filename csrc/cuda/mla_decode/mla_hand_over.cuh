// What warpgroup 0 hands to warpgroup 1 through shared memory.
#pragma once

#include "cuda/mla_decode/mla_attend.cuh"

namespace moela::cuda::sm90 {

// To warpgroup 1: a factor per row for what it has summed up so far.
template <class C>
MOELA_DEVICE void hand_over(const float (&factor)[2]) {
  MOELA_UNROLL
  for (int r = 0; r < 2; ++r) {
    const int row = MlaHalf<C, 0>::row(r);  // with a shuffle: not where lanes part
    if (lane() % 4 == 0) sts(smem_base() + C::kSmemFactor + static_cast<uint32_t>(row) * 4, factor[r]);
  }
  fence_proxy_async_shared();
  arrive_warp(p_full<C>());
}

// And the weights of a block of keys.
template <class C>
MOELA_DEVICE void hand_over(const float (&factor)[2], const AFragment (&weights)[4]) {
  MOELA_UNROLL
  for (int j = 0; j < 4; ++j) {
    const int row = warp() * 16 + (lane() & 15), chunk = 2 * j + (lane() >> 4);
    const uint32_t r[4] = {weights[j].get(0), weights[j].get(1), weights[j].get(2), weights[j].get(3)};
    stmatrix<4>(smem_base() + C::kSmemP + panel_byte(row, chunk * 16), r);
  }
  hand_over<C>(factor);
}

}  // namespace moela::cuda::sm90
