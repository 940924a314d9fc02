// What the device side of mla_decode is given, and how a block's shared memory and barriers are laid out.
#pragma once

#include "cuda/hopper/hopper.h"
#include "cuda/mla_decode/mla_decode.h"

namespace moela::cuda::sm90 {

// Of a thread of each role; 128 times their sum is 64512 of 65536.
struct MlaRegisters {
  int left, right, load;
};

template <int kD_, int kV_, MlaFloat kFloat_>
struct MlaConfig {
  static constexpr int kD = kD_, kV = kV_;  // columns of a row, and of its value
  static constexpr MlaFloat kFloat = kFloat_;
  static constexpr int kRows = plan::kMlaSm90Rows, kKeys = plan::kMlaSm90Keys;
  static constexpr int kPanel = 64;  // columns: 128 bytes, the span of the swizzle
  static constexpr int kPanels = kD / kPanel, kHalf = kV / 2, kHalfPanels = kHalf / kPanel;
  static constexpr int kStages = 2, kThreads = 3 * 128;
  static constexpr int kMathWarps = 8, kLoadingWarps = 4, kFirstLoadingWarp = 8;
  static constexpr MlaRegisters kRegisters = {.left = 216, .right = 216, .load = 72};

  // smem_q [kPanels][kRows][kPanel], smem_kv [kStages][kPanels][kKeys][kPanel], smem_p [kRows][kKeys] of 16
  // bits, swizzled by 128 bytes; smem_factor [kRows] float32; then the barriers.
  static constexpr uint32_t kPanelBytes = 64 * kPanel * 2, kTileBytes = kPanels * kPanelBytes;
  static constexpr uint32_t kSmemQ = 0, kSmemKv = kSmemQ + kTileBytes,
                            kSmemP = kSmemKv + kStages * kTileBytes, kSmemFactor = kSmemP + kPanelBytes,
                            kKvFull = kSmemFactor + kRows * 4, kKvEmpty = kKvFull + kStages * 8,
                            kQFull = kKvEmpty + kStages * 8, kQEmpty = kQFull + 8, kPFull = kQEmpty + 8,
                            kPEmpty = kPFull + 8, kSmemBytes = kPEmpty + 8;
  static MOELA_DEVICE SmemAddr weights(int) { return smem_base() + kSmemP; }  // of whatever stage
  static_assert(kSmemBytes <= kMaxSmemBytes, "two blocks of keys do not fit a thread block's shared memory");
  static_assert(kD % kPanel == 0 && kHalf % kPanel == 0, "a panel is one span of the swizzle");
};

// Of a cache of bytes, which become bfloat16.
template <int kD>
struct MlaBytesConfig : MlaConfig<kD, 512, MlaFloat::kBFloat16> {
  static constexpr bool kHasBytes = true;
  static constexpr MlaRegisters kRegisters = {.left = 192, .right = 168, .load = 144};
};

struct MlaDecodeParams {
  TensorMap q, cache;  // [outer][inner rows] of B requests; [num_pages, page_size]
  MlaDecodeArgs args;
  int tiles, key_box, query_box, num_parts;
  int inner_rows;    // of q, one box after the other
  float scale_log2;  // sm_scale * log2(e)
};

// kv_full[s]: an arrival of each loading warp, with the bytes of its copies into stage s. Both math
// warpgroups wait.
template <class C>
MOELA_DEVICE SmemAddr kv_full(int stage) {
  return smem_base() + C::kKvFull + static_cast<uint32_t>(stage) * 8;
}
// kv_empty[s]: an arrival of each math warp that has read stage s. The loading warps wait.
template <class C>
MOELA_DEVICE SmemAddr kv_empty(int stage) {
  return smem_base() + C::kKvEmpty + static_cast<uint32_t>(stage) * 8;
}
// q_full, q_empty: the same for the queries, which warpgroup 0 alone reads.
template <class C>
MOELA_DEVICE SmemAddr q_full() {
  return smem_base() + C::kQFull;
}
template <class C>
MOELA_DEVICE SmemAddr q_empty() {
  return smem_base() + C::kQEmpty;
}
// p_full: an arrival of each warp of warpgroup 0, which has written its rows of smem_p and smem_factor.
// Warpgroup 1 waits. p_empty: an arrival of each warp of warpgroup 1, which has read them.
template <class C>
MOELA_DEVICE SmemAddr p_full() {
  return smem_base() + C::kPFull;
}
template <class C>
MOELA_DEVICE SmemAddr p_empty() {
  return smem_base() + C::kPEmpty;
}

// Those of what is loaded, by one thread.
template <class C>
MOELA_DEVICE void init_loading_barriers() {
  for (int s = 0; s < C::kStages; ++s) {
    mbarrier_init(kv_full<C>(s), C::kLoadingWarps);
    mbarrier_init(kv_empty<C>(s), C::kMathWarps);
  }
  mbarrier_init(q_full<C>(), C::kLoadingWarps);
  mbarrier_init(q_empty<C>(), 4);
}

template <class C>
MOELA_DEVICE void init_barriers() {
  if (tid() == 0) {
    init_loading_barriers<C>();
    mbarrier_init(p_full<C>(), 4);
    mbarrier_init(p_empty<C>(), 4);
    fence_mbarrier_init();
  }
  sync_block();
}

// All lanes of a warp are done with what the barrier protects.
MOELA_DEVICE void arrive_warp(SmemAddr barrier) {
  sync_warp();
  if (lane() == 0) mbarrier_arrive(barrier);
}

// A stage of the ring and how often it has been used, as a parity.
template <class C>
struct MlaPosition {
  int stage = 0;
  uint32_t parity = 0;
  MOELA_DEVICE void advance() {
    if (++stage == C::kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

}  // namespace moela::cuda::sm90
