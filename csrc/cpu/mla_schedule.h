// mla_schedule on the CPU: one walk over the requests. Definition: python/moela/reference/mla_schedule.py.
#pragma once

#include "plan/mla_schedule.h"

namespace moela::cpu {

struct MlaScheduleParams {
  const int32_t* seqlens;  // [B]
  int64_t B;
  int64_t rows;
  int64_t num_parts;
  bool batch_invariant;
  int32_t* schedule;  // [mla_schedule_rows(B, num_parts), 4]
};

// What the parts have to share: the cost of the batch, and the blocks of its longest request.
struct MlaWork {
  int64_t total = 0;
  int64_t most = 0;
};

inline int64_t mla_pieces_of(int64_t blocks, bool batch_invariant) {
  return batch_invariant ? plan::mla_fixed_pieces_of(blocks) : 1;
}

inline MlaWork mla_work(const MlaScheduleParams& p) {
  MlaWork work;
  for (int64_t b = 0; b < p.B; ++b) {
    const int64_t blocks = plan::mla_blocks_of(p.seqlens[b]);
    work.total += blocks + plan::mla_piece_cost(p.rows) * mla_pieces_of(blocks, p.batch_invariant);
    work.most = blocks > work.most ? blocks : work.most;
  }
  return work;
}

// The cost between the beginnings of two parts; 0: every request is a part of its own.
inline int64_t mla_share(const MlaScheduleParams& p, const MlaWork& work) {
  if (p.batch_invariant) return plan::mla_ceil_div(work.total, p.num_parts);
  const auto cost = [&](int64_t used) { return plan::mla_split_cost(work.total, used, p.rows, p.num_parts); };
  int64_t best = 1;
  for (int64_t used = 2; used <= p.num_parts; ++used) best = cost(used) < cost(best) ? used : best;
  if (p.B <= p.num_parts && plan::mla_whole_cost(work.most, p.rows) <= cost(best)) return 0;
  return plan::mla_ceil_div(work.total, best);
}

inline void mla_schedule(const MlaScheduleParams& p) {
  const int64_t piece_cost = plan::mla_piece_cost(p.rows), share = mla_share(p, mla_work(p));
  const auto write = [&](int64_t row, int64_t x, int64_t y, int64_t z, int64_t w = 0) {
    int32_t* to = p.schedule + row * plan::kMlaScheduleColumns;
    to[0] = static_cast<int32_t>(x), to[1] = static_cast<int32_t>(y);
    to[2] = static_cast<int32_t>(z), to[3] = static_cast<int32_t>(w);
  };
  write(0, p.B, p.num_parts, p.rows, p.batch_invariant);
  int64_t part = 0, begin = 0, piece = 0;  // the next part, and where the request begins
  for (int64_t b = 0; b < p.B; ++b) {
    const int64_t blocks = plan::mla_blocks_of(p.seqlens[b]);
    const int64_t pieces = mla_pieces_of(blocks, p.batch_invariant);
    const int64_t end = begin + blocks + piece_cost * pieces;
    int64_t cuts = 0;
    write(p.num_parts + 2 + b, piece, p.seqlens[b], 0);
    // Without a share part b begins with request b.
    for (; part <= p.num_parts && (share == 0 ? part == b : part * share < end); ++part) {
      const int64_t block =
          share == 0 ? 0 : plan::mla_block_at(part * share - begin, piece_cost, p.batch_invariant);
      if (p.batch_invariant)
        cuts = block / plan::kMlaPieceBlocks;
      else
        cuts += block > 0;
      write(1 + part, b, block, piece + cuts);
    }
    piece += p.batch_invariant ? pieces : 1 + cuts;
    begin = end;
  }
  for (; part <= p.num_parts; ++part) write(1 + part, p.B, 0, piece);
  write(p.num_parts + 2 + p.B, piece, 0, 0);
}

}  // namespace moela::cpu
