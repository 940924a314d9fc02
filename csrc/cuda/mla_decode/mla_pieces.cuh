// The pieces of a part: what a thread block does of the schedule (python/moela/reference/mla_schedule.py).
// What the schedule calls a request is, of a ragged batch, a tile of the rows of one.
#pragma once

#include "cuda/mla_decode/mla_params.cuh"
#include "plan/mla_schedule.h"

namespace moela::cuda::sm90 {

// Rows of a request: its queries' heads, in order.
struct MlaRows {
  int request, first;        // the first one meant, among those of the request
  int queries, first_query;  // all of the request; the first among those of all requests
};

// Blocks [begin, end) of the keys of a request, for one tile of its rows.
struct MlaPiece {
  MlaRows rows;
  int begin, end;
  int seqlen;
  int index;      // among the pieces of all requests
  bool is_whole;  // the only one of its request: its result is the request's
  bool is_stale;  // the schedule was made for another length: nothing is read, the result is NaN
};

MOELA_DEVICE int planned(const MlaDecodeArgs& a, int row, int column) {
  return ldg(a.schedule + row * a.stride_schedule + column);
}

// Whether the schedule is for such a batch, and its pieces have memory: one made for requests longer than
// these can be may have more. One that is not is not read: mla_merge_kernel writes NaN.
MOELA_DEVICE bool is_scheduled(const MlaDecodeParams& p) {
  const MlaDecodeArgs& a = p.args;
  return planned(a, 0, 0) == a.items && planned(a, 0, 1) == p.num_parts && planned(a, 0, 2) == a.item_rows &&
         planned(a, 0, 3) == (a.batch_invariant ? 1 : 0) &&
         planned(a, p.num_parts + 2 + a.items, 0) <= a.pieces;
}

// The rows of an item of the schedule from `first` on.
MOELA_DEVICE MlaRows rows_of(const MlaDecodeArgs& a, int item, int first) {
  if (a.tiles == nullptr) return {item, first, a.s_q, item * a.s_q};
  const Vec4 tile = ldg(reinterpret_cast<const Vec4*>(a.tiles) + item);
  return {static_cast<int>(tile.x), static_cast<int>(tile.y) + first, static_cast<int>(tile.z),
          static_cast<int>(tile.w)};
}

// Keeps little: threads that multiply have no registers to spare, and next() is rare.
class MlaPieces {
 public:
  // first_row: of an item, where the thread block's tile begins.
  MOELA_DEVICE MlaPieces(const MlaDecodeParams& p, int part, int first_row)
      : p_(p), part_(part), first_row_(first_row) {
    if (!is_scheduled(p)) {
      item_ = kNone;
      return;
    }
    item_ = planned(p.args, 1 + part, 0);
    block_ = planned(p.args, 1 + part, 1);
    index_ = planned(p.args, 1 + part, 2);
  }

  MOELA_DEVICE bool next(MlaPiece* piece) {
    if (item_ == kNone) return false;
    const MlaDecodeArgs& a = p_.args;
    const int end_item = planned(a, 2 + part_, 0), end_block = planned(a, 2 + part_, 1);
    if (item_ > end_item || (item_ == end_item && block_ >= end_block)) return false;
    const int first = p_.num_parts + 2 + item_, length = planned(a, first, 1);
    const auto blocks = static_cast<int>(plan::mla_blocks_of(length));
    int end = item_ == end_item ? end_block : blocks;
    if (a.batch_invariant) {
      constexpr auto kBlocks = static_cast<int>(plan::kMlaPieceBlocks);
      const int cut = (block_ / kBlocks + 1) * kBlocks;
      if (cut < end) end = cut;
    }
    piece->rows = rows_of(a, item_, first_row_);
    piece->begin = block_;
    piece->seqlen = ldg(a.seqlens + piece->rows.request);
    piece->is_stale = a.tiles == nullptr && length != piece->seqlen;
    piece->end = piece->is_stale ? block_ : end;
    piece->index = index_++;
    piece->is_whole = planned(a, first + 1, 0) - planned(a, first, 0) == 1;
    block_ = end;
    if (block_ >= blocks) {
      ++item_;
      block_ = 0;
    }
    return true;
  }

 private:
  static constexpr int kNone = -1;
  const MlaDecodeParams& p_;
  int part_, first_row_;
  int item_, block_ = 0, index_ = 0;
};

}  // namespace moela::cuda::sm90
