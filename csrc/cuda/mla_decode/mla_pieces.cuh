// The pieces of a part: what a thread block does of the schedule (python/moela/reference/mla_schedule.py).
#pragma once

#include "cuda/mla_decode/mla_params.cuh"

namespace moela::cuda::sm90 {

// Blocks [begin, end) of the keys of a request, for one tile of its rows.
struct MlaPiece {
  int request, begin, end;
  int seqlen;
  int index;      // among the pieces of all requests
  bool is_whole;  // the only one of its request: its result is the request's
  bool is_stale;  // the schedule was made for another length: nothing is read, the result is NaN
};

class MlaPieces {
 public:
  MOELA_DEVICE MlaPieces(const MlaDecodeParams& p, int part)
      : schedule_(p.args.schedule), seqlens_(p.args.seqlens), requests_(p.num_parts + 2) {
    const Vec4 header = row(0), begin = row(1 + part), end = row(2 + part);
    is_fixed_ = (header.w & 1) != 0;
    request_ = static_cast<int>(begin.x);
    block_ = static_cast<int>(begin.y);
    index_ = static_cast<int>(begin.z);
    end_request_ = static_cast<int>(end.x);
    end_block_ = static_cast<int>(end.y);
  }

  MOELA_DEVICE bool next(MlaPiece* piece) {
    if (request_ > end_request_ || (request_ == end_request_ && block_ >= end_block_)) return false;
    const Vec4 first = row(requests_ + request_), next = row(requests_ + request_ + 1);
    const int planned = static_cast<int>(first.y);
    const int blocks = (planned + plan::kMlaSm90Keys - 1) / plan::kMlaSm90Keys;
    int end = request_ == end_request_ ? end_block_ : blocks;
    if (is_fixed_) {
      const int cut = (block_ / kFixedBlocks + 1) * kFixedBlocks;
      if (cut < end) end = cut;
    }
    piece->request = request_;
    piece->begin = block_;
    piece->seqlen = ldg(seqlens_ + request_);
    piece->is_stale = piece->seqlen != planned;
    piece->end = piece->is_stale ? block_ : end;
    piece->index = index_++;
    piece->is_whole = next.x - first.x == 1;
    block_ = end;
    if (block_ >= blocks) {
      ++request_;
      block_ = 0;
    }
    return true;
  }

 private:
  static constexpr int kFixedBlocks = 32;  // of a piece of a batch-invariant schedule

  MOELA_DEVICE Vec4 row(int i) const { return ldg(reinterpret_cast<const Vec4*>(schedule_) + i); }

  const int32_t* schedule_;
  const int32_t* seqlens_;
  int requests_;  // the row of request 0
  bool is_fixed_;
  int request_, block_, index_, end_request_, end_block_;
};

}  // namespace moela::cuda::sm90
