// How two warpgroups attend what a thread block has to do: for each piece its blocks of keys, then what has
// been summed up. Warpgroup 0 multiplies queries and keys, makes weights of the scores and hands them to
// warpgroup 1; each multiplies them with its half of the values' columns.
//
// Work says what the pieces are (mla_decode_work.cuh, mla_sparse_work.cuh): next(&piece), with the blocks
// [piece.begin, piece.end); mask(piece, block, stage, scores); end_keys(piece, block, stage, half) before
// values are multiplied; last_factor(piece, softmax, r, row) for a row of the tile; store_lse(...) and
// store_sums(...).
#pragma once

#include "cuda/block/softmax.cuh"
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
  store_weights<C>(C::weights(0), weights);
  hand_over<C>(factor);
}

template <class Work, class C, int kGroup>
MOELA_DEVICE void store_half(const Work& work, const typename Work::Piece& piece,
                             const MlaHalf<C, kGroup>& half, const float (&factor)[2]) {
  MOELA_UNROLL
  for (int r = 0; r < 2; ++r) work.store_sums(piece, half.row(r), half.sums, r, kGroup * C::kHalf, factor[r]);
}

// Warpgroup 0.
template <class C, class Work>
MOELA_DEVICE void attend(Work work) {
  MlaPosition<C> at;
  uint32_t q_parity = 0, p_parity = 0;
  MlaHalf<C, 0> left;
  for (typename Work::Piece piece; work.next(&piece); p_parity ^= 1) {
    Softmax<C::kKeys> softmax;
    left.clear();
    if (piece.begin < piece.end) {
      mbarrier_wait(q_full<C>(), q_parity);
      q_parity ^= 1;
    }
    for (int block = piece.begin; block < piece.end; ++block, at.advance(), p_parity ^= 1) {
      Acc<C::kKeys> scores;
      AFragment weights[4];
      float rescale[2];
      mbarrier_wait(kv_full<C>(at.stage), at.parity);
      multiply_keys<C>(scores, at.stage);
      if (block + 1 == piece.end) arrive_warp(q_empty<C>());
      work.mask(piece, block, at.stage, scores);
      softmax.weigh(scores, rescale);
      round_weights<C>(scores, weights);
      mbarrier_wait(p_empty<C>(), p_parity ^ 1);
      hand_over<C>(rescale, weights);
      left.rescale(rescale);
      work.end_keys(piece, block, at.stage, left);
      left.multiply_values(weights, at.stage);
      arrive_warp(kv_empty<C>(at.stage));
    }
    softmax.finish();
    float factor[2];
    MOELA_UNROLL
    for (int r = 0; r < 2; ++r) {
      factor[r] = work.last_factor(piece, softmax, r, left.row(r));
      work.store_lse(piece, left.row(r), softmax.lse(r));
    }
    mbarrier_wait(p_empty<C>(), p_parity ^ 1);
    hand_over<C>(factor);
    store_half(work, piece, left, factor);
  }
}

// Warpgroup 1: what it is handed, the weights of each block of a piece and at last what its sums are
// multiplied with.
template <class C, class Work>
MOELA_DEVICE void follow(Work work) {
  MlaPosition<C> at;
  uint32_t p_parity = 0;
  MlaHalf<C, 1> right;
  float factor[2];
  const auto take_factors = [&] {
    mbarrier_wait(p_full<C>(), p_parity);
    p_parity ^= 1;
    MOELA_UNROLL
    for (int r = 0; r < 2; ++r)
      factor[r] = lds<float>(smem_base() + C::kSmemFactor + static_cast<uint32_t>(right.row(r)) * 4);
  };
  for (typename Work::Piece piece; work.next(&piece);) {
    right.clear();
    for (int block = piece.begin; block < piece.end; ++block, at.advance()) {
      take_factors();
      mbarrier_wait(kv_full<C>(at.stage), at.parity);
      right.rescale(factor);
      work.end_keys(piece, block, at.stage, right);
      right.multiply_values(at.stage);
      arrive_warp(p_empty<C>());
      if (lane() == 0) mbarrier_arrive(kv_empty<C>(at.stage));
    }
    take_factors();
    arrive_warp(p_empty<C>());
    store_half(work, piece, right, factor);
  }
}

// A thread has 168 registers at first: what 384 threads divide 65536 into, in eights.
template <int kRegisters>
MOELA_DEVICE void set_registers() {
  if constexpr (kRegisters > 168) {
    setmaxnreg_inc<kRegisters>();
  } else if constexpr (kRegisters < 168) {
    setmaxnreg_dec<kRegisters>();
  }
}

// The three roles of a thread block: load() is that of the third warpgroup. Each has a Work of its own: what
// is made before roles part is spilled.
template <class C, class Work, class Params, class Load>
MOELA_DEVICE void run_roles(const Params& p, const Load& load) {
  if (warp() >= C::kFirstLoadingWarp) {
    set_registers<C::kRegisters.load>();
    load();
  } else if (warp() < 4) {
    set_registers<C::kRegisters.left>();
    attend<C>(Work(p));
  } else {
    set_registers<C::kRegisters.right>();
    follow<C>(Work(p));
  }
}

}  // namespace moela::cuda::sm90
