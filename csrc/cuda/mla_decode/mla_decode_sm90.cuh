// mla_decode on Hopper. DESIGN.md has the arithmetic behind the shapes and the schedule.
//
// Computes, for 64 query rows (queries and heads) of a request at a time, out = softmax(q k^T) v over blocks
// of 64 keys; k and v are the same bytes. Bound: the DRAM rate of the cache for up to 64 rows of a request,
// the tensor core from 128 on. Grid: plan.num_parts x plan.tiles blocks, those of a part side by side, so
// that they read the same keys at about the same time; each does all pieces of its part. Invariants: a block
// of keys lies in a stage of [kPanels][64][64] elements; rows of it that some row of the tile does not see
// are zeros when the tensor core multiplies values. Numerics: scores and sums in float32, weights rounded to
// the type of q; the sum of the weights is that of the unrounded ones.
#pragma once

#include "cuda/mla_decode/mla_hand_over.cuh"
#include "cuda/mla_decode/mla_load.cuh"

namespace moela::cuda::sm90 {

// Products of queries and keys become scores to the base 2; -Inf where the row does not see the key.
template <class C>
MOELA_DEVICE void mask_scores(const MlaDecodeParams& p, const MlaPiece& piece, int tile, int block,
                              const MlaSeen& seen, Acc<C::kKeys>& scores) {
  int limit[2] = {C::kKeys, C::kKeys};
  if (seen.all < C::kKeys) {
    MOELA_UNROLL
    for (int r = 0; r < 2; ++r)
      limit[r] = keys_seen(p.args, piece.seqlen, tile * C::kRows + MlaHalf<C, 0>::row(r)) - block * C::kKeys;
  }
  MOELA_UNROLL
  for (int i = 0; i < C::kKeys / 2; ++i) {
    const int key = i / 4 * 8 + 2 * (lane() % 4) + i % 2;
    const float score = scores.get(i) * p.scale_log2;
    scores.set(i, key < limit[i / 2 % 2] ? score : -kInfinity);
  }
}

// Warpgroup 0.
template <class C>
MOELA_DEVICE void attend(const MlaDecodeParams& p) {
  const int tile = block() % p.tiles;
  MlaPosition<C> at;
  uint32_t q_parity = 0, p_parity = 0;
  MlaHalf<C, 0> left;
  MlaPieces pieces(p, block() / p.tiles);
  for (MlaPiece piece; pieces.next(&piece); p_parity ^= 1) {
    Softmax<C::kKeys> softmax;
    left.clear();
    if (piece.begin < piece.end) {
      mbarrier_wait(q_full<C>(), q_parity);
      q_parity ^= 1;
    }
    for (int block = piece.begin; block < piece.end; ++block, at.advance(), p_parity ^= 1) {
      const MlaSeen seen = seen_in_block<C>(p.args, piece.seqlen, tile, block);
      Acc<C::kKeys> scores;
      AFragment weights[4];
      float rescale[2];
      mbarrier_wait(kv_full<C>(at.stage), at.parity);
      multiply_keys<C>(scores, at.stage);
      if (block + 1 == piece.end) arrive_warp(q_empty<C>());
      mask_scores<C>(p, piece, tile, block, seen, scores);
      softmax.weigh(scores, rescale);
      MOELA_UNROLL
      for (int i = 0; i < 16; ++i)
        weights[i / 4].set(i % 4, rounded_pair<C::kFloat>(scores.get(2 * i), scores.get(2 * i + 1)));
      mbarrier_wait(p_empty<C>(), p_parity ^ 1);
      hand_over<C>(rescale, weights);
      left.rescale(rescale);
      left.end_keys(p.args, piece, tile, block, seen, at.stage);
      left.multiply_values(weights, at.stage);
      arrive_warp(kv_empty<C>(at.stage));
    }
    softmax.finish();
    float factor[2];
    MOELA_UNROLL
    for (int r = 0; r < 2; ++r) factor[r] = piece.is_stale ? kNan : softmax.inverse(r);
    mbarrier_wait(p_empty<C>(), p_parity ^ 1);
    hand_over<C>(factor);
    MOELA_UNROLL
    for (int r = 0; r < 2; ++r) {
      const int row = tile * C::kRows + left.row(r);
      store_lse(p.args, piece, row, piece.is_stale ? kNan : softmax.lse(r));
      store_sums<C>(p.args, piece, left.sums, r, row, 0, factor[r]);
    }
  }
}

// Warpgroup 1: what it is handed, the weights of each block of a piece and at last the sums' inverses.
template <class C>
MOELA_DEVICE void follow(const MlaDecodeParams& p) {
  const int tile = block() % p.tiles;
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
  MlaPieces pieces(p, block() / p.tiles);
  for (MlaPiece piece; pieces.next(&piece);) {
    right.clear();
    for (int block = piece.begin; block < piece.end; ++block, at.advance()) {
      const MlaSeen seen = seen_in_block<C>(p.args, piece.seqlen, tile, block);
      take_factors();
      mbarrier_wait(kv_full<C>(at.stage), at.parity);
      right.rescale(factor);
      right.end_keys(p.args, piece, tile, block, seen, at.stage);
      right.multiply_values(at.stage);
      arrive_warp(p_empty<C>());
      if (lane() == 0) mbarrier_arrive(kv_empty<C>(at.stage));
    }
    take_factors();
    arrive_warp(p_empty<C>());
    MOELA_UNROLL
    for (int r = 0; r < 2; ++r)
      store_sums<C>(p.args, piece, right.sums, r, tile * C::kRows + right.row(r), C::kHalf, factor[r]);
  }
}

template <class C>
MOELA_KERNEL(C::kThreads)
mla_decode_kernel(MOELA_PARAM MlaDecodeParams p) {
  init_barriers<C>();
  griddep_wait();  // the kernels before write q, the cache and the schedule
  if (warp() >= C::kFirstLoadingWarp) {
    setmaxnreg_dec<C::kLoadRegisters>();
    load_pieces<C>(p);
  } else {
    setmaxnreg_inc<C::kMathRegisters>();
    if (warp() < 4) {
      attend<C>(p);
    } else {
      follow<C>(p);
    }
  }
  griddep_launch();
}

}  // namespace moela::cuda::sm90
