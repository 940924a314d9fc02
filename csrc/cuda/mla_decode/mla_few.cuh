// How one warpgroup attends few rows: for each piece its blocks of keys, then what has been summed up.
#pragma once

#include "cuda/mla_decode/mla_few_attend.cuh"
#include "cuda/mla_decode/mla_load_bytes.cuh"
#include "cuda/mla_decode/mla_loops.cuh"

namespace moela::cuda::sm90 {

template <class C>
class MlaFewRows {
 public:
  MOELA_DEVICE explicit MlaFewRows(const MlaDecodeParams& p) : p_(p), pieces_(pieces_of_block<C>(p)) {}

  MOELA_DEVICE void run() {
    MlaPosition<C> at;
    uint32_t q_parity = 0;
    for (MlaPiece piece; pieces_.next(&piece);) {
      const MlaSeen seen = seen_keys<C>(p_.args, piece);
      MlaFewSoftmax<C> softmax;
      sums_.clear();
      if (piece.begin < piece.end) {
        mbarrier_wait(q_full<C>(), q_parity);
        q_parity ^= 1;
      }
      for (int block = piece.begin; block < piece.end; ++block, at.advance()) {
        mbarrier_wait(kv_full<C>(at.stage), at.parity);
        attend(piece, block, seen_in_block<C>(seen, block), at.stage, softmax);
        arrive_warp(kv_empty<C>(at.stage));
      }
      softmax.finish();
      store(piece, softmax);
      few_sync();  // what warps have exchanged has been read
    }
  }

 private:
  using Limits = int[C::kRowsOfThread];

  MOELA_DEVICE void attend(const MlaPiece& piece, int block, const MlaSeen& seen, int stage,
                           MlaFewSoftmax<C>& softmax) {
    Acc<C::kRows> scores;
    Limits limit;
    float rescale[C::kRowsOfThread];
    multiply_few_keys<C>(scores, stage);
    if (block + 1 == piece.end) arrive_warp(q_empty<C>());
    find_limits(piece, block, seen, limit);
    mask(limit, scores);
    softmax.weigh(scores, rescale);  // and all warps have multiplied the last block's weights
    store_transposed<C>(smem_base() + C::kSmemP, [&](int i) { return scores.get(i); });
    fence_proxy_async_shared();
    sums_.rescale(rescale);
    few_sync();
    if (seen.all < C::kKeys) {
      add_keys_of_some(seen, stage, limit);
      few_sync();  // no warp overwrites keys that another still reads
      clear_keys<C, C::kValuePanels>(seen.all, few_keys<C>(stage));
      few_sync();
    }
    sums_.multiply_values(stage);
  }

  // Which keys of the block the thread's rows see: those before this one.
  MOELA_DEVICE void find_limits(const MlaPiece& piece, int block, const MlaSeen& seen, Limits& limit) const {
    MOELA_UNROLL
    for (int r = 0; r < C::kRowsOfThread; ++r) limit[r] = C::kKeys;
    if (seen.all == C::kKeys) return;
    MOELA_UNROLL
    for (int r = 0; r < C::kRowsOfThread; ++r)
      limit[r] = keys_seen(p_.args, piece, piece.rows.first + few_row(r)) - block * C::kKeys;
  }

  // As MlaDecodeWork::mask().
  MOELA_DEVICE void mask(const Limits& limit, Acc<C::kRows>& scores) const {
    MOELA_UNROLL
    for (int i = 0; i < C::kRows / 2; ++i)
      scores.set(i, few_place(i) < limit[few_row_of(i)] ? scores.get(i) * p_.scale_log2 : -kInfinity);
  }

  // As add_keys_of_some() of mla_ends.cuh.
  MOELA_DEVICE void add_keys_of_some(const MlaSeen& seen, int stage, const Limits& limit) {
    const int column[2] = {few_place(0), few_place(2)};
    for (int key = seen.all; key < seen.some; ++key) {
      float weight[C::kRowsOfThread];
      MOELA_UNROLL
      for (int r = 0; r < C::kRowsOfThread; ++r)
        weight[r] = to_float32<C>(lds<uint16_t>(smem_base() + C::kSmemP + panel_byte(few_row(r), key * 2)));
      MOELA_UNROLL
      for (int panel = 0; panel < C::kValuePanels; ++panel) {
        const SmemAddr values = few_keys<C>(stage) + static_cast<uint32_t>(panel) * C::kPanelBytes;
        float value[2];
        MOELA_UNROLL
        for (int h = 0; h < 2; ++h)
          value[h] = to_float32<C>(lds<uint16_t>(values + panel_byte(key, column[h] * 2)));
        MOELA_UNROLL
        for (int i = 0; i < C::kRows / 2; ++i) {
          const int r = few_row_of(i);
          const float sum = sums_.panels[panel].get(i);
          sums_.panels[panel].set(i, key < limit[r] ? sum + weight[r] * value[i / 2 % 2] : sum);
        }
      }
    }
  }

