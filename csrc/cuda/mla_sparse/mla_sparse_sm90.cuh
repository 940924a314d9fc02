// mla_sparse on Hopper. DESIGN.md has the arithmetic behind the shapes and the schedule.
//
// Computes, for 64 heads of a token at a time, out = softmax(q k^T) v over the rows that its entries name, in
// blocks of 64; k and v are the same bytes. Bound: the tensor core for 64 heads and more of a cache of bytes,
// the memory for fewer and for wider rows. Grid: each thread block walks over units, a tile of heads and a
// piece of a token's entries. Invariants: a block of rows lies in a stage of [kPanels][64][64] elements; rows
// of entries that name nothing are zeros there, and their scores -Inf. Numerics: scores and sums in float32,
// weights rounded to the type of q; the sum of the weights is that of the unrounded ones. Rows of bytes
// become bfloat16 with one rounding of their float32 values.
#pragma once

#include "cuda/mla_decode/mla_hand_over.cuh"
#include "cuda/mla_decode/mla_merge_sm90.cuh"
#include "cuda/mla_sparse/mla_gather.cuh"

namespace moela::cuda::sm90 {

// Products of queries and keys become scores to the base 2; -Inf where the entry names nothing.
template <class C>
MOELA_DEVICE void mask_scores(const MlaSparseParams& p, uint64_t named, Acc<C::kKeys>& scores) {
  named >>= 2 * (lane() % 4);
  MOELA_UNROLL
  for (int i = 0; i < C::kKeys / 2; ++i) {
    const float score = scores.get(i) * p.scale_log2;
    scores.set(i, named >> (i / 4 * 8 + i % 2) & 1 ? score : -kInfinity);
  }
}

// What a head's sums are multiplied with: 1 over the sum of its weights and, of a token of one piece, the
// weight of its sink.
template <int kKeys>
MOELA_DEVICE float last_factor(const MlaSparseParams& p, const Softmax<kKeys>& softmax, int r, int head) {
  const MlaSparseArgs& a = p.args;
  if (a.attn_sink == nullptr || p.pieces > 1 || head >= a.H || softmax.sum[r] == 0.f)
    return softmax.inverse(r);
  const float sink = ldg_nc(a.attn_sink + head * a.stride_sh);
  return div_rn(1.f, softmax.sum[r] + ex2_approx(sink * kLog2E - softmax.max[r]));
}

// Which row of out and lse, or of piece_out and piece_lse.
MOELA_DEVICE int64_t stored_row(const MlaSparseParams& p, const MlaSparseUnit& unit, int head) {
  const int64_t token = p.pieces == 1 ? unit.token : int64_t{unit.piece} * p.args.T + unit.token;
  return token * p.args.H + head;
}

template <class C, int kGroup>
MOELA_DEVICE void store_half(const MlaSparseParams& p, const MlaSparseUnit& unit,
                             const MlaHalf<C, kGroup>& half, const float (&factor)[2]) {
  MOELA_UNROLL
  for (int r = 0; r < 2; ++r) {
    const int head = unit.tile * C::kRows + half.row(r);
    if (head < p.args.H)
      store_sums_of_row<C>(p.pieces == 1, p.args.out, p.args.piece_out, stored_row(p, unit, head), half.sums,
                           r, kGroup * C::kHalf, factor[r]);
  }
}

// Warpgroup 0.
template <class C>
MOELA_DEVICE void attend(const MlaSparseParams& p) {
  MlaPosition<C> at;
  uint32_t q_parity = 0, p_parity = 0;
  MlaHalf<C, 0> left;
  MlaSparseUnits units(p);
  for (MlaSparseUnit unit; units.next(&unit); p_parity ^= 1) {
    Softmax<C::kKeys> softmax;
    left.clear();
    if (unit.begin < unit.end) {
      mbarrier_wait(q_full<C>(), q_parity);
      q_parity ^= 1;
    }
    for (int block = unit.begin; block < unit.end; ++block, at.advance(), p_parity ^= 1) {
      Acc<C::kKeys> scores;
      AFragment weights[4];
      float rescale[2];
      mbarrier_wait(kv_full<C>(at.stage), at.parity);
      multiply_keys<C>(scores, at.stage);
      if (block + 1 == unit.end) arrive_warp(q_empty<C>());
      mask_scores<C>(p, lds<uint64_t>(smem_named<C>(at.stage)), scores);
      softmax.weigh(scores, rescale);
      MOELA_UNROLL
      for (int i = 0; i < 16; ++i)
        weights[i / 4].set(i % 4, rounded_pair<C::kFloat>(scores.get(2 * i), scores.get(2 * i + 1)));
      mbarrier_wait(p_empty<C>(), p_parity ^ 1);
      hand_over<C>(rescale, weights);
      left.rescale(rescale);
      left.multiply_values(weights, at.stage);
      arrive_warp(kv_empty<C>(at.stage));
    }
    softmax.finish();
    float factor[2];
    MOELA_UNROLL
    for (int r = 0; r < 2; ++r) {
      const int head = unit.tile * C::kRows + left.row(r);
      factor[r] = last_factor(p, softmax, r, head);
      if (head < p.args.H && lane() % 4 == 0)
        stg((p.pieces == 1 ? p.args.lse : p.args.piece_lse) + stored_row(p, unit, head), softmax.lse(r));
    }
    mbarrier_wait(p_empty<C>(), p_parity ^ 1);
    hand_over<C>(factor);
    store_half(p, unit, left, factor);
  }
}

// Warpgroup 1: what it is handed, the weights of each block of a unit and at last what its sums are
// multiplied with.
template <class C>
MOELA_DEVICE void follow(const MlaSparseParams& p) {
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
  MlaSparseUnits units(p);
  for (MlaSparseUnit unit; units.next(&unit);) {
    right.clear();
    for (int block = unit.begin; block < unit.end; ++block, at.advance()) {
      take_factors();
      mbarrier_wait(kv_full<C>(at.stage), at.parity);
      right.rescale(factor);
      right.multiply_values(at.stage);
      arrive_warp(p_empty<C>());
      if (lane() == 0) mbarrier_arrive(kv_empty<C>(at.stage));
    }
    take_factors();
    arrive_warp(p_empty<C>());
    store_half(p, unit, right, factor);
  }
}

template <class C>
MOELA_KERNEL(C::kThreads)
mla_sparse_kernel(MOELA_PARAM MlaSparseParams p) {
  init_barriers<C>();
  griddep_wait();  // the kernels before write q, the cache and the indices
  if (warp() >= C::kFirstLoadingWarp) {
    setmaxnreg_dec<C::kLoadRegisters>();
    load_units<C>(p);
  } else if (warp() < 4) {
    setmaxnreg_inc<C::kLeftRegisters>();
    attend<C>(p);
  } else {
    setmaxnreg_dec<C::kRightRegisters>();
    follow<C>(p);
  }
  griddep_launch();
}

// The pieces of the tokens, with their sinks. Bound: memory, reads each piece once. Grid: ceil(T * H /
// kWarps) blocks; a warp owns a row. Pieces are added in their order.
template <int kV, MlaFloat kFloat>
MOELA_KERNEL(MlaMergeConfig::kThreads)
mla_sparse_merge_kernel(MOELA_PARAM MlaSparseParams p) {
  griddep_wait();
  const MlaSparseArgs& a = p.args;
  const int64_t rows = static_cast<int64_t>(a.T) * a.H;
  const int64_t row = static_cast<int64_t>(block()) * MlaMergeConfig::kWarps + warp();
  if (row >= rows) return;
  const float sink = a.attn_sink == nullptr ? -kInfinity : ldg_nc(a.attn_sink + row % a.H * a.stride_sh);
  merge_row<kV, kFloat>(a.piece_lse + row, a.piece_out + row * kV, p.pieces, rows, sink,
                        static_cast<uint16_t*>(a.out) + row * kV, a.lse + row);
}

}  // namespace moela::cuda::sm90
