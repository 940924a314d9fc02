// What the thread blocks of mla_decode do (mla_loops.cuh): the pieces of a part, for a tile of rows.
#pragma once

#include "cuda/mla_decode/mla_ends.cuh"
#include "cuda/mla_decode/mla_store.cuh"

namespace moela::cuda::sm90 {

// Parts are apart by the number of tiles: those of a part are neighbours, which read the same keys at about
// the same time.
template <class C>
MOELA_DEVICE MlaPieces pieces_of_block(const MlaDecodeParams& p) {
  return MlaPieces(p, block() / p.tiles, block() % p.tiles * C::kRows);
}

// Which row of out and lse, or of piece_out and piece_lse, a row of a request is.
MOELA_DEVICE int64_t stored_row(const MlaDecodeArgs& a, const MlaPiece& piece, int row) {
  if (piece.is_whole) return static_cast<int64_t>(piece.rows.first_query) * a.H + row;
  // Of a ragged batch an item is the tile itself.
  return static_cast<int64_t>(piece.index) * a.item_rows +
         (a.tiles == nullptr ? row : row - piece.rows.first);
}

template <class C>
class MlaDecodeWork {
 public:
  using Piece = MlaPiece;
  MOELA_DEVICE explicit MlaDecodeWork(const MlaDecodeParams& p) : p_(p), pieces_(pieces_of_block<C>(p)) {}

  MOELA_DEVICE bool next(MlaPiece* piece) { return pieces_.next(piece); }

  // Products of queries and keys become scores to the base 2; -Inf where the row does not see the key.
  MOELA_DEVICE void mask(const MlaPiece& piece, int block, int, Acc<C::kKeys>& scores) const {
    int limit[2] = {C::kKeys, C::kKeys};
    if (seen_in_block<C>(seen_keys<C>(p_.args, piece), block).all < C::kKeys) {
      MOELA_UNROLL
      for (int r = 0; r < 2; ++r)
        limit[r] = keys_seen(p_.args, piece, piece.rows.first + MlaHalf<C, 0>::row(r)) - block * C::kKeys;
    }
    MOELA_UNROLL
    for (int i = 0; i < C::kKeys / 2; ++i) {
      const int key = i / 4 * 8 + 2 * (lane() % 4) + i % 2;
      const float score = scores.get(i) * p_.scale_log2;
      scores.set(i, key < limit[i / 2 % 2] ? score : -kInfinity);
    }
  }

  template <int kGroup>
  MOELA_DEVICE void end_keys(const MlaPiece& piece, int block, int stage, MlaHalf<C, kGroup>& half) const {
    const MlaSeen seen = seen_in_block<C>(seen_keys<C>(p_.args, piece), block);
    if (seen.all == C::kKeys) return;
    add_keys_of_some(p_.args, piece, block, seen, stage, half);
    half.sync();  // no warp overwrites keys that another still reads
    clear_keys<C, C::kHalfPanels>(seen.all, half.values(stage));
    half.sync();
  }

  MOELA_DEVICE float last_factor(const MlaPiece& piece, const Softmax<C::kKeys>& softmax, int r, int) const {
    return piece.is_stale ? kNan : softmax.inverse(r);
  }
  MOELA_DEVICE void store_lse(const MlaPiece& piece, int tile_row, float lse) const {
    const int row = piece.rows.first + tile_row;
    if (row >= piece.rows.queries * p_.args.H || lane() % 4 != 0) return;
    stg((piece.is_whole ? p_.args.lse : p_.args.piece_lse) + stored_row(p_.args, piece, row),
        piece.is_stale ? kNan : lse);
  }
  MOELA_DEVICE void store_sums(const MlaPiece& piece, int tile_row, const Acc<C::kHalf>& sums, int r,
                               int first, float factor) const {
    const int row = piece.rows.first + tile_row;
    if (row >= piece.rows.queries * p_.args.H) return;
    store_sums_of_row<C>(piece.is_whole, p_.args.out, p_.args.piece_out, stored_row(p_.args, piece, row),
                         sums, r, first, factor);
  }

 private:
  const MlaDecodeParams& p_;
  MlaPieces pieces_;
};

}  // namespace moela::cuda::sm90