  MOELA_DEVICE void store(const MlaPiece& piece, const MlaFewSoftmax<C>& softmax) const {
    float factor[C::kRowsOfThread];
    const bool has_lse = warp() == 0 && lane() < 4;
    MOELA_UNROLL
    for (int r = 0; r < C::kRowsOfThread; ++r) {
      const float sum = softmax.sum[r];
      factor[r] = piece.is_stale ? kNan : softmax_inverse(sum);
      if (has_lse && is_row(piece, few_row(r)))
        stg((piece.is_whole ? p_.args.lse : p_.args.piece_lse) + stored(piece, few_row(r)),
            piece.is_stale ? kNan : softmax_lse(softmax.max[r], sum));
    }
    if (piece.is_whole) {
      store_result(piece, factor);
    } else {
      store_piece(piece, factor);
    }
  }

  // By way of shared memory: neighbours in a row are in different lanes.
  MOELA_DEVICE void store_result(const MlaPiece& piece, const float (&factor)[C::kRowsOfThread]) const {
    constexpr int kChunks = C::kV / 8;  // 16 bytes each
    const SmemAddr tile = smem_base() + C::kSmemP;
    MOELA_UNROLL
    for (int panel = 0; panel < C::kValuePanels; ++panel)
      store_transposed<C>(tile + static_cast<uint32_t>(panel) * C::kRowPanelBytes,
                          [&](int i) { return sums_.panels[panel].get(i) * factor[few_row_of(i)]; });
    few_sync();
    for (int i = tid(); i < C::kRows * kChunks; i += 128) {
      const int row = i / kChunks, chunk = i % kChunks;
      if (!is_row(piece, row)) return;
      stg(static_cast<Vec4*>(p_.args.out) + stored(piece, row) * kChunks + chunk,
          lds<Vec4>(tile + static_cast<uint32_t>(chunk / 8) * C::kRowPanelBytes +
                    panel_byte(row, chunk % 8 * 16)));
    }
  }

  // Eight lanes have the columns of 32 bytes.
  MOELA_DEVICE void store_piece(const MlaPiece& piece, const float (&factor)[C::kRowsOfThread]) const {
    const int column[2] = {few_place(0), few_place(2)};
    MOELA_UNROLL
    for (int r = 0; r < C::kRowsOfThread; ++r) {
      if (!is_row(piece, few_row(r))) continue;
      float* to = p_.args.piece_out + stored(piece, few_row(r)) * C::kV;
      MOELA_UNROLL
      for (int panel = 0; panel < C::kValuePanels; ++panel) {
        MOELA_UNROLL
        for (int i = 0; i < C::kRows / 2; ++i)
          if (few_row_of(i) == r)
            stg(to + panel * C::kPanel + column[i / 2 % 2], sums_.panels[panel].get(i) * factor[r]);
      }
    }
  }

  // Whether the request has this row of the tile, and where it is stored.
  MOELA_DEVICE bool is_row(const MlaPiece& piece, int tile_row) const {
    return piece.rows.first + tile_row < piece.rows.queries * p_.args.H;
  }
  MOELA_DEVICE int64_t stored(const MlaPiece& piece, int tile_row) const {
    return stored_row(p_.args, piece, piece.rows.first + tile_row);
  }

  const MlaDecodeParams& p_;
  MlaPieces pieces_;
  MlaFewSums<C> sums_;
};

// As run_roles(), with one warpgroup that multiplies.
template <class C>
MOELA_DEVICE void run_few(const MlaDecodeParams& p) {
  if (warp() < C::kMathWarps) {
    set_registers<C::kRegisters.left>();
    MlaFewRows<C>(p).run();
  } else {
    set_registers<C::kRegisters.load>();
    if constexpr (C::kHasBytes) {
      load_bytes<C>(p);
    } else {
      load_whole_blocks<C>(p);
    }
  }
}

template <class C>
MOELA_DEVICE void init_few_barriers() {
  if (tid() == 0) {
    init_loading_barriers<C>();
    fence_mbarrier_init();
  }
  sync_block();
}

}  // namespace moela::cuda::sm90
