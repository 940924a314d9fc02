// What the thread blocks of mla_sparse do (cuda/mla_decode/mla_loops.cuh): units, a tile of heads and a piece
// of a token's entries.
#pragma once

#include "cuda/mla_decode/mla_store.cuh"
#include "cuda/mla_sparse/mla_sparse_params.cuh"

namespace moela::cuda::sm90 {

template <class C>
class MlaSparseWork {
 public:
  using Piece = MlaSparseUnit;
  MOELA_DEVICE explicit MlaSparseWork(const MlaSparseParams& p) : p_(p), units_(p) {}

  MOELA_DEVICE bool next(MlaSparseUnit* unit) { return units_.next(unit); }

  // Products of queries and keys become scores to the base 2; -Inf where the entry names nothing.
  MOELA_DEVICE void mask(const MlaSparseUnit&, int, int stage, Acc<C::kKeys>& scores) const {
    auto named = lds<uint64_t>(smem_named<C>(stage));
    named >>= 2 * (lane() % 4);
    MOELA_UNROLL
    for (int i = 0; i < C::kKeys / 2; ++i) {
      const float score = scores.get(i) * p_.scale_log2;
      scores.set(i, named >> (i / 4 * 8 + i % 2) & 1 ? score : -kInfinity);
    }
  }
  // Rows of entries that name nothing are zeros, and all heads see the others.
  template <int kGroup>
  MOELA_DEVICE void end_keys(const MlaSparseUnit&, int, int, MlaHalf<C, kGroup>&) const {}

  // 1 over the sum of a head's weights and, of a token of one piece, the weight of its sink.
  MOELA_DEVICE float last_factor(const MlaSparseUnit& unit, const Softmax<C::kKeys>& softmax, int r,
                                 int tile_row) const {
    const MlaSparseArgs& a = p_.args;
    const int head = unit.tile * C::kRows + tile_row;
    if (a.attn_sink == nullptr || p_.pieces > 1 || head >= a.H || softmax.sum[r] == 0.f)
      return softmax.inverse(r);
    const float sink = ldg_nc(a.attn_sink + head * a.stride_sh);
    return div_rn(1.f, softmax.sum[r] + ex2_approx(sink * kLog2E - softmax.max[r]));
  }
  MOELA_DEVICE void store_lse(const MlaSparseUnit& unit, int tile_row, float lse) const {
    const int head = unit.tile * C::kRows + tile_row;
    if (head < p_.args.H && lane() % 4 == 0)
      stg((p_.pieces == 1 ? p_.args.lse : p_.args.piece_lse) + stored_row(unit, head), lse);
  }
  MOELA_DEVICE void store_sums(const MlaSparseUnit& unit, int tile_row, const Acc<C::kHalf>& sums, int r,
                               int first, float factor) const {
    const int head = unit.tile * C::kRows + tile_row;
    if (head < p_.args.H)
      store_sums_of_row<C>(p_.pieces == 1, p_.args.out, p_.args.piece_out, stored_row(unit, head), sums, r,
                           first, factor);
  }

 private:
  // Which row of out and lse, or of piece_out and piece_lse.
  MOELA_DEVICE int64_t stored_row(const MlaSparseUnit& unit, int head) const {
    const int64_t token = p_.pieces == 1 ? unit.token : int64_t{unit.piece} * p_.args.T + unit.token;
    return token * p_.args.H + head;
  }

  const MlaSparseParams& p_;
  MlaSparseUnits units_;
};

}  // namespace moela::cuda::sm90
