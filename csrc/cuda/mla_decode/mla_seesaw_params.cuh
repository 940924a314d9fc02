// How shared memory and barriers are laid out where both warpgroups have scores: mla_seesaw.cuh.
#pragma once

#include "cuda/mla_decode/mla_params.cuh"

namespace moela::cuda::sm90 {

// The weights of a block lie where its keys' rope was, whose scores there are then.
template <int kD, int kV, MlaFloat kFloat>
struct MlaSeesawConfig : MlaConfig<kD, kV, kFloat> {
  using Plain = MlaConfig<kD, kV, kFloat>;
  static constexpr int kRopePanel = kV / Plain::kPanel;
  static_assert(kD - kV == Plain::kPanel, "weights of a block take the panel of its rope");

  // smem_q, smem_kv as in MlaConfig; smem_state [2][128] of 16 bytes: of each thread of a warpgroup; then the
  // barriers.
  static constexpr uint32_t kSmemState = Plain::kSmemP, kKvFull = kSmemState + 2 * 128 * 16,
                            kKvEmpty = kKvFull + Plain::kStages * 16, kQFull = kKvEmpty + Plain::kStages * 16,
                            kQEmpty = kQFull + 8, kPFull = kQEmpty + 8, kSmemBytes = kPFull + 16;

  static MOELA_DEVICE SmemAddr weights(int stage) {
    return smem_base() + Plain::kSmemKv + static_cast<uint32_t>(stage) * Plain::kTileBytes +
           kRopePanel * Plain::kPanelBytes;
  }
};

// A stage has halves, the columns of the values of warpgroup 0 and 1; its owner is the warpgroup of its
// number. The rope goes with the half that is not the owner's: its panel ends as the other's weights.
//
// half_full[s][h]: an arrival of each loading warp, with the bytes of its copies into that half. The owner
// waits before its scores, and warpgroup h before its values.
template <class C>
MOELA_DEVICE SmemAddr half_full(int stage, int half) {
  return smem_base() + C::kKvFull + static_cast<uint32_t>(2 * stage + half) * 8;
}
// half_empty[s][h]: an arrival of each warp of warpgroup h, which has multiplied its values, and, of the half
// that is not its own, of each warp of the owner, which will not read the weights again. The loading warps
// wait.
template <class C>
MOELA_DEVICE SmemAddr half_empty(int stage, int half) {
  return smem_base() + C::kKvEmpty + static_cast<uint32_t>(2 * stage + half) * 8;
}
// state_full[g]: an arrival of each warp of warpgroup g, which has written the weights of a block of its own
// and smem_state[g]. The other warpgroup waits, and writes those of the next block after that: this is what
// keeps smem_state[g] until it has been read.
template <class C>
MOELA_DEVICE SmemAddr state_full(int group) {
  return smem_base() + C::kPFull + static_cast<uint32_t>(group) * 8;
}

template <class C>
MOELA_DEVICE void init_seesaw_barriers() {
  if (tid() == 0) {
    for (int s = 0; s < C::kStages; ++s) {
      for (int half = 0; half < 2; ++half) {
        mbarrier_init(half_full<C>(s, half), C::kLoadingWarps);
        mbarrier_init(half_empty<C>(s, half), half == s ? 4 : 8);
      }
      mbarrier_init(state_full<C>(s), 4);
    }
    mbarrier_init(q_full<C>(), C::kLoadingWarps);
    mbarrier_init(q_empty<C>(), 8);
    fence_mbarrier_init();
  }
  sync_block();
}

}  // namespace moela::cuda::sm90
