// The cost model of mla_schedule, in whole numbers, and where a cost lies in a request: pure functions for
// the CPU and for kernels. What costs stand for: python/moela/reference/mla_schedule.py.
#pragma once

#include <cstdint>

namespace moela::plan {

constexpr int64_t kMlaBlock = 64;        // keys
constexpr int64_t kMlaPieceBlocks = 32;  // of a piece with batch_invariant
constexpr int64_t kMlaCostUnit = 1024;   // costs of parts are counted in 1/1024 block
constexpr int64_t kMlaMaxParts = 1024;
constexpr int64_t kMlaMaxRows = 1 << 20;
constexpr int64_t kMlaScheduleColumns = 4;

constexpr int64_t mla_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int64_t mla_blocks_of(int32_t seqlen) { return seqlen <= 0 ? 0 : mla_ceil_div(seqlen, kMlaBlock); }

// Of a request, with batch_invariant.
constexpr int64_t mla_fixed_pieces_of(int64_t blocks) {
  return blocks == 0 ? 1 : mla_ceil_div(blocks, kMlaPieceBlocks);
}

// Blocks: 1 + rows * (1152 + 2048) / (64 * 1152), rounded up.
constexpr int64_t mla_piece_cost(int64_t rows) { return 1 + mla_ceil_div(rows * 25, 576); }

// Of one more part that is used, in units: 1/32 + rows * 2048 / (64 * 1152 * num_parts), rounded up.
constexpr int64_t mla_merge_cost(int64_t rows, int64_t num_parts) {
  return kMlaCostUnit / 32 + mla_ceil_div(rows * 256, 9 * num_parts);
}

// In units: a batch of `total` blocks' worth that `used` parts share.
constexpr int64_t mla_split_cost(int64_t total, int64_t used, int64_t rows, int64_t num_parts) {
  return kMlaCostUnit * mla_ceil_div(total, used) + mla_merge_cost(rows, num_parts) * used +
         (used > 1 ? kMlaCostUnit * (mla_piece_cost(rows) + 1) : 0);
}

// In units: every request a part of its own, the longest of `most` blocks.
constexpr int64_t mla_whole_cost(int64_t most, int64_t rows) {
  return kMlaCostUnit * (most + mla_piece_cost(rows));
}

// The block of a request that a part begins with which begins `offset` after the cost of the request does.
constexpr int64_t mla_block_at(int64_t offset, int64_t piece_cost, bool batch_invariant) {
  if (batch_invariant) return offset / (kMlaPieceBlocks + piece_cost) * kMlaPieceBlocks;
  return offset < piece_cost ? 0 : offset - piece_cost;
}

constexpr int64_t mla_schedule_rows(int64_t B, int64_t num_parts) { return 1 + num_parts + 1 + B + 1; }

}  // namespace moela::plan
