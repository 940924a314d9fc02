// How two warpgroups attend where the tensor core bounds: each has the scores of every second block, and
// while it makes weights of them the other's products are under way. A block's owner is the warpgroup whose
// number its stage has. Blocks are summed up in order by both, each for its half of the values' columns, and
// the state of the softmax goes from owner to owner: the result has the bits of mla_loops.cuh.
#pragma once

#include "cuda/mla_decode/mla_load.cuh"
#include "cuda/mla_decode/mla_loops.cuh"
#include "cuda/mla_decode/mla_seesaw_params.cuh"

namespace moela::cuda::sm90 {

// Panels of a half of a stage, and the i-th of them.
template <class C>
MOELA_DEVICE int panels_of_half(int stage, int half) {
  return C::kHalfPanels + (half != stage ? 1 : 0);
}
template <class C>
MOELA_DEVICE int panel_of_half(int half, int i) {
  return i == C::kHalfPanels ? C::kRopePanel : half * C::kHalfPanels + i;
}

// Products of the queries and the keys of a stage, as its halves come. In the order of multiply_keys(),
// whoever the owner is: a row's bits may not depend on what was done before. Under way on return.
template <class C, int kStage>
MOELA_DEVICE void start_scores(Acc<C::kKeys>& scores, uint32_t parity) {
  const uint64_t q = make_descriptor(smem_base() + C::kSmemQ, 0, 1024, OperandLayout::k128B);
  const uint64_t k =
      make_descriptor(smem_base() + C::kSmemKv + kStage * C::kTileBytes, 0, 1024, OperandLayout::k128B);
  wgmma_fence(scores);
  MOELA_UNROLL
  for (uint32_t panel = 0; panel < C::kPanels; ++panel) {
    if (panel % C::kHalfPanels == 0 && panel < C::kRopePanel) {
      mbarrier_wait(half_full<C>(kStage, panel / C::kHalfPanels), parity);
      wgmma_fence();  // ptxas serialises products behind a loop without it
    }
    multiply_panel<C>(scores, q, k, panel);
  }
  wgmma_commit();
}

// The loading side: each half when its stage's is free.
template <class C>
MOELA_DEVICE void load_halves(const MlaDecodeParams& p) {
  load_pieces<C>(p, [&](const MlaRowGroups& keys, const MlaPosition<C>& at, bool issues) {
    MOELA_UNROLL
    for (int half = 0; half < 2; ++half) {
      if (issues) mbarrier_wait(half_empty<C>(at.stage, half), at.parity ^ 1);
      load_keys<C>(
          p, keys, panels_of_half<C>(at.stage, half), [&](int i) { return panel_of_half<C>(half, i); },
          at.stage, half_full<C>(at.stage, half), issues);
    }
  });
}

// A warpgroup's part in one piece after the other.
template <class C, int kGroup, class Work>
class MlaSeesaw {
 public:
  MOELA_DEVICE explicit MlaSeesaw(const Work& work) : work_(work) {}

  MOELA_DEVICE void run() {
    uint32_t q_parity = 0;
    for (int done = 0; work_.next(&piece_); done = before_ + piece_.end) {
      before_ = done - piece_.begin;
      softmax_ = {};
      half_.clear();
      if (piece_.begin < piece_.end) {
        mbarrier_wait(q_full<C>(), q_parity);
        q_parity ^= 1;
        attend_blocks();
      }
      softmax_.finish();
      float factor[2];
      MOELA_UNROLL
      for (int r = 0; r < 2; ++r) {
        factor[r] = work_.last_factor(piece_, softmax_, r, half_.row(r));
        if (kGroup == 0) work_.store_lse(piece_, half_.row(r), softmax_.lse(r));
      }
      store_half(work_, piece_, half_, factor);
    }
  }

 private:
  static constexpr int kOther = 1 - kGroup;

  // Of a block's stage.
  MOELA_DEVICE uint32_t parity_of(int block) const { return static_cast<uint32_t>(before_ + block) / 2 % 2; }

  MOELA_DEVICE void attend_blocks() {
    int block = piece_.begin + (before_ + piece_.begin + kGroup) % 2;  // the first of its own
    if (block >= piece_.end) arrive_warp(q_empty<C>());
    if (block == piece_.begin) {
      attend_own<false>(block);
      block += 2;
    }
    for (; block < piece_.end; block += 2) attend_own<true>(block);
    if (block > piece_.end) return;
    start_values_of_other(block - 1);
    wgmma_wait<0>(half_.sums);
    arrive_warp(half_empty<C>(kOther, kGroup));
  }

  // A block of this warpgroup's own, while the other's block before it is summed up.
  template <bool kFollows>
  MOELA_DEVICE void attend_own(int block) {
    Acc<C::kKeys> scores;
    AFragment weights[4];
    float rescale[2];
    start_scores<C, kGroup>(scores, parity_of(block));
    if constexpr (kFollows) start_values_of_other(block - 1);
    wgmma_wait<kFollows ? 1 : 0>(scores);
    if (block + 2 >= piece_.end) arrive_warp(q_empty<C>());
    work_.mask(piece_, block, kGroup, scores);
    softmax_.weigh(scores, rescale);
    round_weights<C>(scores, weights);
    half_.sync();  // a wait is for this warp's products only: the others have read the rope, too
    store_weights<C>(C::weights(kGroup), weights);
    sts(state(kGroup), softmax_.state());
    fence_proxy_async_shared();
    arrive_warp(state_full<C>(kGroup));
    wgmma_wait<0>(half_.sums);
    if constexpr (kFollows) arrive_warp(half_empty<C>(kOther, kGroup));
    half_.rescale(rescale);
    work_.end_keys(piece_, block, kGroup, half_);
    arrive_warp(half_empty<C>(kGroup, kOther));
    half_.multiply_values(weights, kGroup);
    arrive_warp(half_empty<C>(kGroup, kGroup));
  }

  // What the other warpgroup says of its block, and the products of its weights, under way on return.
  MOELA_DEVICE void start_values_of_other(int block) {
    float rescale[2];
    mbarrier_wait(state_full<C>(kOther), parity_of(block));
    softmax_.follow(lds<Vec4>(state(kOther)), rescale);
    mbarrier_wait(half_full<C>(kOther, kGroup), parity_of(block));
    half_.rescale(rescale);
    work_.end_keys(piece_, block, kOther, half_);
    half_.start_values(kOther);
  }

  static MOELA_DEVICE SmemAddr state(int group) {
    return smem_base() + C::kSmemState + static_cast<uint32_t>(group * 128 + tid() % 128) * 16;
  }

  Work work_;
  typename Work::Piece piece_ = {};
  MlaHalf<C, kGroup> half_;
  Softmax<C::kKeys> softmax_;
  int before_ = 0;  // with a block of the piece its number among all, whose parity is its stage
};

// As run_roles().
template <class C, class Work, class Params, class Load>
MOELA_DEVICE void run_seesaw(const Params& p, const Load& load) {
  if (warp() >= C::kFirstLoadingWarp) {
    set_registers<C::kRegisters.load>();
    load();
  } else if (warp() < 4) {
    set_registers<C::kRegisters.left>();
    MlaSeesaw<C, 0, Work>(Work(p)).run();
  } else {
    set_registers<C::kRegisters.right>();
    MlaSeesaw<C, 1, Work>(Work(p)).run();
  }
}

}  // namespace moela::cuda::sm90
