// The pieces of a part: what a thread block does of the schedule (python/moela/reference/mla_schedule.py).
#pragma once

#include "cuda/mla_decode/mla_params.cuh"
#include "plan/mla_schedule.h"

namespace moela::cuda::sm90 {

// Blocks [begin, end) of the keys of a request, for one tile of its rows.
struct MlaPiece {
  int request, begin, end;
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
  return planned(a, 0, 0) == a.B && planned(a, 0, 1) == p.num_parts && planned(a, 0, 2) == a.s_q * a.H &&
         planned(a, 0, 3) == (a.batch_invariant ? 1 : 0) && planned(a, p.num_parts + 2 + a.B, 0) <= a.pieces;
}

class MlaPieces {
 public:
  MOELA_DEVICE MlaPieces(const MlaDecodeParams& p, int part) : args_(p.args), requests_(p.num_parts + 2) {
    if (!is_scheduled(p)) return;
    request_ = planned(args_, 1 + part, 0);
    block_ = planned(args_, 1 + part, 1);
    index_ = planned(args_, 1 + part, 2);
    end_request_ = planned(args_, 2 + part, 0);
    end_block_ = planned(args_, 2 + part, 1);
  }

  MOELA_DEVICE bool next(MlaPiece* piece) {
    if (request_ > end_request_ || (request_ == end_request_ && block_ >= end_block_)) return false;
    const int first = requests_ + request_, seqlen = planned(args_, first, 1);
    const auto blocks = static_cast<int>(plan::mla_blocks_of(seqlen));
    int end = request_ == end_request_ ? end_block_ : blocks;
    if (args_.batch_invariant) {
      constexpr auto kBlocks = static_cast<int>(plan::kMlaPieceBlocks);
      const int cut = (block_ / kBlocks + 1) * kBlocks;
      if (cut < end) end = cut;
    }
    piece->request = request_;
    piece->begin = block_;
    piece->seqlen = seqlen;
    piece->is_stale = seqlen != ldg(args_.seqlens + request_);
    piece->end = piece->is_stale ? block_ : end;
    piece->index = index_++;
    piece->is_whole = planned(args_, first + 1, 0) - planned(args_, first, 0) == 1;
    block_ = end;
    if (block_ >= blocks) {
      ++request_;
      block_ = 0;
    }
    return true;
  }

 private:
  const MlaDecodeArgs& args_;
  int requests_;  // the row of request 0
  int request_ = 0, block_ = 0, index_ = 0, end_request_ = 0, end_block_ = 0;
};

}  // namespace moela::cuda::sm90
